"""The sample-efficiency grid on a language model's activations, small."""

from __future__ import annotations

import dataclasses

import pytest
import torch

pytest.importorskip("transformers", reason="needs transformers: pip install -e '.[llm]'")

from experiments import activations, llm, mnist, runs
from experiments.errors import UsageError
from experiments.files import read_results
from experiments.paper import LANGUAGE_MODEL, paper_parts, plan
from splinterp.data import LanguageModel

SMALL = dataclasses.replace(
    llm.CONFIG, k=4, n_latents=32, activations=("TopK",), shares=(0.2, 0.5), full_from=2.0, early_epochs=1, long_steps=3, seeds=(0, 1),
    grid=(1e-3, 2e-3),
)  # fmt: skip


@pytest.fixture
def few_tokens(tmp_path, monkeypatch):
    try:
        LanguageModel.load("minilm")
    except ImportError as error:
        pytest.skip(str(error))
    monkeypatch.setenv("SPLINTERP_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("SPLINTERP_DATA", raising=False)
    monkeypatch.setattr(runs, "TOKEN_POOL", 1_000)
    for name in ("N_VALIDATION", "N_TEST"):
        monkeypatch.setattr(activations, name, 300)
    activations.raw_tokens.cache_clear()
    yield
    activations.raw_tokens.cache_clear()


def test_the_grid_runs_on_tokens(few_tokens, tmp_path):
    args = mnist.arguments(["--out", str(tmp_path)])
    args.parts = ("sizes",)
    results = read_results(mnist.main(SMALL, args, "llm-minilm-3"))
    assert {row["n_train"] for row in results["rows"]} == {200, 500}
    assert len(results["verdicts"]) == 2 * 2
    assert all(0 < value < 1.5 for row in results["rows"] for value in row["fvu"])
    assert results["data"]["name"] == "MiniLM (Python's documentation)"
    assert {record["run"]["source"] for record in read_results(tmp_path / "llm-minilm-3-runs.json")["records"]} == {
        results["data"]["key"]
    }


def test_subsets_are_drawn_and_standardised_by_themselves(few_tokens):
    run = SMALL.run("TopK", 0.2, "early")
    one, other = (runs.split(dataclasses.replace(run, seed=seed)) for seed in (0, 1))
    assert one.x.shape == (200, 384)
    assert not torch.equal(one.x, other.x)
    assert float(one.x.mean()) == pytest.approx(0.0, abs=1e-4)
    assert float(one.x.std()) == pytest.approx(1.0, abs=1e-3)
    assert run.batch_size == 256
    assert dataclasses.replace(run, method="PAM", lr=1e-3).recipe()


def test_last_tokens_of_texts(few_tokens, monkeypatch):
    monkeypatch.setattr(runs, "TEXT_POOL", 90)
    activations.last_tokens.cache_clear()
    config = dataclasses.replace(
        LANGUAGE_MODEL,
        data="minilm-3@last",
        n_latents=24,
        k=6,
        epochs=1,
        shares=(0.5,),
        ablation_shares=(0.5,),
        ks=(3,),
        seeds=(0,),
    )
    run = dataclasses.replace(config.run("PAM published", "AbsTopK", 0.5, ()), lr=1e-3)
    data = runs.split(run)
    assert [len(part) for part in data] == [45, 10, 10]
    torch.testing.assert_close(data.x.std(0, correction=0), torch.ones(384), atol=1e-3, rtol=0)  # each column by itself
    assert dict(run.options) == {"solve_first": True, "clip": 1.0}
    parts = {part for part, *_ in plan(config)}
    assert parts == {"sizes", "k", "encoder_updates", "weight_decay", "mu_nu_pull"}
    assert set(paper_parts(config)) == parts
    pulls = [run for part, _, strength, run in plan(config) if part == "mu_nu_pull" and strength == 1.0]
    assert dict(pulls[0].options)["nu"] == 0.0
    assert 0 < runs.execute(run)["test_last"]["fvu"] < 10
    activations.last_tokens.cache_clear()


def test_another_pool_keeps_the_sizes():
    def sizes(config):
        return [config.run("TopK", share, "early").n_train for share in (*config.shares, *config.relu_shares)]

    other = llm.with_pool(llm.CENTRED, 72_000)
    assert sizes(other) == sizes(llm.CENTRED) == [1_000, 9_000, 36_000, 9_000]
    assert other.run("TopK", other.shares[0], "early").pool == 72_000
    assert llm.with_pool(llm.CONFIG, 72_000).shares[-1] == 1  # the whole pool stays the whole
    with pytest.raises(UsageError, match=r"36,000 tokens are drawn"):
        llm.with_pool(llm.CENTRED, 36_000)
