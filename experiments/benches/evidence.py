"""Ridges by the evidence, one for all latents or one for each: what the readouts are compared with.

Model: a latent's row departs from the prior's by N(0, tau_i^2 I), and x = z W + N(0, sigma^2 I). Expectation maximisation after
Tew et al., arXiv 2310.18860, and MacKay 1992, with sums over samples that are centred, so that b_dec is free.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from splinterp.decoder import DecoderStats

SMALLEST = 1e-12
"""Of the largest tau^2: below it a latent's row stays at the prior's."""


class Evidence(NamedTuple):
    """Rows W (n_latents, d_in), the ridge sigma^2 / tau_i^2 of each latent that they are solved with, and the log evidence at each step."""

    W_dec: torch.Tensor
    ridges: torch.Tensor
    log_evidence: list[float]


def by_evidence(
    stats: DecoderStats, prior: torch.Tensor, ridge: float, each: bool, most: int = 200, enough: float = 1e-6
) -> Evidence:
    """Ridges from `ridge` on, in sums over samples; `each`: one for every latent. At most so many steps, and none after one that raises
    the log evidence by less than `enough` of it."""
    n, d, n_latents = stats.n_samples, stats.d_in, stats.n_latents
    A, P = stats.gram.double(), prior.double()
    C = stats.cross.double() - A @ P
    left = float(stats.total) - float((P * (stats.cross.double() + C)).sum())  # |x - z P|^2, centred
    ridges = torch.full((n_latents,), float(ridge), dtype=torch.float64)
    sigma2, found = left / (n * d), []
    for step in range(most + 1):
        lower = torch.linalg.cholesky(A + ridges.diag())
        rows = torch.cholesky_solve(C, lower)
        diagonal = torch.linalg.solve_triangular(lower, torch.eye(n_latents, dtype=torch.float64), upper=False).square().sum(0)
        logdet = 2 * float(lower.diagonal().log().sum()) - float(ridges.log().sum())
        found.append(-0.5 * (n * d * math.log(2 * math.pi * sigma2) + d * logdet + (left - float((rows * C).sum())) / sigma2))
        if step == most or (step and found[-1] - found[-2] < enough * abs(found[-1])):
            break
        tau2 = (rows.square().sum(1) + d * sigma2 * diagonal) / d
        tau2 = tau2.clamp_min(SMALLEST * float(tau2.max())) if each else tau2.mean().expand(n_latents)
        error = left - 2 * float((rows * C).sum()) + float((rows * (A @ rows)).sum())
        freedom = n_latents - float((ridges * diagonal).sum())  # tr(A (A + L)^-1)
        sigma2 = (error + d * sigma2 * freedom) / (n * d)
        ridges = sigma2 / tau2
    return Evidence(P + rows, ridges, found)
