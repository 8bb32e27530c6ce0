"""Regions for local PCA by residual: affine k-flats."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.random import RandomState

from splinterp._typing import Array
from splinterp.baselines._affine import Flats, fit_flats, residuals


class Found(NamedTuple):
    """A partition with its flats."""

    labels: Array
    flats: Flats
    path: list[float]
    """Weighted sum of squared residuals after every iteration; it never increases."""
    sites: Array
    """Of a power diagram: scores (x - centre) . sites + biases, the largest wins. Meaningless for assignment by residual."""
    biases: Array
    centre: Array


def objective(weights: Array, distances: Array, labels: Array) -> float:
    return float(weights @ distances[np.arange(len(labels)), labels].astype(np.float64))


def by_residual(
    x: Array,
    weights: Array,
    labels: Array,
    n_regions: int,
    rank: int,
    max_iter: int,
    tol: float,
    solver: str,
    state: RandomState,
) -> Found:
    """Affine k-flats: fit every region's flat, give every sample to its nearest flat, until nothing moves.

    Both steps minimise the sum of squared residuals. A region that loses its last sample takes the sample of the largest
    residual, which brings that residual to 0.
    """
    d = x.shape[1]
    flats = Flats(np.zeros((n_regions, d), dtype=x.dtype), np.zeros((n_regions, rank, d), dtype=x.dtype))
    path: list[float] = []
    for _ in range(max_iter):
        flats = fit_flats(x, weights, labels, flats, solver, state)
        distances = residuals(x, flats)
        before = objective(weights, distances, labels)
        moved = distances.argmin(axis=1)
        # Rounding must not move a sample between flats that are equally near.
        stay = distances[np.arange(len(x)), labels] <= distances[np.arange(len(x)), moved]
        moved[stay] = labels[stay]
        _refill(moved, weights * distances[np.arange(len(x)), moved], n_regions)
        path.append(before)
        if (moved == labels).all() or (len(path) > 1 and path[-2] - path[-1] <= tol * path[0]):
            break
        labels = moved
    return Found(labels, flats, path, flats.means, np.zeros(n_regions), np.zeros(d))


def _refill(labels: Array, cost: Array, n_regions: int) -> None:
    """Give each empty region the costliest sample of a region that has others."""
    counts = np.bincount(labels, minlength=n_regions)
    empty = np.nonzero(counts == 0)[0]
    if not len(empty):
        return
    worst = iter(np.argsort(-cost, kind="stable"))
    for region in empty:
        for sample in worst:
            if counts[labels[sample]] > 1 and cost[sample] > 0:
                counts[labels[sample]] -= 1
                counts[region] += 1
                labels[sample] = region
                break
