"""Matrix-free statistics and solves against the dense ones."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from splinterp import PAMSGD, SAE, AbsTopK, TopActs, TopK, fit
from splinterp.decoder import DecoderStats, gcv_ridge, held_out_ridge, solve_decoder, squared_error
from splinterp.decoder import _matrix_free_stats as streamed
from splinterp.decoder.matrix_free import MatrixFreeStats, gcv_ridge_cg, held_out_ridge_cg, solve_decoder_cg
from splinterp.training import pam_solves, solver
from tests.helpers import rng


def problem(n=400, m=60, d=6, k=4, dtype=torch.float64, dead=5, seed=0):
    """The same codes in both kinds of statistics."""
    sae = SAE(d, m, TopK(k), generator=rng(seed), dtype=torch.float64)
    sae.b_enc.data[:dead] = -1e3
    x = torch.randn(n, d, generator=rng(seed + 1), dtype=torch.float64) * torch.linspace(0.3, 2, d) + 3
    free, dense = MatrixFreeStats(m, d, dtype=dtype), DecoderStats(m, d)
    with torch.no_grad():
        for part in x.split(150):
            free.update(sae.encode_top(part), part)
            dense.update(sae.encode(part), part)
    return free, dense, sae


@settings(max_examples=30)
@given(st.integers(2, 300), st.integers(1, 40), st.integers(1, 6), st.integers(0, 50), st.sampled_from([0, 2**26]))
def test_statistics_equal_the_dense_ones(n, m, d, seed, in_memory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streamed, "IN_MEMORY", in_memory)  # at 0 the codes go to disk at once
        free, dense, _ = problem(n, m, d, min(3, m), dead=min(2, m - 1), seed=seed)
    assert free.n_samples == dense.n_samples == n
    P = torch.randn(m, 3, generator=rng(seed), dtype=torch.float64)
    for ours, theirs in (
        (free.gram_product(P), dense.gram @ P), (free.cross, dense.cross), (free.diagonal, dense.gram.diagonal()),
        (torch.tensor(free.total, dtype=torch.float64), dense.total), (free.mean_acts, dense.mean_acts),
    ):  # fmt: skip
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9 * float(1 + theirs.abs().max()))


@pytest.mark.parametrize("ridge", [0.0, 0.1, 30.0])
@pytest.mark.parametrize("with_prior", [False, True])
def test_solution_equals_the_dense_one(ridge, with_prior):
    free, dense, sae = problem(dead=0)
    prior = sae.W_enc.T.detach() if with_prior else None
    found = solve_decoder_cg(free, ridge=ridge, prior=prior, tolerance=1e-10)
    expected = solve_decoder(dense, ridge=ridge, prior=prior)
    assert found.residual <= 1e-10
    assert found.iterations < 60
    torch.testing.assert_close(found.W_dec, expected.W_dec, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(found.b_dec, expected.b_dec, rtol=1e-6, atol=1e-7)


def test_dead_latents_and_too_few_samples():
    for n in (400, 20):
        free, dense, sae = problem(n=n)
        start = sae.W_enc.T.detach()
        found = solve_decoder_cg(free, ridge=0.0, start=start, tolerance=1e-8)
        assert found.residual <= 1e-8
        assert torch.equal(found.W_dec[:5], start[:5])  # never firing: as they were
        least = solve_decoder(dense, ridge=0.0)
        misfit = dense.gram @ found.W_dec - dense.cross  # the same squared error
        assert float(misfit.norm() / dense.cross.norm()) < 1e-7
        assert float(least.W_dec.norm()) <= float(found.W_dec.norm())
        assert torch.equal(solve_decoder_cg(free, ridge=0.0).W_dec[:5], torch.zeros(5, 6, dtype=torch.float64))


def test_every_option_changes_the_solution():
    free, dense, _ = problem()
    before = torch.randn(60, 6, generator=rng(4), dtype=torch.float64)
    found = solve_decoder_cg(free, ridge=1.0, prox=7.0, previous=before, tolerance=1e-9)
    expected = solve_decoder(dense, ridge=1.0, prox=7.0, previous=(before, torch.zeros(6, dtype=torch.float64)))
    torch.testing.assert_close(found.W_dec, expected.W_dec, rtol=1e-6, atol=1e-7)
    rough = solve_decoder_cg(free, ridge=1.0, max_iterations=1, tolerance=1e-9)
    assert rough.iterations == 1
    assert rough.residual > 1e-9
    warm = solve_decoder_cg(free, ridge=1.0, start=solve_decoder(dense, ridge=1.0).W_dec, tolerance=1e-6)
    assert warm.iterations == 0
    single, _, _ = problem(dtype=torch.float32)
    low = solve_decoder_cg(single, ridge=1.0, tolerance=1e-4)
    assert low.W_dec.dtype == torch.float32
    assert low.residual <= 1e-4
    unreachable = solve_decoder_cg(single, ridge=0.0, tolerance=1e-12)  # float32 cannot: it stops and says where
    assert 1e-12 < unreachable.residual < 1e-3


@pytest.mark.parametrize("with_prior", [False, True])
@pytest.mark.parametrize("n", [400, 50])
def test_probed_gcv_is_near_the_exact_one(with_prior, n):
    free, dense, sae = problem(n=n, m=60, d=6, dead=0)
    prior = sae.W_enc.T.detach() if with_prior else None
    exact = gcv_ridge(dense, prior)
    found = gcv_ridge_cg(free, prior, n_probes=64, tolerance=1e-8)
    known = dict(exact.path)
    assert known[math.inf] == pytest.approx(dict(found.path)[math.inf], rel=1e-6)
    assert found.score >= 0.9 * exact.score
    assert found.score <= 1.3 * exact.score  # of a grid by factors of 10, with an estimated trace
    if 0 < exact.ridge < math.inf:
        near = gcv_ridge_cg(free, prior, around=exact.ridge, n_probes=256, tolerance=1e-8)
        at = dict(near.path)[exact.ridge]
        assert at == pytest.approx(exact.score, rel=0.1)


def test_gcv_moves_from_a_bad_start():
    free, dense, _ = problem(dead=0)
    best = gcv_ridge(dense).ridge
    far = gcv_ridge_cg(free, around=best * 4.0**6, n_probes=64)
    assert best / 8 < far.ridge < best * 8
    other = gcv_ridge_cg(free, n_probes=2, generator=rng(9))
    assert other.score != gcv_ridge_cg(free, n_probes=2).score


def held_out_problem(dtype=torch.float64, n_held_out=90, **options):
    """Both kinds of statistics, of training and of held-out samples (with another mean), and the SAE."""
    free, dense, sae = problem(dtype=dtype, **options)
    x = torch.randn(n_held_out, sae.d_in, generator=rng(8), dtype=torch.float64) * torch.linspace(0.5, 1.5, sae.d_in) + 2.5
    with torch.no_grad():
        others = free.empty().update(sae.encode_top(x), x), dense.empty().update(sae.encode(x), x)
    return free, dense, *others, sae


@pytest.mark.parametrize("with_prior", [False, True])
@pytest.mark.parametrize("n", [400, 50])
def test_the_ridge_by_held_out_samples_is_scored_as_with_a_gram_matrix(with_prior, n):
    free, dense, free_held, dense_held, sae = held_out_problem(n=n, dead=0)
    prior = sae.W_enc.T.detach() if with_prior else None
    exact = held_out_ridge(dense, dense_held, prior)
    found = held_out_ridge_cg(free, free_held, prior, tolerance=1e-9)
    for ridge, score in found.path:
        if math.isfinite(ridge):
            W_dec, b_dec = solve_decoder(dense, ridge=ridge, prior=prior)
        else:
            W_dec = torch.zeros_like(dense.cross) if prior is None else prior
            b_dec = dense.mean_x - dense.mean_acts @ W_dec
        assert score == pytest.approx(squared_error(dense_held, W_dec, b_dec), rel=1e-5)
    assert found.score == min(score for _, score in found.path)
    assert exact.score - 1e-9 <= found.score <= 1.3 * exact.score  # of a grid by factors of 10
    if 0 < exact.ridge < math.inf:
        near = held_out_ridge_cg(free, free_held, prior, around=exact.ridge, tolerance=1e-9)
        assert near.score == pytest.approx(exact.score, rel=1e-3)
        far = held_out_ridge_cg(free, free_held, prior, around=exact.ridge * 4.0**5, tolerance=1e-9)
        assert far.score <= 1.1 * exact.score


def test_the_ridge_by_held_out_samples_refuses_other_widths_and_none():
    free, _, held_out, _, _ = held_out_problem()
    with pytest.raises(ValueError, match=r"held-out statistics have .* = \(60, 3\)"):
        held_out_ridge_cg(
            free, MatrixFreeStats(60, 3).update(TopActs(torch.ones(2, 1), torch.zeros(2, 1).long()), torch.ones(2, 3))
        )
    with pytest.raises(ValueError, match="empty"):
        held_out_ridge_cg(free, free.empty())
    with pytest.raises(ValueError, match="empty"):
        held_out_ridge_cg(free.empty(), held_out)
    silent = free.empty().update(TopActs(torch.zeros(4, 1), torch.zeros(4, 1).long()), torch.randn(4, 6, generator=rng(0)))
    assert math.isinf(held_out_ridge_cg(silent, held_out).ridge)


def test_large_dictionaries_choose_their_ridge_by_held_out_samples(monkeypatch):
    x, x_val = torch.randn(600, 8, generator=rng(1)), torch.randn(250, 8, generator=rng(3))
    asked = []

    def counted(stats, held_out, *rest, **options):
        asked.append(held_out.n_samples)
        return held_out_ridge_cg(stats, held_out, *rest, **options)

    monkeypatch.setattr(solver, "held_out_ridge_cg", counted)
    ridges = []
    for limit, held_out in ((10**6, x_val), (40, x_val), (40, x_val[:199])):
        monkeypatch.setattr(pam_solves, "MATRIX_FREE_FROM", limit)
        sae = SAE(8, 48, TopK(3), "tied_residual", generator=rng(0))
        result = fit(sae, x, PAMSGD(lr=1e-3, hold=0.0, readout=False), epochs=2, batch_size=50, generator=0, x_val=held_out)
        ridges.append(result.state.ridge)
    assert asked == [250]
    assert ridges[0] / 5 < ridges[1] < 5 * ridges[0]


def test_bad_input_is_refused():
    free, _, _ = problem()
    for options, message in (
        ({"ridge": -1.0}, "ridge=-1.0 must be"), ({"ridge": math.inf}, "ridge=inf needs no iteration"),
        ({"ridge": 1.0, "prox": 1.0}, "pass previous"), ({"ridge": 1.0, "prior": torch.zeros(3, 6)}, "prior has 3 rows"),
        ({"ridge": 1.0, "tolerance": 0.0}, "tolerance"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            solve_decoder_cg(free, **options)
    with pytest.raises(ValueError, match="empty"):
        solve_decoder_cg(MatrixFreeStats(4, 3), ridge=1.0)
    with pytest.raises(ValueError, match="float16"):
        MatrixFreeStats(4, 3, dtype=torch.float16)
    top = TopActs(torch.ones(2, 1), torch.full((2, 1), 4))
    with pytest.raises(ValueError, match="must lie in 0 ... 3"):
        MatrixFreeStats(4, 3).update(top, torch.zeros(2, 3))
    with pytest.raises(ValueError, match="at least 2 samples"):
        gcv_ridge_cg(MatrixFreeStats(4, 3))


@pytest.mark.parametrize("activation", [TopK(3), AbsTopK(3)])
@pytest.mark.parametrize("decoder", ["free", "tied", "tied_residual"])
def test_pam_solves_large_dictionaries_matrix_free(decoder, activation, monkeypatch):
    x = torch.randn(300, 8, generator=rng(1)) @ torch.randn(8, 8, generator=rng(2))
    method = PAMSGD(lr=1e-3, ridge="gcv" if decoder != "free" else 5.0)
    results = []
    for limit in (10**6, 40):
        monkeypatch.setattr(pam_solves, "MATRIX_FREE_FROM", limit)
        sae = SAE(8, 48, activation, decoder, generator=rng(0))
        assert method.matrix_free(sae) == (limit == 40)
        results.append(fit(sae, x, method, epochs=3, batch_size=50, generator=0))
    dense, free = (r.history[-1] for r in results)
    assert free["train_fvu"] == pytest.approx(dense["train_fvu"], rel=0.05)
    if decoder == "free":
        torch.testing.assert_close(results[1].sae.W_dec, results[0].sae.W_dec, rtol=1e-2, atol=1e-3)
        assert 0 < results[1].state.residual < 2e-4
    assert not PAMSGD(bias="separate", ridge=1.0).matrix_free(results[1].sae)
    assert not PAMSGD(prox_dec=1.0).matrix_free(results[1].sae)


def test_codes_that_are_held_in_a_devices_memory_give_the_same():
    """As on a GPU: no file."""
    spooled, _, sae = problem()
    held = MatrixFreeStats(60, 6, dtype=torch.float64)
    held._held = []
    x = torch.randn(400, 6, generator=rng(1), dtype=torch.float64) * torch.linspace(0.3, 2, 6) + 3
    with torch.no_grad():
        for part in x.split(150):
            held.update(sae.encode_top(part), part)
    assert len(held._held) == 3
    assert not held._blocks
    P = torch.randn(60, 4, generator=rng(2), dtype=torch.float64)
    assert torch.equal(held.gram_product(P), spooled.gram_product(P))
    assert torch.equal(solve_decoder_cg(held, ridge=2.0).W_dec, solve_decoder_cg(spooled, ridge=2.0).W_dec)
    assert gcv_ridge_cg(held) == gcv_ridge_cg(spooled)


@pytest.mark.gpu
def test_on_a_gpu_the_solve_is_that_on_the_cpu():
    sae = SAE(6, 60, TopK(4), generator=rng(0), dtype=torch.float64)
    x = torch.randn(400, 6, generator=rng(1), dtype=torch.float64) + 3
    found = []
    for device in ("cpu", "cuda"):
        own = sae.to(device)
        stats = MatrixFreeStats(60, 6, dtype=torch.float64, device=device)
        with torch.no_grad():
            for part in x.to(device).split(150):
                stats.update(own.encode_top(part), part)
        chosen = gcv_ridge_cg(stats)
        assert stats.cross.device.type == stats.gram_product(stats.cross).device.type == device
        found.append((chosen.ridge, *(t.cpu() for t in solve_decoder_cg(stats, ridge=chosen.ridge)[:2])))
    torch.testing.assert_close(found[0], found[1], rtol=1e-3, atol=1e-4)


@pytest.mark.gpu
def test_training_on_a_gpu_takes_the_matrix_free_solve(monkeypatch):
    monkeypatch.setattr(pam_solves, "MATRIX_FREE_FROM", 16)
    x = torch.randn(300, 8, generator=rng(1))
    found = []
    for device in ("cpu", "cuda"):
        sae = SAE(8, 24, TopK(3), "tied_residual", generator=rng(0), device=device)
        fit(sae, x, PAMSGD(ridge=1.0, lr=1e-3), epochs=2, generator=0)
        found.append(sae.W_dec.detach().cpu())
    torch.testing.assert_close(found[0], found[1], atol=1e-3, rtol=1e-2)
