"""The nearest change of support of each sample, without a table over all pairs of latents."""

from __future__ import annotations

import numpy as np

from splinterp._typing import Array
from splinterp.geometry._arrays import blocks
from splinterp.geometry._encoder import Encoder, signed

TABLE = 4096
"""Up to this many sites all distances between sites are kept in one table."""


def nearest_thresholds(encoder: Encoder, scores: Array, active: Array) -> tuple[Array, Array, Array]:
    """(margin, entering, leaving) of each row where every latent has a threshold of its own."""
    length = np.linalg.norm(encoder.weights, axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        distance = np.abs(scores - encoder.threshold) / length
    distance[:, length == 0] = np.inf
    nearest = distance.argmin(axis=1)
    rows = np.arange(len(scores))
    margin = distance[rows, nearest]
    changes = np.isfinite(margin)
    leaves = active[rows, nearest]
    return margin, np.where(changes & ~leaves, nearest, -1), np.where(changes & leaves, nearest, -1)


def nearest_swaps(encoder: Encoder, scores: Array, active: Array) -> tuple[Array, Array, Array]:
    """(margin, entering, leaving) of each row of a TopK or AbsTopK encoder.

    The support is a cell of a power diagram: of the latents (AbsTopK: the signed sites) and null sites of score 0, for a
    latent also leaves a TopK when its score falls to 0, and takes a free place when its score leaves 0. Its facets are
    exchanges of a site i inside for a site j outside, at distance (s_i - s_j) / |c_i - c_j|. With u the distance of one
    exchange, only pairs with s_i - s_j <= u (|c_i| + |c_j|) can be nearer; few are, and only these are computed.
    """
    if not len(scores):
        return np.empty(0), np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
    n, n_latents = scores.shape
    room = active.sum(axis=1, keepdims=True) < encoder.k
    null = np.zeros((1, encoder.weights.shape[1]))
    idle = ~active & ((encoder.weights != 0).any(axis=1) | (encoder.biases != 0))  # a latent without either never acts
    if encoder.kind == "topk":
        sites, scores = np.concatenate([encoder.weights, null]), np.concatenate([scores, np.zeros((n, 1))], axis=1)
        inside = np.concatenate([active, room], axis=1)
        outside = np.concatenate([idle, active.any(axis=1, keepdims=True)], axis=1)
    else:
        sites = np.concatenate([*signed(encoder.weights, encoder.biases)[:1], null])
        inside = np.concatenate([active & (scores > 0), active & (scores < 0), room], axis=1)
        outside = np.concatenate([idle, idle, np.zeros((n, 1), dtype=bool)], axis=1)
        scores = np.concatenate([scores, -scores, np.zeros((n, 1))], axis=1)
    margin, leaving, entering = _nearest_pairs(sites, scores, inside, outside)

    def latent(site: Array) -> Array:
        return np.where((site < 0) | (site == len(sites) - 1), -1, site % n_latents)

    return margin, latent(entering), latent(leaving)


def _nearest_pairs(sites: Array, scores: Array, inside: Array, outside: Array) -> tuple[Array, Array, Array]:
    """(distance, i, j) of the nearest exchange of each row; (inf, -1, -1) where there is none. The last site is null."""
    n = len(scores)
    length, distances = np.linalg.norm(sites, axis=1), _Distances(sites)
    best, best_i, best_j = np.full(n, np.inf), np.full(n, -1), np.full(n, -1)
    bound = np.minimum(_weakest_for_strongest(distances, scores, inside, outside[:, :-1]),
                       _weakest_for_strongest(distances, scores, inside[:, :-1], outside))  # fmt: skip
    bound = np.where(np.isfinite(bound), bound * (1 + 1e-9), 1e200)  # finite: inf times length 0 is not a number
    weakest, reach = np.where(inside, scores, np.inf).min(axis=1), np.where(inside, length, 0.0).max(axis=1)
    near = (
        outside & inside.any(axis=1, keepdims=True) & (weakest[:, None] - scores <= bound[:, None] * (reach[:, None] + length))
    )
    row, j = np.nonzero(near)
    kept_row, kept = np.nonzero(inside)
    first, count = np.searchsorted(kept_row, np.arange(n)), inside.sum(axis=1)
    for part in blocks(len(row), 8 * max(1, int(count.max(initial=1)))):
        r, b = np.repeat(row[part], count[row[part]]), np.repeat(j[part], count[row[part]])
        offset = np.arange(len(r)) - np.repeat(np.cumsum(count[row[part]]) - count[row[part]], count[row[part]])
        a = kept[first[r] + offset]
        gap = scores[r, a] - scores[r, b]
        worth = gap <= bound[r] * (length[a] + length[b])
        r, a, b = r[worth], a[worth], b[worth]
        distance = distances.exchange(scores[r, a], scores[r, b], a, b)
        order = np.lexsort((a, b, distance, r))
        r, a, b, distance = r[order], a[order], b[order], distance[order]
        lead = np.nonzero(np.diff(r, prepend=-1))[0]
        lead = lead[distance[lead] < best[r[lead]]]
        best[r[lead]], best_i[r[lead]], best_j[r[lead]] = distance[lead], a[lead], b[lead]
    return best, best_i, best_j


def _weakest_for_strongest(distances: _Distances, scores: Array, inside: Array, outside: Array) -> Array:
    """Distance of exchanging the lowest score inside for the highest outside, inf where there is none; the last site,
    the null site, is in at most one of the two, or that exchange would often be its own and no bound."""
    low = np.where(inside, scores[:, : inside.shape[1]], np.inf)
    high = np.where(outside, scores[:, : outside.shape[1]], -np.inf)
    i, j = low.argmin(axis=1), high.argmax(axis=1)
    bound = np.full(len(scores), np.inf)
    rows = np.nonzero(inside.any(axis=1) & outside.any(axis=1))[0]
    bound[rows] = distances.exchange(scores[rows, i[rows]], scores[rows, j[rows]], i[rows], j[rows])
    return bound


class _Distances:
    """Distances between sites: looked up for small dictionaries, computed pair by pair for wide ones."""

    def __init__(self, sites: Array) -> None:
        self.sites = sites
        self.table: Array | None = None
        if len(sites) <= TABLE:
            square = (sites**2).sum(axis=1)
            gram = sites @ sites.T
            self.table = np.sqrt(np.maximum(square[:, None] + square - 2 * gram, 0.0))
            # Differences lose their digits for nearly equal sites: those are computed directly.
            self.close = self.table**2 < 1e-6 * (square[:, None] + square)

    def exchange(self, inner: Array, outer: Array, i: Array, j: Array) -> Array:
        """(inner - outer) / |c_i - c_j|; inf for equal sites, which never change places."""
        if self.table is None:
            length = self._direct(i, j)
        else:
            length = self.table[i, j]
            close = np.nonzero(self.close[i, j])[0]
            length[close] = self._direct(i[close], j[close])
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(length > 0, (inner - outer) / length, np.inf)

    def _direct(self, i: Array, j: Array) -> Array:
        length = np.empty(len(i))
        for part in blocks(len(i), 3 * self.sites.shape[1]):
            length[part] = np.linalg.norm(self.sites[i[part]] - self.sites[j[part]], axis=1)
        return length
