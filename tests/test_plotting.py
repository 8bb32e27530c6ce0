"""Drawing: the polygons on the axes are the cells, neighbours differ in colour, errors are exact means."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from splinterp.geometry import Plane, PowerDiagram, Space, segment_regions, slice_cells, slice_solids, visited_graph
from splinterp.plotting import (
    PALETTE,
    cell_errors,
    colour_groups,
    plot_cells,
    plot_region_graph,
    plot_segment,
    plot_slice,
    plot_solids,
)
from tests.properties.geometry_cases import normal_points, random_sae

pyplot = pytest.importorskip("matplotlib.pyplot")
WINDOW = (-1.0, 1.0, -1.0, 1.0)
PLANE = Plane(np.array([0.1, -0.2, 0.3, 0.0]), np.eye(4)[:2])


@pytest.fixture
def ax():
    import matplotlib as mpl

    mpl.use("Agg")
    figure, axes = pyplot.subplots()
    yield axes
    pyplot.close(figure)


def diagram(n: int = 60, order: int = 3) -> PowerDiagram:
    return PowerDiagram(np.random.default_rng(0).uniform(-1, 1, (n, 2)), order=order)


@pytest.mark.parametrize("order", [1, 3])
def test_neighbours_differ_in_colour(order):
    cells = diagram(order=order).cells(WINDOW)
    colours = colour_groups(cells)
    for number, cell in enumerate(cells):
        assert all(colours[number] != colours[other] for other in cell.neighbours if other >= 0)
    assert max(colours) < len(PALETTE)


def test_cells_of_one_group_share_a_colour_and_differ_from_their_neighbours():
    sae = random_sae("AbsTopK", 4, 10, 2, 3)
    cells = slice_cells(sae, PLANE, WINDOW)
    supports = [tuple(cell.sites.tolist()) for cell in cells]
    colours = colour_groups(cells, supports)
    by_support: dict[tuple, set[int]] = {}
    for support, colour in zip(supports, colours, strict=True):
        by_support.setdefault(support, set()).add(colour)
    assert all(len(c) == 1 for c in by_support.values())
    for number, cell in enumerate(cells):
        assert all(
            colours[number] != colours[other] for other in cell.neighbours if other >= 0 and supports[other] != supports[number]
        )


def test_the_polygons_drawn_are_the_cells(ax):
    cells = diagram().cells(WINDOW)
    drawn = plot_cells(cells, ax, sites=diagram().sites, data=np.zeros((3, 2)), linewidth=0.7)
    assert len(drawn.get_paths()) == len(cells)
    np.testing.assert_allclose(drawn.get_paths()[5].vertices[:-1], cells[5].polygon)
    assert ax.get_xlim() == WINDOW[:2]
    assert drawn.get_linewidths()[0] == 0.7
    hidden, shown = ax.lines[2].get_xydata(), ax.lines[1].get_xydata()
    assert len(hidden) == len(cells.hidden)
    assert len(hidden) + len(shown) == 60
    assert len(ax.lines[0].get_xydata()) == 3


def test_values_and_colours(ax):
    sae = random_sae("TopK", 4, 10, 3, 3)
    cells = slice_cells(sae, PLANE, WINDOW)
    by_support = plot_slice(cells, ax)
    by_count = plot_slice(cells, ax, colour="active")
    np.testing.assert_array_equal(by_count.get_array(), [len(cell.sites) for cell in cells])
    by_error = plot_slice(cells, ax, colour="error", sae=sae, plane=PLANE, data=normal_points(0, 5, 4), cmap="cividis")
    np.testing.assert_allclose(by_error.get_array(), cell_errors(cells, sae, PLANE))
    assert by_error.get_cmap().name == "cividis"
    assert by_support.get_array() is None
    with pytest.raises(ValueError, match="needs sae= and plane="):
        plot_slice(cells, ax, colour="error")
    with pytest.raises(ValueError, match="data= needs plane="):
        plot_slice(cells, ax, data=normal_points(0, 5, 4))
    with pytest.raises(ValueError, match="colour='depth' is unknown"):
        plot_slice(cells, ax, colour="depth")
    with pytest.raises(ValueError, match="entries for"):
        plot_cells(cells, ax, values=[1.0])


@pytest.mark.parametrize("kind", ["TopK", "AbsTopK", "ReLU"])
def test_cell_errors_are_the_means_over_the_cells(kind):
    sae = random_sae(kind, 4, 6, 2, 1)
    cells = slice_cells(sae, PLANE, WINDOW)
    errors = cell_errors(cells, sae, PLANE)
    y = np.random.default_rng(0).uniform(-1, 1, (40_000, 2))
    x = PLANE.points(y)
    square = ((sae(x).x_hat.detach().numpy() - x) ** 2).sum(axis=1)
    compared = 0
    for cell, error in zip(cells, errors, strict=True):
        inside = cell.contains(y)
        if inside.sum() > 1_500:
            assert error == pytest.approx(square[inside].mean(), rel=0.05)
            compared += 1
    assert compared >= 2
    areas = np.array([cell.area for cell in cells])
    assert areas @ errors / areas.sum() == pytest.approx(square.mean(), rel=0.02)


def test_solids_are_drawn_face_by_face():
    figure = pyplot.figure()
    ax = figure.add_subplot(projection="3d")
    sae = random_sae("TopK", 4, 8, 2, 1)
    solids = slice_solids(sae, Space(np.zeros(4), np.eye(4)[:3]), (-1, 1, -1, 1, -1, 1))
    drawn = plot_solids(solids, ax, shrink=0.1, alpha=0.4)
    figure.canvas.draw()
    assert len(drawn.get_facecolors()) == sum(len(solid.faces) for solid in solids)
    colours = colour_groups(solids)
    for m, solid in enumerate(solids):
        assert all(colours[m] != colours[other] for other in solid.neighbours if other >= 0)
    assert ax.get_zlim() == pytest.approx((-1, 1), abs=0.1)
    some = plot_solids(solids, ax, only=[0, 1], values=np.arange(len(solids), dtype=float), cmap="cividis")
    np.testing.assert_array_equal(some.get_array(), [0.0] * len(solids[0].faces) + [1.0] * len(solids[1].faces))
    for wrong, message in (
        ({"only": [999]}, "names cells"),
        ({"values": [1.0]}, "entries for"),
        ({"shrink": 1.0}, "shrink=1.0"),
    ):
        with pytest.raises(ValueError, match=message):
            plot_solids(solids, ax, **wrong)
    pyplot.close(figure)


def test_a_region_graph_is_drawn(ax):
    sae = random_sae("TopK", 2, 8, 2, 1)
    graph = visited_graph(sae, normal_points(0, 60, 2))
    assert len(graph.edges) > 3
    lines = plot_region_graph(graph, ax)
    assert len(lines.get_segments()) == len(graph.edges)
    at = np.random.default_rng(0).normal(size=(len(graph.supports), 2))
    placed = plot_region_graph(graph, ax, positions=at, color="red")
    np.testing.assert_allclose(placed.get_segments()[0], at[graph.edges[0]])
    np.testing.assert_allclose(ax.collections[-1].get_offsets(), at)
    plot_region_graph(graph, ax, positions=at, c=graph.counts, cmap="cividis")
    assert len(plot_region_graph(visited_graph(sae, normal_points(0, 60, 2)[:0]), ax).get_segments()) == 0
    with pytest.raises(ValueError, match="positions has 1 rows"):
        plot_region_graph(graph, ax, positions=at[:1])


def test_a_segment_is_drawn_latent_by_latent(ax):
    sae = random_sae("TopK", 4, 12, 3, 2)
    segment = segment_regions(sae, *(3 * normal_points(1, 2, 4)))
    lines = plot_segment(segment, ax)
    bars = lines.get_segments()
    for start, stop, support in zip(segment.bounds[:-1], segment.bounds[1:], segment.supports(), strict=True):
        middle = (start + stop) / 2
        rows = [round(bar[0, 1]) for bar in bars if bar[0, 0] < middle < bar[1, 0]]
        assert sorted(int(ax.get_yticklabels()[row].get_text()) for row in rows) == support.tolist()
    assert len(ax.lines) == len(segment) - 1


def test_every_colour_is_another_however_many_cells_touch():
    figure = pyplot.figure()
    ax = figure.add_subplot(projection="3d")
    t = np.linspace(-1, 1, 13)
    sites = np.stack([t, t**2, t**3], axis=1)
    solids = PowerDiagram(sites, -2 * t**4 + (sites**2).sum(axis=1)).solids((-6, 6, -6, 6, -6, 6))
    assert len(solids.adjacency()[0]) == 13 * 12 // 2  # each touches every other
    faces = plot_solids(solids, ax).get_facecolors()
    assert len(np.unique(np.round(faces, 6), axis=0)) == 13
    pyplot.close(figure)


def test_a_segment_without_active_latents_is_drawn(ax):
    sae = random_sae("ReLU", 3, 4, 1, 0)
    with torch.no_grad():
        sae.b_enc.fill_(-100.0)
    assert len(plot_segment(segment_regions(sae, np.zeros(3), np.ones(3)), ax).get_segments()) == 0
