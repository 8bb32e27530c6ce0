"""Inequalities of the baselines: objectives never rise, the bound holds, finer is never worse on training data."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from splinterp.baselines import KMeansAutoencoder, LocalPCAAutoencoder, interpretability_price, local_pca_bound
from tests.properties.geometry_cases import normal_points, saes, seeds


@st.composite
def data_sets(draw):
    """Clustered samples, some of them repeated, with weights of which some are 0; at least as many as regions."""
    rng = np.random.default_rng(draw(seeds))
    n, d = draw(st.integers(12, 60)), draw(st.integers(1, 5))
    x = rng.normal(size=(4, d))[rng.integers(0, 4, n)] * 2 + rng.normal(size=(n, d)) * rng.uniform(0.1, 1, d)
    if draw(st.booleans()):
        x = x[rng.integers(0, n, n)]
    weights = rng.integers(0, 3, n).astype(float) if draw(st.booleans()) else None
    if weights is not None:
        weights[:10] += 1
    return x, weights


@pytest.mark.filterwarnings("ignore:.*different samples for n_regions")
@given(data_sets(), st.sampled_from(["residual", "power"]), st.integers(1, 5), st.integers(0, 3), st.integers(0, 100))
def test_the_objective_never_rises(data, assign, n_regions, rank, seed):
    x, weights = data
    fitted = LocalPCAAutoencoder(n_regions, min(rank, x.shape[1]), assign, n_init=2, tol=0.0, random_state=seed).fit(
        x, sample_weight=weights
    )
    path = np.array(fitted.objective_path_)
    assert (np.diff(path) <= 1e-9 * path[0] + 1e-12).all()
    assert fitted.inertia_ <= path[-1] * (1 + 1e-9) + 1e-9
    centroid = LocalPCAAutoencoder(n_regions, min(rank, x.shape[1]), "centroid", n_init=2, random_state=seed).fit(
        x, sample_weight=weights
    )
    assert fitted.inertia_ <= centroid.inertia_ * (1 + 1e-9) + 1e-9
    if assign == "power":
        np.testing.assert_array_equal(fitted.power_diagram().assign(x)[:, 0], fitted.labels_)


@pytest.mark.filterwarnings("ignore:.*different samples for n_regions")
@given(data_sets(), st.integers(1, 5), st.integers(0, 100))
def test_rank_0_at_centroids_is_k_means_and_more_rank_is_better(data, n_regions, seed):
    x, weights = data
    means = KMeansAutoencoder(n_regions, random_state=seed).fit(x, sample_weight=weights)
    errors = []
    for rank in range(x.shape[1] + 1):
        local = LocalPCAAutoencoder(n_regions, rank, "centroid", random_state=seed).fit(x, sample_weight=weights)
        errors.append(local.inertia_)
        if rank == 0:
            np.testing.assert_allclose(local.reconstruct(x), means.reconstruct(x), atol=1e-9)
    assert (np.diff(errors) <= 1e-9).all()
    assert errors[-1] < 1e-9


@given(saes(max_latents=8), seeds)
def test_no_sae_is_below_its_bound(sae, seed):
    x = normal_points(seed, 80, sae.d_in)
    price = interpretability_price(sae, x)
    assert price.price >= -1e-8 * price.error
    assert (price.errors >= price.bounds - 1e-8 * price.error).all()
    assert price.error == pytest.approx(float(((sae(x).x_hat.detach() - torch.from_numpy(x)) ** 2).sum()))


@given(seeds, st.integers(1, 4), st.integers(0, 3))
def test_finer_partitions_and_larger_ranks_have_lower_bounds(seed, d, rank):
    rng = np.random.default_rng(seed)
    x, coarse = rng.normal(size=(40, d)), rng.integers(0, 3, 40)
    fine = 2 * coarse + rng.integers(0, 2, 40)
    assert local_pca_bound(x, fine, rank).total <= local_pca_bound(x, coarse, rank).total + 1e-9
    assert local_pca_bound(x, coarse, rank + 1).total <= local_pca_bound(x, coarse, rank).total + 1e-9
