"""Affine pieces: the best flat of a given rank through weighted samples, and residuals against many flats."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.random import RandomState
from sklearn.utils.extmath import randomized_svd

from splinterp._typing import Array

BLOCK_BYTES = 2**27
RANDOMISED_FROM = 500
"""Shorter side from which a randomised decomposition pays, if at most a tenth of it is wanted."""
POWER_ITERATIONS = 7


class Flats(NamedTuple):
    """One affine subspace for each region; regions with too few samples have rows of zeros among their components."""

    means: Array
    """(n_regions, d)."""
    components: Array
    """(n_regions, rank, d), orthonormal rows or zeros."""


def best_flat(
    x: Array, weights: Array | None, rank: int, solver: str = "auto", random_state: int | RandomState | None = None
) -> tuple[Array, Array]:
    """(mean, components (rank, d)) of the affine subspace of least weighted squared distance to the rows of x: local PCA.

    Exact by the singular values of the centred rows, or by the eigenvectors of their d x d scatter where there are more
    rows than columns; randomised ("auto": for long sides and small ranks only). Each component's largest entry is positive.
    """
    total = x.sum(axis=0, dtype=np.float64) / len(x) if weights is None else weights @ x / weights.sum()
    mean = total.astype(x.dtype)
    components = np.zeros((rank, x.shape[1]), dtype=x.dtype)
    if rank == 0 or len(x) < 2:
        return mean, components
    rows = x - mean if weights is None else np.sqrt(weights)[:, None].astype(x.dtype) * (x - mean)
    short = min(rows.shape)
    if solver == "randomized" or (solver == "auto" and short >= RANDOMISED_FROM and rank <= short // 10):
        found = randomized_svd(rows, min(rank, short), n_iter=POWER_ITERATIONS, random_state=random_state or 0)[2]
    elif len(rows) > rows.shape[1]:
        wide = rows.astype(np.float64)
        found = np.linalg.eigh(wide.T @ wide)[1][:, ::-1].T[:rank]
    else:
        singular, found = np.linalg.svd(rows.astype(np.float64), full_matrices=False)[1:]
        found = found[: min(rank, int((singular > 1e-12 * max(singular[0], 1e-300)).sum()))]
    signs = np.sign(found[np.arange(len(found)), np.abs(found).argmax(axis=1)])
    components[: len(found)] = (signs[:, None] * found).astype(x.dtype)
    return mean, components


def fit_flats(
    x: Array, weights: Array, labels: Array, previous: Flats, solver: str, random_state: int | RandomState | None
) -> Flats:
    """The best flat of every region; a region without samples keeps its previous one."""
    means, components = previous.means.copy(), previous.components.copy()
    for region, rows in by_region(labels, len(means)):
        means[region], components[region] = best_flat(x[rows], weights[rows], components.shape[1], solver, random_state)
    return Flats(means, components)


def residuals(x: Array, flats: Flats) -> Array:
    """Squared distance of every row of x to every flat: (n, n_regions)."""
    n_regions, rank, d = flats.components.shape
    stacked = flats.components.reshape(-1, d)
    result = np.empty((len(x), n_regions), dtype=x.dtype)
    # Centred once, so that large common means do not cost digits in |x|^2 - 2 x.m + |m|^2.
    shift = flats.means.mean(axis=0)
    means = flats.means - shift
    squares = (means**2).sum(axis=1)
    offsets = np.einsum("mrd,md->mr", flats.components, means).reshape(-1)
    size = max(1, BLOCK_BYTES // (x.dtype.itemsize * n_regions * (rank + 2)))
    for start in range(0, len(x), size):
        part = x[start : start + size]
        local = part - shift
        away = (local**2).sum(axis=1, keepdims=True) - 2 * local @ means.T + squares
        along = local @ stacked.T - offsets
        away -= (along.reshape(len(part), n_regions, rank) ** 2).sum(axis=2)
        result[start : start + size] = np.maximum(away, 0)
    return result


def by_region(labels: Array, n_regions: int) -> Iterator[tuple[int, Array]]:
    """(region, its rows) of every region that has rows."""
    order = np.argsort(labels, kind="stable")
    starts = np.searchsorted(labels[order], np.arange(n_regions + 1))
    for region, (start, end) in enumerate(pairwise(starts)):
        if end > start:
            yield region, order[start:end]


def project(x: Array, labels: Array, flats: Flats) -> Array:
    """Coordinates (n, rank) of each row in its region's flat."""
    codes = np.empty((len(x), flats.components.shape[1]), dtype=x.dtype)
    for region, rows in by_region(labels, len(flats.means)):
        codes[rows] = (x[rows] - flats.means[region]) @ flats.components[region].T
    return codes


def lift(codes: Array, labels: Array, flats: Flats) -> Array:
    """The points of the flats with these coordinates: (n, d)."""
    points = np.empty((len(codes), flats.means.shape[1]), dtype=flats.means.dtype)
    for region, rows in by_region(labels, len(flats.means)):
        points[rows] = flats.means[region] + codes[rows] @ flats.components[region]
    return points


def canonical(x: Array, weights: Array | None) -> tuple[Array, Array]:
    """(rows, weights) with repeated rows merged and rows of no weight dropped.

    Weighted samples and repeated ones become the same input. Without weights and repeats rows keep their order; otherwise
    the order depends on their values only.
    """
    key = (x * np.random.default_rng(0).standard_normal((x.shape[1],)).astype(x.dtype)).sum(axis=1)  # equal rows: equal keys
    order = np.argsort(key, kind="stable")
    new = np.ones(len(x), dtype=bool)
    close = np.nonzero(key[order[1:]] == key[order[:-1]])[0]
    new[1 + close] = (x[order[1 + close]] != x[order[close]]).any(axis=1)
    if new.all() and (weights is None or (weights == weights[0]).all()):
        return x, np.ones(len(x)) if weights is None else weights
    total = np.bincount(np.cumsum(new) - 1, weights=np.ones(len(x)) if weights is None else weights[order])
    rows = x[order[new]]
    return rows[total > 0], total[total > 0]
