"""Slices of an SAE's linear regions by a three-dimensional subspace, exactly."""

from __future__ import annotations

import numpy as np

from splinterp._checks import whole
from splinterp.geometry._encoder import Encoder, encoder_of
from splinterp.geometry._local import Local
from splinterp.geometry._polygons import ON_LINE
from splinterp.geometry._solid_walk import Sides
from splinterp.geometry.cells import Bounds, Frame, window
from splinterp.geometry.slices import Space, selection, subspace
from splinterp.geometry.solids import Solid, Solids, listed_solids, solids_of, taken, walked
from splinterp.sae import SAE


def slice_solids(sae: SAE, space: Space, bounds: Bounds, max_cells: int = 20_000) -> Solids:
    """The exact linear regions of an SAE in a box of a three-dimensional affine subspace, as convex polyhedra in its coordinates.

    What a cell is, for each activation, is as in `slice_cells`; volumes sum to that of the box within 1e-9 of it (and what vertices
    far from the origin are rounded by). A cell takes 3 to 6 ms where up to a thousand sites matter.

    Args:
        sae: on the CPU.
        space: from `space_through` or `principal_space`.
        bounds: (xmin, xmax, ymin, ymax, zmin, zmax) in the space's coordinates; `space.box(points)` makes one.
        max_cells: refuse to list more; reached early, as the number of cells is not known before.

    Raises:
        ValueError: a space of another width, a box without volume, or more than `max_cells` cells.
        ArithmeticError: cells that float64 cannot tell apart.
        RuntimeError: a BatchTopK SAE that has no inference threshold or is in training mode.
    """
    encoder = encoder_of(sae)
    space = Space(*subspace(space, encoder.weights.shape[1], 3))
    whole("max_cells", max_cells, 1)
    if encoder.kind == "threshold":
        return Solids(_threshold_solids(encoder, space, bounds, max_cells), bounds, len(encoder.weights))
    chosen = selection(encoder, space)
    sets, found = solids_of(chosen.scores, encoder.k, bounds, max_cells)
    supports, signs = chosen.named(sets)
    return Solids(listed_solids(supports, found, signs), bounds, len(encoder.weights))


def _threshold_solids(encoder: Encoder, space: Space, bounds: Bounds, max_cells: int) -> list[Solid]:
    frame = Frame.of(window(bounds, 3))
    above = Local.of(encoder.centre, encoder.weights, encoder.biases - encoder.threshold)
    sites, biases = frame.scores(above.restrict(space.origin, space.basis))
    length = np.linalg.norm(sites, axis=1)
    cuts = (length > 0) & (np.abs(biases) < np.abs(sites) @ frame.half - ON_LINE * length)
    crossing, always = np.nonzero(cuts)[0], np.nonzero(~cuts & (biases > 0))[0]
    found = walked(lambda blur: Sides(sites[crossing], biases[crossing], blur), frame, max_cells)
    supports = [np.sort(np.append(always, crossing[np.frombuffer(key, dtype=bool)])) for key in found.keys]
    rank = np.array(sorted(range(len(supports)), key=lambda m: tuple(supports[m])), dtype=np.int64)
    supports = [supports[m] for m in rank]
    return listed_solids(supports, taken(found, rank, frame), [np.ones(len(support), dtype=np.int64) for support in supports])
