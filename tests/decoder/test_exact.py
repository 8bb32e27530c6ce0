"""DecoderStats and solves: errors, dtypes, special strengths. The mathematics is in tests/properties."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from splinterp import TopActs
from splinterp.decoder import (
    DecoderSolution,
    DecoderStats,
    gcv_ridge,
    optimality_residual,
    solve_decoder,
    solve_scales,
    tied_scale,
)
from splinterp.decoder._cholesky import cholesky_in_place
from splinterp.sparse_kernels import _sums
from tests.helpers import rng, sparse_codes, stats_of


def problem(n=50, m=9, d=4):
    z = sparse_codes(n, m, 3, 1)
    x = z @ torch.randn(m, d, generator=rng(1), dtype=torch.float64) + 2
    return z, x + torch.randn(n, d, generator=rng(2), dtype=torch.float64)


def test_accepts_numpy_and_half_precision():
    z, x = problem()
    exact = solve_decoder(stats_of(z, x), ridge=1.0)
    from_numpy = solve_decoder(DecoderStats(9, 4).update(z.numpy(), x.numpy()), ridge=1.0)
    torch.testing.assert_close(from_numpy.W_dec, exact.W_dec)
    half = solve_decoder(DecoderStats(9, 4).update(z.half(), x.half()), ridge=1.0)
    torch.testing.assert_close(half.W_dec, exact.W_dec, atol=2e-2, rtol=0)


def test_float32_sums_do_not_cancel_on_data_far_from_zero():
    z, x = problem(2000)
    z, x = z + 100, x + 1e4
    exact = solve_decoder(stats_of(z, x), ridge=1.0)
    single = DecoderStats(9, 4, dtype=torch.float32)
    for part_z, part_x in zip(z.float().split(100), x.float().split(100), strict=True):
        single.update(part_z, part_x)
    found = solve_decoder(single, ridge=1.0)
    assert found.W_dec.dtype == torch.float32
    torch.testing.assert_close(found.W_dec.double(), exact.W_dec, atol=2e-2, rtol=0)


def top_of(z, k):
    indices = z.abs().topk(k, dim=1).indices
    return TopActs(z.gather(1, indices), indices)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_sparse_codes_give_the_statistics_of_dense_ones(threads, dtype, monkeypatch):
    z = sparse_codes(500, 60, 3, 1)
    z[:, 7] = 0  # a dead latent
    x = 5 + torch.randn(500, 4, generator=rng(1), dtype=torch.float64)
    sums = []
    monkeypatch.setattr(_sums.KSparse, "add_gram", spy(_sums.KSparse.add_gram, sums))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        sparse, dense = DecoderStats(60, 4, dtype=dtype), DecoderStats(60, 4)
        for part_z, part_x in zip(z.split(200), x.split(200), strict=True):
            sparse.update(top_of(part_z, 3), part_x)
            dense.update(part_z, part_x)
    finally:
        torch.set_num_threads(before)
    assert len(sums) == 3
    for name in ("gram", "cross", "total", "mean_acts", "mean_x"):
        tolerance = {"rtol": 1e-10, "atol": 1e-9} if dtype is torch.float64 else {"rtol": 1e-4, "atol": 1e-3}
        torch.testing.assert_close(getattr(sparse, name).double(), getattr(dense, name), **tolerance)


def spy(function, calls):
    def called(self, *args):
        calls.append(args)
        return function(self, *args)

    return called


def test_sparse_codes_that_hardly_vary_lose_nothing():
    z = torch.zeros(300, 40, dtype=torch.float64)
    z[:, 3] = 1e6 + torch.randn(300, generator=rng(1), dtype=torch.float64)  # always on, far from 0
    x = z[:, 3:4] - 1e6 + torch.tensor([[1.0, 2.0]], dtype=torch.float64)
    stats = DecoderStats(40, 2).update(top_of(z, 1), x)
    torch.testing.assert_close(stats.gram[3, 3], (z[:, 3] - z[:, 3].mean()).square().sum())
    assert DecoderStats(40, 2).update(top_of(z[:1], 1), x[:1]).gram.abs().max() == 0


def test_sparse_codes_that_do_not_fit_are_refused():
    z = sparse_codes(5, 40, 2, 1)
    top, x = top_of(z, 2), torch.zeros(5, 3)
    with pytest.raises(ValueError, match="must have the 4 rows of x"):
        DecoderStats(40, 3).update(top, x[:4])
    with pytest.raises(ValueError, match="must lie in 0 ... 9"):
        DecoderStats(10, 3).update(TopActs(top.top_acts, torch.full_like(top.top_indices, 10)), x)
    assert DecoderStats(40, 3).update(TopActs(top.top_acts[:0], top.top_indices[:0]), x[:0]).n_samples == 0


def test_extreme_strengths():
    z, x = problem()
    stats = stats_of(z, x)
    Q = torch.randn(9, 4, generator=rng(3), dtype=torch.float64)
    at_infinity = solve_decoder(stats, ridge=math.inf, prior=Q)
    assert torch.equal(at_infinity.W_dec, Q)
    torch.testing.assert_close(at_infinity.b_dec, (x - z @ Q).mean(0))
    torch.testing.assert_close(solve_decoder(stats, ridge=1e12, prior=Q).W_dec, Q, atol=1e-8, rtol=0)
    no_bias = solve_decoder(stats, ridge=0.5, bias_ridge=math.inf)
    assert float(no_bias.b_dec.abs().max()) == 0
    expected = torch.linalg.solve(z.T @ z + 0.5 * torch.eye(9, dtype=torch.float64), z.T @ x)
    torch.testing.assert_close(no_bias.W_dec, expected)
    b = torch.full((4,), 7.0, dtype=torch.float64)
    kept = solve_decoder(stats, ridge=1.0, bias_prox=1e12, previous=(Q, b))
    torch.testing.assert_close(kept.b_dec, b, atol=1e-6, rtol=0)


def test_each_strength_changes_the_result():
    z, x = problem()
    stats = stats_of(z, x)
    previous = (torch.ones(9, 4, dtype=torch.float64), torch.ones(4, dtype=torch.float64))
    plain = solve_decoder(stats, ridge=1.0)
    for options in (
        {"ridge": 2.0}, {"bias_ridge": 1.0}, {"prox": 1.0, "previous": previous}, {"bias_prox": 1.0, "previous": previous},
        {"prior": previous[0]},
    ):  # fmt: skip
        other = solve_decoder(stats, **{"ridge": 1.0, **options})
        assert float((other.W_dec - plain.W_dec).abs().max()) > 1e-6, options


def test_the_cached_spectrum_and_cholesky_agree_and_updates_drop_the_cache():
    z, x = problem()
    stats = stats_of(z, x)
    by_cholesky = solve_decoder(stats, ridge=0.7)
    gcv_ridge(stats)
    torch.testing.assert_close(solve_decoder(stats, ridge=0.7).W_dec, by_cholesky.W_dec)
    stats.update(z, 2 * x)
    fresh = DecoderStats(9, 4).update(z, x).update(z, 2 * x)
    torch.testing.assert_close(solve_decoder(stats, ridge=0.7).W_dec, solve_decoder(fresh, ridge=0.7).W_dec)


def test_scales_against_lstsq():
    z, x = problem(80)
    rows = torch.randn(9, 4, generator=rng(4), dtype=torch.float64)
    stats = stats_of(z, x)
    zc, xc = (z - z.mean(0)).numpy(), (x - x.mean(0)).numpy()
    design = np.einsum("nm,md->ndm", zc, rows.numpy()).reshape(-1, 9)
    expected = np.linalg.lstsq(design, xc.reshape(-1), rcond=None)[0]
    np.testing.assert_allclose(solve_scales(stats, rows, torch.ones(9)).numpy(), expected, rtol=1e-8)
    common = np.linalg.lstsq(design.sum(1, keepdims=True), xc.reshape(-1), rcond=None)[0]
    assert tied_scale(stats, rows) == pytest.approx(float(common[0]))


def test_scales_of_dead_latents_stay():
    z, x = problem(80)
    z[:, 3] = 0
    start = torch.arange(9, dtype=torch.float64)
    assert float(solve_scales(stats_of(z, x), torch.ones(9, 4, dtype=torch.float64), start)[3]) == pytest.approx(3.0)
    dead = stats_of(torch.zeros_like(z), x)
    assert tied_scale(dead, torch.ones(9, 4, dtype=torch.float64), fallback=0.5) == 0.5
    torch.testing.assert_close(solve_scales(dead, torch.ones(9, 4, dtype=torch.float64), start), start)


def test_gcv_of_dead_codes_is_the_prior_alone():
    x = torch.randn(10, 4, generator=rng(), dtype=torch.float64)
    found = gcv_ridge(stats_of(torch.zeros(10, 9, dtype=torch.float64), x))
    assert found.ridge == math.inf
    assert found.df == 1
    assert found.path == ()
    deviation = float((x - x.mean(0)).square().sum())
    assert found.score == pytest.approx(deviation / 10 / (9 / 10) ** 2)


def test_an_empty_batch_changes_nothing():
    z, x = problem()
    stats = stats_of(z, x)
    before = stats.gram.clone()
    stats.update(z[:0], x[:0])
    stats.merge(DecoderStats(9, 4))
    assert torch.equal(stats.gram, before)
    assert stats.n_samples == 50


def test_float32_finds_the_rank_and_the_least_norm_solution():
    g = rng(5)
    z = torch.randn(200, 10, generator=g, dtype=torch.float64) @ torch.randn(10, 20, generator=g, dtype=torch.float64)
    x = torch.randn(200, 4, generator=g, dtype=torch.float64)
    exact = stats_of(z, x)
    single = DecoderStats(20, 4, dtype=torch.float32).update(z, x)
    assert int(single.spectrum().positive.sum()) == int(exact.spectrum().positive.sum()) == 10
    found = solve_decoder(single, ridge=0.0).W_dec.double()
    torch.testing.assert_close(found, solve_decoder(exact, ridge=0.0).W_dec, atol=1e-3, rtol=0)


def test_the_grid_of_ridges_can_be_refined():
    z, x = problem()
    coarse, fine = (gcv_ridge(stats_of(z, x), n_grid=n) for n in (3, 101))
    assert fine.score <= coarse.score
    assert len(fine.path) > len(coarse.path)


def test_errors():
    z, x = problem()
    stats = stats_of(z, x)
    W, b = torch.zeros(9, 4), torch.zeros(4)
    with pytest.raises(ValueError, match="statistics are empty"):
        solve_decoder(DecoderStats(9, 4), ridge=1.0)
    with pytest.raises(ValueError, match="statistics are empty"):
        gcv_ridge(DecoderStats(9, 4))
    with pytest.raises(ValueError, match="at least 2 samples"):
        gcv_ridge(stats_of(z[:1], x[:1]))
    with pytest.raises(ValueError, match=r"prox=1.0.*pass previous=\(W_dec, b_dec\)"):
        solve_decoder(stats, ridge=1.0, prox=1.0)
    with pytest.raises(ValueError, match="pass previous=W_dec"):
        gcv_ridge(stats, prox=1.0)
    with pytest.raises(ValueError, match="ridge=-1"):
        solve_decoder(stats, ridge=-1.0)
    with pytest.raises(ValueError, match="ridge=nan"):
        solve_decoder(stats, ridge=math.nan)
    with pytest.raises(ValueError, match="must be finite"):
        solve_decoder(stats, ridge=1.0, prox=math.inf, previous=(W, b))
    with pytest.raises(ValueError, match="prior has 8 rows but n_latents=9"):
        solve_decoder(stats, ridge=1.0, prior=W[:8])
    with pytest.raises(ValueError, match="inflation=0.5"):
        gcv_ridge(stats, inflation=0.5)
    with pytest.raises(ValueError, match="acts has 50 rows and x has 49"):
        stats.update(z, x[1:])
    with pytest.raises(ValueError, match="acts has 8 columns but 9"):
        stats.update(z[:, :8], x)
    with pytest.raises(ValueError, match="1 non-finite"):
        stats.update(
            z, x.clone().index_put_((torch.tensor([2]), torch.tensor([1])), torch.tensor(math.nan, dtype=torch.float64))
        )
    with pytest.raises(ValueError, match="cannot merge"):
        stats.merge(DecoderStats(8, 4))
    with pytest.raises(ValueError, match="n_latents=0"):
        DecoderStats(0, 4)
    assert optimality_residual(stats, DecoderSolution(W.double(), b.double()), ridge=math.inf) == 0.0


def test_spectrum_with_dead_latents_and_its_fallback(monkeypatch):
    z, x = problem(60)
    z[:, [2, 5]] = 0
    expected = np.linalg.eigvalsh(stats_of(z, x).gram.numpy())

    def check():
        stats = stats_of(z, x)
        values, vectors, positive = stats.spectrum()
        np.testing.assert_allclose(np.sort(values.numpy()), expected, atol=1e-9)
        torch.testing.assert_close(vectors @ torch.diag(values) @ vectors.T, stats.gram)
        torch.testing.assert_close(vectors.T @ vectors, torch.eye(9, dtype=torch.float64))
        assert int(positive.sum()) == 7
        return solve_decoder(stats, ridge=0.0).W_dec

    by_default = check()

    def fails(matrix):
        raise torch._C._LinAlgError("linalg.eigh: The algorithm failed to converge")

    monkeypatch.setattr(torch.linalg, "eigh", fails)
    torch.testing.assert_close(check(), by_default)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("ridge", [0.0, 2.0])
@pytest.mark.parametrize("bias_ridge", [0.0, 3.0, math.inf])
@pytest.mark.parametrize("dead", [False, True])
def test_overwriting_changes_the_memory_and_nothing_else(dtype, ridge, bias_ridge, dead):
    z, x = problem(200)
    if dead:
        z[:, 4] = 0
    kept = DecoderStats(9, 4, dtype=dtype).update(z, x)
    used = DecoderStats(9, 4, dtype=dtype).update(z, x)
    gram, cross = kept.gram.clone(), kept.cross.clone()
    options = {"ridge": ridge, "bias_ridge": bias_ridge}
    expected = solve_decoder(stats_of(z, x), **options)
    first, second = solve_decoder(kept, **options), solve_decoder(used, **options, overwrite=True)
    tolerance = {"rtol": 1e-9, "atol": 1e-10} if dtype is torch.float64 else {"rtol": 1e-3, "atol": 1e-3}
    for found in (first, second):
        torch.testing.assert_close(found.W_dec.double(), expected.W_dec, **tolerance)
        torch.testing.assert_close(found.b_dec.double(), expected.b_dec, **tolerance)
    assert torch.equal(kept.gram, gram)
    assert torch.equal(kept.cross, cross)
    assert used.n_samples == 0
    with pytest.raises(ValueError, match="empty"):
        solve_decoder(used, ridge=1.0)


def test_nearly_dependent_latents_go_to_the_least_norm_solution():
    z, x = problem(200)
    z[:, 3] = z[:, 5] * (1 + 1e-9 * torch.rand(200, generator=rng(1), dtype=torch.float64))
    gram = DecoderStats(9, 4).update(z, x).gram
    right = torch.ones(9, 2, dtype=torch.float64)
    before = gram.clone()
    assert not cholesky_in_place(gram, 0.0, right)
    assert torch.equal(gram.tril(), before.tril())  # the other half is mirrored from it, and may have been rounded otherwise
    torch.testing.assert_close(gram, before, rtol=1e-12, atol=1e-12)
    assert torch.equal(right, torch.ones_like(right))
    W = solve_decoder(stats_of(z, x), ridge=0.0).W_dec
    torch.testing.assert_close(W[3], W[5], rtol=1e-5, atol=1e-8)
    indefinite = torch.tensor([[1.0, 2.0], [2.0, 1.0]], dtype=torch.float64)
    assert not cholesky_in_place(indefinite, 0.5, right[:2])
    assert indefinite.tolist() == [[1.0, 2.0], [2.0, 1.0]]


@pytest.mark.parametrize(("n_latents", "k"), [(700, 60), (1_030, 100), (700, 5)])
def test_half_of_a_large_gram_matrix_is_formed_and_mirrored(n_latents, k):
    g = rng(0)
    indices = torch.rand(600, n_latents, generator=g).topk(k).indices
    top = TopActs(torch.randn(600, k, dtype=torch.float64, generator=g) + 1, indices)
    x = torch.randn(600, 7, dtype=torch.float64, generator=g)
    z = torch.zeros(600, n_latents, dtype=torch.float64).scatter_(1, indices, top.top_acts)
    for parts in ((600,), (300, 300), (500, 100)):  # the last part is of too few rows
        by_top, by_dense = DecoderStats(n_latents, 7), DecoderStats(n_latents, 7)
        for values, where, rows, dense in zip(
            top.top_acts.split(parts), indices.split(parts), x.split(parts), z.split(parts), strict=True
        ):
            by_top.update(TopActs(values, where), rows)
            by_dense.update(dense, rows)
        centred = z - z.mean(0)
        for stats in (by_top, by_dense):
            torch.testing.assert_close(stats.gram, centred.T @ centred, rtol=1e-10, atol=1e-8)
            torch.testing.assert_close(stats.cross, centred.T @ (x - x.mean(0)), rtol=1e-10, atol=1e-8)
            torch.testing.assert_close(stats.total, (x - x.mean(0)).square().sum())
            torch.testing.assert_close(stats.gram, stats.gram.T, rtol=1e-12, atol=1e-12)
