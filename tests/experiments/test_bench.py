"""Every bench from end to end, small; what they compare computes the same."""

from __future__ import annotations

import pytest
import torch

from experiments import bench
from experiments.benches import extract, solve, timing
from experiments.benches.train import our_step, plain_step
from experiments.files import read_results
from splinterp import SGD
from splinterp.data import LanguageModel, pack_tokens
from splinterp.data._passes import padded


@pytest.fixture
def minilm():
    pytest.importorskip("transformers", reason="needs transformers: pip install -e '.[llm]'")
    try:
        return LanguageModel.load("minilm")
    except ImportError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize(
    "name",
    [
        "train",
        "readout",
        "ridge",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("solve", "scale", "memory", "processes", "fit")),
    ],
)
def test_benches_run(name, tmp_path, capsys):
    results = read_results(bench.command([name, "--quick", "--out", str(tmp_path)]))
    assert results["bench"] == name
    assert all(table["rows"] for table in results["tables"])
    assert results["tables"][0]["title"] in capsys.readouterr().out


def test_the_extraction_bench_runs(minilm, tmp_path):
    results = read_results(bench.command(["extract", "--quick", "--out", str(tmp_path)]))
    assert [row[1] for row in results["tables"][0]["rows"]][:2] == ["forward passes alone", "to memory"]


def test_the_forward_passes_give_what_extraction_keeps(minilm):
    sequences = pack_tokens(minilm.tokenizer, ["Short.", "A somewhat longer text of a few more words."], 32)
    ids, mask = padded(sequences.ids)
    with torch.no_grad():
        ours = extract.truncated(minilm, 3)(input_ids=ids, attention_mask=mask).last_hidden_state
        theirs = minilm.hidden(ids, mask, 3, "residual")
    torch.testing.assert_close(ours[mask.bool()], theirs[mask.bool()], rtol=1e-4, atol=1e-5)


def test_both_solves_find_the_same_decoder():
    top, x = solve.problem(400, 6, 30, 4)
    theirs, ours = solve.published(top, x, 30), solve.ours(top, x, 30, torch.float64)
    torch.testing.assert_close(theirs, ours.float(), rtol=1e-3, atol=1e-4)


def test_medians_are_of_works_that_take_turns():
    order = []
    seconds = timing.interleaved({name: lambda name=name: order.append(name) for name in "ab"}, repeats=2)
    assert order == ["a", "b"] * 3
    assert set(seconds) == {"a", "b"}


def test_steps_train():
    x = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    plain_step(8, 32, 3, x)()
    our_step(8, 32, 3, x, SGD(), "tied")()
