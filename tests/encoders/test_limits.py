"""The limits in which an encoder is another one, and its definition by hand."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from splinterp import SAE, ReLU, TopK
from splinterp.encoders import AdaptiveK, Gated, Kronecker, fit_probe
from tests.encoders.cases import make
from tests.helpers import rng, samples

X = samples(80, dtype=torch.float64)


@given(seed=st.integers(0, 10**6), kind=st.sampled_from(["ReLU", "TopK"]))
def test_a_gate_with_equal_biases_and_no_gain_is_its_activation(seed, kind):
    activation = ReLU() if kind == "ReLU" else TopK(3)
    plain = SAE(8, 12, activation, generator=rng(seed), dtype=torch.float64)
    gated = SAE(8, 12, activation, encoder=Gated(), generator=rng(seed), dtype=torch.float64)
    with torch.no_grad():
        plain.b_enc.copy_(torch.randn(12, generator=rng(seed + 1), dtype=torch.float64))
        gated.b_enc.copy_(plain.b_enc)
        gated.b_mag.copy_(plain.b_enc)
    torch.testing.assert_close(gated.encode(X), plain.encode(X), atol=1e-12, rtol=0)


@given(seed=st.integers(0, 10**6))
def test_the_gate_is_its_formula(seed):
    sae = make("Gated", seed=seed % 1000)
    scores = (X - sae.b_pre) @ sae.W_enc
    gate, magnitude = scores + sae.b_enc > 0, torch.relu(sae.r_mag.exp() * scores + sae.b_mag)
    torch.testing.assert_close(sae.encode(X), gate * magnitude)


@given(seed=st.integers(0, 10**6), k=st.integers(1, 6))
def test_pairs_of_one_with_itself_are_an_ordinary_encoder(seed, k):
    m = 6
    pairs = SAE(8, m, TopK(k), encoder=Kronecker(heads=m, left=1, right=1), generator=rng(seed), dtype=torch.float64)
    plain = SAE(8, m, TopK(k), generator=rng(seed), dtype=torch.float64)
    with torch.no_grad():
        pairs.W_enc[:, m:] = pairs.W_enc[:, :m]
        pairs.b_enc.copy_(torch.randn(m, generator=rng(seed + 1), dtype=torch.float64).repeat(2))
        plain.W_enc.copy_(pairs.W_enc[:, :m])
        plain.b_enc.copy_(pairs.b_enc[:m])
    torch.testing.assert_close(pairs.encode(X), plain.encode(X), atol=1e-12, rtol=0)


@given(heads=st.integers(1, 3), left=st.integers(1, 3), right=st.integers(1, 4), seed=st.integers(0, 10**6))
def test_pairs_are_their_definition(heads, left, right, seed):
    m = heads * left * right
    sae = SAE(8, m, ReLU(), encoder=Kronecker(heads, left, right), generator=rng(seed), dtype=torch.float64)
    P, Q = sae.W_enc[:, : heads * left], sae.W_enc[:, heads * left :]
    u, v = (X[:5] @ P).detach(), (X[:5] @ Q).detach()
    found = sae.pre_acts(X[:5])
    for h in range(heads):
        for i in range(left):
            for j in range(right):
                a, b = u[:, h * left + i], v[:, h * right + j]
                expected = torch.tensor(
                    [math.sqrt(p * q) if p > 0 and q > 0 else 0.0 for p, q in zip(a.tolist(), b.tolist(), strict=True)]
                )
                latent = (h * left + i) * right + j
                torch.testing.assert_close(found[:, latent], expected.double())
                row = P[:, h * left + i] + Q[:, h * right + j]
                torch.testing.assert_close(sae.W_dec[latent], row / row.norm())
    assert torch.isfinite(torch.autograd.grad(found.sum(), sae.W_enc)[0]).all()


def test_silent_pairs_are_exactly_silent():
    sae = SAE(8, 24, TopK(24), encoder=Kronecker(heads=3), generator=rng(0), dtype=torch.float64)
    acts = sae.encode(X)
    assert 0.1 < float((acts == 0).double().mean()) < 0.95


@given(seed=st.integers(0, 10**6), scale=st.sampled_from([0.05, 0.3, 1.0, 5.0]))
def test_afa_keeps_the_number_whose_norm_is_nearest(seed, scale):
    sae = make("TopAFA", seed=seed % 1000)
    with torch.no_grad():
        sae.W_enc.mul_(scale)
    acts = sae.encode(X)
    scores = torch.relu(sae.pre_acts(X)).detach()
    norms = sae.W_dec.norm(dim=1).detach()
    for row, x in enumerate(X):
        target = float((x - sae.b_dec.detach()).norm())
        sizes = scores[row] * norms
        order = sorted(range(12), key=lambda i: -float(sizes[i]))
        gaps = [abs(math.sqrt(sum(float(sizes[i]) ** 2 for i in order[:k])) - target) for k in range(1, 13)]
        kept = acts[row].detach()
        k = max(1, int((kept > 0).sum()))
        assert gaps[k - 1] <= min(gaps) + 1e-9
        assert set(kept.nonzero().flatten().tolist()) <= set(order[:k])
        torch.testing.assert_close(kept[kept > 0], scores[row][kept > 0])


def test_smaller_scores_make_afa_keep_more():
    sae, counts = make("TopAFA"), []
    for scale in (1.0, 0.3, 0.1):
        with torch.no_grad():
            sae.W_enc.mul_(scale)
            sae.b_enc.mul_(scale)
        counts.append(float((sae.encode(X) > 0).sum()))
    assert counts == sorted(counts)
    assert counts[0] < counts[-1]


def test_afa_of_a_sample_at_the_bias_keeps_one():
    sae = make("TopAFA")
    with torch.no_grad():
        sae.b_dec.copy_(X[0])
        sae.b_enc.fill_(0.5)
    assert int((sae.encode(X[:1]) > 0).sum()) == 1


@given(seed=st.integers(0, 10**6), k=st.integers(1, 12))
def test_a_probe_of_nothing_is_topk(seed, k):
    plain = SAE(8, 12, TopK(k), init_bias=0.0, generator=rng(seed), dtype=torch.float64)
    sae = SAE(8, 12, ReLU(), encoder=AdaptiveK(k, k), generator=rng(seed), dtype=torch.float64)
    torch.testing.assert_close(sae.encode(X), plain.encode(X))


def test_published_scores_give_the_published_counts():
    encoder = AdaptiveK()
    sae = SAE(1, 320, ReLU(), encoder=encoder, b_pre=False, dtype=torch.float64, generator=0)
    with torch.no_grad():
        sae.W_enc.fill_(0.0)
        sae.b_enc.copy_(torch.linspace(1, 2, 320, dtype=torch.float64))
        sae.probe.fill_(1.0)
    scores = torch.tensor([[0.0], [5.0], [10.0]], dtype=torch.float64)
    assert (sae.encode((scores - 5) / 2.5) > 0).sum(1).tolist() == [34, 170, 306]


def test_the_fitted_probe_gives_harder_samples_more():
    sae = SAE(8, 12, ReLU(), encoder=AdaptiveK(1, 9, slope=3.0), generator=0, dtype=torch.float64)
    with torch.no_grad():
        sae.b_enc.fill_(10.0)  # every score is positive
        sae.b_pre.copy_(X.mean(0))
    assert (sae.encode(X) > 0).sum(1).unique().tolist() == [5]
    hardness = 100 + 7 * X[:, 0]
    assert fit_probe(sae, X, hardness) > 0.999
    predicted = X @ sae.probe + sae.probe_bias
    assert float(predicted.mean()) == pytest.approx(0.0, abs=1e-9)
    assert float(predicted.std()) == pytest.approx(1.0, abs=1e-9)
    k = (sae.encode(X) > 0).sum(1)
    order = X[:, 0].argsort()
    assert (k[order].diff() >= 0).all()
    assert k.min() < 3
    assert k.max() > 7


@pytest.mark.parametrize(
    ("hardness", "words"),
    [(torch.ones(80), "same for all"), (torch.arange(79.0), r"\(79,\)"), (torch.full((80,), math.nan), "finite")],
)
def test_hardness_that_says_nothing_is_refused(hardness, words):
    with pytest.raises(ValueError, match=words):
        fit_probe(make("AdaptiveK"), X, hardness)


def test_only_an_adaptive_k_has_a_probe():
    with pytest.raises(TypeError, match="AdaptiveK"):
        fit_probe(make("TopAFA"), X, X[:, 0])
