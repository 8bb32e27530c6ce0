"""Block conjugate gradients on the normal equations of streamed sparse codes."""

from __future__ import annotations

import math

import torch

from splinterp._typing import Tensor
from splinterp.decoder._matrix_free_stats import MatrixFreeStats
from splinterp.decoder.statistics import eigh


def block_cg(
    stats: MatrixFreeStats, right: Tensor, strength: float, W: Tensor, tolerance: float, max_iterations: int
) -> tuple[Tensor, float, int]:
    """Solve (A + strength I) W = right from W, to a tolerance of |error| / |right|: W, what was reached, and products with A."""
    diagonal = stats.diagonal + strength
    scale = torch.where(diagonal > 0, diagonal.clamp_min(torch.finfo(stats.dtype).tiny).rsqrt(), 0.0).to(stats.dtype)[:, None]
    size, floor = float(right.norm()), 100 * torch.finfo(stats.dtype).eps
    best, least, done = W, math.inf, 0
    while True:
        error = right - stats.gram_product(W) - strength * W
        found = float(error.norm()) / size if size else 0.0
        improved = found < 0.9 * least
        if found < least:
            best, least = W, found
        if least <= tolerance or done >= max_iterations or not improved:  # met, spent, or rounding has the last word
            return best, least, done
        reduction = max(0.3 * tolerance / found, floor)
        change, steps = sweep(stats, error * scale, strength, scale, reduction, max_iterations - done)
        W = W + scale * change
        done += steps


def sweep(
    stats: MatrixFreeStats, error: Tensor, strength: float, scale: Tensor, reduction: float, max_iterations: int
) -> tuple[Tensor, int]:
    """Solve the scaled system for `error` from 0 until the residual's norm is `reduction` of what it was."""
    target = reduction * float(error.norm())
    basis, coefficients = torch.linalg.qr(error)
    directions, change = basis, torch.zeros_like(error)
    steps = 0
    while steps < max_iterations:
        steps += 1
        image = scale * stats.gram_product(scale * directions) + strength * scale * scale * directions
        values, vectors, positive = eigh((directions.T @ image).double())
        inverse = ((vectors * torch.where(positive, 1 / torch.where(positive, values, 1.0), 0.0)) @ vectors.T).to(error)
        change += directions @ (inverse @ coefficients)
        basis, update = torch.linalg.qr(basis - image @ inverse)
        coefficients = update @ coefficients
        if float(coefficients.norm()) <= target:
            break
        directions = basis + directions @ update.T
    return change, steps
