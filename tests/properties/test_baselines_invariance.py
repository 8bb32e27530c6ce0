"""Baselines do not depend on where the origin is or in what unit the samples are, over twelve decades of both."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from splinterp.baselines import KMeansAutoencoder, LocalPCAAutoencoder
from tests.properties.geometry_cases import seeds


@st.composite
def far_samples(draw):
    """(samples, the same ones moved and stretched, unit), clustered; moving rounds nothing, stretching is by powers of 2."""
    rng = np.random.default_rng(draw(seeds))
    n, d = draw(st.integers(20, 60)), draw(st.integers(1, 4))
    x = rng.normal(size=(4, d))[rng.integers(0, 4, n)] * 2 + rng.normal(size=(n, d)) * rng.uniform(0.1, 1, d)
    x = np.round(x * 2**10) / 2**10
    unit = 2.0 ** draw(st.integers(-40, 40))
    shift = np.round(10.0 ** draw(st.integers(0, 12)) * rng.uniform(0.5, 1.0, d))
    return x, unit * (x + shift), unit


@given(far_samples(), st.sampled_from(["centroid", "residual", "power"]), st.integers(1, 4), st.integers(0, 1))
def test_local_pca_finds_the_same_regions(data, assign, n_regions, rank):
    x, moved, unit = data
    rank = min(rank, x.shape[1] - 1)  # flats of full rank all hold every sample, and rounding would choose among them
    near = LocalPCAAutoencoder(n_regions, rank, assign, n_init=1, random_state=0).fit(x)
    far = LocalPCAAutoencoder(n_regions, rank, assign, n_init=1, random_state=0).fit(moved)
    rounding = 1e-15 * np.abs(moved).max() / unit
    if assign == "power":
        np.testing.assert_array_equal(far.power_diagram().assign(moved)[:, 0], far.labels_)
        np.testing.assert_array_equal(far.predict_region(moved), far.labels_)
    if assign == "centroid":
        assert (far.power_diagram().assign(moved)[:, 0] != far.labels_).mean() <= (0.1 if rounding > 1e-6 else 0.0)
    if rounding < 1e-6:  # beyond, means are rounded so much that a search may end elsewhere
        np.testing.assert_array_equal(far.labels_, near.labels_)
        assert far.inertia_ == pytest.approx(unit**2 * near.inertia_, rel=1e-5, abs=unit**2 * 1e-5)


@given(far_samples(), st.integers(1, 4))
def test_k_means_and_its_diagram_choose_the_same_regions(data, n_regions):
    x, moved, unit = data
    near = KMeansAutoencoder(n_regions, n_init=1, random_state=0).fit(x)
    far = KMeansAutoencoder(n_regions, n_init=1, random_state=0).fit(moved)
    if 1e-15 * np.abs(moved).max() / unit < 1e-6:
        np.testing.assert_array_equal(far.labels_, near.labels_)
        np.testing.assert_array_equal(far.power_diagram().assign(moved)[:, 0], far.labels_)


@given(far_samples(), st.integers(1, 4))
def test_streams_find_the_same_regions(data, n_regions):
    x, moved, unit = data
    if 1e-15 * np.abs(moved).max() / unit > 1e-6:
        return
    for make in (
        lambda: KMeansAutoencoder(n_regions, random_state=0),
        lambda: LocalPCAAutoencoder(n_regions, 1, "centroid", random_state=0),
    ):
        near, far = make(), make()
        for part in np.array_split(np.arange(len(x)), 3):
            near.partial_fit(x[part])
            far.partial_fit(moved[part])
        # The error a sample, against the extent of the samples.
        assert far.score(moved) == pytest.approx(unit**2 * near.score(x), rel=1e-4, abs=unit**2 * 1e-6)
