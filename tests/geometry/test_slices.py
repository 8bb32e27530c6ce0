"""Planes and slices: known cuts, options, wide dictionaries, refusals."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from splinterp import SAE, AbsTopK, BatchTopK, JumpReLU, ReLU, TopK
from splinterp.geometry import Plane, PowerDiagram, plane_through, principal_plane, region_of, slice_cells
from tests.helpers import rng, samples
from tests.properties.geometry_cases import random_sae
from tests.properties.test_geometry_cells import check_tiling

FLAT = Plane(np.zeros(2), np.eye(2))
WINDOW = (-1.0, 1.0, -1.0, 1.0)


def test_a_plane_holds_its_three_points():
    p = samples(3, 6, dtype=torch.float64)
    plane = plane_through(*p)
    np.testing.assert_allclose(plane.basis @ plane.basis.T, np.eye(2), atol=1e-12)
    y = plane.coordinates(p)
    np.testing.assert_allclose(plane.points(y), p, atol=1e-12)
    np.testing.assert_allclose(y[0], 0, atol=1e-12)
    assert abs(y[1, 1]) < 1e-12
    assert y[1, 0] > 0
    assert y[2, 1] > 0
    xmin, xmax, ymin, ymax = plane.window(p, margin=0.1)
    assert (y > [xmin, ymin]).all()
    assert (y < [xmax, ymax]).all()
    np.testing.assert_allclose(xmax - xmin, ymax - ymin)
    np.testing.assert_allclose(xmax - xmin, 1.2 * np.ptp(y, axis=0).max())


def test_a_principal_plane_holds_the_mean_and_the_largest_variance():
    x = samples(300, 5, dtype=torch.float64).numpy()
    plane = principal_plane(x)
    np.testing.assert_allclose(plane.origin, x.mean(axis=0))
    _, _, directions = np.linalg.svd(x - x.mean(axis=0))
    np.testing.assert_allclose(np.abs((plane.basis * directions[:2]).sum(axis=1)), 1.0, atol=1e-9)
    other = principal_plane(x, (2, 1))
    np.testing.assert_allclose(np.abs((other.basis * directions[[2, 1]]).sum(axis=1)), 1.0, atol=1e-9)


def test_planes_that_are_none_are_refused():
    p = np.eye(3)
    with pytest.raises(ValueError, match="lie on a line"):
        plane_through(p[0], 2 * p[0], 3 * p[0])
    with pytest.raises(ValueError, match="lie on a line"):
        plane_through(p[0], p[0], p[1])
    with pytest.raises(ValueError, match="vector"):
        plane_through(p, p, p)
    with pytest.raises(ValueError, match="two different integers"):
        principal_plane(samples(20, 4), (1, 1))
    with pytest.raises(ValueError, match="no variance"):
        principal_plane(np.column_stack([samples(20, 2).numpy(), np.zeros(20)]), (0, 2))
    sae = SAE(4, 6, TopK(2))
    with pytest.raises(ValueError, match="orthonormal"):
        slice_cells(sae, Plane(np.zeros(4), np.ones((2, 4))), WINDOW)
    with pytest.raises(ValueError, match="4 are expected"):
        slice_cells(sae, Plane(np.zeros(3), np.eye(3)[:2]), WINDOW)
    with pytest.raises(ValueError, match="plane has 2"):
        slice_cells(sae, Plane(np.zeros(4), np.eye(4)[:1]), WINDOW)


def test_two_relu_latents_cut_a_window_into_four():
    sae = SAE(2, 2, ReLU(), dtype=torch.float64)
    with torch.no_grad():
        sae.W_enc.copy_(torch.eye(2))
        sae.b_enc.copy_(torch.tensor([0.0, 0.5]))
    cells = slice_cells(sae, FLAT, WINDOW)
    areas = {tuple(cell.sites.tolist()): cell.area for cell in cells}
    assert areas == {(): 0.5, (0,): 0.5, (1,): 1.5, (0, 1): 1.5}
    assert all((cell.signs == 1).all() for cell in cells)


def test_scores_cut_at_zero_are_one_region():
    """Top 1 of two latents: the halves where each leads, less where both are negative, which is one region."""
    sae = SAE(2, 2, TopK(1), dtype=torch.float64)
    with torch.no_grad():
        sae.W_enc.copy_(torch.eye(2))
    cells = slice_cells(sae, FLAT, WINDOW)
    assert {tuple(cell.sites.tolist()): round(cell.area, 12) for cell in cells} == {(): 1.0, (0,): 1.5, (1,): 1.5}
    assert len(PowerDiagram.from_sae(sae).cells(WINDOW)) == 2  # selections


def test_abs_top_k_cells_carry_signs():
    sae = SAE(2, 2, AbsTopK(1), dtype=torch.float64)
    with torch.no_grad():
        sae.W_enc.copy_(torch.eye(2))
    cells = slice_cells(sae, FLAT, WINDOW)
    found = {(cell.sites[0], cell.signs[0]): round(cell.area, 12) for cell in cells}
    assert found == {(0, 1): 1.0, (0, -1): 1.0, (1, 1): 1.0, (1, -1): 1.0}


def test_thresholds_move_the_lines():
    relu, jump = SAE(2, 3, ReLU(), generator=rng(1)), SAE(2, 3, JumpReLU(0.4), generator=rng(1))
    assert not np.array_equal(slice_cells(relu, FLAT, WINDOW)[0].polygon, slice_cells(jump, FLAT, WINDOW)[0].polygon)
    batch = SAE(2, 3, BatchTopK(1), generator=rng(1))
    batch.activation.threshold.fill_(0.4)
    cells = slice_cells(batch.eval(), FLAT, WINDOW)
    assert len(cells) == len(slice_cells(jump, FLAT, WINDOW))
    for cell in cells:
        np.testing.assert_array_equal(np.nonzero(batch.encode(cell.centre[None])[0].detach().numpy())[0], cell.sites)


def test_lines_through_one_point_and_equal_lines():
    sae = SAE(2, 6, ReLU(), dtype=torch.float64, generator=rng(0))
    with torch.no_grad():
        sae.W_enc[:, 3] = 2 * sae.W_enc[:, 2]  # the same line
        sae.W_enc[:, 4] = -sae.W_enc[:, 1]  # and one turned around
        sae.W_enc[:, 5] = 0
    for bounds in (WINDOW, (-0.3, 2.0, -1.0, 0.7)):
        cells = slice_cells(sae, FLAT, bounds)
        assert len(cells) == 6  # three lines through the origin
        check_tiling(cells, (bounds[1] - bounds[0]) * (bounds[3] - bounds[2]))
        assert list(cells.hidden) == [5]


def test_a_window_without_any_line_is_one_cell():
    sae = random_sae("ReLU", 3, 5, 1, seed=0)
    with torch.no_grad():
        sae.b_enc.copy_(torch.tensor([50.0, -50, 50, -50, 50]))
    cells = slice_cells(sae, Plane(np.zeros(3), np.eye(3)[:2]), WINDOW)
    assert [cell.sites.tolist() for cell in cells] == [[0, 2, 4]]
    assert cells[0].area == 4.0


def test_too_many_relu_cells_are_refused_with_the_count_and_a_window_that_fits():
    sae = random_sae("ReLU", 10, 200, 1, seed=1)
    plane = Plane(np.zeros(10), np.eye(10)[:2])
    bounds = (-4.0, 4.0, -4.0, 4.0)
    n = len(slice_cells(sae, plane, bounds))
    assert n > 5_000
    with pytest.raises(ValueError, match=rf"holds {n} cells \(1 \+ lines \+ crossings\), more than max_cells=1000") as error:
        slice_cells(sae, plane, bounds, max_cells=1_000)
    smaller = [float(v) for v in re.search(r"bounds=\(([^)]*)\)", str(error.value)).group(1).split(",")]
    assert 250 < len(slice_cells(sae, plane, smaller, max_cells=1_000)) <= 1_000
    with pytest.raises(ValueError, match="max_cells=50 cells: choose a smaller window"):
        slice_cells(random_sae("TopK", 10, 200, 5, seed=1), plane, bounds, max_cells=50)
    with pytest.raises(ValueError, match="max_cells=0"):
        slice_cells(sae, plane, bounds, max_cells=0)


def test_unseen_latents_are_hidden():
    sae = random_sae("TopK", 4, 30, 2, seed=3, dead=10)
    cells = slice_cells(sae, Plane(np.zeros(4), np.eye(4)[:2]), WINDOW)
    assert set(range(20, 30)) <= set(cells.hidden.tolist())
    assert len(cells.hidden) + len(np.unique(np.concatenate([cell.sites for cell in cells]))) == 30


@pytest.mark.parametrize("activation", [TopK(32), AbsTopK(32), ReLU()], ids=str)
def test_wide_dictionaries(activation):
    """16,384 latents, a window of about a thousand cells or more, in seconds: sites that cannot enter are dropped."""
    sae = SAE(64, 16_384, activation, generator=rng(0))
    x = samples(3, 64, seed=4)
    if isinstance(activation, ReLU):
        with torch.no_grad():
            sae.b_enc.fill_(-2.0)
    plane = plane_through(*x)
    bounds = (-0.1, 0.1, -0.1, 0.1) if isinstance(activation, ReLU) else plane.window(x, -0.2)
    cells = slice_cells(sae, plane, bounds)
    assert len(cells) > 500
    area = (bounds[1] - bounds[0]) * (bounds[3] - bounds[2])
    assert abs(sum(cell.area for cell in cells) - area) < 1e-9 * area
    for cell in cells[:: len(cells) // 20]:
        if cell.area > 1e-7 * area:
            np.testing.assert_array_equal(region_of(sae, plane.points(cell.centre[None])).support, cell.sites)


def test_windows_far_from_the_origin():
    sae = random_sae("ReLU", 10, 200, 1, seed=1)
    far = Plane(np.eye(10)[0] * -5e6, np.eye(10)[:2])  # the same plane as with its origin at 0
    bounds = (5e6 - 4.0, 5e6 + 4.0, -4.0, 4.0)
    n = len(slice_cells(sae, Plane(np.zeros(10), np.eye(10)[:2]), (-4.0, 4.0, -4.0, 4.0)))
    assert len(slice_cells(sae, far, bounds)) == n
    with pytest.raises(ValueError, match=f"holds {n} cells") as error:
        slice_cells(sae, far, bounds, max_cells=1_000)
    smaller = [float(v) for v in re.search(r"bounds=\(([^)]*)\)", str(error.value)).group(1).split(",")]
    assert 250 < len(slice_cells(sae, far, smaller, max_cells=1_000)) <= 1_000
    with pytest.raises(ValueError, match=r"size 1 as far as 1e\+14 from the origin .* move the diagram"):
        slice_cells(sae, far, (1e14, 1e14 + 1, 1e14, 1e14 + 1))
