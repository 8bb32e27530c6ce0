"""The decoder step is exact least squares: against lstsq on the stacked system, in float64."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from splinterp.decoder import DecoderSolution, DecoderStats, optimality_residual, solve_decoder
from tests.helpers import rng, sparse_codes, stats_of

strengths = st.sampled_from([0.0, 1e-3, 0.1, 3.0, 1e3])
sizes = {"n": st.integers(2, 40), "m": st.integers(1, 12), "d": st.integers(1, 6), "seed": st.integers(0, 10**6)}


def problem(n: int, m: int, d: int, seed: int):
    """Codes with dead and repeated latents among the draws, data with a large mean, a previous decoder and a prior."""
    g = rng(seed)
    k = int(torch.randint(1, m + 1, (), generator=g))
    z = sparse_codes(n, m, k, seed, dead=int(torch.randint(0, 2, (), generator=g)) * (m // 3))
    if m > 2 and seed % 3 == 0:
        z[:, 1] = z[:, 0]
    x = 5 + torch.randn(n, d, generator=g, dtype=torch.float64)
    W, Q = (torch.randn(m, d, generator=g, dtype=torch.float64) for _ in range(2))
    b = torch.randn(d, generator=g, dtype=torch.float64)
    return z, x, W, b, Q


def stacked(z, x, ridge, bias_ridge, prox, bias_prox, W, b, Q):
    """Rows of the least-squares problem in (W; b), one after the other; penalties as rows with square-root weights."""
    m, d = z.shape[1], x.shape[1]
    eye, zero = np.eye(m), np.zeros((m, 1))
    left = [np.c_[z, np.ones(len(z))], math.sqrt(ridge) * np.c_[eye, zero], math.sqrt(prox) * np.c_[eye, zero]]
    right = [x, math.sqrt(ridge) * Q, math.sqrt(prox) * W]
    for strength, target in ((bias_ridge, np.zeros(d)), (bias_prox, b)):
        left.append(math.sqrt(strength) * np.r_[np.zeros(m), 1.0][None])
        right.append(math.sqrt(strength) * target[None])
    return np.concatenate(left), np.concatenate(right)


def stacked_objective(left, right, W, b):
    return float(((left @ np.r_[W, b[None]] - right) ** 2).sum())


@given(**sizes, ridge=strengths, bias_ridge=strengths, prox=strengths, bias_prox=strengths)
def test_equals_lstsq_on_the_stacked_system(n, m, d, seed, ridge, bias_ridge, prox, bias_prox):
    z, x, W, b, Q = problem(n, m, d, seed)
    found = solve_decoder(
        stats_of(z, x), ridge=ridge, bias_ridge=bias_ridge, prox=prox, bias_prox=bias_prox, previous=(W, b), prior=Q
    )
    left, right = stacked(*(t.numpy() for t in (z, x)), ridge, bias_ridge, prox, bias_prox, *(t.numpy() for t in (W, b, Q)))
    expected = np.linalg.lstsq(left, right, rcond=None)[0]
    best = stacked_objective(left, right, expected[:-1], expected[-1])
    ours = stacked_objective(left, right, found.W_dec.numpy(), found.b_dec.numpy())
    assert ours <= best + 1e-12 * (right**2).sum()
    if ridge + prox >= 1e-3:
        scale = max(1.0, np.abs(expected).max())
        np.testing.assert_allclose(found.W_dec.numpy(), expected[:-1], atol=1e-9 * scale)
        np.testing.assert_allclose(found.b_dec.numpy(), expected[-1], atol=1e-8 * scale)


@given(**sizes)
def test_least_norm_solution_of_the_centred_problem_without_ridge(n, m, d, seed):
    z, x, *_ = problem(n, m, d, seed)
    found = solve_decoder(stats_of(z, x), ridge=0.0)
    centred = (z - z.mean(0)).numpy()
    singular = np.linalg.svd(centred, compute_uv=False)
    near_cutoff = (singular > 1e-9 * singular[0]) & (singular < 1e-4 * singular[0])
    if singular[0] > 1e-12 and not near_cutoff.any():
        expected = np.linalg.lstsq(centred, (x - x.mean(0)).numpy(), rcond=1e-6)[0]
        np.testing.assert_allclose(found.W_dec.numpy(), expected, atol=1e-6 * max(1.0, np.abs(expected).max()))
    dead = (z == 0).all(0)
    assert float(found.W_dec[dead].abs().sum()) < 1e-9 * max(1.0, float(found.W_dec.abs().max()))


@given(**sizes, ridge=strengths, prox=st.sampled_from([1e-2, 1.0, 50.0]), bias_prox=strengths)
def test_sufficient_decrease(n, m, d, seed, ridge, prox, bias_prox):
    """F(new) + prox |move of W|^2 + bias_prox |move of b|^2 <= F(old), at a fixed ridge."""
    z, x, W, b, Q = problem(n, m, d, seed)

    def objective(W, b):
        return float((x - z @ W - b).square().sum() + ridge * (W - Q).square().sum())

    new = solve_decoder(stats_of(z, x), ridge=ridge, prox=prox, bias_prox=bias_prox, previous=(W, b), prior=Q)
    move = prox * (new.W_dec - W).square().sum() + bias_prox * (new.b_dec - b).square().sum()
    assert objective(new.W_dec, new.b_dec) + float(move) <= objective(W, b) * (1 + 1e-12) + 1e-9


@given(**sizes, cuts=st.lists(st.floats(0, 1), max_size=4))
def test_streaming_merging_and_one_shot_agree(n, m, d, seed, cuts):
    z, x, *_ = problem(n, m, d, seed)
    x = x * 1e3
    whole = stats_of(z, x)
    edges = sorted({0, n, *(int(c * n) for c in cuts)})
    streamed = DecoderStats(m, d)
    parts = []
    for a, b in itertools.pairwise(edges):
        streamed.update(z[a:b], x[a:b])
        parts.append(stats_of(z[a:b], x[a:b]))
    merged = DecoderStats(m, d)
    for part in reversed(parts):
        merged.merge(part)
    for other in (streamed, merged):
        assert other.n_samples == n
        for name in ("mean_acts", "mean_x", "gram", "cross", "total"):
            torch.testing.assert_close(getattr(other, name), getattr(whole, name), rtol=1e-10, atol=1e-6)


@given(**sizes, ridge=st.sampled_from([1e-3, 1.0, 100.0]), prox=strengths)
def test_optimality_residual_is_zero_at_the_solution_only(n, m, d, seed, ridge, prox):
    z, x, W, b, Q = problem(n, m, d, seed)
    stats = stats_of(z, x)
    if float(stats.cross.norm()) < 1e-9:
        return
    options = {"ridge": ridge, "prox": prox, "prior": Q}
    solution = solve_decoder(stats, **options, previous=(W, b))
    noise = 1e-9 * (1 + (ridge + prox) / float(stats.cross.norm()))
    assert optimality_residual(stats, solution, **options, previous=W) < noise
    moved = DecoderSolution(solution.W_dec + 1.0, solution.b_dec)
    assert optimality_residual(stats, moved, **options, previous=W) > 1e3 * noise


@given(**sizes, ridge=st.sampled_from([0.0, 1.0]))
def test_permuting_latents_permutes_the_rows(n, m, d, seed, ridge):
    z, x, _, _, Q = problem(n, m, d, seed)
    order = torch.randperm(m, generator=rng(seed))
    plain = solve_decoder(stats_of(z, x), ridge=ridge + 1e-3, prior=Q)
    permuted = solve_decoder(stats_of(z[:, order], x), ridge=ridge + 1e-3, prior=Q[order])
    torch.testing.assert_close(permuted.W_dec, plain.W_dec[order], rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(permuted.b_dec, plain.b_dec, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("ridge", [0.0, 1e-3, 10.0, math.inf])
def test_all_latents_dead(ridge):
    x = torch.randn(7, 3, generator=rng(), dtype=torch.float64)
    Q = torch.ones(4, 3, dtype=torch.float64)
    found = solve_decoder(stats_of(torch.zeros(7, 4, dtype=torch.float64), x), ridge=ridge, prior=Q)
    expected = torch.zeros_like(Q) if ridge == 0 else Q
    torch.testing.assert_close(found.W_dec, expected)
    torch.testing.assert_close(found.b_dec, x.mean(0))
