"""An SAE inside a model, against sequences run one by one and SAEs whose answer is known."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from splinterp import SAE, AbsTopK, TopK
from splinterp.data import Standardizer, TokenSequences, extract_activations, pack_tokens
from splinterp.language.interventions import latent_effect, measure_loss
from tests.data.tiny_models import letters, tiny
from tests.helpers import rng

DOCUMENTS = [letters(n, seed=n) for n in (30, 2, 17, 1, 9)]
CAUSAL = "GPT-2 with head"


def identity_sae(d=16):
    """Codes of every sign and all latents: x_hat = x, exactly."""
    sae = SAE(d, d, AbsTopK(d))
    with torch.no_grad():
        sae.W_enc.copy_(torch.eye(d))
        sae.W_dec.copy_(torch.eye(d))
    return sae.eval()


@pytest.fixture(scope="module")
def lm():
    return tiny(CAUSAL)


@pytest.fixture(scope="module")
def packed(lm):
    return pack_tokens(lm.tokenizer, DOCUMENTS, context=12)


def cross_entropy(lm, packed, layer=None, edit=None):
    """Sequence by sequence, without padding."""
    total, n = 0.0, 0
    for ids in packed.ids:
        tokens = torch.tensor([ids])
        if layer is None:
            logits = lm.logits(tokens, torch.ones_like(tokens))
        else:
            with lm.edited(layer, "residual", edit):
                logits = lm.logits(tokens, torch.ones_like(tokens))
        total += float(F.cross_entropy(logits[0, :-1], tokens[0, 1:], reduction="sum"))
        n += len(ids) - 1
    return total / n


@pytest.mark.parametrize("layer", [0, 2])
@pytest.mark.parametrize("batch_tokens", [None, 1, 30])
def test_losses_equal_those_of_sequences_one_by_one(lm, packed, layer, batch_tokens):
    sae = SAE(16, 40, TopK(3), generator=rng(1)).eval()
    x = extract_activations(lm, packed, layer).x
    standardizer = Standardizer("global").fit(x)

    def reconstruct(value):
        with torch.no_grad():
            return standardizer.inverse(sae(standardizer.transform(value[0])).x_hat)[None]

    found = measure_loss(lm, sae, packed, layer, standardizer=standardizer, batch_tokens=batch_tokens)
    assert found.clean == pytest.approx(cross_entropy(lm, packed), rel=1e-4)
    assert found.patched == pytest.approx(cross_entropy(lm, packed, layer, reconstruct), rel=1e-4)
    assert found.zero == pytest.approx(cross_entropy(lm, packed, layer, torch.zeros_like), rel=1e-4)
    mean = x.mean(0)
    assert found.mean == pytest.approx(cross_entropy(lm, packed, layer, lambda v: mean.expand_as(v)), rel=1e-4)
    assert found.n_tokens == sum(len(ids) - 1 for ids in packed.ids)
    assert found.kl > 0
    assert found.loss_recovered("zero") == pytest.approx((found.zero - found.patched) / (found.zero - found.clean))
    assert found.loss_recovered("mean") != found.loss_recovered("zero")
    other = measure_loss(lm, sae, packed, layer, standardizer=standardizer, mean=torch.ones(16))
    assert other.mean != pytest.approx(found.mean, rel=1e-6)


@pytest.mark.parametrize("site", ["residual", "mlp", "attention"])
def test_a_perfect_reconstruction_recovers_everything(lm, packed, site):
    found = measure_loss(lm, identity_sae(), packed, 2, site)
    assert found.patched == pytest.approx(found.clean, rel=1e-6)
    assert found.kl == pytest.approx(0.0, abs=1e-5)
    assert found.loss_recovered() == pytest.approx(1.0, abs=1e-3)


def test_special_tokens_keep_their_activations(lm):
    """With documents laid end to end, the token between them is neither edited nor predicted."""
    packed = pack_tokens(lm.tokenizer, ["a b c", "d e f"], context=8, across_documents=True)
    seen = []

    class Watching(SAE):
        def encode(self, x):
            seen.append(len(x))
            return super().encode(x)

    found = measure_loss(lm, Watching(16, 3, TopK(1), generator=rng(1)).eval(), packed, 1)
    assert sum(seen) == 6
    assert found.n_tokens == 5  # b, c, d (after the mark), e, f


def test_setting_a_latent_changes_its_own_part_only(lm, packed):
    ids, sae = packed.ids[0], identity_sae()
    nothing = latent_effect(lm, SAE(16, 40, TopK(1), generator=rng(2)).eval(), ids, 2, 39, 0.0)
    ablated = latent_effect(lm, sae, ids, 2, latent=3)

    def without(x):
        x = x.clone()
        x[..., 3] = 0.0
        return x

    tokens = torch.tensor([ids])
    with lm.edited(2, "residual", without):
        expected = F.log_softmax(lm.logits(tokens, torch.ones_like(tokens))[0, -1], dim=0)
    torch.testing.assert_close(ablated.after, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(nothing.before, ablated.before)
    assert ablated.kl > 0
    clamped = latent_effect(lm, sae, ids, 2, latent=3, value=5.0)
    assert clamped.kl > ablated.kl
    up, down = clamped.largest(3)
    change = clamped.after - clamped.before
    assert float(change[up].min()) >= float(change.median()) >= float(change[down].max())


def test_a_latent_is_set_in_the_standardized_space(lm, packed):
    ids, sae = packed.ids[0], identity_sae()
    x = extract_activations(lm, packed, 2).x
    standardizer = Standardizer("per_feature").fit(x)
    effect = latent_effect(lm, sae, ids, 2, latent=3, standardizer=standardizer)

    def at_mean(value):
        value = value.clone()
        value[..., 3] = float(standardizer.mean[3])
        return value

    tokens = torch.tensor([ids])
    with lm.edited(2, "residual", at_mean):
        expected = F.log_softmax(lm.logits(tokens, torch.ones_like(tokens))[0, -1], dim=0)
    torch.testing.assert_close(effect.after, expected, rtol=1e-3, atol=1e-4)
    left = latent_effect(lm, sae, ids, 2, latent=3, special=[1] * len(ids))
    torch.testing.assert_close(left.after, left.before)


def test_bad_input_is_named(lm, packed):
    sae = identity_sae()
    with pytest.raises(TypeError, match="causal=True"):
        measure_loss(tiny("BERT"), sae, packed, 1)
    with pytest.raises(ValueError, match="nothing to predict"):
        measure_loss(lm, sae, TokenSequences([[5]], [[0]], [[0]]), 1)
    with pytest.raises(ValueError, match="no sequences"):
        measure_loss(lm, sae, packed.take(0, 0), 1)
    with pytest.raises(ValueError, match="layer=9"):
        measure_loss(lm, sae, packed, 9)
    with pytest.raises(ValueError, match="latent=16"):
        latent_effect(lm, sae, packed.ids[0], 1, 16)
    with pytest.raises(ValueError, match="ids is empty"):
        latent_effect(lm, sae, [], 1, 0)
    found = measure_loss(lm, sae, packed, 1)
    with pytest.raises(ValueError, match="known: 'zero', 'mean'"):
        found.loss_recovered("random")
