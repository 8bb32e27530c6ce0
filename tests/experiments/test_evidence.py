"""Ridges by the evidence: it never falls, is that of the model, and one ridge for all reproduces the ridge solution."""

from __future__ import annotations

import pytest
import torch

from experiments.benches.evidence import by_evidence
from splinterp.decoder import DecoderStats, solve_decoder
from tests.helpers import rng


def problem(n, m, d, seed=0, noise=0.3):
    g = rng(seed)
    Z = torch.randn(n, m, generator=g, dtype=torch.float64).relu()
    P = torch.randn(m, d, generator=g, dtype=torch.float64)
    W = P + torch.linspace(0, 1, m, dtype=torch.float64)[:, None] * torch.randn(m, d, generator=g, dtype=torch.float64)
    X = Z @ W + noise * torch.randn(n, d, generator=g, dtype=torch.float64)
    return Z, X, P, DecoderStats(m, d).update(Z, X)


@pytest.mark.parametrize("each", [False, True])
@pytest.mark.parametrize(("n", "m", "d"), [(60, 8, 5), (12, 20, 4), (200, 3, 1)])
def test_the_evidence_never_falls_and_the_rows_are_the_ridges(n, m, d, each):
    *_, P, stats = problem(n, m, d)
    found = by_evidence(stats, P, 1.0, each, most=15)
    steps = torch.tensor(found.log_evidence).diff()
    assert bool((steps >= -1e-8 * abs(found.log_evidence[-1])).all())
    assert bool((found.ridges == found.ridges[0]).all()) != each
    start = by_evidence(stats, P, 1.0, each, most=0)
    torch.testing.assert_close(start.W_dec, solve_decoder(stats, ridge=1.0, prior=P).W_dec)


def test_it_is_the_density_of_the_samples():
    Z, X, P, stats = problem(9, 4, 3)
    start = by_evidence(stats, P, 2.0, True, most=0)
    z, x = Z - Z.mean(0), X - X.mean(0)
    residual = x - z @ P
    sigma2 = float(residual.square().mean())
    cov = sigma2 * torch.eye(9, dtype=torch.float64) + (sigma2 / 2.0) * z @ z.T
    expected = sum(
        float(torch.distributions.MultivariateNormal(torch.zeros(9, dtype=torch.float64), cov).log_prob(residual[:, j]))
        for j in range(3)
    )
    assert start.log_evidence[0] == pytest.approx(expected)


def test_each_latents_own_ridge_tells_those_that_depart_from_the_prior():
    *_, P, stats = problem(400, 10, 30)
    found = by_evidence(stats, P, 1.0, True, most=2_000, enough=1e-9)
    truth = 0.3**2 / torch.linspace(0, 1, 10, dtype=torch.float64) ** 2  # sigma^2 / tau^2, infinite for the first
    assert float((found.ridges[1:] / truth[1:]).log().abs().max()) < 0.7
    assert found.ridges[0] > 3 * found.ridges[1]


@pytest.mark.parametrize("each", [False, True])
def test_where_it_starts_does_not_matter(each):
    *_, P, stats = problem(100, 12, 6, seed=3)
    low, high = (by_evidence(stats, P, ridge, each, most=5_000, enough=1e-10) for ridge in (0.1, 100.0))
    torch.testing.assert_close(low.W_dec, high.W_dec, rtol=1e-2, atol=1e-2)
    assert low.log_evidence[-1] == pytest.approx(high.log_evidence[-1], rel=1e-5)
    torch.testing.assert_close(low.W_dec, by_evidence(stats, P, 1.0, each, most=0).W_dec, rtol=1, atol=1)
    rows = torch.linalg.solve(stats.gram + low.ridges.diag(), stats.cross - stats.gram @ P) + P
    torch.testing.assert_close(low.W_dec, rows)  # the ridges are those of the rows
