"""The faces that straight lines cut a rectangle into: regions of ReLU and JumpReLU in a plane."""

from __future__ import annotations

from bisect import bisect_left, insort
from typing import NamedTuple

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import breadth_first_order, connected_components
from scipy.spatial import cKDTree

from splinterp._typing import Array
from splinterp.geometry._arrays import blocks
from splinterp.geometry._polygons import RaggedPolygons

SAME_LINE = 1e-12
"""Lines this close in direction and offset are one line (the window is 2 wide)."""
SAME_POINT = 1e-11
"""Crossings this close are one point."""


class Chords(NamedTuple):
    """Lines that cut the rectangle `[-half, half]`, each once."""

    normals: Array
    """(n, 2), unit."""
    offsets: Array
    """(n,); the line is normal . y + offset = 0."""
    line_of: Array
    """For each score its line, -1 where its sign is constant on the rectangle."""
    positive: Array
    """For each score: whether it is positive on the side its line's normal points to, or everywhere."""
    ends: Array
    """(2, n, 2) points where the line enters and leaves, in the direction (-normal_y, normal_x)."""
    marks: Array
    """(n, 2) places of the two ends on the rectangle's perimeter, counter-clockwise from its lower left corner, sorted."""
    half: Array


def chords(gradients: Array, values: Array, half: Array) -> Chords:
    """The zero lines of the scores `gradients @ y + values` within the rectangle."""
    length = np.hypot(gradients[:, 0], gradients[:, 1])
    safe = np.where(length > 0, length, 1.0)
    normals, offsets = gradients / safe[:, None], values / safe
    cuts = np.nonzero((length > 0) & (np.abs(normals) @ half - np.abs(offsets) > 2 * SAME_POINT))[0]
    normals, offsets = normals[cuts], offsets[cuts]
    first, group = _same_lines(normals, offsets)
    line_of = np.full(len(values), -1)
    line_of[cuts] = group
    positive = values > 0
    positive[cuts] = (normals * normals[first[group]]).sum(axis=1) > 0
    normals, offsets = normals[first], offsets[first]
    along = _ends(normals, offsets, half)
    ends = np.stack([np.clip(_point(normals, offsets, along[:, side]), -half, half) for side in (0, 1)])
    marks = np.stack([_perimeter(points, half) for points in ends], axis=1)
    return Chords(normals, offsets, line_of, positive, ends, np.sort(marks, axis=1), half)


def _same_lines(normals: Array, offsets: Array) -> tuple[Array, Array]:
    """(first line of each group, group of each line); what is compared does not depend on the sign of the normal."""
    if not len(offsets):
        return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
    x, y = normals.T
    place = np.column_stack([x * x, x * y, y * y, offsets * x, offsets * y])
    _, group = _components(cKDTree(place).query_pairs(SAME_LINE, output_type="ndarray"), len(offsets))
    _, first, group = np.unique(group, return_index=True, return_inverse=True)
    return first, group


def _components(pairs: Array, n: int) -> tuple[int, Array]:
    return connected_components(coo_array((np.ones(len(pairs)), pairs.T), shape=(n, n)), directed=False)


def _ends(normals: Array, offsets: Array, half: Array) -> Array:
    """(n, 2) distances along (-normal_y, normal_x) at which the lines enter and leave the rectangle."""
    direction = np.stack([-normals[:, 1], normals[:, 0]], axis=1)
    foot = -offsets[:, None] * normals
    with np.errstate(divide="ignore", invalid="ignore"):
        low = (-np.sign(direction) * half - foot) / direction
        high = (np.sign(direction) * half - foot) / direction
    low[direction == 0], high[direction == 0] = -np.inf, np.inf
    return np.stack([low.max(axis=1), high.min(axis=1)], axis=1)


def _point(normals: Array, offsets: Array, along: Array) -> Array:
    return np.stack(
        [-offsets * normals[:, 0] - along * normals[:, 1], -offsets * normals[:, 1] + along * normals[:, 0]], axis=1
    )


def _perimeter(points: Array, half: Array) -> Array:
    """Places of points of the rectangle's boundary on its perimeter, counter-clockwise from the lower left corner."""
    x, y = points.T
    side = np.abs(np.stack([half[1] + y, half[0] - x, half[1] - y, half[0] + x])).argmin(axis=0)  # below, right, above, left
    width, height = 2 * half
    walked = np.stack([x + half[0], width + y + half[1], width + height + half[0] - x, 2 * width + height + half[1] - y])
    return walked[side, np.arange(len(points))]


def count_faces(lines: Chords) -> int:
    """1 + lines + crossings inside the rectangle: the number of faces unless three lines meet in a point (then fewer).

    Two chords cross where their ends alternate on the perimeter; counted in O(n log n) by inversions.
    """
    begin, end = lines.marks[np.argsort(lines.marks[:, 0], kind="stable")].T
    started = np.searchsorted(begin, end, side="left") - np.arange(1, len(begin) + 1)  # begin later, before this one ends
    nested = 0
    seen: list[float] = []
    for mark in end[::-1].tolist():
        nested += bisect_left(seen, mark)
        insort(seen, mark)
    return 1 + len(begin) + int(np.maximum(started, 0).sum()) - nested


def _crossings(lines: Chords) -> tuple[Array, Array]:
    """Pairs of chords whose ends alternate on the perimeter."""
    order = np.argsort(lines.marks[:, 0], kind="stable")
    begin, end = lines.marks[order].T
    found = [np.empty((2, 0), dtype=np.int64)]
    for rows in blocks(len(order), len(order)):
        cross = (begin[None] > begin[rows, None]) & (begin[None] < end[rows, None]) & (end[None] > end[rows, None])
        i, j = np.nonzero(cross)
        found.append(np.stack([i + rows.start, j]))
    i, j = np.concatenate(found, axis=1)
    return order[i], order[j]


class Faces(NamedTuple):
    """The faces of an arrangement in a rectangle."""

    polygons: RaggedPolygons
    """Labels are the faces across the edges, -1 at the rectangle."""
    sides: Array
    """(n_faces, n_lines) bool: whether the face lies where the line's normal points."""


def faces(lines: Chords) -> Faces:
    """All faces, from the planar graph of the lines and the rectangle.

    Every directed edge has its face on the left; around a vertex, the edge that follows an arriving one is the next
    clockwise from its reverse. Which edge follows which is read off the lines' directions, not off short edges.

    Raises:
        ArithmeticError: crossings too close to tell apart.
    """
    points, tail, head, line, angle = _edges(lines)
    n = len(tail)
    # Directed edges: m from tail to head, m + n back.
    start = np.concatenate([tail, head])
    angle = np.concatenate([angle, angle + np.pi]) % (2 * np.pi)
    line, reverse = np.concatenate([line, line]), np.concatenate([np.arange(n, 2 * n), np.arange(n)])
    around = np.lexsort((angle, start))
    place = np.empty(2 * n, dtype=np.int64)
    place[around] = np.arange(2 * n)
    first = np.searchsorted(start[around], start[around], side="left")
    last = np.searchsorted(start[around], start[around], side="right") - 1
    clockwise = np.where(np.arange(2 * n) > first, np.arange(2 * n) - 1, last)
    following = around[clockwise[place[reverse]]]
    n_faces, face = connected_components(coo_array((np.ones(2 * n), (np.arange(2 * n), following)), shape=(2 * n, 2 * n)))
    used = len(np.unique(start))
    # Counter-clockwise faces have their edges in the order of their directions; the outside is the clockwise one.
    order = np.lexsort((angle, face))
    starts = np.concatenate([[0], np.cumsum(np.bincount(face, minlength=n_faces))])
    polygons = RaggedPolygons(points[start[order]], face[reverse[order]], starts)
    outside = face[n + np.nonzero(line[:n] < 0)[0][0]]
    inner = np.nonzero(np.arange(n_faces) != outside)[0]
    polygons = polygons.take(inner)
    areas, total = polygons.areas(), 4 * lines.half.prod()
    if used - n + n_faces != 2 or (areas <= 0).any() or abs(areas.sum() - total) > 1e-9 * total:
        raise ArithmeticError("crossings of the lines are too close to tell apart in float64: choose a smaller window")
    number = np.full(n_faces, -1)
    number[inner] = np.arange(len(inner))
    polygons = RaggedPolygons(polygons.vertices, number[polygons.labels], polygons.starts)
    return Faces(polygons, _sides(lines, polygons, areas, number[face], line, reverse))


def _edges(lines: Chords) -> tuple[Array, Array, Array, Array, Array]:
    """(points, tail, head, line, angle) of the undirected edges, counter-clockwise with line -1 on the rectangle."""
    n, (width, height) = len(lines.offsets), 2 * lines.half
    corners = lines.half * np.array([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]])
    i, j = _crossings(lines)
    rows = np.arange(n)
    points = np.concatenate([corners, *lines.ends, _meet(lines, i, j)])
    _, same = _components(cKDTree(points).query_pairs(SAME_POINT, output_type="ndarray"), len(points))
    _, first, group = np.unique(same, return_index=True, return_inverse=True)
    identity = first[group]
    # Points in order along each line: its two ends and its crossings.
    owner = np.concatenate([rows, rows, i, j])
    which = 4 + np.concatenate([np.arange(2 * n), np.tile(2 * n + np.arange(len(i)), 2)])
    along = lines.normals[owner, 0] * points[which, 1] - lines.normals[owner, 1] * points[which, 0]
    order = np.lexsort((along, owner))
    owner, which = owner[order], identity[which[order]]
    joined = (owner[1:] == owner[:-1]) & (which[1:] != which[:-1])
    tail, head, line = which[:-1][joined], which[1:][joined], owner[1:][joined]
    angle = np.arctan2(lines.normals[line, 0], -lines.normals[line, 1])
    # And around the rectangle.
    turns = np.array([0.0, width, width + height, 2 * width + height])
    marks = np.concatenate([turns, _perimeter(points[4 : 4 + 2 * n], lines.half)])
    order = np.argsort(marks, kind="stable")
    border, marks = identity[order], marks[order]
    following = np.roll(border, -1)
    middle = 0.5 * (marks + np.append(marks[1:], 2 * width + 2 * height))
    real = border != following
    side = np.searchsorted(turns, middle[real], side="right") - 1
    tail, head = np.concatenate([border[real], tail]), np.concatenate([following[real], head])
    line, angle = np.concatenate([np.full(real.sum(), -1), line]), np.concatenate([side * np.pi / 2, angle])
    return points, tail, head, line, angle


def _meet(lines: Chords, i: Array, j: Array) -> Array:
    """The points where lines i and j cross."""
    (a, b), (c, d) = lines.normals[i].T, lines.normals[j].T
    p, q = lines.offsets[i], lines.offsets[j]
    return np.stack([b * q - d * p, c * p - a * q], axis=1) / (a * d - b * c)[:, None]


def _sides(lines: Chords, polygons: RaggedPolygons, areas: Array, face: Array, line: Array, reverse: Array) -> Array:
    """On which side of every line each face lies: known for the largest face, one line changes across an edge."""
    one, two = face, face[reverse]
    crossed = (line >= 0) & (one >= 0) & (two >= 0)
    one, two, line = one[crossed], two[crossed], line[crossed]
    n_faces = len(areas)
    sides = np.empty((n_faces, len(lines.offsets)), dtype=bool)
    root = int(areas.argmax())
    start, end = polygons.starts[root : root + 2]
    sides[root] = lines.normals @ polygons.vertices[start:end].mean(axis=0) + lines.offsets > 0
    graph = coo_array((np.ones(len(one)), (one, two)), shape=(n_faces, n_faces)).tocsr()
    order, before = breadth_first_order(graph, root, directed=False)
    code = one * n_faces + two
    rank = np.argsort(code)
    order = order[1:]
    lines_crossed = line[rank[np.searchsorted(code[rank], before[order] * n_faces + order)]]
    for number, previous, changed in zip(order.tolist(), before[order].tolist(), lines_crossed.tolist(), strict=True):
        sides[number] = sides[previous]
        sides[number, changed] ^= True
    return sides
