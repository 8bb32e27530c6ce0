"""Decoder solves for dictionaries whose Gram matrix does not fit: block conjugate gradients on streamed sparse codes.

`MatrixFreeStats` holds what `DecoderStats` holds, save that the Gram matrix is replaced by the k-sparse codes themselves, spooled
to a temporary file: memory is O(n_latents d_in) whatever the number of samples, a product with the Gram matrix is one pass over
the file. All columns of the decoder are solved for together, so each pass enlarges the search space by d_in directions.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from splinterp._checks import as_samples, at_least, whole
from splinterp._typing import ArrayLike, Float, Tensor
from splinterp.decoder._block_cg import block_cg
from splinterp.decoder._cg_curves import HeldOutCGCurve, ProbedCurve
from splinterp.decoder._matrix_free_stats import MatrixFreeStats
from splinterp.decoder._search import least
from splinterp.decoder.ridge import GCVResult, HeldOutResult

__all__ = ["CGSolution", "MatrixFreeStats", "gcv_ridge_cg", "held_out_ridge_cg", "solve_decoder_cg"]


class CGSolution(NamedTuple):
    """The minimiser and how it was reached: `residual` is |A W - C| / |C| (Frobenius) of the normal equations, recomputed."""

    W_dec: Float[Tensor, "n_latents d_in"]
    b_dec: Float[Tensor, " d_in"]
    residual: float
    iterations: int


@torch.no_grad()
def solve_decoder_cg(
    stats: MatrixFreeStats,
    *,
    ridge: float,
    prox: float = 0.0,
    previous: ArrayLike | None = None,
    prior: ArrayLike | None = None,
    start: ArrayLike | None = None,
    tolerance: float = 1e-4,
    max_iterations: int = 200,
) -> CGSolution:
    """The minimiser of `solve_decoder`'s objective (without terms on the bias), to a tolerance.

    Block conjugate gradients with orthonormalised residuals (O'Leary 1980; Dubrulle 2001, algorithm BCGrQ), scaled by the
    diagonal, restarted from the true residual until that is small enough. With ridge + prox = 0 the samples may not determine
    W: then it is the one nearest to `start` in the scaled coordinates, and latents that never fire keep their rows of `start`.

    Args:
        stats: codes' and samples' statistics.
        ridge: pull of W to `prior`, multiplying a sum over samples, finite.
        prox: pull of W to `previous`, likewise.
        previous, prior, start: (n_latents, d_in); `start` is where the iteration begins (None: the prior where ridge > 0, else 0).
        tolerance: of |A W - C| / |C|, with A and C of the normal equations.
        max_iterations: products with the Gram matrix at most, checks excluded.

    Raises:
        ValueError: empty statistics, a strength out of range, prox > 0 without `previous`, wrong shapes.
    """
    if stats.n_samples == 0:
        raise ValueError("the statistics are empty: call update(top_acts, x) first")
    for name, value in {"ridge": ridge, "prox": prox}.items():
        at_least(name, value, 0.0)
        if math.isinf(value):
            raise ValueError(f"{name}=inf needs no iteration: keep the prior or the previous decoder")
    at_least("tolerance", tolerance, 0.0, strict=True)
    whole("max_iterations", max_iterations, 1)
    if prox > 0 and previous is None:
        raise ValueError(f"prox={prox} pulls to the previous decoder: pass previous=W_dec")
    Q, before, first = (
        _as_rows(value, name, stats) for value, name in ((prior, "prior"), (previous, "previous"), (start, "start"))
    )
    right = stats.cross.clone()
    if Q is not None and ridge > 0:
        right.add_(Q, alpha=ridge)
    if before is not None and prox > 0:
        right.add_(before, alpha=prox)
    strength = ridge + prox
    W = first if first is not None else Q if Q is not None and ridge > 0 else torch.zeros_like(right)
    W, residual, iterations = block_cg(stats, right, strength, W.clone(), tolerance, max_iterations)
    b = stats.mean_x.to(W) - stats.mean_acts.to(W) @ W
    return CGSolution(W, b, residual, iterations)


@torch.no_grad()
def gcv_ridge_cg(
    stats: MatrixFreeStats,
    prior: ArrayLike | None = None,
    *,
    around: float | None = None,
    start: ArrayLike | None = None,
    n_probes: int = 16,
    tolerance: float = 1e-3,
    generator: torch.Generator | None = None,
) -> GCVResult:
    """`gcv_ridge` without the Gram matrix: its score at a few ridges, degrees of freedom by random probes (Hutchinson 1990).

    Looks at 10^-4 ... 10 times the mean positive eigenvalue (by factors of 10) and infinity; near an earlier choice, at it and
    four times less and more, moving while the best is at an end. The prior wins a tie up to rounding.

    Args:
        stats: the statistics.
        prior: Q, the mean the ridge pulls to (n_latents, d_in); None means 0.
        around: an earlier choice, finite and above 0.
        start: where the solves begin, (n_latents, d_in).
        n_probes: random sign vectors that estimate the trace.
        tolerance: of the solves.
        generator: CPU generator of the probes; None means a new one seeded with 0.

    Raises:
        ValueError: fewer than 2 samples, an option out of range, wrong shapes.
    """
    if stats.n_samples < 2:
        raise ValueError("generalised cross-validation needs at least 2 samples")
    whole("n_probes", n_probes, 1)
    curve = ProbedCurve(
        stats, _as_rows(prior, "prior", stats), _as_rows(start, "start", stats), tolerance, n_probes,
        generator or torch.Generator().manual_seed(0),
    )  # fmt: skip
    if curve.mean_eigenvalue == 0:
        return GCVResult(math.inf, 1.0, curve.at_infinity(), ())
    path = curve.search(around)
    ridge, score = least(path)
    return GCVResult(ridge, curve.df.get(ridge, 1.0), score, path)


@torch.no_grad()
def held_out_ridge_cg(
    stats: MatrixFreeStats,
    held_out: MatrixFreeStats,
    prior: ArrayLike | None = None,
    *,
    around: float | None = None,
    start: ArrayLike | None = None,
    tolerance: float = 1e-3,
) -> HeldOutResult:
    """`held_out_ridge` without the Gram matrix: the held-out error of the solutions at a few ridges, those of `gcv_ridge_cg`.

    Args:
        stats: of the training samples.
        held_out: of the held-out samples, same widths, dtype and device.
        prior: Q, the mean the ridge pulls to (n_latents, d_in); None means 0.
        around: an earlier choice, finite and above 0.
        start: where the solves begin, (n_latents, d_in).
        tolerance: of the solves.

    Raises:
        ValueError: empty statistics, of other widths, wrong shapes.
    """
    for found in (stats, held_out):
        if found.n_samples == 0:
            raise ValueError("the statistics are empty: call update(top_acts, x) first")
    if held_out.cross.shape != stats.cross.shape:
        raise ValueError(
            f"the held-out statistics have (n_latents, d_in) = {tuple(held_out.cross.shape)}, those of the training samples "
            f"{tuple(stats.cross.shape)}"
        )
    curve = HeldOutCGCurve(stats, held_out, _as_rows(prior, "prior", stats), _as_rows(start, "start", stats), tolerance)
    if curve.mean_eigenvalue == 0:
        return HeldOutResult(math.inf, curve.at_infinity(), ())
    path = curve.search(around)
    return HeldOutResult(*least(path), path)


def _as_rows(value: ArrayLike | None, name: str, stats: MatrixFreeStats) -> Tensor | None:
    if value is None:
        return None
    rows = as_samples(value, stats.d_in, dtype=stats.dtype, device=stats.device, name=name)
    if len(rows) != stats.n_latents:
        raise ValueError(f"{name} has {len(rows)} rows but n_latents={stats.n_latents}")
    return rows
