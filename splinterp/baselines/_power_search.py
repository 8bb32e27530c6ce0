"""Regions for local PCA that stay cells of a power diagram: exact line searches over sites and weights."""

from __future__ import annotations

import numpy as np
from numpy.random import RandomState

from splinterp._typing import Array
from splinterp.baselines._affine import Flats, fit_flats, residuals
from splinterp.baselines._search import Found, objective
from splinterp.geometry._local import middle


def by_power(
    x: Array, weights: Array, sites: Array, rank: int, max_iter: int, tol: float, solver: str, state: RandomState
) -> Found:
    """Flats on the cells of a power diagram, started from the Voronoi cells of `sites`.

    With the flats fixed, the sum of squared residuals is a piecewise constant function of one region's bias, or of its
    site moved along a direction: every sample enters or leaves at one known value, so the best value is found exactly by
    sorting. Both are searched for every region in turn, the site along the direction from the samples that should leave it
    to those that should join; then the flats are fitted again. No step increases the objective.

    All of it about a centre of the samples and in a unit of their extent, a power of two: far from the origin and in any
    unit the search takes the same steps.
    """
    centre = middle(x.astype(np.float64))
    unit = float(np.ldexp(1.0, np.frexp(np.abs(x - centre).max())[1]))
    local = ((x - centre) / unit).astype(x.dtype)
    found = _search(local, weights, (sites - centre) / unit, rank, max_iter, tol, solver, state)
    flats = Flats((found.flats.means * unit + centre).astype(x.dtype), found.flats.components)
    path = [unit**2 * value for value in found.path]
    return Found(found.labels, flats, path, unit * found.sites, unit**2 * found.biases, centre)


def _search(
    x: Array, weights: Array, sites: Array, rank: int, max_iter: int, tol: float, solver: str, state: RandomState
) -> Found:
    """`by_power` of samples about 0 and of the order of 1."""
    search = _Search(x, weights, sites)
    labels = search.owner.copy()
    flats = Flats(sites.astype(x.dtype), np.zeros((len(sites), rank, x.shape[1]), dtype=x.dtype))
    path: list[float] = []
    for _ in range(max_iter):
        flats = fit_flats(x, weights, labels, flats, solver, state)
        search.distances = residuals(x, flats)
        path.append(objective(weights, search.distances, labels))
        if len(path) > 1 and path[-2] - path[-1] <= tol * path[0]:
            break
        for region in range(len(sites)):
            search.improve(region, flats)
        if (search.owner == labels).all():
            break
        labels = search.owner.copy()
    else:  # the flats are those of the regions before
        flats = fit_flats(x, weights, labels, flats, solver, state)
        path.append(objective(weights, residuals(x, flats), labels))
    return Found(labels, flats, path, search.sites, search.biases, np.zeros(x.shape[1]))


class _Search:
    """Scores of all regions, and for each sample the best (owner) and second best (rival) of them."""

    def __init__(self, x: Array, weights: Array, sites: Array) -> None:
        self.x, self.weights = x, weights
        self.sites = sites.astype(np.float64)
        self.biases = -0.5 * (self.sites**2).sum(axis=1)
        self.scores = x.astype(np.float64) @ self.sites.T + self.biases
        self.distances = np.zeros((0, 0))
        self.rows = np.arange(len(x))
        self.owner, self.rival = np.zeros(len(x), dtype=np.int64), np.zeros(len(x), dtype=np.int64)
        self._rank(self.rows)

    def _rank(self, rows: Array) -> None:
        """Find owner and rival of these samples anew; equal scores go to the lowest index."""
        part = self.scores[rows]
        each = np.arange(len(rows))
        self.owner[rows] = part.argmax(axis=1)
        part[each, self.owner[rows]] = -np.inf
        self.rival[rows] = part.argmax(axis=1)

    def improve(self, region: int, flats: Flats) -> None:
        """Line searches over the region's bias, then over its site."""
        if self.scores.shape[1] == 1:
            return
        if not (self.owner == region).any():
            self._restart(region, flats)
        self._step(region, np.ones(len(self.x)), np.zeros(self.x.shape[1]), 1.0)
        direction, centre = self._pull(region)
        length = np.linalg.norm(direction)
        if length > 0:
            direction /= length
            offset = -float(centre @ direction)
            self._step(region, (self.x @ direction.astype(self.x.dtype)).astype(np.float64) + offset, direction, offset)

    def _best_other(self, region: int) -> Array:
        return np.where(self.owner == region, self.rival, self.owner)

    def _gain(self, region: int) -> tuple[Array, Array]:
        """(change of the objective if a sample is in the region instead of the best other one, that one)."""
        other = self._best_other(region)
        cost = self.distances[:, region].astype(np.float64) - self.distances[self.rows, other]
        return self.weights * cost, other

    def _pull(self, region: int) -> tuple[Array, Array]:
        """(direction, centre): from the samples that should leave the region to those that should join it."""
        change, _ = self._gain(region)
        inside = self.owner == region
        centre = self.x[inside].mean(axis=0, dtype=np.float64) if inside.any() else self.x.mean(axis=0, dtype=np.float64)
        direction = np.zeros(self.x.shape[1])
        for pull, sign in ((np.where(inside, 0, np.maximum(-change, 0)), 1), (np.where(inside, np.maximum(change, 0), 0), -1)):
            chosen = np.nonzero(pull)[0]
            if len(chosen):
                direction += sign * (pull[chosen] @ self.x[chosen] / pull[chosen].sum() - centre)
        return direction, centre

    def _step(self, region: int, growth: Array, direction: Array, offset: float) -> None:
        """Add the best multiple of `growth` (its score change) to the region's scores if that lowers the objective.

        A sample is inside where score + t growth exceeds the best other score: it crosses at t = lead / growth.
        """
        change, other = self._gain(region)
        lead = self.scores[self.rows, other] - self.scores[:, region]
        moving = growth != 0
        if not moving.any():
            return
        at, sign = lead[moving] / growth[moving], np.sign(growth[moving])
        order = np.argsort(at, kind="stable")
        at, steps = at[order], (sign * change[moving])[order]
        total = change[moving][sign < 0].sum() + np.concatenate([[0.0], np.cumsum(steps)])  # before, between, after crossings
        now = change[moving & (self.owner == region)].sum()
        edges = np.concatenate([[at[0] - 1.0], at, [at[-1] + 1.0]])
        total[np.diff(edges) <= 1e-9 * np.abs(edges).max()] = np.inf  # t stands clearly between two crossings or not at all
        best = int(total.argmin())
        if not total[best] < now - 1e-12 * np.abs(change).sum():
            return
        t = 0.5 * (edges[best] + edges[best + 1])
        self.sites[region] += t * direction
        self.biases[region] += t * offset
        self._rescore(region, self.scores[:, region] + t * growth)

    def _rescore(self, region: int, scores: Array) -> None:
        second = self.scores[self.rows, self.rival]
        self.scores[:, region] = scores
        self._rank(np.nonzero((self.owner == region) | (self.rival == region) | (scores >= second))[0])

    def _restart(self, region: int, flats: Flats) -> None:
        """Put a region without samples on the costliest one, its scores below all others: a step of its bias lets it in."""
        worst = int((self.weights * self.distances[self.rows, self.owner]).argmax())
        flats.means[region], flats.components[region] = self.x[worst], 0
        self.distances[:, region] = ((self.x - self.x[worst]) ** 2).sum(axis=1)
        self.sites[region] = self.x[worst]
        along = self.x.astype(np.float64) @ self.sites[region]
        self.biases[region] = (self.scores[self.rows, self.owner] - along).min() - 1.0
        self._rescore(region, along + self.biases[region])
