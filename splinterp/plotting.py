"""Drawing cells, slices, segments and region graphs with matplotlib (the extra `plot`), as vectors on an axes of the caller's."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from splinterp._checks import one_of
from splinterp._typing import Array, ArrayLike, Float
from splinterp.geometry._arrays import as_float64
from splinterp.geometry._encoder import decoder_of, encoder_of
from splinterp.geometry.cells import Cell, Cells
from splinterp.geometry.polytopes import RegionGraph
from splinterp.geometry.segments import SegmentRegions
from splinterp.geometry.slices import Plane
from splinterp.geometry.solids import Solid, Solids
from splinterp.sae import SAE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.collections import LineCollection, PolyCollection
    from mpl_toolkits.mplot3d.art3d import Poly3DCollection
    from mpl_toolkits.mplot3d.axes3d import Axes3D

PALETTE = ("#A6CEE3", "#FDBF6F", "#B2DF8A", "#CAB2D6", "#FFF2AE", "#FB9A99", "#C7C7C7", "#80B1D3", "#E5C494", "#66C2A5")
"""Pale fills, distinguishable beside each other; data and sites stay legible on top."""


def colour_groups(cells: Sequence[Cell | Solid], groups: Sequence[Any] | None = None) -> list[int]:
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


def _colour(number: int) -> Any:
    """A fill for each number, all different: the palette, then pale hues between its own."""
    if number < len(PALETTE):
        return PALETTE[number]
    return colorsys.hsv_to_rgb(number * 0.6180339887 % 1.0, 0.25 + 0.2 * (number % 3), 0.95)


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
        options = {"facecolors": [_colour(c) for c in colour_groups(cells, groups)], **options}
    elif len(values) != len(cells):
        raise ValueError(f"values has {len(values)} entries for {len(cells)} cells")
    else:
        options = {"array": np.asarray(values, dtype=np.float64), **options}
    drawn = PolyCollection([cell.polygon for cell in cells], **{"edgecolors": edge, "linewidths": linewidth, **options})
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


def plot_solids(
    solids: Solids, ax: Axes3D, *, only: Sequence[int] | None = None, shrink: float = 0.0, values: Sequence[float] | Array | None = None,
    edge: str = "black", linewidth: float = 0.4, **options: Any,
) -> Poly3DCollection:  # fmt: skip
    """Draw cells in space as polyhedra; neighbours differ in colour, cells of one site set share one.

    Args:
        solids: from `PowerDiagram.solids` or `slice_solids`.
        ax: axes with projection="3d"; its limits become the box.
        only: positions of the cells to draw; None: all. Those inside are hidden by those in front unless some are left out.
        shrink: share by which each cell is drawn smaller, about its centre, so that one sees between them.
        values: one number for each of `solids`, for a colour map (options `cmap`, `norm`, ...) instead of colours.
        edge, linewidth: of the faces.
        options: passed to `Poly3DCollection`, `alpha` say.

    Returns the collection, which has the faces of one cell after those of another. Raises ValueError for a `values` of another length, a
    cell that is not there, or a share that is not from 0 to below 1.
    """
    from mpl_toolkits.mplot3d.art3d import Poly3DCollection

    if not 0 <= shrink < 1:
        raise ValueError(f"shrink={shrink} is a share, from 0 to below 1")
    chosen = list(range(len(solids))) if only is None else np.asarray(only).tolist()
    if any(isinstance(m, bool) for m in chosen):
        raise ValueError("only is a mask: pass positions, np.nonzero(mask)[0]")
    if any(not 0 <= m < len(solids) for m in chosen):
        raise ValueError(f"only={chosen} names cells in [0, {len(solids)})")
    if values is None:
        colours = colour_groups(solids, [tuple(solid.sites.tolist()) for solid in solids])
        faces = [_colour(colours[m]) for m in chosen for _ in solids[m].faces]
        options = {"facecolors": faces, **options}
    elif len(values) != len(solids):
        raise ValueError(f"values has {len(values)} entries for {len(solids)} cells")
    else:
        options = {"array": np.array([values[m] for m in chosen for _ in solids[m].faces], dtype=np.float64), **options}
    polygons = [
        solids[m].centre + (1 - shrink) * (solids[m].vertices[face] - solids[m].centre)
        for m in chosen
        for face in solids[m].faces
    ]
    drawn = Poly3DCollection(polygons, **{"edgecolors": edge, "linewidths": linewidth, **options})
    ax.add_collection3d(drawn)
    xmin, xmax, ymin, ymax, zmin, zmax = solids.bounds
    ax.set(xlim=(xmin, xmax), ylim=(ymin, ymax), zlim=(zmin, zmax))
    ax.set_box_aspect((xmax - xmin, ymax - ymin, zmax - zmin))
    return drawn


def plot_region_graph(
    graph: RegionGraph, ax: Axes, *, positions: ArrayLike | None = None, edge: str = "0.6", **options: Any
) -> LineCollection:
    """Draw the regions that samples visit as dots, as large as the number of their samples, and lines where two share a facet.

    Args:
        graph: from `visited_graph`.
        ax: axes to draw on.
        positions: (n_regions, 2), means of a plane's coordinates say. None: laid out by networkx, near what they touch.
        edge: colour of the lines.
        options: passed to `scatter`, which draws the dots.

    Returns the lines. Raises ImportError without networkx where no positions are given, ValueError for another number of them.
    """
    from matplotlib.collections import LineCollection

    if positions is None:
        import networkx  # deferred: of the extra `plot`

        net = networkx.Graph()
        net.add_nodes_from(range(len(graph.supports)))
        net.add_edges_from(graph.edges.tolist())
        laid = networkx.spring_layout(net, seed=0)
        at = np.array([laid[m] for m in range(len(graph.supports))]).reshape(-1, 2)
    else:
        at = as_float64(positions, 2, "positions")
        if len(at) != len(graph.supports):
            raise ValueError(f"positions has {len(at)} rows for {len(graph.supports)} regions")
    lines = LineCollection(list(at[graph.edges]), colors=edge, linewidths=0.6, zorder=1)
    ax.add_collection(lines)
    colour = {} if "c" in options else {"color": "#0072B2"}
    ax.scatter(*at.T, **{"s": 12 * np.sqrt(graph.counts), "zorder": 2, **colour, **options})
    ax.autoscale_view()
    return lines


def plot_segment(segment: SegmentRegions, ax: Axes, *, colour: str = "#0072B2", **options: Any) -> LineCollection:
    """Draw which latents are active along a segment: a line for each, from where it enters to where it leaves.

    Latents are in the order in which they come in, and every vertical line is a crossing, at which the region changes.

    Args:
        segment: from `segment_regions`.
        ax: axes to draw on; x is the share of the way.
        colour: of the lines.
        options: passed to `LineCollection`.

    Returns the lines. The axes' tick labels are the latents.
    """
    from matplotlib.collections import LineCollection

    bounds = segment.bounds
    started: dict[int, float] = {}
    rows: dict[int, int] = {}
    bars: list[tuple[int, float, float]] = []
    for start, support in zip(bounds[:-1], segment.supports(), strict=True):
        active = set(support.tolist())
        for latent in sorted(set(started) - active):
            bars.append((latent, started.pop(latent), float(start)))
        for latent in sorted(active - set(started)):
            started[latent] = float(start)
            rows.setdefault(latent, len(rows))
    bars += [(latent, start, 1.0) for latent, start in started.items()]
    lines = LineCollection(
        [[(start, rows[latent]), (stop, rows[latent])] for latent, start, stop in bars],
        **{"colors": colour, "linewidths": 2, **options},
    )
    for crossing in bounds[1:-1]:
        ax.axvline(crossing, color="0.8", linewidth=0.4, zorder=0)
    ax.add_collection(lines)
    ax.set(
        xlim=(0, 1),
        ylim=(max(1, len(rows)) - 0.5, -0.5),
        yticks=list(rows.values()),
        yticklabels=[str(latent) for latent in rows],
    )
    return lines
