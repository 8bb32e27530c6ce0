"""What the autoencoders share: codes, reconstruction, validation, k-means."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from numpy.random import RandomState
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from splinterp._checks import whole
from splinterp._typing import Array
from splinterp._warned import outside
from splinterp.baselines._affine import Flats, lift, project
from splinterp.geometry._local import Columns

SOLVERS = ("auto", "exact", "randomized")


class PiecewiseAffineAutoencoder(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """What the autoencoders share: a region for each sample and a flat for each region.

    Constructors take anything and `fit` checks it, as scikit-learn wants it.

    Fitted: `means_` (n_regions, d), `components_` (n_regions, rank, d) with orthonormal rows (rows of zeros where a region
    has too few samples), `n_features_in_`.
    """

    means_: Array
    components_: Array
    n_features_in_: int

    def predict_region(self, X: Any) -> Array:
        """Region of each sample: (n,) int64."""
        X = self._validated(X)
        return self._regions(X).astype(np.int64)

    def transform(self, X: Any) -> Array:
        """Codes (n, 1 + rank): the region in column 0, then the coordinates in its flat."""
        X = self._validated(X)
        regions = self._regions(X)
        return np.column_stack([regions.astype(X.dtype), project(X, regions, self._flats(X.dtype))])

    def inverse_transform(self, X: Any) -> Array:
        """Reconstructions (n, d) of codes (n, 1 + rank), in the dtype of floating codes, else in that of the fit.

        Raises ValueError for a region that does not exist.
        """
        check_is_fitted(self)
        codes = np.asarray(X)
        if not np.issubdtype(codes.dtype, np.floating):  # regions alone, as whole numbers: points are none
            codes = codes.astype(self.means_.dtype)
        n_regions, rank, _ = self.components_.shape
        if codes.ndim != 2 or codes.shape[1] != 1 + rank:
            raise ValueError(f"codes have shape {codes.shape}; transform gives (n, {1 + rank})")
        regions = codes[:, 0].astype(np.int64)
        if (regions != codes[:, 0]).any() or (len(regions) and not (regions.min() >= 0 and regions.max() < n_regions)):
            raise ValueError(f"column 0 of the codes must hold regions, whole numbers in [0, {n_regions})")
        return lift(codes[:, 1:], regions, self._flats(codes.dtype))

    def reconstruct(self, X: Any) -> Array:
        """The autoencoder: every sample projected onto its region's flat, (n, d)."""
        return self.inverse_transform(self.transform(X))

    def score(self, X: Any, y: Any = None, sample_weight: Any = None) -> float:
        """Minus the mean squared error over samples (weighted) and features."""
        X = self._validated(X)
        squares = ((X - self.reconstruct(X)) ** 2).mean(axis=1, dtype=np.float64)
        return -float(np.average(squares, weights=sample_weight))

    def _regions(self, X: Array) -> Array:
        raise NotImplementedError

    def _flats(self, dtype: Any) -> Flats:
        return Flats(self.means_.astype(dtype, copy=False), self.components_.astype(dtype, copy=False))

    def _validated(self, X: Any, reset: bool = False) -> Array:
        if not reset:
            check_is_fitted(self)
        return validate_data(self, X, dtype=[np.float64, np.float32], reset=reset)

    def _training_data(self, X: Any, sample_weight: Any, reset: bool = True) -> tuple[Array, Array | None]:
        X = self._validated(X, reset=reset)
        if sample_weight is None:
            return X, None
        weights = _check_sample_weight(sample_weight, X, dtype=np.float64, ensure_non_negative=True)
        if not weights.sum() > 0:
            raise ValueError("every sample_weight is 0: at least one sample must count")
        return X, weights

    def _fits_rank(self, name: str, rank: Any, d: int) -> None:
        whole(name, rank, 0)
        if rank > d:
            raise ValueError(f"{name}={rank} is larger than n_features={d}: choose at most {d}")

    @property
    def _n_features_out(self) -> int:
        return 1 + self.components_.shape[1]

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags


def check_counts(n_regions: object, n_init: object, max_iter: object) -> None:
    whole("n_regions", n_regions, 1)
    whole("n_init", n_init, 1)
    whole("max_iter", max_iter, 1)


def enough(x: Array, weights: Array | None, n_regions: int) -> None:
    n_samples = len(x) if weights is None else int((weights > 0).sum())
    if n_samples < n_regions:
        raise ValueError(f"n_samples={n_samples} of weight is smaller than n_regions={n_regions}: take fewer regions")


def cluster(x: Array, weights: Array, n_regions: int, n_init: int, max_iter: int, state: RandomState) -> tuple[Array, int]:
    """(centroids, iterations) of k-means on different samples. Superfluous regions repeat the last centroid and stay empty."""
    distinct = min(n_regions, len(x))
    if distinct < n_regions:
        warnings.warn(
            f"{distinct} different samples for n_regions={n_regions}: some regions are empty",
            ConvergenceWarning,
            stacklevel=outside(),
        )
    found = KMeans(distinct, n_init=n_init, max_iter=max_iter, tol=0.0, random_state=state).fit(x, sample_weight=weights)
    return np.concatenate([found.cluster_centers_, *[found.cluster_centers_[-1:]] * (n_regions - distinct)]), found.n_iter_


def nearest(x: Array, sites: Array) -> Array:
    """Index of the nearest site of each row; ties to the lowest index."""
    shift = sites.mean(axis=0)
    return (Columns(sites - shift)(x - shift) - 0.5 * ((sites - shift) ** 2).sum(axis=1)).argmax(axis=1)
