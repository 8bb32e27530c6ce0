"""Exact cells in three dimensions, as convex polyhedra clipped to a box."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from splinterp._documented import documented
from splinterp._typing import Array, Float, Int
from splinterp.geometry._local import Local
from splinterp.geometry._polyhedra import area_vector, areas, volume
from splinterp.geometry._solid_walk import Rule, Selections, WalkedSolids, walk_solids
from splinterp.geometry._walk import TooCloseError, TooManyCellsError
from splinterp.geometry.cells import AREA_TOLERANCE, BLURS, Bounds, Frame, relevant, shared, too_many, unseen, window


@documented
@dataclass(frozen=True, eq=False)
class Solid:
    """One convex cell, clipped to the box."""

    sites: Int[Array, " k"]
    """Sorted. Of a power diagram: the sites chosen in the cell. Of a slice: the active latents, the support."""
    vertices: Float[Array, "n_vertices 3"]
    """Corners, in no order."""
    faces: tuple[Array, ...]
    """For each face its corners as rows of `vertices`, counter-clockwise seen from outside."""
    neighbours: Int[Array, " n_faces"]
    """For each face the position in the list of the cell across it, -1 at the box."""
    signs: Int[Array, " k"] | None = None
    """Of a slice: the sign of each active latent's code. None for a power diagram."""

    @property
    def volume(self) -> float:
        """Volume of the polyhedron."""
        return volume(self.vertices, list(self.faces))

    @property
    def areas(self) -> Float[Array, " n_faces"]:
        """Area of each face."""
        return areas(self.vertices, list(self.faces))

    @property
    def centre(self) -> Float[Array, " 3"]:
        """A point inside: the mean of the vertices."""
        return self.vertices.mean(axis=0)

    def contains(self, points: Float[Array, "n 3"], tolerance: float = 0.0) -> Array:
        """Whether each point lies in the closed polyhedron, up to a distance `tolerance`: (n,) bool."""
        centre, extent = self.centre, float(np.ptp(self.vertices, axis=0).max())
        vertices, y = (self.vertices - centre) / extent, (np.asarray(points) - centre) / extent
        outward = np.array([area_vector(vertices, face) for face in self.faces])
        feet = np.array([vertices[face].mean(axis=0) for face in self.faces])
        limits = tolerance / extent * np.linalg.norm(outward, axis=1)
        return (y @ outward.T - (outward * feet).sum(axis=1) <= limits).all(axis=1)


class Solids(list[Solid]):
    """A list of cells that fill a box, with what is true of all of them."""

    bounds: tuple[float, ...]
    """The box: (xmin, xmax, ymin, ymax, zmin, zmax)."""
    hidden: Int[Array, " n"]
    """Sites (latents, for a slice) that no cell of the box contains."""

    def __init__(self, cells: Iterable[Solid], bounds: Bounds, n_sites: int) -> None:
        super().__init__(cells)
        self.bounds = window(bounds, 3)
        self.hidden = unseen((cell.sites for cell in self), n_sites)

    def adjacency(self) -> tuple[Int[Array, "n_pairs 2"], Float[Array, " n_pairs"]]:
        """Which cells touch along a face, as positions (i, j) with i < j, sorted, and the area of what they share."""
        return shared((cell.neighbours for cell in self), (cell.areas for cell in self))


def solids_of(scores: Local, order: int, bounds: Bounds, max_cells: int | None) -> tuple[list[Array], WalkedSolids]:
    """(site sets, cells) of the order-k cells of scores in space, sorted by their sets. Raises as `slice_solids`."""
    frame = Frame.of(window(bounds, 3))
    names, sites, biases = relevant(*frame.scores(scores), order, frame.half)
    found = walked(lambda blur: Selections(sites, biases, order, blur), frame, max_cells)
    chosen = [names[np.frombuffer(key, dtype=np.int64)] for key in found.keys]
    rank = np.lexsort(np.array(chosen).T[::-1])
    return [chosen[m] for m in rank], taken(found, rank, frame)


def walked(rule: Callable[[float], Rule], frame: Frame, max_cells: int | None) -> WalkedSolids:
    for blur in BLURS:
        try:
            found = walk_solids(rule(blur), frame.half, max_cells)
        except TooManyCellsError:
            raise too_many(max_cells, "box") from None
        except TooCloseError:
            continue
        total = 8 * frame.half.prod()
        filled = sum(volume(*solid) for solid in zip(found.vertices, found.faces, strict=True))
        if abs(filled - total) <= AREA_TOLERANCE * total and all((beyond >= -1).all() for beyond in found.neighbours):
            if max_cells is not None and len(found.keys) > max_cells:
                raise too_many(max_cells, "box")
            return found
    raise ArithmeticError(
        "the cells found do not fill the box: some sites are too nearly equal, or of too different sizes, to tell their cells apart in "
        "float64; merge sites that are meant to be equal, or choose a smaller box"
    )


def taken(found: WalkedSolids, rank: Array, frame: Frame) -> WalkedSolids:
    """The cells in that order, in the coordinates of the box."""
    position = np.empty(len(rank) + 1, dtype=np.int64)
    position[rank], position[-1] = np.arange(len(rank)), -1
    return WalkedSolids(
        [found.keys[m] for m in rank], [frame.outward(found.vertices[m]) for m in rank], [found.faces[m] for m in rank],
        [position[found.neighbours[m]] for m in rank],
    )  # fmt: skip


def listed_solids(sets: Iterable[Array], found: WalkedSolids, signs: Iterable[Array] | None = None) -> list[Solid]:
    """The cells one by one."""
    every = [None] * len(found.keys) if signs is None else list(signs)
    return [
        Solid(chosen, vertices, tuple(faces), beyond, sign)
        for chosen, vertices, faces, beyond, sign in zip(
            sets, found.vertices, found.faces, found.neighbours, every, strict=True
        )
    ]
