"""PCA and k-means as autoencoders, scikit-learn estimators both."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sklearn.cluster import MiniBatchKMeans
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted

from splinterp._checks import one_of
from splinterp._typing import Array
from splinterp.activations import AbsTopK
from splinterp.baselines._affine import best_flat, canonical
from splinterp.baselines._base import SOLVERS, PiecewiseAffineAutoencoder, check_counts, cluster, enough, nearest
from splinterp.baselines._stream import Moments
from splinterp.geometry._local import middle
from splinterp.geometry.power_diagram import PowerDiagram
from splinterp.sae import SAE


class PCAAutoencoder(PiecewiseAffineAutoencoder):
    """Projection onto the mean plus the top principal directions: one region, the best affine map of its rank.

    Args:
        n_components: rank, from 0 to the number of features.
        svd_solver: "exact", "randomized", or "auto": randomised where both sides are long and the rank is small.
        random_state: of the randomised solver.

    Fitted: `mean_` (d,), and see PiecewiseAffineAutoencoder. Raises ValueError for a rank above the number of features.
    """

    def __init__(self, n_components: Any = 2, *, svd_solver: Any = "auto", random_state: Any = None) -> None:
        self.n_components = n_components
        self.svd_solver = svd_solver
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> PCAAutoencoder:
        """Fit to X (n, d)."""
        X, weights = self._training_data(X, sample_weight)
        self._check(X.shape[1])
        self._moments: Moments | None = None
        mean, components = best_flat(X, weights, self.n_components, self.svd_solver, check_random_state(self.random_state))
        return self._keep(mean, components)

    def partial_fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> PCAAutoencoder:
        """Add a batch; the result is that of one `fit` to all batches. Memory: a d x d matrix in float64."""
        first = getattr(self, "_moments", None) is None
        X, weights = self._training_data(X, sample_weight, reset=first)
        self._check(X.shape[1])
        if first:
            self._moments = Moments(X.shape[1])
        assert self._moments is not None
        self._moments.add(X, weights)
        mean, components = self._moments.flat(self.n_components)
        return self._keep(mean.astype(X.dtype), components.astype(X.dtype))

    def _check(self, d: int) -> None:
        self._fits_rank("n_components", self.n_components, d)
        one_of("svd_solver", self.svd_solver, SOLVERS)

    def _keep(self, mean: Array, components: Array) -> PCAAutoencoder:
        self.mean_, self.means_, self.components_ = mean, mean[None], components[None]
        return self

    def to_sae(self) -> SAE:
        """The same map as an SAE whose latents are all active: AbsTopK with k = n_components, in this dtype.

        W_enc = V.T, b_pre = b_dec = mean, W_dec = V, V (n_components, d) the components. Raises ValueError for no components.
        """
        check_is_fitted(self)
        rank, d = self.components_[0].shape
        if rank == 0:
            raise ValueError("a PCA of no components has no latents: an SAE needs at least one")
        V, mean = torch.from_numpy(self.components_[0].copy()), torch.from_numpy(self.mean_.copy())
        sae = SAE(d, rank, AbsTopK(rank), dtype=V.dtype, generator=0)
        with torch.no_grad():
            sae.W_enc.copy_(V.T)
            sae.W_dec.copy_(V)
            for centre in (sae.b_pre, sae.b_dec):
                assert centre is not None
                centre.copy_(mean)
        return sae

    def _regions(self, X: Array) -> Array:
        return np.zeros(len(X), dtype=np.int64)


class KMeansAutoencoder(PiecewiseAffineAutoencoder):
    """Every sample to the mean of its k-means cluster: piecewise constant, an SAE's order-1 diagram without its slopes.

    Args:
        n_regions: clusters.
        n_init: starts by k-means++, of which scikit-learn keeps the best.
        max_iter: of each start; the tolerance is 0, so it runs until the partition stands.
        random_state: of the starts.

    Fitted: `cluster_centers_` (n_regions, d), `labels_` (of the training samples), `inertia_` (weighted sum of squared
    distances), `n_iter_`, and see PiecewiseAffineAutoencoder. Weighting a sample by an integer is repeating it.

    Raises ValueError for more regions than samples; with fewer different samples some regions stay empty, with a warning.
    """

    def __init__(self, n_regions: Any = 8, *, n_init: Any = 3, max_iter: Any = 300, random_state: Any = None) -> None:
        self.n_regions = n_regions
        self.n_init = n_init
        self.max_iter = max_iter
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> KMeansAutoencoder:
        """Fit to X (n, d)."""
        X, weights = self._training_data(X, sample_weight)
        check_counts(self.n_regions, self.n_init, self.max_iter)
        enough(X, weights, self.n_regions)
        rows, row_weights = canonical(X, weights)
        self._batches: MiniBatchKMeans | None = None
        state = check_random_state(self.random_state)
        centers, self.n_iter_ = cluster(rows, row_weights, self.n_regions, self.n_init, self.max_iter, state)
        self._keep(centers)
        self.labels_ = self._regions(X)
        squares = ((X - self.means_[self.labels_]) ** 2).sum(axis=1, dtype=np.float64)
        self.inertia_ = float(squares.sum() if weights is None else weights @ squares)
        return self

    def partial_fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> KMeansAutoencoder:
        """Add a batch, by scikit-learn's MiniBatchKMeans; the first needs at least n_regions samples."""
        first = getattr(self, "_batches", None) is None
        X, weights = self._training_data(X, sample_weight, reset=first)
        check_counts(self.n_regions, self.n_init, self.max_iter)
        if first:
            enough(X, weights, self.n_regions)
            self._batches = MiniBatchKMeans(self.n_regions, n_init=self.n_init, random_state=self.random_state)
            self._shift = middle(X.astype(np.float64)).astype(X.dtype)  # MiniBatchKMeans does not centre
        assert self._batches is not None
        self._batches.partial_fit(X - self._shift, sample_weight=weights)
        return self._keep((self._batches.cluster_centers_ + self._shift).astype(X.dtype))

    def _keep(self, centers: Array) -> KMeansAutoencoder:
        self.cluster_centers_ = self.means_ = centers
        self.components_ = np.zeros((len(centers), 0, centers.shape[1]), dtype=centers.dtype)
        return self

    def _regions(self, X: Array) -> Array:
        return nearest(X, self.cluster_centers_)

    def power_diagram(self) -> PowerDiagram:
        """The regions as an order-1 diagram: sites are the centroids, all weights 0 (claim 9)."""
        check_is_fitted(self)
        return PowerDiagram(self.cluster_centers_)
