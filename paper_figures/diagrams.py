"""What the partitions are: Voronoi and power diagrams, their orders, and slices of one by a plane. Computed, not read."""

from __future__ import annotations

from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, Polygon
from scipy.spatial import Voronoi
from sklearn.cluster import KMeans

from paper_figures.style import PAGE, bare
from splinterp.geometry import Cells, PowerDiagram
from splinterp.plotting import plot_cells

BOUNDS = (-1.0, 1.0, -1.0, 1.0)
PLANE_BOUNDS = (-0.93, 0.93, -0.93, 0.93)
N_SITES, SEED = 12, 6


def _sites() -> tuple[np.ndarray, np.ndarray]:
    """Sites in the window, and weights: squares of the radii drawn around them."""
    rng = np.random.default_rng(SEED)
    candidates = rng.uniform(-0.85, 0.85, (400, 2))
    sites = candidates[:1]
    for point in candidates:  # no two nearer than 0.35, so that every cell can be seen
        if len(sites) < N_SITES and np.linalg.norm(sites - point, axis=1).min() > 0.35:
            sites = np.vstack([sites, point])
    return sites, rng.uniform(0.05, 0.4, N_SITES) ** 2


def _site_colours(cells: Cells) -> dict[str, Any]:
    """The option of `plot_cells` that gives a site the same colour in every panel, so that the growth of a cell can be followed."""
    return {"facecolors": [mpl.colormaps["Set3"](int(cell.sites[0])) for cell in cells]}


def _panel(ax: Axes, title: str) -> None:
    ax.set(xlim=BOUNDS[:2], ylim=BOUNDS[2:], aspect="equal", title=title)
    bare(ax, frame=True)


def _dots(ax: Axes, sites: np.ndarray) -> None:
    ax.plot(*sites.T, "o", color="black", markersize=3, zorder=4)


def partitions(_: dict[str, Any]) -> tuple[Figure, str]:
    """Voronoi, nearest neighbour, k-means, power diagram."""
    sites, weights = _sites()
    figure, axes = plt.subplots(1, 4, figsize=(PAGE, 2.0))
    rng = np.random.default_rng(SEED + 1)

    voronoi = PowerDiagram(sites, np.zeros(N_SITES))
    cells = voronoi.cells(BOUNDS)
    plot_cells(cells, axes[0], **_site_colours(cells))
    _dots(axes[0], sites)
    _panel(axes[0], "Voronoi diagram")

    plot_cells(cells, axes[1], alpha=0.45, **_site_colours(cells))
    queries = rng.uniform(-0.97, 0.97, (60, 2))
    nearest = sites[np.asarray(voronoi.assign(queries)).ravel()]
    axes[1].plot(
        *np.stack([queries, nearest, np.full_like(queries, np.nan)], axis=1).reshape(-1, 2).T, color="black", linewidth=0.4
    )
    axes[1].plot(*queries.T, ".", color="black", markersize=2.5)
    _dots(axes[1], sites)
    _panel(axes[1], "nearest neighbour")

    centres = rng.uniform(-0.75, 0.75, (6, 2))
    data = np.clip(np.vstack([c + 0.12 * rng.standard_normal((40, 2)) for c in centres]), -0.98, 0.98)
    means = KMeans(6, n_init=10, random_state=0).fit(data).cluster_centers_
    plot_cells(PowerDiagram(means, np.zeros(6)).cells(BOUNDS), axes[2])
    axes[2].plot(*data.T, ".", color="black", markersize=1.5, zorder=3)
    axes[2].plot(*means.T, "X", color="#D55E00", markeredgecolor="black", markeredgewidth=0.5, markersize=5.5, zorder=5)
    _panel(axes[2], "k-means")

    powered = PowerDiagram(sites, weights).cells(BOUNDS)
    plot_cells(powered, axes[3], **_site_colours(powered))
    for site, weight in zip(sites, weights, strict=True):
        axes[3].add_patch(Circle(tuple(site), weight**0.5, fill=False, linewidth=0.6, linestyle="--"))
    _dots(axes[3], sites)
    _panel(axes[3], "power diagram")
    return figure, (
        f"Partitions of the plane by sites (dots). Voronoi diagram of {N_SITES} sites; nearest-neighbour assignment, each query joined to "
        "the site whose cell it lies in; k-means, whose clusters are the Voronoi cells of their means (crosses); the power diagram of the "
        "first panel's sites with weights, the squared radii of the dashed circles: a larger weight pushes a cell's walls outwards. A "
        "site has one colour in every panel. Every cell is exact."
    )


LABEL_CORNERS = np.array([[-0.11, -0.05], [0.11, -0.05], [0.11, 0.05], [-0.11, 0.05]])
"""Of the box around a pair of numbers."""


def orders(_: dict[str, Any]) -> tuple[Figure, str]:
    """Voronoi, power and order-2 power diagram of the same sites."""
    sites, weights = _sites()
    figure, axes = plt.subplots(1, 3, figsize=(PAGE, 2.6))
    for ax, (title, diagram) in zip(axes, {
        "Voronoi diagram": PowerDiagram(sites, np.zeros(N_SITES)),
        "power diagram": PowerDiagram(sites, weights),
        "power diagram of order 2": PowerDiagram(sites, weights, order=2),
    }.items(), strict=True):  # fmt: skip
        cells = diagram.cells(BOUNDS)
        plot_cells(cells, ax, **(_site_colours(cells) if diagram.order == 1 else {"alpha": 0.6}))
        for number, site in enumerate(sites):
            ax.annotate(str(number + 1), site, ha="center", va="center", fontsize=6,
                        bbox={"boxstyle": "circle,pad=0.15", "facecolor": "white", "edgecolor": "black", "linewidth": 0.5})  # fmt: skip
        if diagram.order == 2:
            for cell in cells:
                place = _label_place(cell.polygon, sites)
                if place is not None:
                    ax.text(*place, ", ".join(str(i + 1) for i in sorted(cell.sites)), ha="center", va="center", fontsize=5)
        _panel(ax, f"{title}: {len(cells)} cells")
    return figure, (
        f"The same {N_SITES} sites: Voronoi diagram, power diagram (weights as in figure `partitions`), and the power diagram of order 2, "
        "whose cells are the points with one unordered pair of sites of least power (pairs in cells large enough). The selections of a "
        "TopK encoder of k latents are the cells of an order-k power diagram of its columns."
    )


def _label_place(polygon: np.ndarray, sites: np.ndarray) -> np.ndarray | None:
    """Where one or two numbers fit into a cell, off the sites and as near to its centroid as may be."""
    path = Polygon(polygon).get_path()
    steps = np.arange(-0.4, 0.41, 0.04)
    places = _centroid(polygon) + np.stack(np.meshgrid(steps, steps), axis=-1).reshape(-1, 2)
    for place in places[np.linalg.norm(places - _centroid(polygon), axis=1).argsort()]:
        free = (np.abs(sites - place) > (0.19, 0.13)).any(axis=1).all()
        if free and path.contains_points(place + LABEL_CORNERS).all():
            return place
    return None


def _centroid(polygon: np.ndarray) -> np.ndarray:
    x, y = polygon.T
    cross = x * np.roll(y, -1) - np.roll(x, -1) * y
    return np.array([((a + np.roll(a, -1)) * cross).sum() for a in (x, y)]) / (3 * cross.sum())


def plane_slice(_: dict[str, Any]) -> tuple[Figure, str]:
    """A 3-D Voronoi diagram, a plane through it, and the 2-D power diagram on that plane; a number and a colour for each site."""
    rng = np.random.default_rng(8)
    sites = rng.uniform(-0.9, 0.9, (11, 3))
    origin = np.zeros(3)
    basis = np.linalg.qr(np.array([[1.0, 0.0, 0.3], [0.0, 1.0, 0.2]]).T)[0].T
    basis *= np.sign(np.diag(basis))[:, None]
    flat = PowerDiagram(sites, np.zeros(len(sites))).restrict(origin, basis)
    cells = flat.cells(PLANE_BOUNDS)
    numbers = {int(cell.sites[0]): n for n, cell in enumerate(cells, 1)}
    figure = plt.figure(figsize=(PAGE, 3.3))
    solid: Any = figure.add_subplot(1, 2, 1, projection="3d")
    _draw_solid(solid, sites, origin, basis, cells, numbers)
    ax = figure.add_subplot(1, 2, 2)
    plot_cells(cells, ax, **_site_colours(cells))
    projected = (sites - origin) @ basis.T
    for site, number in numbers.items():
        polygon = next(cell.polygon for cell in cells if int(cell.sites[0]) == site)
        place = _label_place(polygon, projected)
        ax.text(
            *(_centroid(polygon) if place is None else place),
            str(number),
            fontsize=9,
            ha="center",
            va="center",
            fontweight="bold",
        )
        if np.abs(projected[site]).max() < PLANE_BOUNDS[1]:
            _dot(ax, projected[site], site)
            ax.text(*(projected[site] + [0.055, 0.05]), str(number), fontsize=7, ha="center", va="center")
    _panel(ax, f"its slice: a power diagram of {len(cells)} cells")
    ax.set(xlim=PLANE_BOUNDS[:2], ylim=PLANE_BOUNDS[2:])
    return figure, (
        f"Left: the 3-D Voronoi diagram of {len(sites)} sites (its edges in grey) and a plane through it; the coloured cells on the plane "
        "are the exact intersections. A thin line joins each site whose cell the plane meets to its projection on the plane. Right: the "
        "same cells, computed as the 2-D power diagram of the projections (dots), whose weights are minus the squared distances to the "
        f"plane. Site, projection and cell have one number and one colour; the {len(sites) - len(cells)} sites without a cell on the plane "
        "are white. A projection may lie outside its cell, as 5 does. Slices of a trained SAE are made in the same way."
    )


def _dot(ax: Any, at: np.ndarray, site: int | None) -> None:
    colour = "white" if site is None else mpl.colormaps["Set3"](site)
    ax.plot(*at[:, None], "o", markerfacecolor=colour, markeredgecolor="black", markeredgewidth=0.7, markersize=5)


def _draw_solid(
    ax: Any, sites: np.ndarray, origin: np.ndarray, basis: np.ndarray, cells: Cells, numbers: dict[int, int]
) -> None:
    from mpl_toolkits.mplot3d.art3d import Line3DCollection, Poly3DCollection  # type: ignore[import-untyped, unused-ignore]

    mirrored = [sites]
    for axis in range(3):  # reflections in the box's faces bound every cell by the box
        for side in (-1.0, 1.0):
            image = sites.copy()
            image[:, axis] = 2 * side - image[:, axis]
            mirrored.append(image)
    diagram = Voronoi(np.vstack(mirrored))
    lines = set()
    for (a, b), ridge in zip(diagram.ridge_points, diagram.ridge_vertices, strict=True):
        if min(a, b) < len(sites) and -1 not in ridge:
            lines |= {tuple(sorted(pair)) for pair in zip(ridge, [*ridge[1:], ridge[0]], strict=True)}
    ax.add_collection3d(
        Line3DCollection([diagram.vertices[list(pair)] for pair in lines], colors="black", linewidths=0.4, alpha=0.22)
    )
    polygons = [origin + cell.polygon @ basis for cell in cells]
    colours = _site_colours(cells)["facecolors"]
    ax.add_collection3d(Poly3DCollection(polygons, facecolors=colours, edgecolors="black", linewidths=0.5, alpha=0.75))
    for polygon, cell in zip(polygons, cells, strict=True):
        ax.text(
            *polygon.mean(axis=0), str(numbers[int(cell.sites[0])]), fontsize=8, fontweight="bold", ha="center", va="center"
        )
    for site, at in enumerate(sites):
        _dot(ax, at, site if site in numbers else None)
        if site in numbers:
            foot = origin + (at - origin) @ basis.T @ basis
            ax.plot(*np.array([at, foot]).T, color="black", linewidth=0.6, linestyle=":")
    ax.set(xlim=(-1, 1), ylim=(-1, 1), zlim=(-1, 1), xticks=[], yticks=[], zticks=[], box_aspect=(1, 1, 1))
    ax.set_title("3-D Voronoi diagram and a plane", y=1.0)
    ax.view_init(elev=24, azim=-58)
    ax.grid(False)
