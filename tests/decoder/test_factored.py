"""The ridge by Cholesky factors: its choice beside the full search's, what it leaves to that, what it needs of the statistics."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from splinterp.activations import TopActs
from splinterp.decoder import (
    DecoderStats,
    gcv_ridge,
    held_out_ridge,
    optimality_residual,
    solve_by_gcv,
    solve_by_held_out,
    solve_decoder,
)
from splinterp.decoder._search import LOWEST, Point, search
from splinterp.decoder._spectral import gcv_spectrum
from tests.helpers import linear_problem, rng, sparse_codes, stats_of
from tests.properties.test_gcv import explicit_score


def large(n, m=300, d=140, seed=0, dtype=torch.float64):
    """More latents than are traced exactly, more columns than are used whole: probes and combinations act."""
    z, x, Q = linear_problem(n, m, d, seed, noise=2.0)
    return stats_of(z, x, dtype), z, x, Q


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("n", [360, 700, 6_000])
def test_with_probes_the_choice_scores_as_the_full_searchs(n, dtype):
    stats, z, x, Q = large(n, dtype=dtype)
    for prior in (None, Q):
        full = gcv_ridge(stats_of(z, x), prior, search="full")
        Qn = np.zeros(tuple(Q.shape)) if prior is None else Q.numpy()
        for start in (None, 0.2 * full.ridge, 1.3 * full.ridge, 20 * full.ridge, math.inf):
            found = gcv_ridge(stats, prior, around=start)
            assert stats._spectrum is None  # by factors
            assert len(found.path) <= 7
            score, df = explicit_score(z.numpy(), x.numpy(), found.ridge, Qn)
            assert score <= full.score * 1.001
            assert found.score == pytest.approx(score, rel=0.03)
            assert found.df == pytest.approx(df, rel=0.03)


def test_what_is_left_to_the_full_search():
    small, _, _, _ = large(700, m=100)
    assert gcv_ridge(small).path == gcv_ridge(small, search="full").path  # few latents
    stats, _, x, Q = large(250)
    assert len(gcv_ridge(stats, Q, search="factors").path) > 100  # no more samples than latents
    stats, _, x, Q = large(700)
    prox = gcv_ridge(stats, Q, prox=3.0, previous=Q)
    assert prox == gcv_ridge(stats, Q, prox=3.0, previous=Q, search="full")
    stats, _, x, Q = large(700)
    stats.spectrum()
    assert gcv_ridge(stats, Q) == gcv_ridge(stats, Q, search="full")  # it is known
    z = sparse_codes(700, 300, 6)
    exact = stats_of(z, z @ Q)  # nothing is left of the squares
    assert len(gcv_ridge(exact).path) > 100
    with pytest.raises(ValueError, match="prox=1.0 takes the full search"):
        gcv_ridge(stats, prox=1.0, previous=Q, search="factors")
    with pytest.raises(ValueError, match="search='newton' is unknown"):
        gcv_ridge(stats, search="newton")
    with pytest.raises(ValueError, match="around=-1"):
        gcv_ridge(stats, around=-1.0)
    silent = stats_of(torch.zeros(400, 300, dtype=torch.float64), x[:400])
    assert math.isinf(gcv_ridge(silent, search="factors").ridge)


def test_without_a_prior_the_largest_finite_ridge_is_looked_at_where_infinity_is_chosen():
    z = sparse_codes(3_000, 200, 6)
    stats = stats_of(z, torch.randn(3_000, 40, generator=rng(1), dtype=torch.float64))  # nothing to explain
    found, full = (
        gcv_ridge(stats),
        gcv_ridge(stats_of(z, torch.randn(3_000, 40, generator=rng(1), dtype=torch.float64)), search="full"),
    )
    assert math.isinf(found.ridge)
    assert math.isinf(full.ridge)
    assert found.path[-2][0] == pytest.approx(full.path[-2][0], rel=1e-6)


def test_a_tie_up_to_the_rounding_of_float32_products_is_the_priors():
    z, _, Q = linear_problem(2_000, 300, 20, 0)
    for products in (None, torch.float32):
        stats = DecoderStats(300, 20, products=products).update(z, z @ Q + 1)
        solution, found = solve_by_gcv(stats, Q)
        assert math.isinf(found.ridge)
        assert torch.equal(solution.W_dec, Q)


@pytest.mark.parametrize("case", ["forgotten", "weighted", "several codes", "inflated"])
def test_statistics_of_every_kind_are_searched_by_factors(case):
    z, x, Q = linear_problem(900, 300, 140, 0, noise=2.0)
    weights = torch.rand(900, generator=rng(4), dtype=torch.float64) if case == "weighted" else None

    def build():
        stats = DecoderStats(300, 140).update(z, x, weights)
        if case == "several codes":
            stats.update(0.5 * z, x, 0.7, again=True)
        return stats.forget(0.9) if case == "forgotten" else stats

    inflation = 1.4 if case == "inflated" else 1.0
    full = gcv_ridge(build(), Q, search="full", inflation=inflation)
    stats = build()
    found = gcv_ridge(stats, Q, inflation=inflation)
    assert stats._spectrum is None
    assert found.score == pytest.approx(full.score, rel=0.03)
    curve = gcv_spectrum(build(), Q, 0.0, None, inflation)
    at_choice = curve.score_at_infinity() if math.isinf(found.ridge) else curve.score(np.array([found.ridge]))[0]
    assert at_choice <= 1.001 * full.score


def test_the_prior_wins_where_it_is_best():
    z, _, Q = linear_problem(900, 300, 20, 0)
    x = z @ Q + 3 + torch.randn(900, 20, generator=rng(5), dtype=torch.float64)
    stats = stats_of(z, x)
    for start in (None, 1e-2, math.inf):
        found = gcv_ridge(stats, Q, around=start)
        full = gcv_ridge(stats_of(z, x), Q, search="full")
        assert math.isinf(found.ridge) == math.isinf(full.ridge) or found.score <= full.score * 1.001
    solution, found = solve_by_gcv(stats, Q, around=math.inf)
    assert math.isinf(found.ridge)
    assert torch.equal(solution.W_dec, Q)


@pytest.mark.parametrize("n", [250, 700, 6_000])
@pytest.mark.parametrize("with_prior", [False, True])
def test_solving_in_one_is_the_search_and_the_solve(n, with_prior):
    stats, z, x, Q = large(n)
    prior = Q if with_prior else None
    solution, found = solve_by_gcv(stats, prior)
    again, _ = solve_by_gcv(stats_of(z, x), prior)
    assert torch.equal(solution.W_dec, again.W_dec)  # probes are the same in every call
    assert found == gcv_ridge(stats_of(z, x), prior)
    expected = solve_decoder(stats_of(z, x), ridge=found.ridge, prior=prior)
    torch.testing.assert_close(solution, expected)
    assert optimality_residual(stats, solution, ridge=found.ridge, prior=prior) < 1e-10


def held_out_problem(n, m=300, d=140):
    stats, _, _, Q = large(n, m, d)
    z_out, _, _ = linear_problem(400, m, d, 9)
    g = rng(0)
    truth = torch.randn(m, d, generator=g, dtype=torch.float64)
    return stats, stats_of(z_out, 3 + z_out @ truth + 2 * torch.randn(400, d, generator=g, dtype=torch.float64)), z_out, Q


@pytest.mark.parametrize("n", [360, 700, 3_000])
def test_held_out_choice_by_factors(n):
    stats, held_out, _, Q = held_out_problem(n)
    full = held_out_ridge(stats, held_out, Q, search="full")
    stats._spectrum = None
    for start in (None, 0.3 * full.ridge, 10 * full.ridge):
        found = held_out_ridge(stats, held_out, Q, around=start)
        assert stats._spectrum is None
        assert found.score <= found.path[-1][1]  # never worse than the prior
        assert found.score <= full.score * 1.002
        solution, again = solve_by_held_out(stats, held_out, Q, around=start)
        assert again == found
        torch.testing.assert_close(solution, solve_decoder(stats, ridge=found.ridge, prior=Q))


def test_a_factor_is_kept_until_something_changes():
    stats, z, x, _ = large(700)
    first = stats.factor(2.0)
    assert stats.factor(2.0) is first
    A = stats.gram + 2 * torch.eye(300, dtype=torch.float64)
    right = torch.randn(300, 3, generator=rng(1), dtype=torch.float64)
    torch.testing.assert_close(first.solve(right), torch.linalg.solve(A, right))
    assert stats.factor(3.0).strength == 3.0
    W = solve_decoder(stats, ridge=3.0).W_dec  # goes by the factor
    torch.testing.assert_close(W, solve_decoder(stats_of(z, x), ridge=3.0).W_dec)
    for change in (lambda: stats.update(z[:5], x[:5]), lambda: stats.forget(0.5), lambda: stats.merge(stats_of(z[:9], x[:9]))):
        stats.factor(3.0)
        change()
        assert stats._factor is None
    stats.clear()
    assert stats.factor(0.0) is None  # nothing to factor


@pytest.mark.parametrize("threads", [1, 2])
def test_factors_on_one_thread_and_on_two(threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        stats, _, _, _ = large(700)
        W = solve_decoder(stats, ridge=5.0).W_dec
        A = stats.gram + 5 * torch.eye(300, dtype=torch.float64)
        torch.testing.assert_close(W, torch.linalg.solve(A, stats.cross))
        torch.testing.assert_close(stats.factor(5.0).solve(stats.cross), W)
    finally:
        torch.set_num_threads(before)


def test_products_in_float32_give_nearly_the_sums_of_float64():
    g = rng(2)
    values, indices = torch.rand(900, 4, generator=g), torch.stack([torch.randperm(300, generator=g)[:4] for _ in range(900)])
    x = torch.randn(900, 20, generator=g) + 3
    top, weights = TopActs(values, indices), torch.rand(900, generator=g)
    dense = torch.zeros(900, 300).scatter_(1, indices, values)
    for code in (top, dense):
        for w in (None, weights):
            exact = DecoderStats(300, 20).update(code, x, w)
            mixed = DecoderStats(300, 20, products=torch.float32).update(code, x, w)
            assert mixed.gram.dtype == mixed.cross.dtype == mixed.total.dtype == mixed.mean_x.dtype == torch.float64
            for name in ("gram", "cross", "total", "mean_acts", "mean_x"):
                a, b = getattr(exact, name), getattr(mixed, name)
                assert 0 < float((a - b).abs().max()) < 1e-5 * float(a.abs().max())


def test_a_latent_that_hardly_varies_is_summed_in_float64():
    """In float32 its centred sum of squares would be rounding."""
    g = rng(3)
    values = torch.cat([100 + torch.rand(500, 1, generator=g), torch.rand(500, 1, generator=g)], dim=1)
    indices = torch.stack([torch.zeros(500, dtype=torch.int64), torch.randint(1, 64, (500,), generator=g)], dim=1)
    x = torch.randn(500, 3, generator=g)
    exact, mixed = (DecoderStats(64, 3, products=p).update(TopActs(values, indices), x) for p in (None, torch.float32))
    assert mixed.gram[0, 0] == pytest.approx(float(exact.gram[0, 0]), rel=1e-6)


def test_optimality_by_a_few_columns():
    stats, _, _, Q = large(700)
    exact = solve_decoder(stats, ridge=4.0, prior=Q)
    off = exact._replace(W_dec=exact.W_dec + 1e-3 * torch.randn(exact.W_dec.shape, generator=rng(1), dtype=torch.float64))
    whole = optimality_residual(stats, off, ridge=4.0, prior=Q)
    assert optimality_residual(stats, off, ridge=4.0, prior=Q, columns=8) == pytest.approx(whole, rel=0.5)
    assert optimality_residual(stats, off, ridge=4.0, prior=Q, columns=140) == whole
    assert optimality_residual(stats, exact, ridge=4.0, prior=Q, columns=8) < 1e-10


@pytest.mark.gpu
def test_on_a_gpu_the_choice_is_that_on_the_cpu():
    stats, z, x, Q = large(700)
    there = DecoderStats(300, 140, device="cuda", products=torch.float32).update(z.to("cuda"), x.to("cuda"))
    (ours, chosen), (theirs, expected) = solve_by_gcv(there, Q.to("cuda")), solve_by_gcv(stats, Q)
    assert ours.W_dec.device.type == "cuda"
    assert chosen.ridge == pytest.approx(expected.ridge, rel=1e-2)
    torch.testing.assert_close(ours.W_dec.cpu(), theirs.W_dec, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize(("at", "expected"), [(1.0, 1.0), (-3.0, 0.0), (40.0, math.log(1e10))])
def test_a_search_without_a_model_ends_near_the_minimum_or_at_the_end_of_the_range(at, expected):
    """Only signs of slopes are known, as where curvatures are negative; `at` is the minimum's log, from the lowest ridge."""
    looks = []

    def look(ridge):
        looks.append(math.log(ridge / LOWEST))
        return Point(looks[-1] - at, math.nan)

    found = search(look, lambda ridge: 1.0 + (math.log(ridge / LOWEST) - at) ** 2, 1.0, 1.0, lambda: False)
    assert math.log(found / LOWEST) == pytest.approx(expected, abs=0.05)
    assert len(looks) <= 12


def test_the_priors_score_is_told_where_it_might_win_and_passed_over_where_it_cannot():
    stats, z, x, Q = large(2_000)
    full = gcv_ridge(stats_of(z, x), 5 + Q, search="full")
    assert dict(full.path)[math.inf] > 1.5 * full.score
    assert math.inf not in dict(gcv_ridge(stats, 5 + Q, around=full.ridge).path)
    z, x = z[:700], x[:700]
    assert math.inf in dict(gcv_ridge(stats_of(z, x), Q, search="factors").path)  # 0.6 % above the least
    near = z @ Q + 3 + 20 * torch.randn(700, 140, generator=rng(5), dtype=torch.float64)
    for search_by in ("factors", "full"):
        told = gcv_ridge(stats_of(z, near), Q, search=search_by)
        expected, _ = explicit_score(z.numpy(), near.numpy(), math.inf, Q.numpy())
        assert dict(told.path)[math.inf] == pytest.approx(expected, rel=1e-9)
