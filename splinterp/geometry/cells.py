"""Exact cells of power diagrams in the plane, as convex polygons clipped to a window."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from splinterp._documented import documented
from splinterp._typing import Array, Float, Int
from splinterp.geometry._hull import hull_cells
from splinterp.geometry._index import near_top
from splinterp.geometry._local import Local
from splinterp.geometry._polygons import RaggedPolygons
from splinterp.geometry._walk import TooCloseError, TooManyCellsError, Walk, repeats

Bounds = Sequence[float]
"""(xmin, xmax, ymin, ymax)."""
AREA_TOLERANCE = 1e-9
"""The cells' areas sum to the window's within this share of it, or no cells are returned."""

LEAST_WINDOW = 1e-13
"""Size of the smallest window, as a share of its distance from the origin: some hundred roundings."""
FLATTEST = 1e-10
"""Shortest side of a box, as a share of its longest."""
BLURS = (1.0, 1e2, 1e3, 1e4)
"""Tolerances of the walk, as multiples of about 1e-13 of the window. Lines that nearly meet in a point, at just the distance
that a tolerance cannot call a tie or none, are told apart or merged by another one."""


@documented
@dataclass(frozen=True, eq=False)
class Cell:
    """One convex cell, clipped to the window."""

    sites: Int[Array, " k"]
    """Sorted. Of a power diagram: the sites chosen in the cell. Of a slice: the active latents, the support."""
    polygon: Float[Array, "n_vertices 2"]
    """Vertices, counter-clockwise."""
    neighbours: Int[Array, " n_vertices"]
    """For the edge from each vertex to the next: the position in the list of the cell across it, -1 at the window."""
    signs: Int[Array, " k"] | None = None
    """Of a slice: the sign of each active latent's code. None for a power diagram."""

    @property
    def area(self) -> float:
        """Area of the polygon."""
        x, y = (self.polygon - self.polygon[0]).T
        return float(0.5 * (x @ np.roll(y, -1) - y @ np.roll(x, -1)))

    @property
    def centre(self) -> Float[Array, " 2"]:
        """A point inside: the mean of the vertices."""
        return self.polygon.mean(axis=0)

    def contains(self, points: Float[Array, "n 2"], tolerance: float = 0.0) -> Array:
        """Whether each point lies in the closed polygon, up to a distance `tolerance`: (n,) bool."""
        edges = np.roll(self.polygon, -1, axis=0) - self.polygon
        relative = points[:, None] - self.polygon
        cross = edges[:, 0] * relative[:, :, 1] - edges[:, 1] * relative[:, :, 0]
        return (cross >= -tolerance * np.hypot(edges[:, 0], edges[:, 1])).all(axis=1)


class Cells(list[Cell]):
    """A list of cells that tile a window, with what is true of all of them."""

    bounds: tuple[float, ...]
    """The window: (xmin, xmax, ymin, ymax)."""
    hidden: Int[Array, " n"]
    """Sites (latents, for a slice) that no cell of the window contains."""

    def __init__(self, cells: Iterable[Cell], bounds: Bounds, n_sites: int) -> None:
        super().__init__(cells)
        self.bounds = window(bounds)
        self.hidden = unseen((cell.sites for cell in self), n_sites)

    def adjacency(self) -> tuple[Int[Array, "n_pairs 2"], Float[Array, " n_pairs"]]:
        """Which cells touch along an edge, as positions (i, j) with i < j, sorted, and the length of what they share."""
        lengths = (np.linalg.norm(np.roll(cell.polygon, -1, axis=0) - cell.polygon, axis=1) for cell in self)
        return shared((cell.neighbours for cell in self), lengths)


def unseen(sets: Iterable[Array], n_sites: int) -> Int[Array, " n"]:
    """Sites that are in none of the sets."""
    seen = np.zeros(n_sites, dtype=bool)
    for chosen in sets:
        seen[chosen] = True
    return np.nonzero(~seen)[0]


def shared(neighbours: Iterable[Array], sizes: Iterable[Array]) -> tuple[Int[Array, "n_pairs 2"], Float[Array, " n_pairs"]]:
    """Pairs (i, j), i < j, of cells with a common border, and its size: the larger of the two that they say, which rounding parts."""
    found: dict[tuple[int, int], list[float]] = {}
    for i, (beyond, size) in enumerate(zip(neighbours, sizes, strict=True)):
        for j, own in zip(beyond.tolist(), size.tolist(), strict=True):
            if j >= 0:
                found.setdefault((min(i, j), max(i, j)), [0.0, 0.0])[int(i > j)] += own
    pairs = sorted(found)
    return np.array(pairs, dtype=np.int64).reshape(-1, 2), np.array([max(found[pair]) for pair in pairs])


AXES = {2: ("x", "y"), 3: ("x", "y", "z")}


def window(bounds: Bounds, d: int = 2) -> tuple[float, ...]:
    """The window of d axes as 2 d floats. Raises ValueError unless it has finite sides, and a size that their rounding leaves."""
    axes = AXES.get(d, AXES[2])
    names = "(" + ", ".join(f"{axis}min, {axis}max" for axis in axes) + ")"
    if len(bounds) != 2 * len(axes):
        raise ValueError(f"bounds={bounds!r} must be {names}")
    ends = np.array([float(bound) for bound in bounds]).reshape(-1, 2)
    if not (np.isfinite(ends).all() and (ends[:, 0] < ends[:, 1]).all()):
        raise ValueError(
            f"bounds={tuple(bounds)} must be finite with {' and '.join(f'{axis}min < {axis}max' for axis in axes)}"
        )
    size, away = float(np.ptp(ends, axis=1).max()), float(np.abs(ends).max())
    if size < LEAST_WINDOW * away:
        raise ValueError(
            f"bounds={tuple(bounds)}: a window of size {size:.3g} as far as {away:.3g} from the origin has no room for vertices "
            "in float64: move the diagram or the plane's origin there, or choose a larger window"
        )
    if d == 3 and float(np.ptp(ends, axis=1).min()) < FLATTEST * size:
        raise ValueError(
            f"bounds={tuple(bounds)}: a box as flat as that has no room for vertices in float64: slice by a plane, slice_cells"
        )
    return tuple(ends.ravel().tolist())


@dataclass(frozen=True)
class Frame:
    """Coordinates in which the window is the rectangle (or box) `[-half, half]`, its longest side 2."""

    origin: Array
    unit: float
    half: Array
    sides: Array
    """(2, d): the lower left corner and the upper right one."""

    @classmethod
    def of(cls, bounds: Bounds) -> Frame:
        """The frame of a window or, of (xmin, xmax, ymin, ymax, zmin, zmax), of a box."""
        sides = np.reshape(window(bounds, len(bounds) // 2), (-1, 2)).T
        size = 0.5 * (sides[1] - sides[0])
        return cls(sides[0] + size, float(size.max()), size / size.max(), sides)

    def scores(self, scores: Local) -> tuple[Array, Array]:
        """(gradients, values at the origin) of the scores in this frame."""
        # Entry by entry: equal sites must keep equal scores, which a matrix product does not promise.
        sites, away = scores.sites, self.origin - scores.centre
        return sites * self.unit, scores.biases + sum(sites[:, axis] * away[axis] for axis in range(len(away)))

    def outward(self, vertices: Array) -> Array:
        """Vertices in the coordinates of the window. Its sides come out exact."""
        moved = np.clip(self.origin + self.unit * vertices, *self.sides)
        return np.where(vertices == self.half, self.sides[1], np.where(vertices == -self.half, self.sides[0], moved))


def walk_cells(scores: Local, order: int, bounds: Bounds, max_cells: int | None = None) -> tuple[Array, RaggedPolygons]:
    """(site sets, polygons) of the order-k cells of scores in the plane in a window, sorted by their sets.

    The polygons' labels are the cells across the edges, -1 at the window.

    Raises:
        ValueError: more than `max_cells` cells.
        ArithmeticError: the cells found do not fill the window; sites are too nearly equal for float64.
    """
    frame = Frame.of(bounds)
    names, sites, biases = relevant(*frame.scores(scores), order, frame.half)
    result = _by_hull(sites, biases, frame.half) if order == 1 else None
    if result is None:
        result = _by_walk(sites, biases, order, frame.half, max_cells)
    sets, polygons = result
    if max_cells is not None and len(sets) > max_cells:
        raise too_many(max_cells)
    rank = np.lexsort(sets.T[::-1])
    position = np.empty(len(rank) + 1, dtype=np.int64)
    position[rank], position[-1] = np.arange(len(rank)), -1
    polygons = polygons.take(rank)
    return names[sets[rank]], RaggedPolygons(frame.outward(polygons.vertices), position[polygons.labels], polygons.starts)


def relevant(sites: Array, biases: Array, order: int, half: Array) -> tuple[Array, Array, Array]:
    """(indices, gradients, values) of the sites that matter in the window, their scores of the order of 1."""
    names = np.nonzero(repeats(sites, biases)[1] < order)[0]  # of equal sites only the first `order` can be chosen
    sites, biases = sites[names], biases[names]
    while True:
        # Cells do not change under s -> g s + u.y + h: centre and scale, so that tolerances mean something.
        sites, biases = sites - sites.mean(axis=0), biases - biases.mean()
        scale = max(np.abs(sites).max(), np.abs(biases).max()) or 1.0
        sites, biases = sites / scale, biases / scale
        kept = near_top(sites, biases, order, np.zeros(len(half)), half)
        if len(kept) == len(names):
            return names, sites, biases
        names, sites, biases = names[kept], sites[kept], biases[kept]


def _by_hull(sites: Array, biases: Array, half: Array) -> tuple[Array, RaggedPolygons] | None:
    """Order 1 by the lower hull, or None where it cannot (few, collinear, nearly equal sites)."""
    found = hull_cells(sites, biases, half)
    if found is None or not _fills(found[1], half):
        return None
    names, polygons = found
    position = np.full(len(sites) + 1, -1)
    position[names] = np.arange(len(names))
    neighbours = position[polygons.labels]
    if (neighbours[polygons.labels >= 0] < 0).any():
        return None
    return names[:, None], RaggedPolygons(polygons.vertices, neighbours, polygons.starts)


def _by_walk(sites: Array, biases: Array, order: int, half: Array, max_cells: int | None) -> tuple[Array, RaggedPolygons]:
    for blur in BLURS:
        try:
            sets, polygons, neighbours = Walk(sites, biases, order, half, max_cells, blur).run()
        except TooManyCellsError:
            raise too_many(max_cells) from None
        except TooCloseError:
            continue
        if _fills(polygons, half) and (neighbours >= -1).all():
            return sets, RaggedPolygons(polygons.vertices, neighbours, polygons.starts)
    raise ArithmeticError(
        "the cells found do not fill the window: some sites are too nearly equal to tell their cells apart in float64; "
        "merge sites that are meant to be equal, or choose a smaller window"
    )


def _fills(polygons: RaggedPolygons, half: Array) -> bool:
    total = 4 * half.prod()
    return bool(abs(polygons.areas().sum() - total) <= AREA_TOLERANCE * total)


def too_many(max_cells: int | None, where: str = "window") -> ValueError:
    return ValueError(
        f"the {where} holds more than max_cells={max_cells} cells: choose a smaller {where} or a larger max_cells"
    )


def listed(sets: Iterable[Array], polygons: RaggedPolygons, signs: Iterable[Array] | None = None) -> Iterable[Cell]:
    """The cells one by one; the polygons' labels are their neighbours."""
    ends = zip(polygons.starts[:-1], polygons.starts[1:], strict=True)
    for chosen, (start, end), sign in zip(sets, ends, signs or _nothing(), strict=signs is not None):
        yield Cell(chosen, polygons.vertices[start:end], polygons.labels[start:end], sign)


def _nothing() -> Iterable[None]:
    while True:
        yield None
