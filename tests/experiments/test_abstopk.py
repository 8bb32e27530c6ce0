"""The comparison of signs on a language model's activations, small: Python's documentation through MiniLM."""

from __future__ import annotations

import pytest

pytest.importorskip("transformers", reason="needs transformers: pip install -e '.[llm]'")

from experiments import __main__ as command_line
from experiments import abstopk, activations, small_gpt2, sources, texts
from experiments.errors import UsageError
from experiments.files import read_results
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
        activations.raw_tokens.cache_clear()
        out = tmp_path_factory.mktemp("abstopk")
        yield abstopk.main(SMALL, out), out
        activations.raw_tokens.cache_clear()


def test_table_is_complete(small, capsys, monkeypatch):
    path, out = small
    results = read_results(path)
    assert [r["activation"] for r in results["signs"]] == list(abstopk.ACTIVATIONS)
    assert results["data"]["name"] == "MiniLM (Python's documentation)"
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
    monkeypatch.setattr(abstopk, "measure", None)  # a rerun has nothing to do
    abstopk.main(SMALL, out)


def test_splits_are_of_different_documents(small):
    train, test, _ = texts.documents(None)
    assert not set(train) & set(test)
    data = activations.tokens("minilm", 3, 1_500, None)
    assert [len(part) for part in data[:3]] == [1_500, 400, 600]
    assert float(data.x.mean()) == pytest.approx(0.0, abs=1e-4)
    assert float(data.x.std()) == pytest.approx(1.0, abs=1e-3)
    with pytest.raises(UsageError, match="training tokens, fewer than the 10,000,000 needed"):
        activations.tokens("minilm", 3, 10**7, None)


def test_a_causal_model_has_its_loss_measured(tmp_path, monkeypatch):
    """The small GPT-2, hardly trained: the numbers are those of `measure_loss`, whatever they are."""
    monkeypatch.setenv("SPLINTERP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(activations, "N_VALIDATION", 200)
    monkeypatch.setattr(activations, "N_TEST", 300)
    monkeypatch.setattr(abstopk, "N_SEQUENCES", 3)
    tiny = small_gpt2.Config(n_layer=2, n_embd=16, n_head=2, context=64, vocabulary=400, steps=5, batch_size=2)
    load = small_gpt2.load
    monkeypatch.setattr(small_gpt2, "load", lambda: load(tiny))
    monkeypatch.setattr(small_gpt2, "recipe", lambda config=None, recipe=small_gpt2.recipe: recipe(config or tiny))
    caches = (activations.raw_tokens, texts.language_model, sources._text_and_model)
    for cached in caches:
        cached.cache_clear()
    for module in (activations, texts):
        monkeypatch.setattr(module, "CONTEXT", 64)
    monkeypatch.setattr(abstopk, "CONTEXT", 64)
    config = abstopk.Config(
        model="small-gpt2", causal=True, layers=(1,), activations=("TopK",), k=4, n_latents=32, n_train=1_000, epochs=1, grid=(1e-3,),
        seeds=(0, 1),
    )  # fmt: skip
    results = read_results(abstopk.main(config, tmp_path))
    for test in results["signs"][0]["test"]:
        loss = test["loss"]
        assert loss["n_tokens"] > 100
        assert loss["recovered_mean"] == pytest.approx(
            (loss["mean"] - loss["patched"]) / (loss["mean"] - loss["clean"]), rel=1e-2
        )
    assert len(list((tmp_path / "cache").glob("small-gpt2-*"))) == 1
    assert load(tiny).n_layers == 2  # from the cache
    for cached in caches:
        cached.cache_clear()
