"""The comparison of signs on a language model's activations, small: Python's documentation through MiniLM."""

from __future__ import annotations

import pytest

pytest.importorskip("transformers", reason="needs transformers: pip install -e '.[llm]'")

from experiments import __main__ as command_line
from experiments import abstopk, activations
from experiments.store import read_results
from splinterp.data import LanguageModel

SMALL = abstopk.Config(k=4, n_latents=64, n_train=1_500, epochs=1, grid=(1e-3, 4e-3), seeds=(0, 1))


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    try:
        LanguageModel.load("minilm")
    except ImportError as error:
        pytest.skip(str(error))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPLINTERP_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(activations, "N_VALIDATION", 400)
        patch.setattr(activations, "N_TEST", 600)
        patch.delenv("SPLINTERP_DATA", raising=False)
        activations.tokens.cache_clear()
        out = tmp_path_factory.mktemp("abstopk")
        yield abstopk.main(SMALL, out), out, patch
        activations.tokens.cache_clear()


def test_table_is_complete(small, capsys):
    path, out, patch = small
    results = read_results(path)
    assert [r["activation"] for r in results["signs"]] == list(abstopk.ACTIVATIONS)
    assert results["text"] == "python documentation"
    for r in results["signs"]:
        assert len(r["test"]) == len(SMALL.seeds)
        assert len(r["likeness"][0]) == 1
        medians = [t["minority"]["q50"] for t in r["test"]]
        if r["activation"] == "AbsTopK":
            assert min(medians) > 0
        else:
            assert max(m for m in medians if m == m) == 0  # non-negative codes
        allowed = 8 if r["activation"] == "JumpReLU" else 1e-9  # its thresholds were set before the few steps of this run
        assert all(abs(t["l0"] - SMALL.k) <= allowed for t in r["test"])
    assert command_line.main(["tables", str(path)]) == 0
    assert "minority share" in capsys.readouterr().out
    patch.setattr(abstopk, "measure", None)  # a rerun has nothing to do
    abstopk.main(SMALL, out)


def test_splits_are_of_different_documents(small):
    train, test, _ = activations.documents(None)
    assert not set(train) & set(test)
    data = activations.tokens("minilm", 3, 1_500, None)
    assert [len(part) for part in data] == [1_500, 400, 600]
    assert float(data.x.mean()) == pytest.approx(0.0, abs=1e-4)
    assert float(data.x.std()) == pytest.approx(1.0, abs=1e-3)
    with pytest.raises(ValueError, match="fewer than n_train"):
        activations.tokens("minilm", 3, 10**7, None)
