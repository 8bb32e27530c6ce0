"""A saved SAE says what it is of, and is refused elsewhere."""

from __future__ import annotations

import json

import pytest
import torch

from splinterp import SAE, TopK
from splinterp.data import LanguageModel, Standardizer, TokenRules, extract_activations, pack_tokens
from splinterp.interop import fold_standardizer
from splinterp.language import (
    Place,
    ablation_graph,
    check_provenance,
    latent_effect,
    logit_attribution,
    measure_loss,
    top_tokens,
)
from tests.data.tiny_models import BUILDERS, letters, tiny, word_tokenizer
from tests.helpers import rng

DOCUMENTS = [letters(n) for n in (9, 30, 17)]


def saved(tmp_path, lm, layer=2):
    store = extract_activations(lm, DOCUMENTS, layer, context=12, folder=tmp_path / "store")
    standardizer = Standardizer("per_feature").fit(store)
    sae = SAE(16, 24, TopK(3), generator=rng(0))
    sae.save(tmp_path / "sae", standardizer, about={"activations": store.about, "note": "ours"})
    return SAE.load(tmp_path / "sae"), Standardizer.load(tmp_path / "sae"), store


def causal():
    torch.manual_seed(3)
    return LanguageModel(BUILDERS["GPT-2 with head"](), word_tokenizer(False), "tiny")


def test_what_was_said_is_read_again_and_kept_by_saving(tmp_path):
    lm = tiny("GPT-2")
    sae, standardizer, store = saved(tmp_path, lm)
    assert sae.about["activations"] == store.about
    assert sae.about["note"] == "ours"
    assert sae.about["standardizer"] == standardizer.fingerprint()
    sae.save(tmp_path / "again", standardizer)
    assert SAE.load(tmp_path / "again").about == sae.about
    sae.save(tmp_path / "bare", about={})
    assert SAE.load(tmp_path / "bare").about == {}
    assert "about" not in json.loads((tmp_path / "bare" / "sae.json").read_text())
    with pytest.raises((TypeError, ValueError)):
        sae.save(tmp_path / "bad", about={"x": float("nan")})
    with pytest.raises(TypeError):
        sae.save(tmp_path / "bad", about={"x": object()})
    path = tmp_path / "bare" / "sae.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "about": 3}))
    with pytest.raises(ValueError, match="about"):
        SAE.load(tmp_path / "bare")


@pytest.mark.parametrize("use", [measure_loss, latent_effect, check_provenance])
def test_another_model_layer_site_or_standardizer_is_refused(use, tmp_path):
    lm = causal()
    sae, standardizer, _ = saved(tmp_path, lm)
    sequences = pack_tokens(lm.tokenizer, DOCUMENTS, 12)

    def used(model=lm, layer=2, site="residual", standardizer=standardizer):
        if use is measure_loss:
            return use(model, sae, sequences, layer, site, standardizer=standardizer)
        if use is latent_effect:
            return use(model, sae, sequences.ids[0], layer, 3, site=site, standardizer=standardizer)
        return use(sae, model, layer, site, standardizer)

    used()
    other = causal()
    with torch.no_grad():
        next(other.model.parameters()).add_(1e-3)
    for options, message in (
        ({"layer": 1}, "trained on layer=2, not 1: pass layer=2"),
        ({"site": "mlp"}, "trained on site='residual', not 'mlp'"),
        ({"model": other}, "whose weights tiny does not have"),
        ({"standardizer": None}, "pass standardizer=Standardizer.load"),
        ({"standardizer": Standardizer("none").fit(torch.zeros(2, 16))}, "another standardizer"),
    ):
        with pytest.raises(ValueError, match=message):
            used(**options)
    with torch.no_grad():  # a weight that is written to is seen
        next(lm.model.parameters()).add_(1e-3)
    with pytest.raises(ValueError, match="whose weights"):
        used()


def test_an_sae_without_a_standardizer_refuses_one_and_one_that_says_nothing_takes_any(tmp_path):
    lm = causal()
    _, standardizer, store = saved(tmp_path, lm)
    plain = SAE(16, 24, TopK(3), generator=rng(0))
    check_provenance(plain, lm, 1, "mlp", standardizer)
    plain.save(tmp_path / "plain", about={"activations": store.about})
    loaded = SAE.load(tmp_path / "plain")
    check_provenance(loaded, lm, 2, "residual", None)
    with pytest.raises(ValueError, match="leave the standardizer out"):
        check_provenance(loaded, lm, 2, "residual", standardizer)


@pytest.mark.parametrize("mode", ["none", "global", "per_feature"])
@pytest.mark.parametrize("b_pre", [False, "fixed"])
def test_folding_the_standardizer_in_changes_nothing(mode, b_pre, tmp_path):
    x = 3 + 2 * torch.randn(60, 16, generator=rng(1), dtype=torch.float64)
    standardizer = Standardizer(mode).fit(x)
    sae = SAE(16, 24, TopK(3), "tied_residual", b_pre=b_pre, dtype=torch.float64, generator=rng(0))
    with torch.no_grad():
        for p in (*sae.parameters(), *sae.buffers()):
            p.add_(0.1 * torch.randn(p.shape, generator=rng(2), dtype=torch.float64))
    folded = fold_standardizer(sae, standardizer)
    seen = standardizer.transform(x)
    torch.testing.assert_close(folded.encode(x), sae.encode(seen))
    torch.testing.assert_close(folded(x).x_hat, standardizer.inverse(sae(seen).x_hat))
    lm = causal()
    saved_sae, own, _ = saved(tmp_path, lm)
    check_provenance(fold_standardizer(saved_sae, own), lm, 2, "residual", None)
    with pytest.raises(ValueError, match="unit_norm"):
        fold_standardizer(sae, Standardizer("unit_norm").fit(x))


def test_an_sae_that_is_saved_again_still_says_its_standardizer(tmp_path):
    lm = causal()
    sae, standardizer, _ = saved(tmp_path, lm)
    sae.save(tmp_path / "again")
    again = SAE.load(tmp_path / "again")
    check_provenance(again, lm, 2, "residual", standardizer)
    with pytest.raises(ValueError, match="pass standardizer"):
        check_provenance(again, lm, 2, "residual", None)
    for call in (logit_attribution, lambda *a, **k: top_tokens(*a, [1], **k)):
        call(lm, sae, standardizer=standardizer)
        with pytest.raises(ValueError, match="pass standardizer"):
            call(lm, sae)


def test_loss_is_of_the_tokens_that_the_sae_was_trained_on(tmp_path):
    lm = causal()
    store = extract_activations(lm, DOCUMENTS, 2, context=12, rules=TokenRules(skip_first=2), folder=tmp_path / "store")
    sae = SAE(16, 24, TopK(3), generator=rng(0))
    sae.save(tmp_path / "sae", about={"activations": store.about})
    loaded = SAE.load(tmp_path / "sae")
    sequences = pack_tokens(lm.tokenizer, DOCUMENTS, 12)
    found = measure_loss(lm, loaded, sequences, 2)
    seen = []

    class Watched(SAE):
        def encode(self, x):
            seen.append(len(x))
            return super().encode(x)

    assert found == measure_loss(lm, sae, sequences, 2, rules=TokenRules(skip_first=2))
    assert found.patched != measure_loss(lm, sae, sequences, 2).patched
    assert found.n_tokens == measure_loss(lm, sae, sequences, 2).n_tokens  # what is predicted is the same
    watched = Watched(16, 24, TopK(3), generator=rng(0))
    measure_loss(lm, watched, sequences, 2, rules=TokenRules(skip_first=2))
    assert sum(seen) == len(store)


def test_a_graph_upwards_only():
    lm = causal()
    sae, sequences = SAE(16, 24, TopK(3), generator=rng(0)), pack_tokens(causal().tokenizer, DOCUMENTS, 12)
    for lower, upper in (((2, "residual"), (1, "residual")), ((2, "residual"), (2, "mlp")), ((1, "mlp"), (1, "mlp"))):
        with pytest.raises(ValueError, match="is not below"):
            ablation_graph(lm, Place(sae, *lower), Place(sae, *upper), sequences, [1])
