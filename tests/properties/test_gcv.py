"""The GCV score equals its definition by the explicit hat matrix, also where N <= n_latents."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from splinterp.activations import TopActs
from splinterp.decoder import DecoderStats, gcv_ridge, held_out_ridge, solve_decoder
from splinterp.decoder.matrix_free import MatrixFreeStats, gcv_ridge_cg
from tests.helpers import rng, sparse_codes, stats_of

sizes = {"n": st.integers(3, 30), "m": st.integers(1, 40), "d": st.integers(1, 5), "seed": st.integers(0, 10**6)}


def explicit_score(z, x, ridge, Q, prox=0.0, W=None, inflation=1.0):
    """GCV with the hat matrix of the model with an unpenalised bias, residuals of the actual solution."""
    n = len(z)
    centred = z - z.mean(0)
    if math.isinf(ridge):
        hat = np.zeros((n, n))
        solution = Q
    else:
        inverse = np.linalg.inv(centred.T @ centred + (ridge + prox) * np.eye(z.shape[1]))
        hat = centred @ inverse @ centred.T
        right = centred.T @ (x - x.mean(0)) + ridge * Q
        if prox:
            right = right + prox * W
        solution = inverse @ right
    residual = (x - x.mean(0)) - centred @ solution
    slack = n - 1 - inflation * np.trace(hat)
    return (residual**2).sum() / n / (slack / n) ** 2, 1 + np.trace(hat)


def draw(n, m, d, seed):
    g = rng(seed)
    z = sparse_codes(n, m, int(torch.randint(1, min(m, 8) + 1, (), generator=g)), seed)
    truth = torch.randn(m, d, generator=g, dtype=torch.float64)
    x = 3 + z @ truth + 0.5 * torch.randn(n, d, generator=g, dtype=torch.float64)
    return z, x, torch.randn(m, d, generator=g, dtype=torch.float64), torch.randn(m, d, generator=g, dtype=torch.float64)


@given(**sizes, with_prior=st.booleans(), prox=st.sampled_from([0.0, 0.0, 0.3, 10.0]))
def test_score_equals_its_definition(n, m, d, seed, with_prior, prox):
    z, x, Q, W = draw(n, m, d, seed)
    stats = stats_of(z, x)
    found = gcv_ridge(stats, Q if with_prior else None, prox=prox, previous=W, n_grid=21)
    Qn = Q.numpy() if with_prior else np.zeros((m, d))
    eig = np.linalg.eigvalsh(((z - z.mean(0)).T @ (z - z.mean(0))).numpy())
    for ridge, score in found.path:
        # the explicit inverse is accurate only for well-conditioned systems
        if math.isinf(ridge) or (ridge + prox) > 1e-5 * eig[-1]:
            expected, _ = explicit_score(z.numpy(), x.numpy(), ridge, Qn, prox, W.numpy())
            assert score == pytest.approx(expected, rel=1e-5)
    if math.isinf(found.ridge) or (found.ridge + prox) > 1e-5 * eig[-1]:
        expected, df = explicit_score(z.numpy(), x.numpy(), found.ridge, Qn, prox, W.numpy())
        assert found.score == pytest.approx(expected, rel=1e-5)
        assert found.df == pytest.approx(df, rel=1e-6)
    assert found.score == min(score for _, score in found.path)


def score_by_svd(z, x, Q, ridge):
    """The same score from the singular value decomposition of the codes, accurate for any ridge and any N."""
    n = len(z)
    U, s, _ = np.linalg.svd(z - z.mean(0), full_matrices=False)
    keep = s > 1e-6 * s[0]
    U, s = U[:, keep], s[keep]
    target = (x - x.mean(0)) - (z - z.mean(0)) @ Q
    along = U.T @ target
    rest = 0.0 if keep.sum() == n - 1 else ((target - U @ along) ** 2).sum()
    shrink = ridge / (s**2 + ridge)
    slack = (n - 1 - len(s)) + shrink.sum()
    return ((shrink[:, None] * along) ** 2).sum() / n / (slack / n) ** 2 + rest / n / (slack / n) ** 2


@given(**sizes)
def test_small_ridges_do_not_cancel(n, m, d, seed):
    """Down to 1e-6 of the mean eigenvalue, also where the codes interpolate the samples (N <= n_latents)."""
    z, x, Q, _ = draw(n, m, d, seed)
    stats = stats_of(z, x)
    eig = stats.spectrum().values
    if float(eig.max()) == 0 or float(eig[stats.spectrum().positive].min()) < 1e-7 * float(eig.max()):
        return
    found = gcv_ridge(stats, Q, n_grid=21)
    for ridge, score in found.path[:-1]:
        assert score == pytest.approx(score_by_svd(z.numpy(), x.numpy(), Q.numpy(), ridge), rel=1e-3, abs=1e-12)


def test_noise_alone_is_not_fitted_where_the_codes_could_interpolate_it():
    for seed in range(5):
        z = torch.rand(60, 90, generator=rng(seed), dtype=torch.float64)
        x = torch.randn(60, 40, generator=rng(seed + 100), dtype=torch.float64)
        found = gcv_ridge(stats_of(z, x))
        assert found.df < 15
        assert found.ridge > 1e-2 * float(stats_of(z, x).spectrum().values.mean())


@given(**sizes, inflation=st.sampled_from([1.4, 3.0]))
def test_inflation_never_lowers_the_ridge(n, m, d, seed, inflation):
    z, x, Q, _ = draw(n, m, d, seed)
    stats = stats_of(z, x)
    plain, inflated = gcv_ridge(stats, Q, n_grid=21), gcv_ridge(stats, Q, inflation=inflation, n_grid=21)
    assert inflated.ridge >= plain.ridge * (1 - 1e-9)


def test_recovers_the_oracle_ridge_to_a_factor():
    """On a linear model the chosen ridge's true risk is close to the best risk over the path."""
    g = rng(3)
    z = sparse_codes(150, 60, 8, 3)
    truth = 0.5 * torch.randn(60, 20, generator=g, dtype=torch.float64)
    x = z @ truth + torch.randn(150, 20, generator=g, dtype=torch.float64)
    stats = stats_of(z, x)
    found = gcv_ridge(stats)

    def risk(ridge: float) -> float:
        W, b = solve_decoder(stats, ridge=ridge)
        return float((z @ (W - truth) + b).square().mean())

    assert risk(found.ridge) < 1.1 * min(risk(ridge) for ridge, _ in found.path)


def test_infinity_is_chosen_when_the_prior_is_the_truth():
    z = sparse_codes(40, 30, 5, 1)
    Q = torch.randn(30, 6, generator=rng(2), dtype=torch.float64)
    noise = torch.randn(40, 6, generator=rng(3), dtype=torch.float64)
    found = gcv_ridge(stats_of(z, z @ Q + noise), Q)
    assert found.df < 5


@given(**sizes, scale=st.sampled_from([1e-6, 1.0, 1e6]), dtype=st.sampled_from([torch.float64, torch.float32]))
def test_rounding_does_not_beat_a_prior_that_is_exactly_right(n, m, d, seed, scale, dtype):
    """With the prior the truth every score is rounding, which differs with the machine: infinity it is, by every rule."""
    k = min(m, 5)
    z, z_out = (sparse_codes(n, m, k, s).to(dtype) for s in (seed, seed + 1))
    Q = scale * torch.randn(m, d, generator=rng(seed), dtype=dtype)
    stats, held_out = stats_of(z, z @ Q + scale, dtype), stats_of(z_out, z_out @ Q + scale, dtype)
    for found in (gcv_ridge(stats, Q, n_grid=21), held_out_ridge(stats, held_out, Q, n_grid=21)):
        assert math.isinf(found.ridge)
        assert found.score <= 1e3 * torch.finfo(dtype).eps * scale**2
    free = MatrixFreeStats(m, d, dtype=dtype)
    top = z.topk(k, dim=1)
    free.update(TopActs(top.values, top.indices), z @ Q + scale)
    assert math.isinf(gcv_ridge_cg(free, Q, n_probes=4).ridge)
    # and a prior that is off by more than rounding loses where there is no noise and no interpolation
    if n > m + 2 and int(stats.spectrum().positive.sum()) and dtype == torch.float64:
        assert not math.isinf(gcv_ridge(stats, 1.01 * Q, n_grid=21).ridge)


@given(**sizes, with_prior=st.booleans(), n_held_out=st.integers(1, 20))
def test_held_out_score_is_the_error_of_the_solve(n, m, d, seed, with_prior, n_held_out):
    z, x, Q, _ = draw(n, m, d, seed)
    z_out, x_out, _, _ = draw(n_held_out, m, d, seed + 1)
    stats, prior = stats_of(z, x), Q if with_prior else None
    found = held_out_ridge(stats, stats_of(z_out, x_out), prior, n_grid=11)
    assert found.score == min(score for _, score in found.path)
    assert found.ridge in {ridge for ridge, _ in found.path}
    largest = float(stats.spectrum().values.max())
    for ridge, score in found.path:
        if ridge > 1e-6 * largest:
            solution = solve_decoder(stats, ridge=ridge, prior=Q if with_prior else torch.zeros_like(Q))
            error = (x_out - z_out @ solution.W_dec - solution.b_dec).square().sum() / n_held_out
            assert score == pytest.approx(float(error), rel=1e-6, abs=1e-9)


def test_held_out_ridge_refuses_what_does_not_fit():
    z, x, _, _ = draw(10, 6, 3, 0)
    stats = stats_of(z, x)
    with pytest.raises(ValueError, match="statistics are empty"):
        held_out_ridge(stats, DecoderStats(6, 3))
    with pytest.raises(ValueError, match=r"the held-out statistics have \(n_latents, d_in\) = \(5, 3\)"):
        held_out_ridge(stats, stats_of(z[:, :5], x))
    dead = stats_of(torch.zeros(10, 6, dtype=torch.float64), x)
    assert held_out_ridge(dead, stats).ridge == math.inf
