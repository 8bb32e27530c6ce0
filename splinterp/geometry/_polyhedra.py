"""A convex polyhedron with labelled faces, cut by half-spaces."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from splinterp._typing import Array
from splinterp.geometry._polygons import ON_LINE, SHORT

BOX = ((0, 4, 6, 2), (1, 3, 7, 5), (0, 1, 5, 4), (2, 6, 7, 3), (0, 2, 3, 1), (4, 5, 7, 6))
"""Corners of each side of a box, counter-clockwise from outside; corner c is at the upper end of axis a where bit a of c is set."""
SLIVER = 1e-18
"""Faces up to this share of the largest one's area are left out."""
SIDE = None
"""Label of the sides of the box."""


class Polyhedron:
    """A box `[-half, half]`, cut into a convex polyhedron; half is about 1. Vertices within `ON_LINE * blur` of a plane are on it."""

    def __init__(self, half: Array, blur: float = 1.0) -> None:
        self.tolerance = ON_LINE * blur
        bits = np.arange(8)[:, None] >> np.arange(3) & 1
        self.points: list[Array] = list((2.0 * bits - 1) * half)
        self.faces: list[tuple[Any, list[int]]] = [(SIDE, list(loop)) for loop in BOX]
        self.checked: set[int] = set()

    @property
    def empty(self) -> bool:
        """Whether nothing is left."""
        return not self.faces

    def clear(self) -> None:
        """Leave nothing."""
        self.faces = []

    def unchecked(self) -> list[int]:
        """Vertices that no rule has looked at, which are looked at now."""
        found = sorted({v for _, loop in self.faces for v in loop} - self.checked)
        self.checked.update(found)
        return found

    def cut(self, normal: Array, offset: float, label: Any) -> None:
        """Keep the half-space normal . y + offset >= 0, of unit normal; the new face has the label."""
        used = sorted({v for _, loop in self.faces for v in loop})
        height = dict(zip(used, np.array([self.points[v] for v in used]) @ normal + offset, strict=True))
        side = {v: 0 if abs(h) <= self.tolerance else 1 if h > 0 else -1 for v, h in height.items()}
        if -1 not in side.values():
            return
        if 1 not in side.values():
            self.clear()
            return
        crossings: dict[tuple[int, int], int] = {}

        def crossing(a: int, b: int) -> int:
            edge = (a, b) if a < b else (b, a)
            if edge not in crossings:
                low, high = edge
                share = height[low] / (height[low] - height[high])
                crossings[edge] = len(self.points)
                self.points.append(self.points[low] + share * (self.points[high] - self.points[low]))
            return crossings[edge]

        faces: list[tuple[Any, list[int]]] = []
        on: set[int] = set()
        for own, loop in self.faces:
            if all(side[v] >= 0 for v in loop):
                faces.append((own, loop))
                on.update(v for v in loop if side[v] == 0)
                continue
            kept = []
            for a, b in zip(loop, loop[1:] + loop[:1], strict=True):
                if side[a] >= 0:
                    kept.append(a)
                if side[a] * side[b] < 0:
                    kept.append(crossing(a, b))
            if len(kept) >= 3 and any(side.get(v, 0) > 0 for v in kept):
                faces.append((own, kept))
                on.update(v for v in kept if side.get(v, 0) == 0)
        if len(on) >= 3:
            faces.append((label, self._around(sorted(on), normal)))
        self.faces = faces

    def _around(self, on: list[int], normal: Array) -> list[int]:
        """Points of a plane in order around their middle, counter-clockwise as seen against the normal."""
        flat = np.array([self.points[v] for v in on])
        flat = flat - flat.mean(axis=0)
        axis = int(np.abs(normal).argmin())
        first = -normal[axis] * normal
        first[axis] += 1.0
        second = _cross(first, normal)
        return [on[i] for i in np.argsort(np.arctan2(flat @ second, flat @ first))]

    def solid(self) -> tuple[Array, list[Array], list[Any]]:
        """(vertices, faces as their indices, labels of the faces), points closer than `SHORT` taken for one, slivers left out."""
        used = sorted({v for _, loop in self.faces for v in loop})
        vertices: list[Array] = []
        number: dict[int, int] = {}
        for v in used:
            point = self.points[v]
            if vertices:
                away = np.abs(np.array(vertices) - point).max(axis=1)
                near = int(away.argmin())
                if away[near] <= SHORT:
                    number[v] = near
                    continue
            number[v] = len(vertices)
            vertices.append(point)
        faces, labels = [], []
        for label, loop in self.faces:
            merged = [v for v, _ in itertools.groupby(number[v] for v in loop)]
            if len(merged) > 1 and merged[0] == merged[-1]:
                merged.pop()
            if len(merged) >= 3:
                faces.append(np.array(merged))
                labels.append(label)
        corners = np.array(vertices).reshape(-1, 3)
        sizes = areas(corners, faces)
        large = np.nonzero(sizes > SLIVER * sizes.max(initial=0.0))[0]  # the normal of others is rounding
        return corners, [faces[m] for m in large], [labels[m] for m in large]


def _cross(a: Array, b: Array) -> Array:
    """The vector product of the last axes, which numpy's takes ten times as long for."""
    x, y, z = a[..., 0], a[..., 1], a[..., 2]
    u, v, w = b[..., 0], b[..., 1], b[..., 2]
    return np.stack([y * w - z * v, z * u - x * w, x * v - y * u], axis=-1)


def area_vector(vertices: Array, face: Array) -> Array:
    """Of a face: its outward normal, as long as its area."""
    corners = vertices[face] - vertices[face[0]]
    return 0.5 * _cross(corners[1:-1], corners[2:]).sum(axis=0)


def areas(vertices: Array, faces: list[Array]) -> Array:
    """Of the faces."""
    return np.array([np.linalg.norm(area_vector(vertices, face)) for face in faces])


def middle_of(vertices: Array, face: Array) -> Array:
    """The centroid of a face, or the mean of its vertices where it has no area."""
    corners = vertices[face]
    relative = corners - corners[0]
    areas = np.linalg.norm(_cross(relative[1:-1], relative[2:]), axis=1)
    if not areas.sum() > 0:
        return corners.mean(axis=0)
    return areas @ (corners[0] + corners[1:-1] + corners[2:]) / (3 * areas.sum())


def volume(vertices: Array, faces: list[Array]) -> float:
    """Of a closed polyhedron, by pyramids over its faces from a point inside."""
    if not faces:
        return 0.0
    inner = vertices.mean(axis=0)
    return float(sum((vertices[face[0]] - inner) @ area_vector(vertices, face) for face in faces) / 3)
