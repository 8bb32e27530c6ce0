"""Cells of three-dimensional diagrams in a box, by walking over faces."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from splinterp._typing import Array
from splinterp.geometry._polygons import ON_LINE, SHORT
from splinterp.geometry._polyhedra import SIDE, Polyhedron, middle_of, volume
from splinterp.geometry._topk import top_indices
from splinterp.geometry._walk import TIED, TooCloseError, TooManyCellsError

SEEDS = 64
PLASTIC = np.array([0.8191725133961645, 0.6710436067037893, 0.5497004779019703])
"""An additive recurrence of low discrepancy in three dimensions."""

RING = np.array(
    [[x, y, z] for x in (-1, 0, 1) for y in (-1, 0, 1) for z in (-1, 0, 1) if (x, y, z) != (0, 0, 0)], dtype=np.float64
)

Key = bytes
"""Names a cell: its sites, or the sides of all planes that it is on."""


class Cut(NamedTuple):
    """A half-space normal . y + offset >= 0, of unit normal, and what is exchanged across its plane."""

    normal: Array
    offset: float
    label: Any


class Selections:
    """Cells by which `order` sites have the largest scores `sites @ y + biases`, of the order of 1; ties go to the lowest index."""

    def __init__(self, sites: Array, biases: Array, order: int, blur: float) -> None:
        self.sites, self.biases, self.order, self.blur = sites, biases, order, blur

    def _scores(self, points: Array) -> Array:
        x, y, z = self.sites.T  # entry by entry: equal sites keep equal scores
        return points[:, :1] * x + points[:, 1:2] * y + points[:, 2:] * z + self.biases

    def at(self, points: Array) -> list[Key]:
        return [row.tobytes() for row in top_indices(self._scores(points), self.order).astype(np.int64)]

    def cuts(self, key: Key, points: Array) -> list[Cut] | None:
        own = np.frombuffer(key, dtype=np.int64)
        scores = self._scores(points)
        rows = np.arange(len(points))
        inner = scores[:, own]
        leaving = own[len(own) - 1 - inner[:, ::-1].argmin(axis=1)]  # of equal scores the last one leaves
        scores[:, own] = -np.inf
        entering = scores.argmax(axis=1)
        if not np.isfinite(scores[rows, entering]).all():  # all sites are chosen
            return []
        found = []
        for i, j in dict.fromkeys(zip(leaving.tolist(), entering.tolist(), strict=True)):
            normal, offset = self.sites[i] - self.sites[j], float(self.biases[i] - self.biases[j])
            length = float(np.linalg.norm(normal))
            if length == 0:
                if offset < 0 or (offset == 0 and i > j):
                    return None
                continue
            found.append(Cut(normal / length, offset / length, (i, j)))
        return found

    def across(self, key: Key, label: Any, point: Array) -> Key:
        leaving, entering = label
        own = np.frombuffer(key, dtype=np.int64)
        scores = self._scores(point[None])[0]
        level, tie = 0.5 * (scores[leaving] + scores[entering]), TIED * self.blur
        tied = np.nonzero(np.abs(scores - level) <= tie)[0]
        if len(tied) <= 2:
            reached = np.where(own == leaving, entering, own)
        else:  # planes that coincide are crossed at once: of the tied sites those come in whose scores grow fastest
            above = np.nonzero(scores > level + tie)[0]
            if not len(above) < self.order <= len(above) + len(tied):
                raise TooCloseError
            growth = self.sites[tied] @ (self.sites[entering] - self.sites[leaving])
            reached = np.concatenate([above, tied[np.lexsort((tied, -growth))][: self.order - len(above)]])
        return np.sort(reached).astype(np.int64).tobytes()


class Sides:
    """Cells by the side of each plane `sites @ y + biases = 0` that they are on."""

    def __init__(self, sites: Array, biases: Array, blur: float) -> None:
        length = np.linalg.norm(sites, axis=1)
        self.sites, self.biases, self.blur = sites / length[:, None], biases / length, blur

    def _heights(self, points: Array) -> Array:
        x, y, z = self.sites.T
        return points[:, :1] * x + points[:, 1:2] * y + points[:, 2:] * z + self.biases

    def at(self, points: Array) -> list[Key]:
        return [row.tobytes() for row in self._heights(points) > 0]

    def cuts(self, key: Key, points: Array) -> list[Cut] | None:
        signs = np.where(np.frombuffer(key, dtype=bool), 1.0, -1.0)
        heights = self._heights(points) * signs
        if not len(signs):
            return []
        worst = np.unique(heights.argmin(axis=1))
        return [Cut(signs[m] * self.sites[m], float(signs[m] * self.biases[m]), int(m)) for m in worst]

    def across(self, key: Key, label: Any, point: Array) -> Key:
        sides = np.frombuffer(key, dtype=bool)
        flips = np.abs(self._heights(point[None])[0]) <= TIED * self.blur
        flips[label] = True
        return (sides ^ flips).tobytes()


Rule = Selections | Sides
"""What the cells are of: `at` names the cells of points; `cuts` are half-spaces of a cell that points violate, None where it is empty;
`across` names the cell beyond a face, at a point of its inside."""


class WalkedSolids(NamedTuple):
    """Cells in the order in which they were found; neighbours -1 are the box."""

    keys: list[Key]
    vertices: list[Array]
    faces: list[list[Array]]
    neighbours: list[Array]


def walk_solids(rule: Rule, half: Array, max_cells: int | None = None) -> WalkedSolids:
    """All cells of the box `[-half, half]`, half about 1.

    A cell is the box, of which the half-spaces that its vertices violate are cut off until none is violated. Beyond a face is another cell.

    Raises TooManyCellsError, TooCloseError.
    """
    points = half * (2 * ((0.5 + np.arange(1, SEEDS + 1)[:, None] * PLASTIC) % 1.0) - 1)
    number: dict[Key, int] = {}
    waiting: list[tuple[Key, Array]] = []

    def identify(key: Key, near: Array) -> int:
        if key not in number:
            if max_cells is not None and len(number) > 1.2 * max_cells + 100:  # some may turn out to have no volume
                raise TooManyCellsError
            number[key] = len(number)
            waiting.append((key, near))
        return number[key]

    for key, point in zip(rule.at(points), points, strict=True):
        identify(key, point + RING / SEEDS ** (1 / 3))
    solids: list[tuple[Array, list[Array]]] = []
    reached: list[Array] = []
    for key, near in waiting:  # which grows
        vertices, faces, labels = _carved(rule, key, half, near)
        solids.append((vertices, faces))
        beyond = np.full(len(faces), -1)
        for m, (face, label) in enumerate(zip(faces, labels, strict=True)):
            if label is not SIDE:
                middle = middle_of(vertices, face)
                reach = float(np.abs(vertices - middle).max())
                beyond[m] = identify(rule.across(key, label, middle), middle + reach * RING)
        reached.append(beyond)
    kept = [m for m, solid in enumerate(solids) if volume(*solid) > (SHORT * rule.blur) ** 3]
    position = np.full(len(solids) + 1, -2)
    position[kept], position[-1] = np.arange(len(kept)), -1
    return WalkedSolids(
        [waiting[m][0] for m in kept], [solids[m][0] for m in kept], [solids[m][1] for m in kept],
        [position[reached[m]] for m in kept],
    )  # fmt: skip


def _carved(rule: Rule, key: Key, half: Array, near: Array) -> tuple[Array, list[Array], list[Any]]:
    """The polyhedron of a cell. Points near it go first: what they violate spares most of the cuts far out."""
    solid = Polyhedron(half, rule.blur)
    points = near[(np.abs(near) <= half).all(axis=1)]
    while True:
        cuts = rule.cuts(key, points) if len(points) else []
        if cuts is None:
            solid.clear()
        for cut in cuts or ():
            if not solid.empty and (points @ cut.normal + cut.offset < -ON_LINE * rule.blur).any():
                solid.cut(*cut)
        fresh = solid.unchecked()
        if not fresh:
            return solid.solid()
        points = np.array([solid.points[v] for v in fresh])
