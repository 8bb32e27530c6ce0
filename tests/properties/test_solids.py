"""Cells in three dimensions, against brute force: Qhull on all subsets, points, planes cut through them."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog
from scipy.spatial import ConvexHull, HalfspaceIntersection

from splinterp.geometry import (
    Plane,
    PowerDiagram,
    Space,
    chebyshev_centre,
    half_spaces,
    is_empty,
    principal_space,
    region_of,
    slice_cells,
    slice_solids,
    space_through,
)
from splinterp.geometry._polyhedra import area_vector
from tests.properties.geometry_cases import diagrams, random_sae, saes, seeds

BOX = (-2.0, 2.0, -1.5, 1.5, -1.0, 2.0)
CORNERS = np.array(BOX).reshape(3, 2)
VOLUME = float(np.prod(np.diff(CORNERS)))


def points_in_box(seed: int, n: int = 60) -> np.ndarray:
    return np.random.default_rng(seed).uniform(CORNERS[:, 0], CORNERS[:, 1], size=(n, 3))


def check_filling(cells, blurred=False):
    """Cells fill the box; each is closed, convex and faces the cells that face it. `blurred`: their walls are known to 1e-9 only."""
    assert abs(sum(cell.volume for cell in cells) - VOLUME) <= 1e-9 * VOLUME
    for i, cell in enumerate(cells):
        n_edges = sum(map(len, cell.faces)) / 2
        assert len(cell.vertices) - n_edges + len(cell.faces) == 2 or blurred
        outward = np.array([area_vector(cell.vertices, face) for face in cell.faces])
        np.testing.assert_allclose(outward.sum(axis=0), 0, atol=1e-9)
        assert cell.contains(cell.vertices, 1e-6 if blurred else 1e-9).all()
        np.testing.assert_allclose(cell.areas, np.linalg.norm(outward, axis=1))
        for j, area in zip(cell.neighbours, cell.areas, strict=True):
            assert j == -1 or i in cells[j].neighbours or area < (1e-6 if blurred else 1e-9)
    pairs, shared = cells.adjacency()
    assert (shared >= 0).all()
    assert all(tuple(pair) == tuple(sorted(pair)) for pair in pairs.tolist())
    assert len({tuple(pair) for pair in pairs.tolist()}) == len(pairs)


def brute_volumes(diagram: PowerDiagram) -> dict[tuple[int, ...], float]:
    """The volume of every subset's cell in the box, by Qhull."""
    sides = np.concatenate([np.column_stack([-np.eye(3), CORNERS[:, 0]]), np.column_stack([np.eye(3), -CORNERS[:, 1]])])
    found = {}
    for subset in combinations(range(diagram.n_sites), diagram.order):
        chosen = np.array(subset)
        if is_empty(diagram, chosen):
            continue
        own = half_spaces(diagram, chosen)
        spaces = np.concatenate([np.column_stack([own.normals, -own.offsets]), sides])
        inner = _inner(spaces)
        if inner is None:
            continue
        found[subset] = ConvexHull(HalfspaceIntersection(spaces, inner).intersections).volume
    return found


def _inner(spaces: np.ndarray) -> np.ndarray | None:
    """The centre of the largest ball, if it is one."""
    result = linprog([0, 0, 0, -1], np.column_stack([spaces[:, :3], np.ones(len(spaces))]), -spaces[:, 3],
                     bounds=[(None, None)] * 3 + [(0, None)])  # fmt: skip
    return result.x[:3] if result.status == 0 and result.x[3] > 1e-7 else None


@given(diagrams(d=3, max_sites=6))
@settings(max_examples=30)
def test_volumes_are_those_of_qhull(diagram):
    cells = diagram.solids(BOX)
    check_filling(cells)
    expected = brute_volumes(diagram)
    found = {tuple(cell.sites.tolist()): cell.volume for cell in cells}
    for subset in set(found) | set(expected):
        assert found.get(subset, 0.0) == pytest.approx(expected.get(subset, 0.0), abs=1e-8)


@given(diagrams(d=3, max_sites=14), seeds)
@settings(max_examples=60)
def test_points_are_in_the_cells_of_their_sites(diagram, seed):
    cells = diagram.solids(BOX)
    check_filling(cells)
    sets = {tuple(cell.sites.tolist()): cell for cell in cells}
    assert [tuple(cell.sites.tolist()) for cell in cells] == sorted(sets)
    x = points_in_box(seed)
    scores = np.sort(diagram.scores(x), axis=1)[:, ::-1]
    gap = scores[:, diagram.order - 1] - scores[:, diagram.order] if diagram.order < diagram.n_sites else np.ones(len(x))
    for row, chosen in enumerate(diagram.assign(x).tolist()):
        if tuple(chosen) in sets:
            assert sets[tuple(chosen)].contains(x[row : row + 1], 1e-9)[0]
        else:  # of repeated sites another choice
            assert gap[row] < 1e-12
    np.testing.assert_array_equal(
        cells.hidden, np.setdiff1d(np.arange(diagram.n_sites), np.concatenate([c.sites for c in cells]))
    )


@given(diagrams(d=3, max_sites=10, kinds=("general",)), st.floats(-0.9, 1.9))
@settings(max_examples=20)
def test_a_plane_through_the_cells_has_the_cells_of_the_plane(diagram, height):
    """Claim 5, by the two walks: those that a plane z = height meets in an area are the cells of the restricted diagram."""
    flat = diagram.restrict(np.array([0.0, 0.0, height]), np.eye(3)[:2]).cells(BOX[:4])
    met = {
        tuple(cell.sites.tolist()) for cell in diagram.solids(BOX)
        if cell.vertices[:, 2].min() < height - 1e-9 and cell.vertices[:, 2].max() > height + 1e-9
    }  # fmt: skip
    assert {tuple(cell.sites.tolist()) for cell in flat if cell.area > 1e-9} <= met
    assert met <= {tuple(cell.sites.tolist()) for cell in flat}


@given(saes(min_d=3, max_d=6, max_latents=8), seeds)
@settings(max_examples=60)
def test_slices_have_the_regions_of_their_points(sae, seed):
    rng = np.random.default_rng(seed)
    space = Space(rng.normal(size=sae.d_in), np.linalg.qr(rng.normal(size=(sae.d_in, 3)))[0].T)
    cells = slice_solids(sae, space, BOX)
    check_filling(cells)
    for cell in cells:
        region = region_of(sae, space.points(cell.centre[None])[0])
        if cell.volume > 1e-6:
            np.testing.assert_array_equal(cell.sites, region.support)
            np.testing.assert_array_equal(cell.signs, region.signs)
    x = points_in_box(seed, 20)
    held = np.array([cell.contains(x, 1e-9) for cell in cells])
    assert held.any(axis=0).all()
    for point, holders in zip(space.points(x), held.T, strict=True):
        region = region_of(sae, point)
        if region.margin > 1e-6:
            own = [cells[m] for m in np.nonzero(holders)[0]]
            assert any(np.array_equal(cell.sites, region.support) and np.array_equal(cell.signs, region.signs) for cell in own)


@pytest.mark.parametrize("activation", ["TopK", "AbsTopK", "ReLU", "JumpReLU"])
def test_a_plane_of_a_slice_is_the_planes_slice(activation):
    sae = random_sae(activation, 6, 9, 2, 5)
    rng = np.random.default_rng(1)
    space = Space(rng.normal(size=6), np.linalg.qr(rng.normal(size=(6, 3)))[0].T)
    height = 0.3
    flat = slice_cells(sae, Plane(space.origin + height * space.basis[2], space.basis[:2]), BOX[:4])
    met = [c for c in slice_solids(sae, space, BOX) if c.vertices[:, 2].min() < height < c.vertices[:, 2].max()]
    named = [sorted((tuple(c.sites.tolist()), tuple(c.signs.tolist())) for c in cells) for cells in (flat, met)]
    assert len(named[0]) >= 3
    assert named[0] == named[1]


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_a_lattice_where_everything_ties(order):
    sites = np.stack(np.meshgrid(*[np.arange(3.0)] * 3), axis=-1).reshape(-1, 3)
    cells = PowerDiagram(sites, None, order).solids((-1, 3, -1, 3, -1, 3))
    volumes = np.array([cell.volume for cell in cells])
    assert abs(volumes.sum() - 64) < 1e-9
    if order == 1:
        assert len(cells) == 27
        np.testing.assert_allclose(np.sort(volumes)[:1], 1.0)
    images = {tuple(np.round(np.sort(cell.vertices.sum(axis=1)), 9)) for cell in cells}
    mirrored = {tuple(np.round(np.sort((2 - cell.vertices).sum(axis=1)), 9)) for cell in cells}
    assert images == mirrored  # the lattice is its own mirror image


NEARLY_REPEATED = 5


def adversarial(seed: int) -> PowerDiagram:
    """Sites that tie: on a sphere, a lattice, a line or a plane, repeated, nearly repeated, of wildly different sizes."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(2, 14))
    kind = seed % 8
    sites, weights = rng.normal(size=(n, 3)), np.zeros(n)
    if kind == 0:
        sites /= np.linalg.norm(sites, axis=1, keepdims=True)
    elif kind == 1:
        sites = rng.integers(-1, 2, size=(n, 3)).astype(float)
    elif kind == 2:
        sites = sites[:1] + rng.normal(size=(n, 1)) * sites[1:2]
    elif kind == 3:
        sites[:, 2] = 0.25
    elif kind == 4:
        sites = sites[rng.integers(0, n, size=n)]
        weights = rng.integers(0, 2, size=n) * 0.5
    elif kind == NEARLY_REPEATED:
        sites = sites[rng.integers(0, n, size=n)] + 1e-7 * rng.normal(size=(n, 3))
    elif kind == 6:
        sites *= 10.0 ** rng.uniform(-4, 2, size=(n, 1))
    else:
        cube = np.array(np.meshgrid([-1.0, 1.0], [-1.0, 1.0], [-1.0, 1.0])).reshape(3, 8).T
        sites = np.concatenate([cube, 0.5 * cube[: n % 5], np.zeros((1, 3))])
        weights = np.zeros(len(sites))
    return PowerDiagram(sites, weights, int(rng.integers(1, len(sites) + 1)))


@pytest.mark.parametrize("start", [0, pytest.param(40, marks=pytest.mark.slow)])
def test_adversarial_diagrams_fill_the_box(start):
    for seed in range(start, 40 if start == 0 else 540):
        diagram = adversarial(seed)
        cells = diagram.solids(BOX)
        check_filling(cells, blurred=seed % 8 == NEARLY_REPEATED)
        x = points_in_box(seed, 30)
        sets = {tuple(cell.sites.tolist()): cell for cell in cells}
        scores = np.sort(diagram.scores(x), axis=1)[:, ::-1]
        for row, chosen in enumerate(diagram.assign(x).tolist()):
            clear = diagram.order == diagram.n_sites or scores[row, diagram.order - 1] - scores[row, diagram.order] > 1e-9
            if clear:
                assert sets[tuple(chosen)].contains(x[row : row + 1], 1e-8)[0], seed


def test_spaces():
    x = np.random.default_rng(0).normal(size=(50, 5)) * np.arange(5, 0, -1)
    space = principal_space(x)
    np.testing.assert_allclose(space.basis @ space.basis.T, np.eye(3), atol=1e-12)
    y = space.coordinates(x)
    assert (np.diff(y.var(axis=0)) < 0).all()
    box = np.array(space.box(x)).reshape(3, 2)
    assert ((box[:, 0] < y.min(axis=0)) & (y.max(axis=0) < box[:, 1])).all()
    np.testing.assert_allclose(np.diff(box).ravel(), np.diff(box).ravel()[0])
    through = space_through(*x[:4])
    coordinates = through.coordinates(x[:4])
    np.testing.assert_allclose(through.points(coordinates), x[:4], atol=1e-9)
    np.testing.assert_allclose(coordinates[0], 0, atol=1e-12)
    np.testing.assert_allclose(coordinates[1, 1:], 0, atol=1e-9)
    assert coordinates[1, 0] > 0 < coordinates[2, 1]
    assert coordinates[3, 2] > 0


def test_what_does_not_fit_is_refused():
    flat, solid = PowerDiagram(np.eye(2)), PowerDiagram(np.eye(3))
    with pytest.raises(ValueError, match="cut a space out with restrict"):
        flat.solids(BOX)
    with pytest.raises(ValueError, match="cut one out with restrict"):
        solid.cells(BOX[:4])
    with pytest.raises(ValueError, match=r"must be \(xmin, xmax, ymin, ymax, zmin, zmax\)"):
        solid.solids(BOX[:4])
    with pytest.raises(ValueError, match="zmin < zmax"):
        solid.solids((0, 1, 0, 1, 1, 1))
    with pytest.raises(ValueError, match="the box holds more than max_cells=3"):
        PowerDiagram(np.random.default_rng(0).normal(size=(30, 3))).solids(BOX, max_cells=3)
    with pytest.raises(ValueError, match="lie in a plane"):
        space_through(np.zeros(4), np.eye(4)[0], np.eye(4)[1], np.eye(4)[0] + np.eye(4)[1])
    with pytest.raises(ValueError, match="lie in a plane"):
        space_through(*np.eye(3)[[0, 1, 2, 0]][:, :2])
    with pytest.raises(ValueError, match="three different integers"):
        principal_space(np.random.default_rng(0).normal(size=(9, 4)), (0, 1, 1))
    sae = random_sae("TopK", 4, 6, 2, 0)
    with pytest.raises(ValueError, match="space.basis has 2 rows: a space has 3"):
        slice_solids(sae, Space(np.zeros(4), np.eye(4)[:2]), BOX)
    with pytest.raises(ValueError, match="plane.basis has 3 rows: a plane has 2"):
        slice_cells(sae, Plane(np.zeros(4), np.eye(4)[:3]), BOX[:4])
    with pytest.raises(ValueError, match="a box as flat as that"):
        solid.solids((-1, 1, -1, 1, 0, 1e-12))
    for few in (np.ones((1, 4)), np.ones((0, 4))):
        with pytest.raises(ValueError, match=f"x has {len(few)} rows and no extent"):
            Space(np.zeros(4), np.eye(4)[:3]).box(few)
    with pytest.raises(ValueError, match="x has no rows"):
        principal_space(np.ones((0, 4)))
    with pytest.raises(ValueError, match="more than max_cells=2"):
        slice_solids(random_sae("ReLU", 4, 9, 1, 0), Space(np.zeros(4), np.eye(4)[:3]), BOX, max_cells=2)


def test_the_middle_of_a_cell_is_in_its_region_of_space():
    """The largest ball of a bounded cell lies in the polyhedron."""
    rng = np.random.default_rng(3)
    diagram = PowerDiagram(rng.normal(size=(20, 3)), 0.1 * rng.normal(size=20), 2)
    inside = 0
    for cell in diagram.solids(BOX):
        if (cell.neighbours >= 0).all():
            ball = chebyshev_centre(diagram, cell.sites)
            assert cell.contains(ball.centre[None])[0]
            assert ball.radius <= (cell.volume * 3 / (4 * np.pi)) ** (1 / 3)
            inside += 1
    assert inside > 0


def test_torch_sites_are_taken():
    sites = torch.randn(7, 3, generator=torch.Generator().manual_seed(0))
    assert len(PowerDiagram(sites).solids(BOX)) > 1


@pytest.mark.parametrize("seed", [148, 211, 427])
def test_slivers_among_the_faces_shut_nothing_out(seed):
    """Nearly co-spherical sites have faces of no width, whose normals would be rounding."""
    r = np.random.default_rng(seed + 10**6)
    sites = r.normal(size=(int(r.integers(2, 14)), 3))
    sites /= np.linalg.norm(sites, axis=1, keepdims=True)
    sites = sites + 1e-13 * r.normal(size=sites.shape)
    diagram = PowerDiagram(sites, np.zeros(len(sites)), int(r.integers(1, len(sites) + 1)))
    x = np.random.default_rng(0).uniform(-1, 1, (2_000, 3))
    chosen = diagram.assign(x)
    for i, cell in enumerate(diagram.solids((-1, 1, -1, 1, -1, 1))):
        own = (chosen == cell.sites).all(axis=1)
        assert cell.contains(x[own], 1e-9).all()
        assert cell.contains(cell.centre[None])[0]
        assert i not in cell.neighbours
