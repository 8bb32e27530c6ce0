"""The constrained decoder solve: against a general solver, its gap as a true bound, its limits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize

from splinterp.decoder import DecoderStats, solve_decoder
from splinterp.decoder.hull import solve_in_hull, to_ball, to_simplex
from tests.helpers import rng, sparse_codes, stats_of

sizes = {
    "n": st.integers(1, 30),
    "m": st.integers(1, 6),
    "d": st.integers(1, 4),
    "p": st.integers(1, 6),
    "seed": st.integers(0, 10**6),
}
relaxations = st.sampled_from([0.0, 0.1, 2.0])
scales = st.sampled_from([0.2, 1.0, 3.0])


def problem(n, m, d, p, seed):
    """Codes with dead and repeated latents among the draws, data off 0, points repeated now and then."""
    g = rng(seed)
    z = sparse_codes(n, m, max(1, m // 2), seed, dead=m // 3 if seed % 2 else 0)
    if m > 2 and seed % 3 == 0:
        z[:, 1] = z[:, 0]
    x = 2 + torch.randn(n, d, generator=g, dtype=torch.float64)
    P = torch.randn(p, d, generator=g, dtype=torch.float64)
    if p > 1 and seed % 5 == 0:
        P[1] = P[0]
    return z, x, P


def error(z, x, W):
    """The sum of squares at the best bias."""
    residual = (x - x.mean(0)) - (z - z.mean(0)) @ W
    return float(residual.square().sum())


def share(z, x, value):
    return value / (float((x - x.mean(0)).square().sum()) or 1.0)


@given(**sizes, relaxation=relaxations, scale=scales)
def test_rows_are_in_the_set_and_the_gap_is_honest(n, m, d, p, seed, relaxation, scale):
    z, x, P = problem(n, m, d, p, seed)
    found = solve_in_hull(stats_of(z, x), P, relaxation, scale, tolerance=1e-6, max_steps=3_000)
    assert (found.mixing >= 0).all()
    torch.testing.assert_close(found.mixing.sum(1), torch.ones(m, dtype=torch.float64))
    assert (found.deviation.norm(dim=1) <= relaxation * (1 + 1e-12)).all()
    W = scale * (found.mixing @ P + found.deviation)
    torch.testing.assert_close(found.b_dec, x.mean(0) - z.mean(0) @ W)
    # no feasible rows do better by more than the gap: tried are vertices with deviations along the gradient, and random ones
    value, g = error(z, x, W), rng(seed + 1)
    pull = -2 * (z - z.mean(0)).T @ ((x - x.mean(0)) - (z - z.mean(0)) @ W)
    vertex = P[(pull @ P.T).argmin(1)] - relaxation * torch.nn.functional.normalize(pull, dim=1)
    others = [scale * vertex]
    for _ in range(5):
        mixing = to_simplex(torch.randn(m, p, generator=g, dtype=torch.float64))
        others.append(scale * (mixing @ P + to_ball(torch.randn(m, d, generator=g, dtype=torch.float64), relaxation)))
    for other in others:
        for part in (1.0, 0.3, 0.01):
            assert share(z, x, value - error(z, x, W + part * (other - W))) <= found.gap + 1e-9


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("relaxation", [0.0, 0.4])
def test_a_general_solver_finds_no_better_decoder(seed, relaxation):
    z, x, P = problem(20, 3, 2, 4, seed)
    m, d, p, scale = 3, 2, 4, 0.7
    found = solve_in_hull(stats_of(z, x), P, relaxation, scale, tolerance=1e-8, max_steps=20_000)

    def rows(flat):
        A, D = flat[: m * p].reshape(m, p), flat[m * p :].reshape(m, d)
        return scale * (A @ P.numpy() + D)

    def objective(flat):
        residual = (x - x.mean(0)).numpy() - (z - z.mean(0)).numpy() @ rows(flat)
        return float((residual**2).sum())

    constraints = [{"type": "eq", "fun": lambda v: v[: m * p].reshape(m, p).sum(1) - 1}]
    if relaxation:
        constraints.append({"type": "ineq", "fun": lambda v: relaxation**2 - (v[m * p :].reshape(m, d) ** 2).sum(1)})
    bounds = [(0, 1)] * (m * p) + [(-relaxation, relaxation)] * (m * d)
    start = np.r_[np.full(m * p, 1 / p), np.zeros(m * d)]
    best = minimize(
        objective, start, method="SLSQP", bounds=bounds, constraints=constraints, options={"maxiter": 500, "ftol": 1e-12}
    )
    value = error(z, x, scale * (found.mixing @ P + found.deviation))
    assert share(z, x, abs(value - best.fun)) < 1e-5


@given(**sizes, relaxation=relaxations)
def test_it_never_leaves_a_start_for_worse(n, m, d, p, seed, relaxation):
    z, x, P = problem(n, m, d, p, seed)
    g = rng(seed + 2)
    A = to_simplex(torch.randn(m, p, generator=g, dtype=torch.float64))
    D = to_ball(torch.randn(m, d, generator=g, dtype=torch.float64), relaxation)
    before = error(z, x, A @ P + D)
    for steps in (0, 1, 7, 60):
        found = solve_in_hull(stats_of(z, x), P, relaxation, start=(A, D), max_steps=steps)
        assert error(z, x, found.mixing @ P + found.deviation) <= before * (1 + 1e-9) + 1e-9
        assert found.steps <= steps
    silent = (z == z[:1]).all(0)
    torch.testing.assert_close(found.mixing[silent], A[silent])
    torch.testing.assert_close(found.deviation[silent], D[silent])


@given(**sizes)
def test_with_room_enough_it_is_the_free_solve(n, m, d, p, seed):
    z, x, P = problem(n, m, d, p, seed)
    stats = stats_of(z, x)
    free = solve_decoder(stats, ridge=1e-3 * n)  # one that has a minimum of moderate size
    room = 1e-9 + float((free.W_dec - P[:1]).norm(dim=1).max())
    found = solve_in_hull(stats, P, room, tolerance=1e-7, max_steps=5_000)
    assert share(z, x, error(z, x, found.mixing @ P + found.deviation) - error(z, x, free.W_dec)) <= found.gap + 1e-9


def test_one_point_without_room_is_that_point():
    z, x, P = problem(20, 4, 3, 1, 0)
    found = solve_in_hull(stats_of(z, x), P, scale=2.0)
    torch.testing.assert_close(found.mixing, torch.ones(4, 1, dtype=torch.float64))
    assert found.gap < 1e-12


@given(n=st.integers(1, 8), p=st.integers(1, 9), seed=st.integers(0, 10**6), size=st.sampled_from([1e-8, 1.0, 1e6, 1e17]))
def test_the_simplex_projection_is_the_nearest_point(n, p, seed, size):
    rows = size * torch.randn(n, p, generator=rng(seed), dtype=torch.float64)
    if seed % 3 == 0:
        rows = rows.round()  # ties
    near = to_simplex(rows)
    assert (near >= 0).all()
    torch.testing.assert_close(near.sum(1), torch.ones(n, dtype=torch.float64))
    # of a convex set: the nearest point is the one from which no vertex lies towards the row
    slack = ((rows - near)[:, None] * (torch.eye(p, dtype=torch.float64)[None] - near[:, None])).sum(2)
    assert float(slack.max()) <= 1e-9 * max(1.0, size)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"relaxation": -1.0}, "relaxation"),
        ({"scale": 0.0}, "scale=0.0"),
        ({"points": torch.zeros(0, 3)}, "no rows"),
        ({"points": torch.zeros(2, 4)}, "points"),
        ({"start": (torch.zeros(2, 5), torch.zeros(2, 3))}, "latents"),
    ],
)
def test_refusals(options, message):
    z, x, P = problem(20, 4, 3, 5, 0)
    options = {"points": P, **options}
    with pytest.raises(ValueError, match=message):
        solve_in_hull(stats_of(z, x), **options)
    with pytest.raises(ValueError, match="empty"):
        solve_in_hull(DecoderStats(4, 3), P)
