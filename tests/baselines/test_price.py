"""The local-PCA bound and the price of interpretability."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from splinterp.baselines import LocalPCAAutoencoder, interpretability_price, local_pca_bound, reconstruct_by_region
from splinterp.geometry import regions_of
from tests.helpers import rng, samples
from tests.properties.geometry_cases import random_sae


def test_the_bound_is_the_error_of_scikit_learns_pca_in_each_region():
    x = samples(200, 7, dtype=torch.float64).numpy()
    labels = np.random.default_rng(0).integers(0, 4, 200)
    bound = local_pca_bound(x, labels, 2)
    for region in range(4):
        part = x[labels == region]
        pca = PCA(2).fit(part)
        error = ((part - pca.inverse_transform(pca.transform(part))) ** 2).sum()
        assert bound.per_region[region] == pytest.approx(error)
    assert bound.total == pytest.approx(bound.per_region.sum())
    np.testing.assert_array_equal(bound.counts, np.bincount(labels))
    fitted = LocalPCAAutoencoder(5, 2, "centroid", random_state=0).fit(x)
    assert local_pca_bound(x, fitted.labels_, 2).total == pytest.approx(fitted.inertia_)


def test_ranks_by_region_and_extremes():
    x = samples(60, 5, dtype=torch.float64)
    labels = torch.arange(60) % 3
    each = [local_pca_bound(x, labels, r).per_region for r in range(7)]
    mixed = local_pca_bound(x, labels, np.array([0, 2, 5]))
    np.testing.assert_allclose(mixed.per_region, [each[0][0], each[2][1], each[5][2]])
    assert (np.diff([one.sum() for one in each[:6]]) < 0).all()
    assert each[5].sum() == each[6].sum() == 0.0  # nothing beyond d
    assert local_pca_bound(x, np.arange(60), 1).total == 0.0  # everyone alone
    assert local_pca_bound(x, np.zeros(60, dtype=int), 0).total == pytest.approx(float(((x - x.mean(0)) ** 2).sum()))
    assert local_pca_bound(x, 3 + 0 * labels, 1).per_region[:3].tolist() == [0, 0, 0]  # labels nobody has
    with pytest.raises(ValueError, match="60 integers"):
        local_pca_bound(x, labels[:5], 1)
    with pytest.raises(ValueError, match="60 integers"):
        local_pca_bound(x, labels.double(), 1)
    with pytest.raises(ValueError, match="must not be negative"):
        local_pca_bound(x, labels - 1, 1)
    with pytest.raises(ValueError, match="rank=-1"):
        local_pca_bound(x, labels, -1)


@pytest.mark.parametrize("kind", ["TopK", "AbsTopK", "ReLU", "JumpReLU"])
def test_an_sae_is_its_local_affine_autoencoder(kind):
    sae = random_sae(kind, 5, 9, 3, 1, b_pre=True)
    x = samples(80, 5, dtype=torch.float64)
    by_region = reconstruct_by_region(sae, x, regions_of(sae, x, margins=False))
    np.testing.assert_allclose(by_region, sae(x).x_hat.detach().numpy(), atol=1e-10)


def test_the_price_of_a_small_sae():
    sae = random_sae("TopK", 4, 5, 1, 2)
    x = samples(400, 4, seed=3, dtype=torch.float64)
    price = interpretability_price(sae, x)
    error = float(((sae(x).x_hat.detach() - x) ** 2).sum())
    labels = regions_of(sae, x, margins=False).labels
    assert price.error == pytest.approx(error)
    assert price.price == pytest.approx(price.error - price.bound)
    assert price.variance == pytest.approx(float(((x - x.mean(0)) ** 2).sum()))
    np.testing.assert_array_equal(price.counts, np.bincount(labels))
    assert price.errors.sum() == pytest.approx(error)
    covered = price.counts >= 10 * (price.ranks + 1)
    assert 0 < price.share_covered == price.counts[covered].sum() / 400
    assert price.covered_error == pytest.approx(price.errors[covered].sum())
    assert price.covered_bound == pytest.approx(price.bounds[covered].sum())
    assert price.covered_bound < price.held_out_error  # fitted to other samples
    other = interpretability_price(sae, x, generator=rng(5))
    assert other.held_out_error != price.held_out_error
    assert other.bound == price.bound


def test_held_out_error_by_hand():
    sae = random_sae("TopK", 3, 2, 1, 0)
    with torch.no_grad():
        sae.b_enc.copy_(torch.tensor([100.0, -100.0]))  # one region
    x = samples(51, 3, dtype=torch.float64)
    price = interpretability_price(sae, x, generator=rng(7))
    order = torch.randperm(51, generator=rng(7)).numpy()
    rows = x.numpy()[order]
    error = 0.0
    for fitted, scored in ((rows[:25], rows[25:]), (rows[25:], rows[:25])):
        pca = PCA(1).fit(fitted)
        error += ((scored - pca.inverse_transform(pca.transform(scored))) ** 2).sum()
    assert price.share_covered == 1.0
    assert price.held_out_error == pytest.approx(error)
