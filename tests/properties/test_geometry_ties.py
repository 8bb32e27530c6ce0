"""Exact ties: equal scores go to the lowest index in every part of geometry. The SAE itself takes any of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from splinterp import SAE, AbsTopK, TopK
from splinterp.geometry import Plane, PowerDiagram, chebyshev_centre, is_empty, region_of, regions_of, slice_cells
from tests.properties.geometry_cases import diagrams, normal_points, seeds
from tests.properties.test_geometry_cells import BOUNDS, check_tiling, holders, window_points


@st.composite
def tied_saes(draw, activations=(TopK, AbsTopK), max_d=4, whole=True):
    """An SAE with equal and opposite columns, equal biases, silent latents; of small whole numbers if `whole`."""
    rng = np.random.default_rng(draw(seeds))
    d, m = draw(st.integers(2, max_d)), draw(st.integers(2, 9))
    columns = rng.integers(-2, 3, size=(d, m)).astype(float) if whole else rng.normal(size=(d, m))
    biases = rng.integers(-1, 2, size=m).astype(float)
    copies = rng.integers(0, m, size=m)
    signs = rng.choice([1.0, -1.0], size=m) if draw(st.booleans()) else np.ones(m)
    sae = SAE(
        d, m, draw(st.sampled_from(activations))(draw(st.integers(1, m))), init_dec="random", dtype=torch.float64, generator=0
    )
    with torch.no_grad():
        sae.W_enc.copy_(torch.from_numpy(columns[:, copies] * signs))
        sae.b_enc.copy_(torch.from_numpy(biases[copies] * signs))
    return sae


def supports_of(sae: SAE, x: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
    """(active latents, scores) by a stable sort of the scores, as exact as these are."""
    scores = x @ sae.W_enc.detach().numpy() + sae.b_enc.detach().numpy()
    size = np.abs(scores) if sae.activation.config()["name"] == "AbsTopK" else scores
    kept = np.argsort(-size, axis=1, kind="stable")[:, : sae.activation.k]
    return [np.sort(row[size[m, row] > 0]) for m, row in enumerate(kept)], scores


@given(tied_saes(), seeds)
def test_supports_are_the_lowest_of_equal_scores(sae, seed):
    x = np.random.default_rng(seed).integers(-4, 5, size=(60, sae.d_in)) / 2.0  # exact in any order of summation
    regions = regions_of(sae, x)
    codes = sae.encode(x).detach().numpy()
    for row, (support, scores) in enumerate(zip(*supports_of(sae, x), strict=True)):
        np.testing.assert_array_equal(regions.support(row), support)
        if sae.activation.config()["name"] == "TopK":
            np.testing.assert_array_equal(np.sort(scores[support]), np.sort(codes[row][codes[row] != 0]))
    np.testing.assert_array_equal(region_of(sae, x[0]).support, supports_of(sae, x[:1])[0][0])


@given(tied_saes(max_d=40, whole=False), st.integers(1, 40), seeds)
def test_of_equal_columns_the_first_is_taken(sae, n, seed):
    """Whatever the number of rows and columns, by which matrix products choose how to round."""
    W, b = sae.W_enc.detach().numpy(), sae.b_enc.detach().numpy()
    sided = sae.activation.config()["name"] == "AbsTopK"
    regions = regions_of(sae, normal_points(seed, n, sae.d_in))
    for row in range(n):
        support = regions.support(row).tolist()
        for j in support:
            for i in range(j):
                same = (W[:, i] == W[:, j]).all() and b[i] == b[j]
                opposite = sided and (W[:, i] == -W[:, j]).all() and b[i] == -b[j]
                assert i in support or not (same or opposite)


@given(diagrams(max_sites=6, kinds=("lattice", "repeated", "collinear")), seeds)
def test_linear_programs_agree_on_every_cell(diagram, seed):
    points = normal_points(seed, 300, diagram.d, 3.0)
    visited = {tuple(row) for row in diagram.assign(points).tolist()}
    for subset in diagram.subsets()[:20]:
        ball = chebyshev_centre(diagram, subset)
        assert is_empty(diagram, subset) == (ball.radius <= 1e-9)
        if ball.radius > 1e-9:
            np.testing.assert_array_equal(diagram.assign(ball.centre[None])[0], subset)
        else:
            assert tuple(subset.tolist()) not in visited


@given(tied_saes(), seeds)
def test_regions_that_samples_lie_in_are_not_empty(sae, seed):
    regions = regions_of(sae, normal_points(seed, 12, sae.d_in, 2.0))
    sided = sae.activation.config()["name"] == "AbsTopK"
    for row in range(12):
        support = regions.support(row)
        signs = regions.signs[regions.starts[row] : regions.starts[row + 1]] if sided else None
        ball = chebyshev_centre(sae, support, signs)
        assert not is_empty(sae, support, signs)
        assert ball.radius > 0
        np.testing.assert_array_equal(region_of(sae, ball.centre).support, support)


@given(tied_saes(), seeds)
def test_slices_hold_the_supports_of_the_sae(sae, seed):
    plane = Plane(np.zeros(sae.d_in), np.eye(sae.d_in)[:2])
    cells = slice_cells(sae, plane, BOUNDS)
    check_tiling(cells)
    points = window_points(seed, 100)
    supports, scores = supports_of(sae, plane.points(np.round(points * 64) / 64))  # exact, so equal columns tie
    for m, (support, found) in enumerate(zip(supports, holders(cells, np.round(points * 64) / 64), strict=True)):
        assert len(found) <= 1
        if found:
            np.testing.assert_array_equal(cells[found[0]].sites, support)
            np.testing.assert_array_equal(cells[found[0]].signs, np.sign(scores[m, support]))


def test_a_later_twin_owns_nothing():
    sites = np.array([[1.0, 0.0], [-1.0, 0.0], [1.0, 0.0], [0.0, 5.0]])
    diagram = PowerDiagram(sites)
    assert not is_empty(diagram, np.array([0]))
    assert is_empty(diagram, np.array([2]))
    assert chebyshev_centre(diagram, np.array([2])).radius == -np.inf
    pair = PowerDiagram(sites, order=2)
    assert not is_empty(pair, np.array([0, 2]))  # the twins together
    assert not is_empty(pair, np.array([0, 1]))  # here the first twin stands for both
    assert is_empty(pair, np.array([1, 2]))
    lighter = PowerDiagram(sites, np.array([0.0, 0.0, 1e-12, 0.0]))
    assert not is_empty(lighter, np.array([2]))
    assert is_empty(lighter, np.array([0]))


@pytest.mark.parametrize("scale", [1e9, 1e10, 3e10, 1e11, 3e11, 1e12, 1e13, 1e15])
@pytest.mark.parametrize("activation", [TopK, AbsTopK])
def test_slices_of_weights_far_larger_than_the_biases(activation, scale):
    """All lines nearly meet in the origin, at distances that are around the tolerance for a tie."""
    for seed in range(12):
        d, m, k = ((2, 6, 2), (3, 8, 3), (4, 10, 1), (3, 5, 5))[seed % 4]
        g = torch.Generator().manual_seed(seed)
        sae = SAE(d, m, activation(k), init_dec="random", dtype=torch.float64, generator=g)
        with torch.no_grad():
            sae.b_enc.copy_(0.5 * torch.randn(m, generator=g))
            sae.W_enc.mul_(scale)
        plane = Plane(np.zeros(d), np.eye(d)[:2])
        cells = slice_cells(sae, plane, BOUNDS)
        assert abs(sum(cell.area for cell in cells) - 27.5) < 1e-8
        large = [cell for cell in cells if cell.area > 1e-8]
        regions = regions_of(sae, plane.points(np.stack([cell.centre for cell in large])), margins=False)
        for row, cell in enumerate(large):
            np.testing.assert_array_equal(regions.support(row), cell.sites)
        assert all((np.diff(cell.sites) > 0).all() for cell in cells)
