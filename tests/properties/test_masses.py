"""Masses of regions and entropies, against distributions that are known."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from splinterp import SAE, TopK
from splinterp.geometry import PowerDiagram, count_cells, gaussian_samples, region_masses, region_statistics, regions_of
from splinterp.geometry.masses import entropy_of, wilson
from tests.properties.geometry_cases import random_sae, saes, seeds


def exact_line_masses(diagram, mean, sd):
    """(set, mass) of each cell of a diagram on a line under a normal distribution, by its crossings."""
    sites, biases = diagram.sites[:, 0], diagram.biases
    i, j = np.triu_indices(diagram.n_sites, 1)
    slope = sites[i] - sites[j]
    at = np.sort((biases[j] - biases[i])[slope != 0] / slope[slope != 0])
    ends = np.concatenate([[-np.inf], at, [np.inf]])
    found = {}
    for low, high in itertools.pairwise(ends):
        middle = np.clip(low, -1e6, 1e6) / 2 + np.clip(high, -1e6, 1e6) / 2
        mass = stats.norm.cdf(high, mean, sd) - stats.norm.cdf(low, mean, sd)
        key = tuple(diagram.assign(np.array([[middle]]))[0].tolist())
        found[key] = found.get(key, 0.0) + mass
    return found


@given(seeds, st.integers(2, 9), st.data())
@settings(max_examples=25)
def test_masses_on_a_line_are_those_of_the_normal_distribution(seed, n, data):
    r = np.random.default_rng(seed)
    diagram = PowerDiagram(r.normal(size=(n, 1)), 0.3 * r.normal(size=n), data.draw(st.integers(1, n)))
    x = gaussian_samples(np.array([[0.3], [0.49]]), 4_000, seed % 1000, of_moments=True)
    found = region_masses(diagram, x)
    exact = exact_line_masses(diagram, 0.3, 0.7)
    assert count_cells(diagram) == len(exact)
    for support, mass in zip(found.supports, found.masses, strict=True):
        truth = exact[tuple(support.tolist())]
        assert abs(mass - truth) <= 6 * math.sqrt(truth * (1 - truth) / 4_000) + 2e-3
    assert (np.diff(found.counts) <= 0).all()
    assert found.counts.sum() == found.n_samples == 4_000
    truth = -sum(p * math.log(p) for p in exact.values() if p > 0)
    assert found.entropy.plug_in == pytest.approx(truth, abs=6 * found.entropy.error + 0.01)


def test_intervals_hold_the_mass_as_often_as_they_say():
    r = np.random.default_rng(0)
    for p in (0.003, 0.05, 0.5):
        counts = r.binomial(400, p, size=4_000)
        intervals = wilson(counts, 400)
        held = ((intervals[:, 0] <= p) & (p <= intervals[:, 1])).mean()
        assert 0.92 < held < 0.985
    low, high = wilson(np.array([0, 400]), 400).T
    assert abs(low[0]) < 1e-15 < high[0] < 0.01
    assert high[1] == pytest.approx(1.0)
    assert 0.99 < low[1] < 1


@pytest.mark.parametrize(("n", "k", "reliable"), [(100, 2_000, False), (2_000, 2_000, False), (40_000, 500, True)])
def test_entropies_of_known_distributions(n, k, reliable):
    r = np.random.default_rng(1)
    weights = 1 / np.arange(1, k + 1) ** 0.7
    p = weights / weights.sum()
    truth = float(-(p * np.log(p)).sum())
    found = [entropy_of(np.bincount(r.choice(k, size=n, p=p), minlength=k)) for _ in range(20)]
    plug_in, corrected = (np.array([getattr(e, name) for e in found]) for name in ("plug_in", "corrected"))
    assert (plug_in <= math.log(n) + 1e-12).all()
    assert plug_in.mean() < truth
    assert abs(corrected.mean() - truth) < abs(plug_in.mean() - truth)
    assert {e.reliable for e in found} == {reliable}
    if reliable:
        assert np.abs(plug_in - truth).max() < 0.05
        assert np.mean([e.error for e in found]) == pytest.approx(plug_in.std(), rel=0.6)


def test_the_extremes():
    alone = entropy_of(np.ones(50, dtype=np.int64))
    assert alone.plug_in == pytest.approx(math.log(50))
    assert alone.corrected > alone.plug_in
    assert not alone.reliable
    one = entropy_of(np.array([500]))
    assert one == (0.0, pytest.approx(0.0, abs=1e-12), 0.0, True)
    assert not entropy_of(np.array([2, 2, 2])).reliable  # none is alone, but six samples say nothing
    single = entropy_of(np.array([1]))
    assert single.plug_in == single.corrected == 0.0
    assert not single.reliable


@given(saes(max_d=4), seeds)
@settings(max_examples=30)
def test_masses_of_an_sae_are_shares_of_its_regions(sae, seed):
    x = np.random.default_rng(seed).normal(size=(50, sae.d_in))
    found, regions = region_masses(sae, x), regions_of(sae, x)
    assert sorted(found.counts.tolist()) == sorted(np.bincount(regions.labels).tolist())
    by_set = {tuple(support.tolist()): count for support, count in zip(found.supports, found.counts, strict=True)}
    for row in range(50):
        assert by_set[tuple(regions.support(row).tolist())] == (regions.labels == regions.labels[row]).sum()
    statistics = region_statistics(sae, x)
    assert statistics.entropy == found.entropy.plug_in
    assert statistics.entropy_corrected == found.entropy.corrected
    assert statistics.entropy_reliable == found.entropy.reliable
    assert statistics.unseen == found.unseen


def test_images_alone_in_their_regions_are_told():
    sae = SAE(16, 128, TopK(8), generator=0)
    x = torch.randn(300, 16, generator=torch.Generator().manual_seed(0))
    found = region_masses(sae, x)
    assert found.unseen > 0.95
    assert not found.entropy.reliable
    assert (found.intervals[:, 1] > found.masses).all()


def test_gaussian_samples_have_the_moments_asked_for():
    r = np.random.default_rng(0)
    x = r.normal(size=(200, 4)) @ r.normal(size=(4, 4)) + 3
    drawn = gaussian_samples(x, 100_000, 0)
    np.testing.assert_allclose(drawn.mean(axis=0), x.mean(axis=0), atol=0.05)
    np.testing.assert_allclose(np.cov(drawn.T), np.cov(x.T), atol=0.1)
    np.testing.assert_array_equal(drawn[:10], gaussian_samples(x, 100_000, torch.Generator().manual_seed(0))[:10])
    flat = gaussian_samples(x[:, :1] * np.ones(3), 50, 1)  # without variance across the line
    np.testing.assert_allclose(flat[:, 0], flat[:, 2], rtol=1e-12)
    low = r.normal(size=(5, 8))
    spread = np.linalg.svd(gaussian_samples(low, 500, 0) - low.mean(axis=0), compute_uv=False)
    assert (spread > 1e-12 * spread[0]).sum() == 4
    given_moments = gaussian_samples(np.vstack([x.mean(axis=0), np.cov(x.T)]), 50, 2, of_moments=True)
    np.testing.assert_allclose(given_moments, gaussian_samples(x, 50, 2))


def test_what_has_no_masses_is_refused():
    sae = random_sae("TopK", 3, 5, 2, 0)
    with pytest.raises(ValueError, match="x has no rows"):
        region_masses(sae, np.zeros((0, 3)))
    with pytest.raises(ValueError, match="at least two samples"):
        gaussian_samples(np.zeros((1, 3)), 5)
    with pytest.raises(ValueError, match=r"have the shape \(4, 3\)"):
        gaussian_samples(np.zeros((5, 3)), 5, of_moments=True)
    with pytest.raises(ValueError, match="eigenvalue -1"):
        gaussian_samples(np.array([[0.0, 0.0], [1.0, 0.0], [0.0, -1.0]]), 5, of_moments=True)
    with pytest.raises(ValueError, match="not symmetric"):
        gaussian_samples(np.array([[0.0, 0.0], [1.0, 0.5], [0.0, 1.0]]), 5, of_moments=True)
