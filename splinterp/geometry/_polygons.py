"""A batch of convex polygons with labelled edges, cut by half-planes all at once."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from splinterp._typing import Array

ON_LINE = 1e-13
"""Vertices this far outside a half-plane count as inside it. The window is about 2 wide."""
SHORT = 1e-12
"""Edges up to this length are points."""


class RaggedPolygons(NamedTuple):
    """Polygons of different lengths end to end: polygon m has rows `starts[m]` to `starts[m + 1]`."""

    vertices: Array
    labels: Array
    starts: Array

    def areas(self) -> Array:
        """Area of each polygon, counter-clockwise positive, by the shoelace formula about its first vertex."""
        owner = self.owner()
        local = self.vertices - self.vertices[self.starts[owner]]
        following = local[self.successor()]
        cross = local[:, 0] * following[:, 1] - local[:, 1] * following[:, 0]
        return 0.5 * np.bincount(owner, cross, minlength=len(self.starts) - 1)

    def owner(self) -> Array:
        """Polygon of each row."""
        return np.repeat(np.arange(len(self.starts) - 1), np.diff(self.starts))

    def successor(self) -> Array:
        """Row of the next vertex, counter-clockwise."""
        following = np.arange(1, len(self.vertices) + 1)
        solid = self.starts[1:] > self.starts[:-1]
        following[self.starts[1:][solid] - 1] = self.starts[:-1][solid]
        return following

    def take(self, which: Array) -> RaggedPolygons:
        """The polygons `which` (integers), in that order."""
        lengths = np.diff(self.starts)[which]
        starts = np.concatenate([[0], np.cumsum(lengths)])
        rows = np.repeat(self.starts[which] - starts[:-1], lengths) + np.arange(starts[-1])
        return RaggedPolygons(self.vertices[rows], self.labels[rows], starts)


def joined(parts: list[RaggedPolygons]) -> RaggedPolygons:
    """The polygons of all parts, one after another."""
    lengths = np.concatenate([np.diff(part.starts) for part in parts])
    starts = np.concatenate([[0], np.cumsum(lengths)])
    return RaggedPolygons(np.concatenate([p.vertices for p in parts]), np.concatenate([p.labels for p in parts]), starts)


class PolygonBatch:
    """`n` copies of a rectangle, each to be cut into a convex polygon of its own.

    Arrays are padded: polygon m is `vertices[m, :count[m]]`, counter-clockwise, and `labels[m, v]` belongs to the edge
    from vertex v to the next; -1 marks the sides of the rectangle. `checked` is the caller's note on each vertex and is
    False for new ones. The tolerances for points on a line and short edges are multiplied by `blur`.
    """

    def __init__(self, n: int, half: Array, blur: float = 1.0) -> None:
        corners = np.array([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]]) * half
        self.vertices = np.zeros((n, 12, 2))
        self.vertices[:, :4] = corners
        self.labels = np.full((n, 12), -1, dtype=np.int64)
        self.checked = np.zeros((n, 12), dtype=bool)
        self.count = np.full(n, 4)
        self.on_line, self.short = ON_LINE * blur, SHORT * blur

    def clip(self, rows: Array, normals: Array, offsets: Array, labels: Array) -> None:
        """Keep `normals . y + offsets >= 0` (unit normals) of the polygons `rows`, each named once."""
        vertices, count = self.vertices[rows], self.count[rows]
        columns = np.arange(vertices.shape[1])
        distance = vertices[:, :, 0] * normals[:, :1] + vertices[:, :, 1] * normals[:, 1:] + offsets[:, None]
        distance[columns >= count[:, None]] = np.inf
        cut = (distance < -self.on_line).any(axis=1)
        if not cut.any():
            return
        distance[columns >= count[:, None]] = -np.inf
        gone = cut & (distance < -self.on_line).all(axis=1)
        self.count[rows[gone]] = 0
        cut &= ~gone
        if cut.any():
            self._cut(rows[cut], distance[cut], labels[cut])

    def _cut(self, rows: Array, distance: Array, labels: Array) -> None:
        """Replace the run of outside vertices by one edge; every polygon here has vertices on both sides."""
        if self.count[rows].max(initial=0) + 1 >= self.vertices.shape[1]:
            self._widen()
            distance = np.pad(distance, ((0, 0), (0, self.vertices.shape[1] - distance.shape[1])), constant_values=-np.inf)
        count = self.count[rows][:, None]
        each, columns = np.arange(len(rows))[:, None], np.arange(self.vertices.shape[1])
        # The run of inside vertices around the innermost one, so that rounding can never make two runs of it.
        best = distance.argmax(axis=1)[:, None]
        inside = distance >= -self.on_line
        ahead = (~inside[each, (best + columns) % count]).argmax(axis=1)[:, None]
        behind = (~inside[each, (best - 1 - columns) % count]).argmax(axis=1)[:, None]
        first, length = best - behind, ahead + behind
        order = (first + columns) % count
        vertices, edge, checked = (
            self.vertices[rows][each, order],
            self.labels[rows][each, order],
            self.checked[rows][each, order],
        )
        last = (first + length - 1) % count
        one, two = np.arange(len(rows)), length[:, 0]
        leave = _crossing(vertices[one, two - 1], distance[one, last[:, 0]], self.vertices[rows[:, None], (last + 1) % count][:, 0],
                          distance[one, ((last + 1) % count)[:, 0]])  # fmt: skip
        before = (first - 1) % count
        enter = _crossing(vertices[one, 0], distance[one, (first % count)[:, 0]], self.vertices[rows[:, None], before][:, 0],
                          distance[one, before[:, 0]])  # fmt: skip
        vertices[one, two], vertices[one, two + 1] = leave, enter
        edge[one, two], edge[one, two + 1] = labels, self.labels[rows[:, None], before][:, 0]
        checked[one, two] = checked[one, two + 1] = False
        self.vertices[rows], self.labels[rows], self.checked[rows] = vertices, edge, checked
        self.count[rows] = two + 2

    def _widen(self) -> None:
        extra = self.vertices.shape[1]
        self.vertices = np.pad(self.vertices, ((0, 0), (0, extra), (0, 0)))
        self.labels = np.pad(self.labels, ((0, 0), (0, extra)), constant_values=-1)
        self.checked = np.pad(self.checked, ((0, 0), (0, extra)))

    def unchecked(self) -> tuple[Array, Array]:
        """(polygon, vertex) indices of the vertices not yet checked."""
        polygon, vertex = np.nonzero(~self.checked & (np.arange(self.vertices.shape[1]) < self.count[:, None]))
        return polygon, vertex

    def ragged(self) -> RaggedPolygons:
        """The polygons without padding and without edges that are points; one with fewer than 3 edges comes out empty."""
        columns = np.arange(self.vertices.shape[1])
        used = columns < self.count[:, None]
        following = np.where(columns + 1 < self.count[:, None], columns + 1, 0)
        step = self.vertices[np.arange(len(self.count))[:, None], following] - self.vertices
        used &= np.abs(step).max(axis=2) > self.short
        used &= used.sum(axis=1, keepdims=True) >= 3
        starts = np.concatenate([[0], np.cumsum(used.sum(axis=1))])
        return RaggedPolygons(self.vertices[used], self.labels[used], starts)


def _crossing(inner: Array, inner_distance: Array, outer: Array, outer_distance: Array) -> Array:
    """Where the segments from inner to outer vertices meet the line."""
    share = np.clip(inner_distance / (inner_distance - outer_distance), 0.0, 1.0)[:, None]
    return inner + share * (outer - inner)
