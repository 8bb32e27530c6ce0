"""Order-k cells of a window, by walking over edges from seeds."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from splinterp._typing import Array
from splinterp.geometry._index import LevelIndex
from splinterp.geometry._polygons import ON_LINE, SHORT, PolygonBatch, RaggedPolygons, joined
from splinterp.geometry._topk import top_indices

TIED = 1e-13
"""Scores this close at the middle of an edge are examined as a tie (scores are of the order of 1)."""
SEEDS = 64
"""Seeds spread over the window, besides one in each box of the index."""
BATCH_BYTES = 2**26
RING = np.stack([np.cos(np.arange(8) * np.pi / 4), np.sin(np.arange(8) * np.pi / 4)], axis=1)


class Walked(NamedTuple):
    """Cells in the order in which they were found."""

    sets: Array
    """(n_cells, order), sorted site indices."""
    polygons: RaggedPolygons
    """Labels are not meaningful any more."""
    neighbours: Array
    """One for each polygon row: the cell across the edge to the next vertex, -1 at the window."""


class TooManyCellsError(ValueError):
    """The walk met more cells than it was allowed."""


class TooCloseError(ArithmeticError):
    """More sites tie on one side of an edge, to the walk's tolerance, than a cell has."""


class Walk:
    """The cells of the order-k diagram of the scores `sites @ y + biases` over the rectangle `[-half, half]`.

    A cell S is the intersection of the half-planes score i >= score j, i in S and j not. Its polygon starts as the
    window; at each vertex the lowest score inside S is compared with the highest outside, and where they are in the
    wrong order their half-plane is cut off, until every vertex belongs to S. That takes about as many half-planes as
    the cell has edges, out of k (m - k). Across an edge one site is exchanged for another, which names the next cell.

    Scores should be of the order of 1. Ties go to the lowest index. Tolerances are multiplied by `blur`: cells not wider
    than about 1e-13 blur may be merged into their neighbours.
    """

    def __init__(
        self, sites: Array, biases: Array, order: int, half: Array, max_cells: int | None = None, blur: float = 1.0
    ) -> None:
        self.half, self.order, self.max_cells = half, order, max_cells
        self.sites, self.biases, self.blur = sites, biases, blur
        self.kind, copies = np.unique(repeats(sites, biases)[0], return_inverse=True, return_counts=True)[1:]
        self.copies = copies[self.kind]
        self.index = LevelIndex(sites, biases, order, half, blur)
        self.ids: dict[bytes, int] = {}
        self.sets: list[Array] = []

    def run(self) -> Walked:
        """Walk until no edge leads to a new cell."""
        points = self._seed_points()
        seeds = np.empty((len(points), self.order), dtype=np.int64)
        for rows, candidates, scores in self.index.scored(points):
            seeds[rows] = np.take_along_axis(candidates, top_indices(scores, self.order), axis=1)
        _, found = self._identify(seeds)
        frontier, hints = seeds[found], points[found]
        size = max(1, BATCH_BYTES // (8 * len(self.sites)))
        carved, across = [], []
        while len(frontier):
            edges = []
            for start in range(0, len(frontier), size):
                sets = frontier[start : start + size]
                polygons = self._carve(sets, hints[start : start + size])
                reached, middles = self._exchange(sets, polygons)
                at_edge = polygons.labels >= 0
                ids, found = self._identify(reached)
                neighbours = np.full(len(at_edge), -1)
                neighbours[at_edge] = ids
                carved.append(polygons)
                across.append(neighbours)
                edges.append((reached[found], middles[found]))
            frontier, hints = (np.concatenate(part) for part in zip(*edges, strict=True))
        return self._joined(carved, np.concatenate(across))

    def _seed_points(self) -> Array:
        """Points in general position: on a symmetric input the middle of a box is where everything ties."""
        leaves = self.index.leaves()
        within = self.index.centres[leaves] + np.array([0.2137, -0.3719]) * self.index.halves[leaves]
        plastic = np.array([0.7548776662466927, 0.5698402909980532])  # an additive recurrence, low discrepancy in 2-D
        spread = (0.5 + np.arange(1, SEEDS + 1)[:, None] * plastic) % 1.0
        return np.concatenate([within, self.half * (2 * spread - 1)])

    def _identify(self, sets: Array) -> tuple[Array, Array]:
        """(number of each set, positions of those not met before)."""
        rows = np.ascontiguousarray(sets, dtype=np.int32)
        numbers, new = np.empty(len(rows), dtype=np.int64), []
        for position, row in enumerate(rows):
            key = row.tobytes()
            number = self.ids.get(key)
            if number is None:
                number = self.ids[key] = len(self.ids)
                new.append(position)
            numbers[position] = number
        if self.max_cells is not None and len(self.ids) > 1.2 * self.max_cells + 100:  # seeds may be cells without area
            raise TooManyCellsError
        found = np.array(new, dtype=np.int64)
        self.sets.append(sets[found])
        return numbers, found

    def _carve(self, sets: Array, hints: Array) -> RaggedPolygons:
        """The polygons of `sets`; `hints` are points in or next to them."""
        batch = PolygonBatch(len(sets), self.half, self.blur)
        member = np.zeros((len(sets), len(self.sites)), dtype=bool)
        member[np.arange(len(sets))[:, None], sets] = True
        # First cuts from a ring of points about the hint: they spare most cuts far out.
        radius = self.index.halves[self.index.locate(hints)].min(axis=1)
        probes = (hints[:, None] + radius[:, None, None] * RING).reshape(-1, 2)
        owner = np.repeat(np.arange(len(sets)), len(RING))
        inside = (np.abs(probes) <= self.half).all(axis=1)
        self._cut_off(batch, member, sets, owner[inside], probes[inside])
        while True:
            owner, place = batch.unchecked()
            if not len(owner):
                return batch.ragged()
            batch.checked[owner, place] = True  # the wrong ones are cut off now
            self._cut_off(batch, member, sets, owner, batch.vertices[owner, place])

    def _cut_off(self, batch: PolygonBatch, member: Array, sets: Array, owner: Array, points: Array) -> None:
        """Cut from each polygon the half-planes that its points violate."""
        entering, reachable = np.empty(len(points), dtype=np.int64), np.empty(len(points), dtype=bool)
        for part, candidates, scores in self.index.scored(points):
            scores[member[owner[part][:, None], candidates]] = -np.inf
            best = scores.argmax(axis=1)
            each = np.arange(len(part))
            entering[part], reachable[part] = candidates[each, best], np.isfinite(scores[each, best])
        rows = np.arange(len(points))
        own = sets[owner]
        inner = self.sites[own, 0] * points[:, :1] + self.sites[own, 1] * points[:, 1:] + self.biases[own]
        leaving = own[rows, self.order - 1 - inner[:, ::-1].argmin(axis=1)]  # of equal scores the last one leaves
        owner, leaving, entering, points = (part[reachable] for part in (owner, leaving, entering, points))
        normals, offsets, parallel = self._bisector(leaving, entering)
        wrong = (normals * points).sum(axis=1) + offsets < -ON_LINE * self.blur
        never = parallel & ((offsets < 0) | ((offsets == 0) & (leaving > entering)))
        batch.count[owner[never]] = 0
        wrong &= ~parallel
        pair = leaving[wrong] * len(self.sites) + entering[wrong]
        owner, normals, offsets = owner[wrong], normals[wrong], offsets[wrong]
        _, distinct = np.unique(owner * len(self.sites) ** 2 + pair, return_index=True)
        owner = owner[distinct]
        turn = np.arange(len(owner)) - np.searchsorted(owner, owner)
        for t in range(turn.max(initial=-1) + 1):
            now = distinct[turn == t]
            batch.clip(owner[turn == t], normals[now], offsets[now], pair[now])

    def _bisector(self, inner: Array, outer: Array) -> tuple[Array, Array, Array]:
        """Unit normals towards `inner` and offsets of score inner >= score outer; parallel: equal sites, not scaled."""
        normals = self.sites[inner] - self.sites[outer]
        offsets = self.biases[inner] - self.biases[outer]
        length = np.hypot(normals[:, 0], normals[:, 1])
        parallel = length == 0
        length[parallel] = 1.0
        return normals / length[:, None], offsets / length, parallel

    def _exchange(self, sets: Array, polygons: RaggedPolygons) -> tuple[Array, Array]:
        """(sets across the edges, middles of the edges), for the edges that are not sides of the window."""
        rows = np.nonzero(polygons.labels >= 0)[0]
        owner = polygons.owner()[rows]
        leaving, entering = np.divmod(polygons.labels[rows], len(self.sites))
        middles = 0.5 * (polygons.vertices[rows] + polygons.vertices[polygons.successor()[rows]])
        reached = sets[owner]
        reached = np.where(reached == leaving[:, None], entering[:, None], reached)
        level = (self.sites[leaving] * middles).sum(axis=1) + self.biases[leaving]
        # Two groups of equal sites change places together.
        special = (self.copies[leaving] > 1) & (self.copies[entering] > 1)
        for part, candidates, scores in self.index.scored(middles):
            kinds = self.kind[candidates]
            tied = np.abs(scores - level[part][:, None]) <= TIED * self.blur
            tied &= (kinds != self.kind[leaving[part]][:, None]) & (kinds != self.kind[entering[part]][:, None])
            for row in np.nonzero(tied.any(axis=1) | special[part])[0]:
                edge = part[row]
                outward = self.sites[entering[edge]] - self.sites[leaving[edge]]
                reached[edge] = self._beyond(candidates[row], scores[row], level[edge], outward)
        return np.sort(reached, axis=1), middles

    def _beyond(self, candidates: Array, scores: Array, level: float, outward: Array) -> Array:
        """The set just across an edge on which more than two sites tie: of the tied, those that grow fastest."""
        tie = TIED * self.blur
        above = candidates[scores > level + tie]
        tied = np.unique(candidates[np.abs(scores - level) <= tie])
        if not len(above) < self.order <= len(above) + len(tied):
            raise TooCloseError
        growth = self.sites[tied] @ outward
        return np.concatenate([above, tied[np.lexsort((tied, -growth))][: self.order - len(above)]])

    def _joined(self, carved: list[RaggedPolygons], neighbours: Array) -> Walked:
        """All cells that have area, renumbered."""
        sets = np.concatenate(self.sets)
        polygons = joined(carved)._replace(labels=neighbours)
        solid = polygons.areas() > (SHORT * self.blur) ** 2
        number = np.full(len(solid) + 1, -2)
        number[np.nonzero(solid)[0]] = np.arange(solid.sum())
        number[-1] = -1
        polygons = polygons.take(np.nonzero(solid)[0])
        return Walked(sets[solid], polygons, number[polygons.labels])


def repeats(sites: Array, biases: Array) -> tuple[Array, Array]:
    """(first index of an equal (site, bias), how many equal ones come before) for each site."""
    _, first, inverse = np.unique(np.column_stack([sites, biases]) + 0.0, axis=0, return_index=True, return_inverse=True)
    inverse = inverse.reshape(-1)
    order = np.argsort(inverse, kind="stable")
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order)) - np.searchsorted(inverse[order], inverse[order])
    return first[inverse], rank
