"""Drawing cells and slices with matplotlib (the extra `plot`), as vector polygons on an axes of the caller's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from splinterp._checks import one_of
from splinterp._typing import Array, ArrayLike, Float
from splinterp.geometry._arrays import as_float64
from splinterp.geometry._encoder import decoder_of, encoder_of
from splinterp.geometry.cells import Cells
from splinterp.geometry.slices import Plane
from splinterp.sae import SAE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.collections import PolyCollection

PALETTE = ("#A6CEE3", "#FDBF6F", "#B2DF8A", "#CAB2D6", "#FFF2AE", "#FB9A99", "#C7C7C7", "#80B1D3", "#E5C494", "#66C2A5")
"""Pale fills, distinguishable beside each other; data and sites stay legible on top."""


def colour_groups(cells: Cells, groups: Sequence[Any] | None = None) -> list[int]:
    """A small number for each cell, different for neighbours; cells of one group get the same (None: each its own).

    Greedy over the groups by falling number of neighbours. Deterministic. Groups that touch are one region's parts, so
    a cell is never compared with its own group.
    """
    keys = list(range(len(cells))) if groups is None else [groups[i] for i in range(len(cells))]
    around: dict[Any, set[Any]] = {key: set() for key in keys}
    for key, cell in zip(keys, cells, strict=True):
        around[key] |= {keys[j] for j in cell.neighbours if j >= 0 and keys[j] != key}
    for key, others in list(around.items()):
        for other in others:
            around[other].add(key)
    colour: dict[Any, int] = {}
    uses: dict[int, int] = {}
    for key in sorted(around, key=lambda key: -len(around[key])):
        taken = {colour[other] for other in around[key] if other in colour}
        free = [c for c in range(len(PALETTE)) if c not in taken] or [max(taken) + 1]
        colour[key] = min(free, key=lambda c: (c >= 6, uses.get(c, 0)))  # six suffice for most maps; spread them evenly
        uses[colour[key]] = uses.get(colour[key], 0) + 1
    return [colour[key] for key in keys]


def plot_cells(
    cells: Cells, ax: Axes, *, sites: ArrayLike | None = None, data: ArrayLike | None = None,
    values: Sequence[float] | Array | None = None, by_support: bool = True, edge: str = "black", linewidth: float = 0.4, **options: Any,
) -> PolyCollection:  # fmt: skip
    """Draw cells as polygons; neighbours differ in colour, cells of one site set share one.

    Args:
        cells: from `PowerDiagram.cells` or `slice_cells`.
        ax: axes to draw on; its limits become the window and its aspect equal.
        sites: (n, 2) drawn as crosses, hidden ones as open circles.
        data: (n, 2) drawn as dots.
        values: one number a cell, for a colour map (options `cmap`, `norm`, ...) instead of colours.
        by_support: False gives every cell its own colour, so that the signed cells of one support can be told apart.
        edge, linewidth: of the polygons.
        options: passed to `PolyCollection`.

    Returns the `PolyCollection`, for a colour bar. Raises ValueError if `values` has another length.
    """
    from matplotlib.collections import PolyCollection

    if values is None:
        groups = [tuple(cell.sites.tolist()) for cell in cells] if by_support else None
        options = {"facecolors": [PALETTE[c % len(PALETTE)] for c in colour_groups(cells, groups)], **options}
    elif len(values) != len(cells):
        raise ValueError(f"values has {len(values)} entries for {len(cells)} cells")
    else:
        options = {"array": np.asarray(values, dtype=np.float64), **options}
    drawn = PolyCollection([cell.polygon for cell in cells], edgecolors=edge, linewidths=linewidth, **options)
    ax.add_collection(drawn)
    if data is not None:
        points = as_float64(data, 2, "data")
        ax.plot(*points.T, ".", color="black", markersize=2, zorder=3)
    if sites is not None:
        points = as_float64(sites, 2, "sites")
        hidden = np.isin(np.arange(len(points)), cells.hidden)
        ax.plot(*points[~hidden].T, "x", color="black", markersize=4, zorder=4)
        ax.plot(*points[hidden].T, "o", color="black", markerfacecolor="none", markersize=4, zorder=4)
    xmin, xmax, ymin, ymax = cells.bounds
    ax.set(xlim=(xmin, xmax), ylim=(ymin, ymax), aspect="equal")
    return drawn


def plot_slice(
    cells: Cells, ax: Axes, *, colour: str = "support", sae: SAE | None = None, plane: Plane | None = None,
    data: ArrayLike | None = None, **options: Any,
) -> PolyCollection:  # fmt: skip
    """Draw the slice of an SAE's regions.

    Args:
        cells: from `slice_cells`.
        ax: axes to draw on.
        colour: "support", neighbours distinguishable; "active", the number of active latents; "error", the mean over the
            cell of the squared error |x_hat - x|^2 of its affine piece (needs `sae` and `plane`), in squared units of x.
        sae, plane: what was sliced.
        data: samples (n, d_in), drawn at their projections onto the plane (needs `plane`).
        options: passed to `plot_cells`.

    Raises ValueError for an unknown colour, or a missing sae or plane.
    """
    one_of("colour", colour, ("support", "active", "error"))
    if (colour == "error" and (sae is None or plane is None)) or (data is not None and plane is None):
        raise ValueError("colour='error' needs sae= and plane=, and data= needs plane=: pass what was sliced")
    points = plane.coordinates(data) if data is not None and plane is not None else None
    if colour == "active":
        options = {"values": [len(cell.sites) for cell in cells], **options}
    elif colour == "error":
        assert sae is not None
        assert plane is not None
        options = {"values": cell_errors(cells, sae, plane), **options}
    return plot_cells(cells, ax, data=points, **options)


def cell_errors(cells: Cells, sae: SAE, plane: Plane) -> Float[Array, " n_cells"]:
    """Mean of |x_hat - x|^2 over each cell of a slice: exact, for the error is a quadratic on each cell.

    A quadratic's mean over a triangle is its mean over the three middles of the sides; a cell is a fan of triangles.
    """
    encoder, (W_dec, b_dec) = encoder_of(sae), decoder_of(sae)
    errors = np.empty(len(cells))
    for m, cell in enumerate(cells):
        polygon = cell.polygon
        a, b, c = np.broadcast_arrays(polygon[:1], polygon[1:-1], polygon[2:])
        area = (b[:, 0] - a[:, 0]) * (c[:, 1] - a[:, 1]) - (b[:, 1] - a[:, 1]) * (c[:, 0] - a[:, 0])
        x = plane.points(np.concatenate([(a + b) / 2, (b + c) / 2, (c + a) / 2]))
        scores = (x - encoder.centre) @ encoder.weights[cell.sites].T + encoder.biases[cell.sites]
        squares = ((scores @ W_dec[cell.sites] + b_dec - x) ** 2).sum(axis=1).reshape(3, -1).mean(axis=0)
        errors[m] = area @ squares / area.sum() if area.sum() > 0 else squares.mean()
    return errors
