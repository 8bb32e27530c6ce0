"""k-means plus local PCA, with the regions decided by centroids, by residuals, or by a power diagram."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.random import RandomState
from sklearn.cluster import MiniBatchKMeans
from sklearn.utils import check_random_state
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_is_fitted

from splinterp._checks import at_least, one_of
from splinterp._typing import Array
from splinterp.baselines._affine import Flats, canonical, fit_flats, residuals
from splinterp.baselines._base import SOLVERS, PiecewiseAffineAutoencoder, check_counts, cluster, enough, nearest
from splinterp.baselines._power_search import by_power
from splinterp.baselines._search import Found, by_residual
from splinterp.baselines._stream import FlatStream
from splinterp.geometry._local import Columns, middle
from splinterp.geometry.power_diagram import PowerDiagram


def _streams(autoencoder: LocalPCAAutoencoder) -> bool:
    if autoencoder.assign == "power":
        raise AttributeError("assign='power' searches over all samples at once: use fit, or assign='centroid' or 'residual'")
    return True


class LocalPCAAutoencoder(PiecewiseAffineAutoencoder):
    """k-means plus local PCA: the optimal piecewise affine autoencoder of its rank for its regions (SplInterp, claim 9).

    Args:
        n_regions: regions.
        rank: dimension of each region's flat; 0 gives constants.
        assign: who decides on regions. "centroid": k-means, then PCA in each cluster. "residual": samples go to the flat
            that is nearest, alternately with the fits (affine k-flats); regions need not be convex. "power": regions stay
            cells of a power diagram (convex), whose sites and weights are searched for the least error.
        n_init: starts of k-means, and for "residual" of the alternation, the first from the k-means clusters: its training
            error is at most that of "centroid".
        max_iter: of k-means and of the alternation.
        tol: the alternation ends when the objective falls by less than this share of its first value.
        svd_solver: "exact", "randomized", or "auto": randomised in regions with long sides, for small ranks.
        random_state: of the starts and the randomised solver.

    Fitted: `labels_`, `inertia_` (weighted sum of squared residuals), `objective_path_` (it after every iteration of the best
    start), `n_iter_`, for "centroid" and "power" `sites_` and `biases_` (of scores x . site + bias, the largest wins; far from
    the origin these biases have few digits left, which `predict_region` and `power_diagram` do without), and see
    PiecewiseAffineAutoencoder. Weighting a sample by an integer is repeating it.

    Raises ValueError for more regions than samples, a rank above the number of features, an unknown option.
    """

    def __init__(
        self, n_regions: Any = 8, rank: Any = 1, assign: Any = "residual", *, n_init: Any = 3, max_iter: Any = 300,
        tol: Any = 1e-6, svd_solver: Any = "auto", random_state: Any = None,
    ) -> None:  # fmt: skip
        self.n_regions = n_regions
        self.rank = rank
        self.assign = assign
        self.n_init = n_init
        self.max_iter = max_iter
        self.tol = tol
        self.svd_solver = svd_solver
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> LocalPCAAutoencoder:
        """Fit to X (n, d)."""
        X, weights = self._training_data(X, sample_weight)
        self._check(X.shape[1])
        enough(X, weights, self.n_regions)
        rows, row_weights = canonical(X, weights)
        self._stream: FlatStream | None = None
        found = self._search(rows, row_weights, check_random_state(self.random_state))
        self.means_, self.components_ = found.flats
        if self.assign != "residual":
            self._set_sites(found.sites, found.biases, found.centre)
        self.objective_path_ = found.path
        self.labels_ = self._regions(X)
        squares = ((X - self.reconstruct(X)) ** 2).sum(axis=1, dtype=np.float64)
        self.inertia_ = float(squares.sum() if weights is None else weights @ squares)
        return self

    def _search(self, x: Array, weights: Array, state: RandomState) -> Found:
        sites, iterations = cluster(x, weights, self.n_regions, self.n_init, self.max_iter, state)
        self.n_iter_ = iterations
        options = (self.rank, self.max_iter, self.tol, self.svd_solver, state)
        if self.assign == "power":
            return self._counted(by_power(x, weights, sites, *options))
        labels = nearest(x, sites)
        if self.assign == "residual":
            starts = [labels]
            for _ in range(self.n_init - 1):
                chosen = state.choice(len(x), min(self.n_regions, len(x)), replace=False)
                starts.append(nearest(x, x[chosen]))
            found = [by_residual(x, weights, start, self.n_regions, *options) for start in starts]
            return self._counted(min(found, key=lambda one: one.path[-1]))
        blank = Flats(sites, np.zeros((self.n_regions, self.rank, x.shape[1]), dtype=x.dtype))
        flats = fit_flats(x, weights, labels, blank, self.svd_solver, state)
        error = float(weights @ residuals(x, flats)[np.arange(len(x)), labels].astype(np.float64))
        biases = -0.5 * (sites.astype(np.float64) ** 2).sum(axis=1)
        return Found(labels, flats, [error], sites, biases, np.zeros(x.shape[1]))

    def _set_sites(self, sites: Array, biases: Array, centre: Array) -> None:
        """Keep the scores (x - centre) . sites + biases, and publish them about the origin."""
        self._local_sites, self._local_biases, self._centre = sites, biases, centre
        self.sites_ = sites + centre
        self.biases_ = biases - sites @ centre - 0.5 * float(centre @ centre)

    def _counted(self, found: Found) -> Found:
        self.n_iter_ = len(found.path)
        return found

    @available_if(_streams)
    def partial_fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> LocalPCAAutoencoder:
        """Add a batch: samples go to regions as they are now, and each region's flat is updated by its own samples.

        The first batch is fitted as a whole; "centroid" moves its sites by MiniBatchKMeans. Each region keeps a sketch of
        rank + 10 directions, so that memory does not grow with the data. A stream never comes back to reassign a sample,
        so it ends near `fit`, not at it. Not there for assign="power", whose search needs all samples.
        """
        first = getattr(self, "_stream", None) is None
        X, weights = self._training_data(X, sample_weight, reset=first)
        self._check(X.shape[1])
        if first:
            enough(X, weights, self.n_regions)
            found = self._search(X, np.ones(len(X)) if weights is None else weights, check_random_state(self.random_state))
            self.means_, self.components_ = found.flats
            self._stream = FlatStream(self.n_regions, X.shape[1], self.rank)
            self._shift = middle(X.astype(np.float64)).astype(X.dtype)  # MiniBatchKMeans does not centre
            start = found.sites - self._shift
            self._batches = MiniBatchKMeans(self.n_regions, init=start, n_init=1, random_state=self.random_state)
        assert self._stream is not None
        if self.assign == "centroid":
            sites = self._batches.partial_fit(X - self._shift, sample_weight=weights).cluster_centers_ + self._shift
            self.sites_, self.biases_ = sites, -0.5 * (sites.astype(np.float64) ** 2).sum(axis=1)
        self._stream.add(X, np.ones(len(X)) if weights is None else weights, self._regions(X))
        self.means_, self.components_ = self._stream.flats(self._flats(X.dtype))
        return self

    def _check(self, d: int) -> None:
        check_counts(self.n_regions, self.n_init, self.max_iter)
        self._fits_rank("rank", self.rank, d)
        one_of("assign", self.assign, ("centroid", "residual", "power"))
        one_of("svd_solver", self.svd_solver, SOLVERS)
        at_least("tol", self.tol, 0.0)

    def _regions(self, X: Array) -> Array:
        if self.assign == "residual":
            return residuals(X, self._flats(X.dtype)).argmin(axis=1)
        if self.assign == "centroid":
            return nearest(X, self.sites_)
        return (Columns(self._local_sites)(X - self._centre) + self._local_biases).argmax(axis=1)

    def power_diagram(self) -> PowerDiagram:
        """The regions as an order-1 diagram. Raises ValueError for assign="residual", whose regions need not be convex."""
        check_is_fitted(self)
        if self.assign == "residual":
            raise ValueError("regions assigned by residual are no power diagram: use assign='centroid' or 'power'")
        if self.assign == "centroid":
            return PowerDiagram(self.sites_)
        return PowerDiagram.from_scores(self._local_sites, self._local_biases, 1).translate(self._centre)
