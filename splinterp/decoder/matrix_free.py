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
from splinterp.decoder._matrix_free_stats import MatrixFreeStats
from splinterp.decoder._search import least, level, rounding_floor
from splinterp.decoder.ridge import GCVResult
from splinterp.decoder.statistics import eigh

__all__ = ["CGSolution", "MatrixFreeStats", "gcv_ridge_cg", "solve_decoder_cg"]


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
    W, residual, iterations = _block_cg(stats, right, strength, W.clone(), tolerance, max_iterations)
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
    Q = _as_rows(prior, "prior", stats)
    curve = _ProbedCurve(
        stats, Q, n_probes, tolerance, generator or torch.Generator().manual_seed(0), _as_rows(start, "start", stats)
    )
    if curve.mean_eigenvalue == 0:
        return GCVResult(math.inf, 1.0, curve.score_at_infinity(), ())
    if around is not None and 0 < around < math.inf:
        grid = [around / 4, around, 4 * around]
    else:
        grid = [curve.mean_eigenvalue * 10.0**power for power in range(1, -5, -1)]
    for ridge in grid:
        curve.look(ridge)
    while (
        around is not None
        and len(curve.scores) < 12
        and (best := min(curve.scores, key=curve.scores.__getitem__)) in (low := min(curve.scores), max(curve.scores))
    ):
        curve.look(best / 4 if best == low else best * 4)
    at_infinity, floor = curve.score_at_infinity(), rounding_floor(stats.total, stats.n_samples, stats.dtype)
    path = (*((r, level(s, at_infinity, floor)) for r, s in sorted(curve.scores.items())), (math.inf, at_infinity))
    ridge, score = least(path)
    return GCVResult(ridge, curve.df.get(ridge, 1.0), score, path)


class _ProbedCurve:
    """The GCV score at single ridges."""

    def __init__(
        self,
        stats: MatrixFreeStats,
        Q: Tensor | None,
        n_probes: int,
        tolerance: float,
        g: torch.Generator,
        start: Tensor | None,
    ) -> None:
        self.stats, self.Q, self.tolerance = stats, Q, tolerance
        diagonal = stats.diagonal
        rank = min(stats.n_samples - 1, int((diagonal > 0).sum()))
        self.mean_eigenvalue = float(diagonal.sum()) / rank if rank else 0.0
        self.probes = torch.randint(0, 2, (stats.n_latents, n_probes), generator=g).to(stats.cross) * 2 - 1
        self.images = stats.gram_product(self.probes)
        first = torch.zeros_like(stats.cross) if start is None else start
        self.guess = torch.cat([first, torch.zeros_like(self.probes)], dim=1)
        self.scores: dict[float, float] = {}
        self.df: dict[float, float] = {}

    def look(self, ridge: float) -> None:
        """Score one ridge, from the solution of the last one."""
        stats, N = self.stats, self.stats.n_samples
        right = stats.cross if self.Q is None else stats.cross + ridge * self.Q
        both = torch.cat([right, self.images], dim=1)
        self.guess, _, _ = _block_cg(stats, both, ridge, self.guess, self.tolerance, 100)
        W, probed = self.guess.split([stats.d_in, self.probes.shape[1]], dim=1)
        image = stats.gram_product(W)
        rss = max(0.0, stats.total + float(((image - 2 * stats.cross).double() * W).sum()))
        self.df[ridge] = 1 + float((probed * self.probes).sum(0, dtype=torch.float64).mean())
        slack = (N - self.df[ridge]) / N
        self.scores[ridge] = rss / N / slack**2 if slack > 0 else math.inf

    def score_at_infinity(self) -> float:
        """GCV of the prior alone."""
        stats, N, rss = self.stats, self.stats.n_samples, self.stats.total
        if self.Q is not None:
            rss += float(((stats.gram_product(self.Q) - 2 * stats.cross).double() * self.Q).sum())
        return rss / N / (1 - 1 / N) ** 2


def _as_rows(value: ArrayLike | None, name: str, stats: MatrixFreeStats) -> Tensor | None:
    if value is None:
        return None
    rows = as_samples(value, stats.d_in, dtype=stats.dtype, device=stats.device, name=name)
    if len(rows) != stats.n_latents:
        raise ValueError(f"{name} has {len(rows)} rows but n_latents={stats.n_latents}")
    return rows


def _block_cg(
    stats: MatrixFreeStats, right: Tensor, strength: float, W: Tensor, tolerance: float, max_iterations: int
) -> tuple[Tensor, float, int]:
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
        change, steps = _sweep(stats, error * scale, strength, scale, reduction, max_iterations - done)
        W = W + scale * change
        done += steps


def _sweep(
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
