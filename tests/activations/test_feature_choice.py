"""FeatureChoice: counts of a batch, thresholds of all samples, and that they are those of bias adaptation."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from splinterp import SAE, BatchTopK, BiasAdaptation, DivergenceError, ReLU, fit
from splinterp.activations import FeatureChoice
from splinterp.geometry import region_of
from splinterp.metrics import evaluate
from splinterp.training import SGD
from splinterp.training.bias_block import quantile_bias
from tests.helpers import make_sae, rng, samples


def bound(activation, m):
    return activation.bind(m, torch.float64, torch.device("cpu"))


@given(
    n=st.integers(1, 30), m=st.integers(1, 12), k=st.integers(1, 4), exponent=st.sampled_from([0.0, 0.3, 0.6]),
    shift=st.sampled_from([0.0, 5.0]), seed=st.integers(0, 10**6), ties=st.booleans(),
)  # fmt: skip
def test_each_latent_keeps_its_largest(n, m, k, exponent, shift, seed, ties):
    if k > m or k / sum((i + 1 + shift) ** -exponent for i in range(m)) * (1 + shift) ** -exponent > 1:
        return
    u = torch.randn(n, m, generator=rng(seed), dtype=torch.float64) + 0.5
    u = u.round() if ties else u
    acts = bound(FeatureChoice(k, exponent, shift), m)(u)
    weights = [(i + 1 + shift) ** -exponent for i in range(m)]
    for i in range(m):
        count = min(max(round(k * weights[i] / sum(weights) * n), 1), n)
        best = u[:, i].relu().sort(descending=True).values[:count]
        torch.testing.assert_close(acts[:, i].sort(descending=True).values[:count], best)
        assert int((acts[:, i] != 0).sum()) <= count


def test_shares_sum_to_k_and_fall_as_zipf():
    shares = FeatureChoice(4, 0.5, 2.0).shares_of(64, 4)
    assert float(shares.sum()) == pytest.approx(4.0)
    assert float(shares[0] / shares[61]) == pytest.approx((64 / 3) ** 0.5)
    assert FeatureChoice(4, 0.0).shares_of(64, 4).tolist() == pytest.approx([1 / 16] * 64)


@given(n=st.integers(2, 60), m=st.integers(1, 10), seed=st.integers(0, 10**6), exponent=st.sampled_from([0.0, 0.5]))
def test_its_thresholds_are_the_biases_of_the_quantile_rule(n, m, seed, exponent):
    """Feature Choice on all samples fires where bias adaptation's quantile rule does at the same frequencies."""
    k = max(1, m // 3)
    x = torch.randn(n, 5, generator=rng(seed), dtype=torch.float64)
    try:
        chosen = SAE(5, m, FeatureChoice(k, exponent), generator=rng(seed + 1), dtype=torch.float64)
    except ValueError:
        return  # a share above 1
    adapted = SAE(5, m, ReLU(), generator=rng(seed + 1), dtype=torch.float64)
    shares = chosen.activation.shares_of(m, k)
    with torch.no_grad():
        adapted.b_enc.copy_(quantile_bias(adapted, x, shares, None))
    chosen.calibrate(x).eval()
    positive = chosen.pre_acts(x) > 0  # a negative score may make up the numbers of the other
    fires = chosen.encode(x) > 0
    assert torch.equal(fires, (adapted.encode(x) > 0) & positive)
    counts = (shares * n).round().clamp(1, n).long()
    assert torch.equal(fires.sum(0), torch.minimum(counts, positive.sum(0)))


@pytest.mark.parametrize("blocks", [1, 7, 50])
def test_calibration_in_blocks_is_calibration_at_once(blocks):
    u = torch.randn(50, 6, generator=rng(1), dtype=torch.float64)
    whole, parts = bound(FeatureChoice(2), 6), bound(FeatureChoice(2), 6)
    whole.calibrate([u], 50)
    parts.calibrate(iter(u.split(blocks)), 50)
    assert torch.equal(whole.threshold, parts.threshold)


def test_use_without_thresholds_and_shares_above_1_are_refused():
    with pytest.raises(RuntimeError, match="no thresholds yet"):
        make_sae("FeatureChoice").eval()(samples(4))
    with pytest.raises(ValueError, match=r"fire on 1\.\d+ of the samples: lower exponent, or raise shift"):
        SAE(8, 12, FeatureChoice(4, exponent=1.0))
    SAE(8, 12, FeatureChoice(4, exponent=1.0, shift=4.0))
    for options in ({"exponent": -1.0}, {"shift": -1.0}):
        with pytest.raises(ValueError, match=f"{next(iter(options))}=-1"):
            FeatureChoice(2, **options)


def test_trained_frequencies_are_the_shares_and_none_dies():
    x = samples(2_000)
    dead = []
    for activation in (FeatureChoice(4), BatchTopK(4)):
        sae = SAE(8, 64, activation, "tied_residual", init_bias=None if activation.fixes_frequencies else 0.0, generator=rng(1))
        fit(sae, x, SGD(lr=1e-2), epochs=8, batch_size=100, generator=0)
        found = evaluate(sae, x)
        dead.append(found.frac_dead)
        if isinstance(activation, FeatureChoice):
            shares = activation.shares_of(64, 4)
            assert float((found.frequencies - shares).abs().max()) < 0.02
    assert dead[0] == 0
    assert dead[1] > 0


def test_regions_are_those_of_its_thresholds():
    sae, x = make_sae("FeatureChoice", dtype=torch.float64), samples(100, dtype=torch.float64)
    with pytest.raises(RuntimeError, match="FeatureChoice"):
        region_of(sae, x[0])
    sae.calibrate(x).eval()
    for sample in x[:10]:
        region = region_of(sae, sample)
        acts = sae.encode(sample[None])[0]
        assert sorted(region.support.tolist()) == acts.nonzero().flatten().tolist()
        assert math.isfinite(region.margin)


def test_its_frequencies_are_not_the_biass_to_adapt():
    with pytest.raises(ValueError, match="whatever the bias"):
        BiasAdaptation(gain=1.0).init(make_sae("FeatureChoice"), samples())


def test_a_run_that_diverges_is_told_as_such():
    with pytest.raises(DivergenceError):
        fit(make_sae("FeatureChoice"), samples(100), SGD(lr=1e300, clip=None), epochs=3, batch_size=10, generator=0)
