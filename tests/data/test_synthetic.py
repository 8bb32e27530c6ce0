"""Synthetic features: exact sparsity and frequencies, every option, streams."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from splinterp.data.synthetic import SparseFeatures
from tests.helpers import rng


@given(st.integers(1, 12), st.data())
def test_every_sample_has_exactly_its_number_of_active_features(groups, data):
    size = data.draw(st.integers(1, 3))
    s = data.draw(st.lists(st.integers(1, groups), min_size=1, max_size=3))
    model = SparseFeatures(groups * size, 5, [size * one for one in s], group_size=size)
    batch = model.sample(50, rng(data.draw(st.integers(0, 999))))
    counts = (batch.codes != 0).sum(dim=1)
    assert set(counts.tolist()) <= {size * one for one in s}
    grouped = (batch.codes != 0).view(50, groups, size)
    assert (grouped.all(dim=2) == grouped.any(dim=2)).all()  # groups fire as one
    assert torch.allclose(batch.x, batch.codes @ model.features)
    assert float(model.frequencies.sum()) == pytest.approx(size * np.mean(s))


@pytest.mark.parametrize("ratio", [1.0, 20.0])
@pytest.mark.parametrize("sparsity", [3, (2, 6)])
def test_frequencies_are_met_within_their_sampling_error(ratio, sparsity):
    model = SparseFeatures(40, 10, sparsity, ratio=ratio)
    n = 20_000
    seen = (model.sample(n, rng(0)).codes != 0).double().mean(dim=0)
    error = (seen - model.frequencies) / (model.frequencies * (1 - model.frequencies) / n).sqrt()
    assert error.abs().max() < 4.5
    assert float(model.frequencies[0] / model.frequencies[-1]) == pytest.approx(ratio)


def test_features_of_each_kind():
    orthogonal = SparseFeatures(6, 10, features="orthogonal").features
    assert torch.allclose(orthogonal @ orthogonal.T, torch.eye(6), atol=1e-6)
    gaussian = SparseFeatures(300, 100).features
    assert float(gaussian.std()) == pytest.approx(0.1, rel=0.05)

    def mean_cosine(features: torch.Tensor) -> float:
        unit = torch.nn.functional.normalize(features, dim=1)
        return float((unit @ unit.T)[torch.triu(torch.ones(len(unit), len(unit)), 1) > 0].mean())

    assert abs(mean_cosine(gaussian)) < 0.02
    for coherence in (0.2, 0.6):
        coherent = SparseFeatures(200, 400, features="coherent", coherence=coherence).features
        assert mean_cosine(coherent) == pytest.approx(coherence, abs=0.05)
    assert not torch.equal(gaussian, SparseFeatures(300, 100, generator=rng(1)).features)


def test_values_signs_noise_and_scaling():
    def codes(**options) -> torch.Tensor:
        return SparseFeatures(30, 8, 4, **options).sample(2_000, rng(0)).codes

    assert set(codes().unique().tolist()) == {0.0, 0.5}
    assert set(codes(normalise=False).unique().tolist()) == {0.0, 1.0}
    assert set(codes(normalise=False, signs=True).unique().tolist()) == {-1.0, 0.0, 1.0}
    uniform, exponential = (codes(values=v, normalise=False) for v in ("uniform", "exponential"))
    assert float(uniform[uniform > 0].mean()) == pytest.approx(0.5, abs=0.02)
    assert float(uniform.max()) <= 1
    assert float(exponential[exponential > 0].mean()) == pytest.approx(1.0, abs=0.05)
    model = SparseFeatures(30, 8, 4, noise=0.3)
    batch = model.sample(4_000, rng(0))
    assert float((batch.x - batch.codes @ model.features).std()) == pytest.approx(0.3, rel=0.03)


def test_streams_repeat_their_seed():
    model = SparseFeatures(20, 6, 2)
    one, two = (torch.cat([b.x for b in model.batches(5, 30, rng(3))]) for _ in range(2))
    assert torch.equal(one, two)
    assert one.shape == (150, 6)
    assert not torch.equal(one, torch.cat([b.x for b in model.batches(5, 30, rng(4))]))
    state = torch.random.get_rng_state()
    model.sample(10, rng(0))
    assert torch.equal(state, torch.random.get_rng_state())


def test_errors_name_the_value_and_the_fix():
    with pytest.raises(ValueError, match="cannot be orthogonal in d_in=4"):
        SparseFeatures(6, 4, features="orthogonal")
    with pytest.raises(ValueError, match="sparsity=7 is larger than n_features=6"):
        SparseFeatures(6, 4, 7)
    with pytest.raises(ValueError, match="sparsity=3 is not a multiple of group_size=2"):
        SparseFeatures(6, 4, 3, group_size=2)
    with pytest.raises(ValueError, match="probability .*lower ratio or sparsity"):
        SparseFeatures(6, 4, 5, ratio=100.0)
    with pytest.raises(ValueError, match="coherence=1"):
        SparseFeatures(6, 4, features="coherent", coherence=1.0)
    with pytest.raises(ValueError, match="features='fourier' is unknown"):
        SparseFeatures(6, 4, features="fourier")
    with pytest.raises(ValueError, match="names no number"):
        SparseFeatures(6, 4, [])
    with pytest.raises(ValueError, match="n=0"):
        SparseFeatures(6, 4).sample(0, rng(0))
