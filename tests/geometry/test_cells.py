"""Exact planar cells: known diagrams, degenerate families, hidden sites, errors."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial import Voronoi

from splinterp.geometry import PowerDiagram, cells
from tests.properties.test_geometry_cells import check_tiling, holders

WINDOW = (-1.0, 1.0, -1.0, 1.0)
RNG = np.random.default_rng(0)
GRID = np.stack(np.meshgrid(np.arange(-3, 4) / 3, np.arange(-3, 4) / 3), axis=-1).reshape(-1, 2)
CIRCLE = np.stack([np.cos(np.arange(12) * np.pi / 6), np.sin(np.arange(12) * np.pi / 6)], axis=1)
LINE = np.stack([np.arange(10) / 5 - 1.0, np.zeros(10)], axis=1)
COPIES = np.repeat(RNG.uniform(-1, 1, (5, 2)), 4, axis=0)
TWINS = np.concatenate([COPIES[::4], COPIES[::4] + 1e-5 * RNG.normal(size=(5, 2))])


@pytest.mark.parametrize("sites", [GRID, CIRCLE, LINE, COPIES, TWINS], ids=["grid", "circle", "line", "copies", "twins"])
@pytest.mark.parametrize("order", [1, 2, 3, 4, 5, 8, 10])
def test_degenerate_sites_are_right(sites, order):
    diagram = PowerDiagram(sites, order=order)
    found = diagram.cells(WINDOW)
    check_tiling(found, 4.0)
    points = np.random.default_rng(1).uniform(-1, 1, (500, 2))
    for chosen, holding in zip(diagram.assign(points), holders(found, points), strict=True):
        assert len(holding) <= 1
        if holding:
            np.testing.assert_array_equal(found[holding[0]].sites, chosen)


def test_an_order_1_diagram_with_equal_weights_is_scipys_voronoi_diagram():
    sites = np.random.default_rng(3).uniform(-1, 1, (60, 2))
    mine = PowerDiagram(sites).cells((-50, 50, -50, 50))
    voronoi = Voronoi(sites)
    compared = 0
    for cell in mine:
        region = voronoi.regions[voronoi.point_region[cell.sites[0]]]
        if -1 in region or np.abs(voronoi.vertices[region]).max() > 49:
            continue
        theirs = voronoi.vertices[region]
        assert len(cell.polygon) == len(theirs)
        assert np.abs(cell.polygon[:, None] - theirs).max(axis=2).min(axis=1).max() < 1e-9
        compared += 1
    assert compared > 30


def test_neighbours_of_a_grid():
    """3 x 3 Voronoi squares: the middle one has four neighbours, a corner one two and the window."""
    axis = np.array([-2 / 3, 0.0, 2 / 3])
    found = PowerDiagram(np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)).cells(WINDOW)
    assert [len(cell.polygon) for cell in found] == [4] * 9
    assert sorted(found[4].neighbours) == [1, 3, 5, 7]
    assert sorted(found[0].neighbours) == [-1, -1, 1, 3]
    np.testing.assert_allclose([cell.area for cell in found], 4 / 9)


def test_one_site_and_all_sites_own_the_window():
    for diagram in (
        PowerDiagram(np.zeros((1, 2))),
        PowerDiagram(GRID, order=len(GRID)),
        PowerDiagram(np.ones((4, 2)), order=3),
    ):
        found = diagram.cells((0.0, 2.0, 5.0, 6.0))
        assert len(found) == 1
        assert found[0].area == 2.0
        np.testing.assert_array_equal(found[0].sites, np.arange(diagram.order))
        np.testing.assert_array_equal(found[0].neighbours, [-1] * 4)
        np.testing.assert_array_equal(found.hidden, np.arange(diagram.order, diagram.n_sites))


def test_hidden_sites_are_reported():
    sites = np.array([[-1.0, 0.0], [1.0, 0.0], [0.0, 0.0], [0.0, 0.5]])
    found = PowerDiagram(sites, np.array([0.0, 0.0, -5.0, 0.0])).cells(WINDOW)
    np.testing.assert_array_equal(found.hidden, [2])  # a low weight hides it
    assert 2 not in PowerDiagram(sites, np.array([0.0, 0.0, -0.1, 0.0])).cells(WINDOW).hidden
    away = PowerDiagram(sites).cells((5.0, 6.0, 0.0, 1.0))
    np.testing.assert_array_equal(away.hidden, [0, 2, 3])  # not in this window


def test_sites_that_tie_along_a_whole_edge_change_places_together():
    # Left of x = 0 sites 0 and 1 lead, right of it 2 and 3, and all four tie there.
    found = PowerDiagram.from_scores(np.array([[-1.0, 0.0], [-0.5, 0.0], [1.0, 0.0], [0.5, 0.0]]), np.zeros(4), 2).cells(WINDOW)
    assert [cell.sites.tolist() for cell in found] == [[0, 1], [2, 3]]
    assert [cell.area for cell in found] == [2.0, 2.0]


def test_many_sites_that_tie_along_a_line_do_not_fill_the_memory(monkeypatch):
    """Scores a_i x of 300 slopes all tie at x = 0, and in every box there, however small."""
    from splinterp.geometry import _index

    monkeypatch.setattr(_index, "MAX_ENTRIES", 30_000)
    slopes = np.random.default_rng(0).normal(size=300)
    found = PowerDiagram.from_scores(np.stack([slopes, np.zeros(300)], axis=1), np.zeros(300), 5).cells(WINDOW)
    assert [cell.area for cell in found] == [2.0, 2.0]
    order = np.argsort(slopes)
    assert {frozenset(cell.sites.tolist()) for cell in found} == {frozenset(order[:5].tolist()), frozenset(order[-5:].tolist())}


def test_windows_of_any_place_and_scale():
    sites = np.random.default_rng(2).uniform(-1, 1, (30, 2))
    here, there = PowerDiagram(sites, order=2), PowerDiagram(100 + 0.1 * sites, order=2)
    one, two = here.cells(WINDOW), there.cells(tuple(100 + 0.1 * np.array(WINDOW)))
    assert [cell.sites.tolist() for cell in one] == [cell.sites.tolist() for cell in two]
    np.testing.assert_allclose([cell.area for cell in one], [100 * cell.area for cell in two], atol=1e-8)
    wide = PowerDiagram(GRID, order=3).cells((-100.0, 100.0, -0.01, 0.01))
    check_tiling(wide, 4.0)


@pytest.mark.parametrize("distance", [1e-6, 1e-8, 1e-10, 1e-12, 1e-14])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_sites_closer_than_float64_can_tell_are_right_or_refused(distance, order):
    sites = np.concatenate([COPIES[::4], COPIES[::4] + distance])
    try:
        found = PowerDiagram(sites, order=order).cells(WINDOW)
    except ArithmeticError:
        assert distance < 1e-10
    else:
        assert abs(sum(cell.area for cell in found) - 4.0) < 4e-9


def test_a_wrong_result_is_not_returned(monkeypatch):
    """Cells that do not fill the window are an error, whatever made them."""
    monkeypatch.setattr(cells, "hull_cells", lambda *_: None)
    assert len(PowerDiagram(GRID).cells(WINDOW)) == 49  # the walk alone
    monkeypatch.setattr(cells, "_fills", lambda *_: False)
    with pytest.raises(ArithmeticError, match="do not fill the window"):
        PowerDiagram(GRID).cells(WINDOW)


def test_max_cells_refuses_longer_lists():
    diagram = PowerDiagram(np.random.default_rng(0).uniform(-1, 1, (200, 2)), order=3)
    n = len(diagram.cells(WINDOW))
    assert len(diagram.cells(WINDOW, max_cells=n)) == n
    for allowed in (n - 1, 10):
        with pytest.raises(ValueError, match=f"more than max_cells={allowed} cells: choose a smaller window"):
            diagram.cells(WINDOW, max_cells=allowed)


@pytest.mark.parametrize("bounds", [(0, 1, 0), (1, 0, 0, 1), (0, 1, 0, np.inf), (0, 1, 2, 2), (0, np.nan, 0, 1)])
def test_windows_without_area_are_refused(bounds):
    with pytest.raises(ValueError, match="bounds="):
        PowerDiagram(GRID).cells(bounds)


def test_the_same_call_gives_the_same_bits():
    diagram = PowerDiagram(np.random.default_rng(5).uniform(-1, 1, (80, 2)), order=4)
    for one, two in zip(diagram.cells(WINDOW), diagram.cells(WINDOW), strict=True):
        np.testing.assert_array_equal(one.polygon, two.polygon)
        np.testing.assert_array_equal(one.neighbours, two.neighbours)


def test_many_sites_of_order_1_and_many_cells_of_a_high_order():
    rng = np.random.default_rng(6)
    many = PowerDiagram(rng.uniform(-1, 1, (5_000, 2)), rng.uniform(0, 1e-4, 5_000)).cells(WINDOW)
    assert len(many) + len(many.hidden) == 5_000
    assert abs(sum(cell.area for cell in many) - 4.0) < 4e-9
    high = PowerDiagram(rng.uniform(-1, 1, (150, 2)), order=32).cells(WINDOW)
    assert abs(sum(cell.area for cell in high) - 4.0) < 4e-9
    assert len(high) > 3_000


def test_contains():
    cell = PowerDiagram(GRID).cells(WINDOW)[24]
    assert cell.contains(np.array([[0.0, 0.0], [0.2, 0.0], [1 / 6, 0.0]]), 1e-12).tolist() == [True, False, True]
    assert cell.contains(np.array([[0.2, 0.0]]), 0.1).all()
    np.testing.assert_allclose(cell.centre, 0.0, atol=1e-12)
