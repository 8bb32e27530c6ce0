"""The scikit-learn estimators: conformance, oracles, options, streams, errors. Inequalities are in tests/properties."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.utils.estimator_checks import parametrize_with_checks

from splinterp.baselines import KMeansAutoencoder, LocalPCAAutoencoder, PCAAutoencoder
from tests.helpers import samples

ALL = [
    PCAAutoencoder(), KMeansAutoencoder(), LocalPCAAutoencoder(), LocalPCAAutoencoder(assign="centroid"),
    LocalPCAAutoencoder(assign="power"),
]  # fmt: skip


def three_lines(n: int = 300, d: int = 5, seed: int = 0) -> np.ndarray:
    """Samples on three crossing lines in R^d, with a little noise: centroids cannot tell them apart, flats can."""
    rng = np.random.default_rng(seed)
    lines = np.linalg.qr(rng.normal(size=(d, 3)))[0].T
    kind = rng.integers(0, 3, n)
    return rng.uniform(-3, 3, (n, 1)) * lines[kind] + 0.01 * rng.normal(size=(n, d))


@parametrize_with_checks(ALL)
def test_scikit_learn_conformance(estimator, check):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check(estimator)


def test_pca_is_scikit_learns():
    x = samples(200, 8, dtype=torch.float64).numpy()
    for rank in (0, 1, 3, 8):
        mine = PCAAutoencoder(rank).fit(x)
        assert mine.transform(x).shape == (200, 1 + rank)
        if rank == 0:
            np.testing.assert_allclose(mine.reconstruct(x), np.tile(x.mean(axis=0), (200, 1)))
            continue
        theirs = PCA(rank).fit(x)
        np.testing.assert_allclose(mine.reconstruct(x), theirs.inverse_transform(theirs.transform(x)), atol=1e-10)
    wide = samples(10, 40, dtype=torch.float64).numpy()  # fewer samples than features
    theirs = PCA(4).fit(wide)
    np.testing.assert_allclose(PCAAutoencoder(4).fit(wide).reconstruct(wide), theirs.inverse_transform(theirs.transform(wide)))


def test_the_randomised_solver_is_near_and_depends_on_its_seed():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 60)) * np.geomspace(10, 0.1, 60)
    exact = PCAAutoencoder(3, svd_solver="exact").fit(x)
    one, two = (PCAAutoencoder(3, svd_solver="randomized", random_state=seed).fit(x) for seed in (0, 1))
    assert one.score(x) == pytest.approx(exact.score(x), rel=1e-6)
    assert not np.array_equal(one.components_, two.components_)
    large = rng.normal(size=(600, 510)) * np.geomspace(10, 0.1, 510)
    auto = PCAAutoencoder(2, random_state=0).fit(large)
    np.testing.assert_array_equal(
        auto.components_, PCAAutoencoder(2, svd_solver="randomized", random_state=0).fit(large).components_
    )


def test_k_means_is_scikit_learns():
    x = samples(200, 5, dtype=torch.float64).numpy()
    mine = KMeansAutoencoder(7, n_init=4, random_state=3).fit(x)
    theirs = KMeans(7, n_init=4, tol=0, random_state=3).fit(x)
    np.testing.assert_array_equal(mine.labels_, theirs.labels_)
    np.testing.assert_allclose(mine.reconstruct(x), theirs.cluster_centers_[theirs.labels_])
    assert mine.inertia_ == pytest.approx(theirs.inertia_)
    assert mine.score(x) == pytest.approx(-mine.inertia_ / x.size)
    np.testing.assert_array_equal(mine.power_diagram().assign(x)[:, 0], mine.predict_region(x))


def test_special_cases_of_local_pca():
    x = samples(200, 6, dtype=torch.float64).numpy()
    for assign in ("centroid", "residual", "power"):
        one = LocalPCAAutoencoder(1, 2, assign, random_state=0).fit(x)
        np.testing.assert_allclose(one.reconstruct(x), PCAAutoencoder(2).fit(x).reconstruct(x), atol=1e-9)
    flat = LocalPCAAutoencoder(6, 0, "centroid", random_state=1).fit(x)
    np.testing.assert_allclose(flat.reconstruct(x), KMeansAutoencoder(6, random_state=1).fit(x).reconstruct(x))
    full = LocalPCAAutoencoder(3, 6, "centroid", random_state=1).fit(x)
    np.testing.assert_allclose(full.reconstruct(x), x, atol=1e-9)


def test_residual_assignment_finds_crossing_lines():
    x = three_lines()
    centroid = LocalPCAAutoencoder(3, 1, "centroid", n_init=10, random_state=0).fit(x)
    residual = LocalPCAAutoencoder(3, 1, "residual", n_init=10, random_state=0).fit(x)
    assert residual.inertia_ < 0.05 * centroid.inertia_
    assert residual.score(three_lines(seed=0)) > -2e-4
    power = LocalPCAAutoencoder(3, 1, "power", n_init=10, random_state=0).fit(x)
    assert power.inertia_ < 0.98 * centroid.inertia_


def test_restarts_and_seeds_matter():
    x = three_lines(seed=4)
    losses = [LocalPCAAutoencoder(3, 1, n_init=n, random_state=0).fit(x).inertia_ for n in (1, 12)]
    assert losses[1] <= losses[0]
    labels = [LocalPCAAutoencoder(5, 1, n_init=2, random_state=s).fit(x).labels_ for s in range(4)]
    assert any(not np.array_equal(labels[0], other) for other in labels[1:])
    np.testing.assert_array_equal(labels[0], LocalPCAAutoencoder(5, 1, n_init=2, random_state=0).fit(x).labels_)
    short = LocalPCAAutoencoder(5, 1, n_init=1, max_iter=1, random_state=0).fit(x)
    loose = LocalPCAAutoencoder(5, 1, n_init=1, tol=0.5, random_state=0).fit(x)
    long = LocalPCAAutoencoder(5, 1, n_init=1, random_state=0).fit(x)
    assert len(short.objective_path_) == 1 < len(loose.objective_path_) < len(long.objective_path_)


@pytest.mark.parametrize("assign", ["centroid", "residual", "power"])
def test_fitted_attributes_agree(assign):
    x = three_lines()
    fitted = LocalPCAAutoencoder(4, 2, assign, random_state=0).fit(x)
    np.testing.assert_array_equal(fitted.labels_, fitted.predict_region(x))
    assert fitted.inertia_ == pytest.approx(((x - fitted.reconstruct(x)) ** 2).sum())
    assert fitted.inertia_ == pytest.approx(fitted.objective_path_[-1], rel=1e-6)
    codes = fitted.transform(x)
    np.testing.assert_array_equal(codes[:, 0], fitted.labels_)
    np.testing.assert_allclose(fitted.inverse_transform(codes), fitted.reconstruct(x))
    for components in fitted.components_:
        np.testing.assert_allclose(components @ components.T, np.eye(2), atol=1e-9)
    if assign == "residual":
        with pytest.raises(ValueError, match="no power diagram"):
            fitted.power_diagram()
    else:
        np.testing.assert_array_equal(fitted.power_diagram().assign(x)[:, 0], fitted.labels_)


@pytest.mark.parametrize("estimator", ALL, ids=lambda e: f"{type(e).__name__}-{getattr(e, 'assign', '')}")
def test_float32_stays_and_is_near_float64(estimator):
    x = samples(150, 6).numpy()
    estimator = clone(estimator).set_params(random_state=0)
    narrow, wide = clone(estimator).fit(x), clone(estimator).fit(x.astype(np.float64))
    assert narrow.reconstruct(x).dtype == np.float32
    assert narrow.components_.dtype == np.float32
    assert narrow.score(x) == pytest.approx(wide.score(x.astype(np.float64)), rel=0.02)


@pytest.mark.parametrize("estimator", ALL, ids=lambda e: f"{type(e).__name__}-{getattr(e, 'assign', '')}")
def test_weights_are_repetitions(estimator):
    rng = np.random.default_rng(0)
    x, weights = rng.normal(size=(60, 4)), rng.integers(0, 4, 60)
    shuffled = rng.permutation(np.repeat(x, weights, axis=0))
    estimator = clone(estimator).set_params(random_state=0)
    weighted, repeated = clone(estimator).fit(x, sample_weight=weights), clone(estimator).fit(shuffled)
    np.testing.assert_allclose(weighted.reconstruct(x), repeated.reconstruct(x), atol=1e-8)
    assert weighted.score(x, sample_weight=weights) == pytest.approx(repeated.score(shuffled))
    assert not np.allclose(weighted.reconstruct(x), clone(estimator).fit(x).reconstruct(x))


def test_streams():
    x = three_lines(900)
    batches = np.array_split(x, 6)
    pca, means = PCAAutoencoder(2), KMeansAutoencoder(3, random_state=0)
    local = {assign: LocalPCAAutoencoder(3, 1, assign, random_state=0) for assign in ("centroid", "residual")}
    for batch in batches:
        pca.partial_fit(batch)
        means.partial_fit(batch)
        for one in local.values():
            one.partial_fit(batch)
    np.testing.assert_allclose(pca.reconstruct(x), PCAAutoencoder(2).fit(x).reconstruct(x), atol=1e-9)
    assert means.score(x) > 1.3 * KMeansAutoencoder(3, random_state=0).fit(x).score(x)  # scores are negative
    assert local["residual"].score(x) > 1.1 * LocalPCAAutoencoder(3, 1, n_init=1, random_state=0).fit(batches[0]).score(x)
    assert local["centroid"].score(x) > 1.3 * LocalPCAAutoencoder(3, 1, "centroid", random_state=0).fit(x).score(x)
    assert not hasattr(LocalPCAAutoencoder(assign="power"), "partial_fit")
    weighted = PCAAutoencoder(2)
    for batch in batches:
        weighted.partial_fit(batch, sample_weight=np.arange(len(batch)))
    all_weights = np.concatenate([np.arange(len(batch)) for batch in batches])
    np.testing.assert_allclose(
        weighted.reconstruct(x), PCAAutoencoder(2).fit(x, sample_weight=all_weights).reconstruct(x), atol=1e-9
    )
    again = pca.fit(x[:50]).partial_fit(x[50:100])  # fit ends a stream
    np.testing.assert_allclose(again.reconstruct(x), PCAAutoencoder(2).fit(x[50:100]).reconstruct(x), atol=1e-9)


def test_a_region_stream_with_fixed_labels_is_local_pca():
    from splinterp.baselines._affine import Flats
    from splinterp.baselines._stream import FlatStream

    x = three_lines(400, 12)
    labels = (np.arange(400) % 3).astype(np.int64)
    stream = FlatStream(4, 12, 2)
    for rows in np.array_split(np.arange(400), 7):
        stream.add(x[rows], np.ones(len(rows)), labels[rows])
    flats = stream.flats(Flats(np.full((4, 12), 7.0), np.zeros((4, 2, 12))))
    for region in range(3):
        theirs = PCA(2).fit(x[labels == region])
        np.testing.assert_allclose(flats.means[region], theirs.mean_, atol=1e-10)
        np.testing.assert_allclose(np.abs((flats.components[region] * theirs.components_).sum(axis=1)), 1.0, atol=1e-6)
    np.testing.assert_array_equal(flats.means[3], 7.0)  # never visited


def test_errors_name_the_value_and_the_fix():
    x = samples(20, 4).numpy()
    with pytest.raises(ValueError, match="n_samples=20 of weight is smaller than n_regions=21"):
        KMeansAutoencoder(21).fit(x)
    with pytest.raises(ValueError, match="n_samples=3 of weight"):
        LocalPCAAutoencoder(4).fit(x, sample_weight=np.arange(20) < 3)
    with pytest.raises(ValueError, match="rank=5 is larger than n_features=4"):
        LocalPCAAutoencoder(2, 5).fit(x)
    with pytest.raises(ValueError, match="n_components=5"):
        PCAAutoencoder(5).fit(x)
    with pytest.raises(ValueError, match="assign='nearest' is unknown; known: 'centroid', 'residual', 'power'"):
        LocalPCAAutoencoder(2, 1, "nearest").fit(x)
    with pytest.raises(ValueError, match="svd_solver='fast'"):
        PCAAutoencoder(svd_solver="fast").fit(x)
    with pytest.raises(ValueError, match="rank=-1"):
        LocalPCAAutoencoder(2, -1).fit(x)
    with pytest.raises(TypeError, match="n_regions=2.0 must be an int"):
        KMeansAutoencoder().set_params(n_regions=2.0).fit(x)
    with pytest.raises(ValueError, match="every sample_weight is 0|at least one non-zero"):
        PCAAutoencoder().fit(x, sample_weight=np.zeros(20))
    fitted = LocalPCAAutoencoder(3, 1, random_state=0).fit(x)
    with pytest.raises(ValueError, match=r"transform gives \(n, 2\)"):
        fitted.inverse_transform(x)
    with pytest.raises(ValueError, match=r"whole numbers in \[0, 3\)"):
        fitted.inverse_transform(np.array([[3.0, 0.0]]))
    with pytest.raises(NotFittedError):
        LocalPCAAutoencoder().predict_region(x)
    with pytest.raises(ValueError, match="no components"):
        PCAAutoencoder(0).fit(x).to_sae()


@pytest.mark.parametrize("estimator", ALL[1:], ids=lambda e: f"{type(e).__name__}-{getattr(e, 'assign', '')}")
def test_fewer_different_samples_than_regions_leave_some_empty(estimator):
    x = np.repeat(np.random.default_rng(0).normal(size=(3, 4)), 5, axis=0)
    with pytest.warns(ConvergenceWarning, match="3 different samples for n_regions=8"):
        fitted = clone(estimator).set_params(random_state=0).fit(x)
    np.testing.assert_allclose(fitted.reconstruct(x), x, atol=1e-9)


def test_pca_is_an_sae_whose_latents_are_all_active():
    x = samples(100, 6, dtype=torch.float64)
    pca = PCAAutoencoder(3).fit(x.numpy())
    sae = pca.to_sae()
    out = sae(x)
    np.testing.assert_allclose(out.x_hat.detach().numpy(), pca.reconstruct(x.numpy()), atol=1e-10)
    assert (out.acts != 0).all()
    np.testing.assert_allclose(out.acts.detach().numpy(), pca.transform(x.numpy())[:, 1:], atol=1e-10)


@pytest.mark.parametrize("dtype", ["int64", "int8", "uint16"])
@pytest.mark.parametrize("fitted_on", ["float64", "float32"])
def test_codes_of_whole_numbers_give_points_that_are_none(dtype, fitted_on):
    x = np.random.default_rng(3).random((60, 3)).astype(fitted_on)
    regions = KMeansAutoencoder(4, random_state=0).fit(x)
    labels = regions.predict_region(x)[:, None]
    found = regions.inverse_transform(labels.astype(dtype))
    assert found.dtype == fitted_on
    np.testing.assert_array_equal(found, regions.inverse_transform(labels.astype(fitted_on)))
    np.testing.assert_array_equal(regions.inverse_transform(labels.tolist()), found)
    line = PCAAutoencoder(1).fit(x)
    np.testing.assert_array_equal(
        line.inverse_transform([[0, 2], [0, -1]]), line.inverse_transform(np.array([[0, 2.0], [0, -1]], fitted_on))
    )
