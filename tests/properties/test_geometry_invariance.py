"""Geometry does not depend on where the origin is or in what unit x is given, over twelve decades of both."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from splinterp.geometry import Plane, PowerDiagram, chebyshev_centre, count_cells, is_empty, region_of, regions_of, slice_cells
from tests.properties.geometry_cases import diagrams, normal_points, random_sae, saes, seeds
from tests.properties.test_geometry_cells import BOUNDS, holders, window_points

units = st.integers(-12, 12).map(lambda exponent: 10.0**exponent)
far = st.integers(0, 9).map(lambda exponent: 10.0**exponent)
"""Distances from the origin, in units in which sites are about 1 apart."""


def direction(seed: int, d: int) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0.5, 1.0, size=d)


def exact_powers(sites: np.ndarray, weights: np.ndarray, x: np.ndarray) -> list[list[Fraction]]:
    """|x - site|^2 - weight of the float64 input, without rounding."""
    made = [[Fraction(v) for v in row] for row in sites.tolist()]
    extra = [Fraction(w) for w in weights.tolist()]
    rows = [[Fraction(v) for v in row] for row in x.tolist()]
    return [
        [sum((a - b) ** 2 for a, b in zip(row, site, strict=True)) - w for site, w in zip(made, extra, strict=True)]
        for row in rows
    ]


@given(diagrams(max_sites=7), seeds, st.integers(0, 12), units)
def test_owners_are_those_of_exact_arithmetic_on_the_same_input(diagram, seed, decade, unit):
    shift = unit * 10.0**decade * direction(seed, diagram.d)
    sites, weights = unit * diagram.sites + shift, unit**2 * diagram.weights
    x = unit * normal_points(seed, 12, diagram.d, 2.0) + shift
    made = PowerDiagram(sites, weights, diagram.order)
    k, least = diagram.order, 1e-12 * unit**2
    computed = made.power(x)
    for powers, chosen, close in zip(exact_powers(sites, weights, x), made.assign(x).tolist(), computed, strict=True):
        # Also the exact powers of points far out are of the order of unit^2, so this is an error of some roundings.
        np.testing.assert_allclose(close, [float(p) for p in powers], rtol=1e-12, atol=100 * least)
        outside = [p for i, p in enumerate(powers) if i not in chosen]
        if k < len(powers):
            assert max(powers[i] for i in chosen) <= min(outside) + Fraction(100 * least)


@given(diagrams(max_sites=7), seeds, far, units)
def test_moved_and_stretched_diagrams_choose_as_before(diagram, seed, distance, unit):
    x = np.random.default_rng(seed).integers(-8, 9, size=(40, diagram.d)) / 2.0  # also exact ties
    shift = np.round(distance * direction(seed, diagram.d))  # whole numbers, so that moving the points rounds nothing
    before = diagram.assign(x)
    if (diagram.sites == np.round(diagram.sites)).all():
        np.testing.assert_array_equal(diagram.translate(shift).assign(x + shift), before)
        np.testing.assert_array_equal(
            PowerDiagram(diagram.sites + shift, diagram.weights, diagram.order).assign(x + shift), before
        )
        np.testing.assert_array_equal(diagram.regauge(1.0, shift, distance).assign(x), before)
        heavy = PowerDiagram(diagram.sites, diagram.weights + np.round(distance), diagram.order)
        np.testing.assert_array_equal(heavy.assign(x), before)
        tilted = PowerDiagram.from_scores(diagram.sites + shift, diagram.biases + np.round(distance), diagram.order)
        np.testing.assert_array_equal(tilted.assign(x), before)
    binary = 2.0 ** np.round(np.log2(unit))
    np.testing.assert_array_equal(diagram.scale(binary).assign(binary * x), before)
    there = diagram.scale(unit).translate(unit * shift).translate(-unit * shift).scale(1 / unit)
    sure = normal_points(seed, 40, diagram.d)
    gaps = np.sort(diagram.power(sure), axis=1)
    clear = np.ones(40, dtype=bool) if diagram.order == diagram.n_sites else (
        gaps[:, diagram.order] - gaps[:, diagram.order - 1] > 1e-5
    )  # fmt: skip
    np.testing.assert_array_equal(there.assign(sure)[clear], diagram.assign(sure)[clear])


@given(diagrams(d=2, max_sites=9, kinds=("general", "lattice")), seeds, far, units)
def test_cells_move_and_stretch_with_the_diagram(diagram, seed, distance, unit):
    shift = unit * np.round(distance * direction(seed, 2))
    cells = diagram.cells(BOUNDS)
    bounds = (unit * np.array(BOUNDS) + np.repeat(shift, 2)).tolist()
    moved = diagram.scale(unit).translate(shift).cells(bounds)
    if len(np.unique(diagram.biases)) == diagram.n_sites:
        assert count_cells(diagram.scale(unit).translate(shift)) == count_cells(diagram)
    rounding = 1e-15 * distance
    area = {tuple(cell.sites.tolist()): cell.area for cell in cells}
    there = {tuple(cell.sites.tolist()): cell.area / unit**2 for cell in moved}
    for key in area.keys() | there.keys():
        assert abs(area.get(key, 0.0) - there.get(key, 0.0)) <= 1e-9 + 1e3 * rounding
    assert moved.bounds == tuple(bounds)
    points = window_points(seed, 50)
    for chosen, found in zip(
        diagram.assign(points), holders_in(moved, unit * points + shift, unit, 1e3 * rounding), strict=True
    ):
        assert len(found) <= 1
        if found:
            np.testing.assert_array_equal(moved[found[0]].sites, chosen)


def holders_in(cells, points, unit, tolerance):
    """`holders` in other units, with a wider border."""
    inside = np.stack([cell.contains(points, -unit * (1e-9 + tolerance)) for cell in cells])
    return [np.nonzero(column)[0].tolist() for column in inside.T]


@given(diagrams(max_sites=6, kinds=("general", "lattice")), seeds, far, units)
def test_linear_programs_know_no_unit_and_no_origin(diagram, seed, distance, unit):
    shift = unit * distance * direction(seed, diagram.d)
    moved = diagram.scale(unit).translate(shift)
    visited = {tuple(row) for row in diagram.assign(normal_points(seed, 100, diagram.d, 2.0)).tolist()}
    for subset in diagram.subsets()[:8]:
        ball, there = chebyshev_centre(diagram, subset), chebyshev_centre(moved, subset)
        if np.isfinite(ball.radius):
            assert there.radius == pytest.approx(unit * ball.radius, rel=1e-5, abs=1e-6 * unit)
        elif ball.radius < 0:
            assert there.radius == ball.radius
        if ball.radius < 0 or ball.radius > 1e-6:
            assert is_empty(diagram, subset) == is_empty(moved, subset) == (ball.radius < 0)
        if ball.radius > 1e-6 * max(1.0, 1e-9 * distance / 1e-6):
            np.testing.assert_array_equal(moved.assign(there.centre[None])[0], subset)
        if tuple(subset.tolist()) in visited and ball.radius > 1e-6:
            assert not is_empty(moved, subset)


@given(saes(max_latents=8), seeds, st.integers(0, 8), st.integers(-12, 12))
def test_regions_do_not_depend_on_the_centre_or_the_unit(sae, seed, decade, exponent):
    unit = 10.0**exponent
    if sae.b_pre is None:
        sae = random_sae(
            "TopK", sae.d_in, sae.n_latents, sae.activation.k if hasattr(sae.activation, "k") else 1, seed, b_pre=True
        )
    shift = np.round(10.0**decade * direction(seed, sae.d_in))
    x = normal_points(seed, 20, sae.d_in)
    before = regions_of(sae, x)
    with torch.no_grad():  # x -> unit (x + shift)
        sae.b_pre.copy_(unit * (sae.b_pre + torch.from_numpy(shift)))
        sae.W_enc /= unit
    after = regions_of(sae, unit * (x + shift))
    clear = before.margins > 1e-6 * max(1.0, 10.0**decade * 1e-8)
    for row in np.nonzero(clear)[0].tolist():
        np.testing.assert_array_equal(after.support(row), before.support(row))
        assert after.margins[row] == pytest.approx(unit * before.margins[row], rel=1e-5, abs=1e-6 * unit)
    for row in np.nonzero(clear)[0][:3].tolist():
        region = region_of(sae, unit * (x[row] + shift))
        signs = region.signs if sae.activation.config()["name"] == "AbsTopK" else None
        assert not is_empty(sae, region.support, signs)
        radius = chebyshev_centre(sae, region.support, signs).radius
        assert radius >= unit * (before.margins[row] - 1e-6)


@pytest.mark.parametrize("activation", ["TopK", "AbsTopK", "ReLU", "JumpReLU"])
@given(seed=seeds, decade=st.integers(0, 8), exponent=st.integers(-12, 12))
def test_slices_do_not_depend_on_the_centre_or_the_unit(activation, seed, decade, exponent):
    unit = 10.0**exponent
    sae = random_sae(activation, 3, 7, 3, seed, b_pre=True)
    shift = np.round(10.0**decade * direction(seed, 3))
    basis = np.linalg.qr(normal_points(seed, 3, 3))[0][:2]
    before = slice_cells(sae, Plane(np.zeros(3), basis), BOUNDS)
    with torch.no_grad():
        sae.b_pre.copy_(unit * (sae.b_pre + torch.from_numpy(shift)))
        sae.W_enc /= unit
    after = slice_cells(sae, Plane(unit * shift, basis), [unit * b for b in BOUNDS])
    assume(len(holders(before, window_points(seed, 5))) == 5)

    def areas(cells, unit):
        return {(*cell.sites.tolist(), *cell.signs.tolist()): cell.area / unit**2 for cell in cells}

    one, two = areas(before, 1.0), areas(after, unit)
    for key in one.keys() | two.keys():
        assert abs(one.get(key, 0.0) - two.get(key, 0.0)) <= 1e-8 + 1e-13 * 10.0**decade
