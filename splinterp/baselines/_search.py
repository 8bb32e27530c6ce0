"""Regions for local PCA: alternating assignment by residual, and exact line searches over power diagrams."""

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
    """Of a power diagram: scores x . sites + biases, the largest wins. Meaningless for assignment by residual."""
    biases: Array


def _objective(weights: Array, distances: Array, labels: Array) -> float:
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
        before = _objective(weights, distances, labels)
        moved = distances.argmin(axis=1)
        # Rounding must not move a sample between flats that are equally near.
        stay = distances[np.arange(len(x)), labels] <= distances[np.arange(len(x)), moved]
        moved[stay] = labels[stay]
        _refill(moved, weights * distances[np.arange(len(x)), moved], n_regions)
        path.append(before)
        if (moved == labels).all() or (len(path) > 1 and path[-2] - path[-1] <= tol * path[0]):
            break
        labels = moved
    return Found(labels, flats, path, flats.means, np.zeros(n_regions))


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


def by_power(
    x: Array, weights: Array, sites: Array, rank: int, max_iter: int, tol: float, solver: str, state: RandomState
) -> Found:
    """Regions that stay cells of a power diagram, started from the Voronoi cells of `sites`.

    With the flats fixed, the sum of squared residuals is a piecewise constant function of one region's bias, or of its
    site moved along a direction: samples enter and leave at known values, so the best value is found exactly by sorting.
    Both are searched for every region in turn, the site along the direction from the samples that should leave it to those
    that should join; then the flats are fitted again. No step increases the objective.
    """
    n_regions, d = sites.shape
    sites = sites.astype(np.float64)
    biases = -0.5 * (sites**2).sum(axis=1)
    scores = x.astype(np.float64) @ sites.T + biases
    labels = scores.argmax(axis=1)
    flats = Flats(sites.astype(x.dtype), np.zeros((n_regions, rank, d), dtype=x.dtype))
    path: list[float] = []
    for _ in range(max_iter):
        flats = fit_flats(x, weights, labels, flats, solver, state)
        distances = residuals(x, flats)
        path.append(_objective(weights, distances, labels))
        if len(path) > 1 and path[-2] - path[-1] <= tol * path[0]:
            break
        for region in range(n_regions):
            if not (scores.argmax(axis=1) == region).any():
                _restart(x, weights, scores, distances, region, flats, sites, biases)
            cost = weights * distances[:, region].astype(np.float64)
            _best_step(scores, distances, weights, region, cost, np.ones(len(x)), sites, biases, np.zeros(d), 1.0)
            direction, centre = _pull(x, scores, distances, weights, region)
            length = np.linalg.norm(direction)
            if length > 0:
                direction /= length
                growth = (x - centre).astype(np.float64) @ direction
                _best_step(
                    scores, distances, weights, region, cost, growth, sites, biases, direction, -float(centre @ direction)
                )
        moved = scores.argmax(axis=1)
        if (moved == labels).all():
            break
        labels = moved
    return Found(labels, flats, path, sites, biases)


def _restart(
    x: Array, weights: Array, scores: Array, distances: Array, region: int, flats: Flats, sites: Array, biases: Array
) -> None:
    """Put a region without samples on the costliest sample, far below all others: a step of its bias lets it in."""
    owner = scores.argmax(axis=1)
    worst = int((weights * distances[np.arange(len(x)), owner]).argmax())
    flats.means[region], flats.components[region] = x[worst], 0
    distances[:, region] = ((x - x[worst]) ** 2).sum(axis=1)
    sites[region] = x[worst]
    scores[:, region] = x.astype(np.float64) @ sites[region]
    biases[region] = (scores.max(axis=1) - scores[:, region]).min() - 1.0
    scores[:, region] += biases[region]


def _pull(x: Array, scores: Array, distances: Array, weights: Array, region: int) -> tuple[Array, Array]:
    """(direction, centre): from the samples that should leave the region to those that should join it."""
    rows = np.arange(len(x))
    owner = scores.argmax(axis=1)
    inside = owner == region
    centre = np.average(x[inside], axis=0) if inside.any() else x.mean(axis=0)
    others = scores.copy()
    others[:, region] = -np.inf
    gain = weights * (distances[rows, others.argmax(axis=1)].astype(np.float64) - distances[:, region])  # of being inside
    join, leave = np.where(~inside, np.maximum(gain, 0), 0), np.where(inside, np.maximum(-gain, 0), 0)
    direction = np.zeros(x.shape[1])
    if join.sum() > 0:
        direction += join @ x / join.sum() - centre
    if leave.sum() > 0:
        direction -= leave @ x / leave.sum() - centre
    return direction, centre


def _best_step(
    scores: Array, distances: Array, weights: Array, region: int, cost: Array, growth: Array, sites: Array, biases: Array,
    direction: Array, offset: float,
) -> None:  # fmt: skip
    """Add the best multiple of `growth` (its score change) to one region's scores, in place, if that lowers the objective.

    A sample is inside where score + t growth exceeds the best other score: it crosses at t = lead / growth once.
    """
    if len(biases) == 1:
        return
    rows = np.arange(len(scores))
    own = scores[:, region].copy()
    scores[:, region] = -np.inf
    rival = scores.argmax(axis=1)
    lead = scores[rows, rival] - own
    scores[:, region] = own
    change = cost - weights * distances[rows, rival].astype(np.float64)  # in the objective, of being inside
    moving = growth != 0
    at = lead[moving] / growth[moving]
    sign = np.sign(growth[moving])
    order = np.argsort(at, kind="stable")
    at, steps = at[order], (sign * change[moving])[order]
    total = change[moving][sign < 0].sum() + np.concatenate([[0.0], np.cumsum(steps)])  # before each crossing and after all
    now = change[moving & (lead < 0)].sum()
    # Only between different crossings can t stand.
    edges = np.concatenate([[at[0] - 1.0], at, [at[-1] + 1.0]]) if len(at) else np.array([0.0, 0.0])
    total[np.diff(edges) <= 1e-12 * np.abs(edges).max()] = np.inf
    best = int(total.argmin())
    if total[best] >= now - 1e-12 * abs(change).sum():
        return
    t = 0.5 * (edges[best] + edges[best + 1])
    scores[:, region] = own + t * growth
    sites[region] += t * direction
    biases[region] += t * offset
