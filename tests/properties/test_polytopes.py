"""Half-spaces, facets, boxes and the region graph against exact planar cells, linear programs one by one, and the SAE itself."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from splinterp.geometry import (
    PowerDiagram,
    bounding_box,
    chebyshev_centre,
    facets,
    half_spaces,
    region_graph,
    region_of,
    regions_of,
    slice_cells,
    visited_graph,
)
from splinterp.geometry.slices import Plane
from tests.helpers import rng
from tests.properties.geometry_cases import random_sae
from tests.properties.test_segments import sae_of


def support_of(sae, x):
    region = region_of(sae, x)
    return region.support, region.signs if type(sae.activation).__name__ == "AbsTopK" else None


def brute_facets(found):
    """Half-spaces that the others do not imply, each by a program over all the others; of equal ones none."""
    kept = []
    for i in range(len(found.offsets)):
        others = np.delete(np.arange(len(found.offsets)), i)
        result = linprog(
            -found.normals[i], np.concatenate([found.normals[others], found.normals[i : i + 1]]),
            np.append(found.offsets[others], found.offsets[i] + 1), bounds=[(None, None)] * found.normals.shape[1], method="highs",
        )  # fmt: skip
        if result.status == 0 and found.normals[i] @ result.x > found.offsets[i] + 1e-7:
            kept.append(i)
    return kept


@settings(max_examples=80, deadline=None)
@given(
    st.sampled_from(["ReLU", "JumpReLU", "TopK", "AbsTopK"]), st.integers(1, 4), st.integers(2, 8), st.integers(1, 4),
    st.integers(0, 10**6),
)  # fmt: skip
def test_facets_are_the_half_spaces_that_no_others_imply_and_lead_to_neighbours(kind, d, m, k, seed):
    sae = sae_of(kind, d, m, min(k, m), seed)
    x = 2 * torch.randn(d, generator=rng(seed + 1), dtype=torch.float64)
    support, signs = support_of(sae, x)
    if chebyshev_centre(sae, support, signs).radius < 1e-4:
        return
    every, found = half_spaces(sae, support, signs), half_spaces(sae, support, signs, irredundant=True)
    assert (every.normals @ x.numpy() <= every.offsets + 1e-9).all()
    expected = brute_facets(every)
    assert len(found.offsets) == len(expected)
    for i in expected:
        assert np.isclose(found.normals, every.normals[i]).all(axis=1).any()
    points = every.normals[0] + 3 * np.random.default_rng(seed).standard_normal((200, d))
    inside = (points @ every.normals.T <= every.offsets).all(axis=1)
    assert (inside == (points @ found.normals.T <= found.offsets).all(axis=1)).all()
    regions = regions_of(sae, points)
    clear = regions.margins > 1e-9
    own = [
        regions.support(i).tolist() == support.tolist() and (signs is None or _signs(regions, i) == signs.tolist())
        for i in range(len(points))
    ]
    assert (inside[clear] == np.array(own)[clear]).all()
    for facet in facets(sae, support, signs):
        step = 1e-6 * (1 + np.abs(facet.point).max())
        across = region_of(sae, facet.point + step * facet.normal)
        before = region_of(sae, facet.point - step * facet.normal)
        if before.margin > 0.5 * step and across.margin > 0.5 * step:  # the facet is wider than the step
            assert before.support.tolist() == support.tolist()
            assert set(across.support) == (set(support) - {facet.leaving}) | ({facet.entering} - {-1}) or kind == "AbsTopK"


def _signs(regions, i):
    return regions.signs[regions.starts[i] : regions.starts[i + 1]].tolist()


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 9), st.integers(1, 4), st.integers(0, 10**6))
def test_cells_of_the_plane_have_these_facets_and_boxes(n, order, seed):
    r = np.random.default_rng(seed)
    order = min(order, n - 1)
    diagram = PowerDiagram(r.uniform(-1, 1, (n, 2)), r.uniform(0, 0.2, n), order)
    cells = diagram.cells((-50.0, 50.0, -50.0, 50.0))
    for i in range(len(cells)):
        cell = cells[i]
        if chebyshev_centre(diagram, cell.sites).radius < 1e-3:
            continue
        vertices = cell.polygon
        bounded = (np.abs(vertices) < 49.999).all()
        box = bounding_box(diagram, cell.sites)
        if bounded:
            assert len(facets(diagram, cell.sites)) == len(vertices)
            np.testing.assert_allclose(box, np.stack([vertices.min(axis=0), vertices.max(axis=0)], axis=1), atol=1e-6)
        else:
            assert np.abs(box).max() > 49


def test_the_graph_of_a_small_saes_regions_is_complete():
    sae = sae_of("TopK", 2, 6, 2, 4)
    plane = Plane(np.zeros(2), np.eye(2))
    cells = slice_cells(sae, plane, (-200.0, 200.0, -200.0, 200.0))
    expected = {tuple(sorted(cells[i].sites.tolist())) for i in range(len(cells))}
    graph = dict(region_graph(sae, torch.zeros(1, 2, dtype=torch.float64)))
    assert set(graph) == expected
    for support, neighbours in graph.items():  # both ways
        assert all(support in graph[other] for other in neighbours)
    assert len(list(itertools.islice(region_graph(sae, torch.zeros(1, 2)), 3))) == 3
    assert len(list(region_graph(sae, torch.zeros(1, 2), most=4))) == 4


def test_what_has_no_interior_is_refused():
    sae = sae_of("TopK", 2, 6, 2, 4)
    every = {support for support, _ in region_graph(sae, torch.zeros(1, 2, dtype=torch.float64))}
    missing = next(pair for pair in itertools.combinations(range(6), 2) if pair not in every)
    for call in (facets, bounding_box, lambda *a: half_spaces(*a, irredundant=True)):
        with pytest.raises(ValueError, match=r"no interior|is empty"):
            call(sae, np.array(missing))
    with pytest.raises(TypeError, match="AbsTopK"):
        next(region_graph(sae_of("AbsTopK", 2, 6, 2, 4), torch.zeros(1, 2)))


@pytest.mark.parametrize("activation", ["TopK", "ReLU", "JumpReLU"])
@pytest.mark.parametrize("seed", range(6))
def test_visited_regions_that_touch_are_the_neighbours_in_the_plane(activation, seed):
    """In two dimensions the exact slice has every cell and edge; samples visit its middles."""
    sae = random_sae(activation, 2, 7, 2, seed)
    cells = slice_cells(sae, Plane(np.zeros(2), np.eye(2)), (-40.0, 40.0, -40.0, 40.0))
    large = [m for m, cell in enumerate(cells) if cell.area > 1e-4]
    x = np.array([cells[m].centre for m in large])
    graph = visited_graph(sae, x)
    assert [tuple(s.tolist()) for s in graph.supports] == [tuple(cells[m].sites.tolist()) for m in large]
    assert (graph.counts == 1).all()
    pairs, lengths = cells.adjacency()
    place = {m: i for i, m in enumerate(large)}
    inside = [
        tuple(sorted((place[i], place[j]))) for (i, j), length in zip(pairs.tolist(), lengths, strict=True)
        if i in place and j in place and length > 1e-6
    ]  # fmt: skip
    found = {tuple(edge) for edge in graph.edges.tolist()}
    assert set(inside) <= found
    for edge, (entering, leaving), point in zip(graph.edges.tolist(), graph.swaps.tolist(), graph.points, strict=True):
        one, other = (set(graph.supports[m].tolist()) for m in edge)
        assert other - one == {entering} - {-1}
        assert one - other == {leaving} - {-1}
        assert tuple(edge) in inside or np.abs(point).max() > 39  # they meet outside the window
        near = [
            regions_of(sae, point[None] + 1e-6 * np.array([[np.cos(t), np.sin(t)]])).support(0)
            for t in np.arange(8) * np.pi / 4
        ]
        assert {tuple(s.tolist()) for s in near} == {tuple(sorted(one)), tuple(sorted(other))}


def test_the_graph_of_an_abstopk_is_refused():
    with pytest.raises(TypeError, match="a region for each choice of signs"):
        visited_graph(random_sae("AbsTopK", 3, 5, 2, 0), np.zeros((2, 3)))


@pytest.mark.parametrize(("activation", "d"), [("TopK", 3), ("TopK", 4), ("ReLU", 3), ("JumpReLU", 3)])
def test_the_walk_finds_every_region_in_several_dimensions(activation, d):
    """Against a linear program for each set of latents that there is."""
    m, k = 6, 2
    sae = random_sae(activation, d, m, k, 7)
    sizes = range(k + 1) if activation == "TopK" else range(m + 1)
    every = {
        subset for size in sizes for subset in itertools.combinations(range(m), size)
        if chebyshev_centre(sae, np.array(subset, dtype=np.int64)).radius > 1e-6
    }  # fmt: skip
    found = {support for support, _ in region_graph(sae, np.zeros((1, d)))}
    assert len(every) > 10
    assert found == every


def tied_sae(activation, seed):
    """Two-dimensional, of small whole numbers, with repeated, opposite and proportional columns and lines that coincide."""
    r = np.random.default_rng(seed)
    m = 6
    sae = random_sae(activation, 2, m, 2, seed)
    columns = r.integers(-2, 3, size=(2, m)).astype(float)
    biases = r.integers(-1, 2, size=m).astype(float)
    copies, factors = r.integers(0, m, size=m), r.choice([1.0, -1.0, 2.0], size=m)
    with torch.no_grad():
        sae.W_enc.copy_(torch.from_numpy(columns[:, copies] * factors))
        sae.b_enc.copy_(torch.from_numpy(biases[copies] * factors))
    return sae


@pytest.mark.parametrize("activation", ["TopK", "ReLU", "JumpReLU"])
@pytest.mark.parametrize("seed", range(12))
def test_graphs_have_the_neighbours_across_planes_that_coincide(activation, seed):
    sae = tied_sae(activation, seed)
    cells = slice_cells(sae, Plane(np.zeros(2), np.eye(2)), (-40.0, 40.0, -40.0, 40.0))
    names = [tuple(cell.sites.tolist()) for cell in cells]
    pairs, lengths = cells.adjacency()
    expected = {
        tuple(sorted((names[i], names[j]))) for (i, j), length in zip(pairs.tolist(), lengths, strict=True) if length > 1e-6
    }  # fmt: skip
    graph = visited_graph(sae, np.array([cell.centre for cell in cells]))
    supports = [tuple(support.tolist()) for support in graph.supports]
    assert sorted(supports) == sorted(set(names))
    assert {tuple(sorted((supports[i], supports[j]))) for i, j in graph.edges.tolist()} == expected
    walked = dict(region_graph(sae, cells[0].centre[None]))
    assert set(walked) == set(names)
    assert {tuple(sorted((one, other))) for one, others in walked.items() for other in others} == expected
