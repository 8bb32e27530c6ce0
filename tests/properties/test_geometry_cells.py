"""Cells and slices: they tile the window, hold what `assign` says, know their neighbours, and none is missing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from splinterp.geometry import Cells, Plane, PowerDiagram, count_cells, is_empty, principal_plane, regions_of, slice_cells
from tests.properties.geometry_cases import diagrams, random_sae, saes, seeds

BOUNDS = (-2.5, 3.0, -3.0, 2.0)
AREA = 27.5


def window_points(seed: int, n: int = 200, bounds=BOUNDS) -> np.ndarray:
    return np.random.default_rng(seed).uniform(bounds[::2], bounds[1::2], size=(n, 2))


def check_tiling(cells: Cells, area: float = AREA) -> None:
    """Areas sum to the window's, polygons are convex and counter-clockwise, neighbours share the edge they name."""
    assert abs(sum(cell.area for cell in cells) - area) <= 1e-9 * area
    sides = np.array(cells.bounds)
    shared: list[list[np.ndarray]] = [[] for _ in cells]  # what other cells say are its corners
    for number, cell in enumerate(cells):
        assert cell.area > 0
        assert cell.contains(cell.polygon, 1e-9).all(), "not convex or not counter-clockwise"
        edges = np.stack([cell.polygon, np.roll(cell.polygon, -1, axis=0)], axis=1)
        for other, edge in zip(cell.neighbours.tolist(), edges, strict=True):
            if other >= 0:
                assert number in cells[other].neighbours
                shared[other].append(edge)
        away = np.abs(edges[cell.neighbours < 0][:, :, [0, 0, 1, 1]] - sides).max(axis=1)  # both ends of an edge, each side
        assert (away < 1e-8).any(axis=1).all(), "an edge inside the window has no neighbour"
    for cell, corners in zip(cells, shared, strict=True):
        assert not corners or cell.contains(np.concatenate(corners), 1e-8).all()


def holders(cells: Cells, points: np.ndarray) -> list[list[int]]:
    """For each point, the cells that hold it well inside."""
    inside = np.stack([cell.contains(points, -1e-9) for cell in cells])
    return [np.nonzero(column)[0].tolist() for column in inside.T]


@given(diagrams(d=2, max_sites=14), seeds)
def test_cells_tile_the_window_and_hold_what_assign_says(diagram, seed):
    cells = diagram.cells(BOUNDS)
    check_tiling(cells)
    assert len({tuple(cell.sites) for cell in cells}) == len(cells)
    points = window_points(seed)
    for chosen, found in zip(diagram.assign(points), holders(cells, points), strict=True):
        assert len(found) <= 1, "cells overlap"
        if found:
            np.testing.assert_array_equal(cells[found[0]].sites, chosen)
    for cell in cells:
        if cell.area > 1e-9:
            np.testing.assert_array_equal(diagram.assign(cell.centre[None])[0], cell.sites)
    visible = np.unique(np.concatenate([cell.sites for cell in cells]))
    np.testing.assert_array_equal(np.union1d(visible, cells.hidden), np.arange(diagram.n_sites))
    assert len(np.intersect1d(visible, cells.hidden)) == 0


@given(diagrams(d=2, max_sites=9, kinds=("general",)))
def test_no_cell_is_missing(diagram):
    """A window that holds every vertex has all the cells that subsets own, as many as the formula counts."""
    size = 1e5
    cells = {tuple(cell.sites.tolist()) for cell in diagram.cells((-size, size, -size, size))}
    owners = {tuple(s) for s in diagram.subsets().tolist() if not is_empty(diagram, np.array(s))}
    assume(len(owners) == count_cells(diagram))  # a cell smaller than the linear program's tolerance
    assert cells == owners


@given(diagrams(d=2, max_sites=10, kinds=("general", "lattice", "repeated")), seeds)
def test_the_walk_and_the_hull_agree_on_order_1(diagram, seed):
    first = PowerDiagram.from_scores(diagram.sites, diagram.biases, 1)
    by_hull = first.cells(BOUNDS)
    # A site far below never shows, but with order 2 and one site above all others the walk finds the order-1 cells.
    top = PowerDiagram.from_scores(
        np.concatenate([np.zeros((1, 2)), first.sites]), np.concatenate([[1e3], first.biases]), order=2
    )
    by_walk = top.cells(BOUNDS)
    assert [tuple(c.sites) for c in by_hull] == [tuple(c.sites[1:] - 1) for c in by_walk]
    np.testing.assert_allclose([c.area for c in by_hull], [c.area for c in by_walk], atol=1e-9)


@given(diagrams(d=2, max_sites=9, kinds=("general",)))
def test_flattened_cells_are_the_same(diagram):
    cells, flat = diagram.cells(BOUNDS), diagram.flatten().cells(BOUNDS)
    subsets = diagram.subsets()
    of_flat = {tuple(subsets[c.sites[0]].tolist()): c.area for c in flat if c.area > 1e-9}
    of_walk = {tuple(c.sites.tolist()): c.area for c in cells if c.area > 1e-9}
    assert of_flat.keys() == of_walk.keys()
    for key, area in of_walk.items():
        assert abs(area - of_flat[key]) < 1e-8


@pytest.mark.parametrize("activation", ["TopK", "AbsTopK", "ReLU", "JumpReLU"])
@given(data=st.data())
def test_slices_tile_and_hold_the_regions_of_the_sae(activation, data):
    sae = data.draw(saes(activations=(activation,), min_d=2, max_latents=14))
    rng = np.random.default_rng(data.draw(seeds))
    basis = np.linalg.qr(rng.normal(size=(sae.d_in, 2)))[0].T
    through_origin = data.draw(st.booleans())  # without biases all lines would meet there
    plane = Plane(np.zeros(sae.d_in) if through_origin else rng.normal(size=sae.d_in), basis)
    if through_origin:
        with torch.no_grad():
            sae.b_enc.zero_()
    cells = slice_cells(sae, plane, BOUNDS)
    check_tiling(cells)
    points = window_points(data.draw(seeds), 100)
    acts = sae.encode(plane.points(points)).detach().numpy()
    for code, found in zip(acts, holders(cells, points), strict=True):
        assert len(found) <= 1
        if found:
            np.testing.assert_array_equal(cells[found[0]].sites, np.nonzero(code)[0])
            np.testing.assert_array_equal(cells[found[0]].signs, np.sign(code[code != 0]))
    large = [cell for cell in cells if cell.area > 1e-8]
    regions = regions_of(sae, plane.points(np.stack([cell.centre for cell in large])), margins=False)
    for row, cell in enumerate(large):
        np.testing.assert_array_equal(regions.support(row), cell.sites)
    if activation != "AbsTopK":
        assert len({tuple(cell.sites) for cell in cells}) == len(cells), "a support owns one convex cell"


@given(st.integers(2, 12), seeds)
def test_relu_slices_have_one_face_for_each_line_and_crossing(m, seed):
    sae = random_sae("ReLU", 2, m, 1, seed)
    size = 1e6
    plane = principal_plane(np.random.default_rng(seed).normal(size=(20, 2)))
    assert len(slice_cells(sae, plane, (-size, size, -size, size))) == 1 + m + m * (m - 1) // 2
