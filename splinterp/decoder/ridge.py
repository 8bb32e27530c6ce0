"""Choosing the decoder's ridge: by generalised cross-validation, or on held-out samples."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch

from splinterp._checks import at_least, whole
from splinterp._typing import ArrayLike, Tensor
from splinterp.decoder.statistics import DecoderStats, as_rows, require_samples


class GCVResult(NamedTuple):
    """A ridge chosen by generalised cross-validation.

    `ridge` multiplies a sum over samples and may be `math.inf` (the prior alone); `df` counts the bias;
    `score` is GCV at the choice, mean squared error over samples (summed over d_in) over ((N - df) / N)^2;
    `path` holds the (ridge, score) pairs looked at, by increasing ridge.
    """

    ridge: float
    df: float
    score: float
    path: tuple[tuple[float, float], ...]


@torch.no_grad()
def gcv_ridge(
    stats: DecoderStats,
    prior: ArrayLike | None = None,
    *,
    prox: float = 0.0,
    previous: ArrayLike | None = None,
    inflation: float = 1.0,
    n_grid: int = 101,
) -> GCVResult:
    """Choose the ridge of `solve_decoder` by generalised cross-validation (Golub, Heath and Wahba 1979).

    One eigendecomposition of the centred Gram matrix serves every ridge: a logarithmic grid from 1e-6 to 1e4 times
    the mean positive eigenvalue, refined around its best point by a second grid, and infinity. Residuals are sums of
    squares per eigenvector, never differences, so the score is right for N <= n_latents too. Where only rounding could tell
    a score from the prior's, they count as equal, and the prior wins. Samples with several codes, or with weights, are counted
    once each.

    Args:
        stats: the statistics; float64 is advised.
        prior: Q, the mean the ridge pulls to (n_latents, d_in); None means 0.
        prox: strength of the pull to `previous` (n_latents, d_in) that the solve will have.
        inflation: factor on the degrees of freedom beyond the bias in the denominator, at least 1 (plain GCV). Above 1
            it guards against the optimism of GCV (Kim and Gu 2004 advise 1.4), which is larger here because the
            encoder was fitted to the same samples.
        n_grid: points of each of the two grids.

    Raises:
        ValueError: empty statistics, a single sample, prox > 0 without `previous`.

    >>> x = torch.randn(200, 4, generator=torch.Generator().manual_seed(0))
    >>> gcv_ridge(DecoderStats(4, 4).update(x, x)).ridge < 1e-3  # nothing to shrink: the codes are the samples
    True
    """
    require_samples(stats)
    at_least("prox", prox, 0.0)
    at_least("inflation", inflation, 1.0)
    whole("n_grid", n_grid, 3)
    if stats.n_distinct < 2:
        raise ValueError("generalised cross-validation needs at least 2 samples")
    if prox > 0 and previous is None:
        raise ValueError(f"prox={prox} pulls to the previous decoder: pass previous=W_dec")
    curve = _gcv_curve(stats, prior, prox, previous, inflation)
    path = _path(
        curve.score, curve.score_at_infinity(), curve.eig, n_grid, rounding_floor(stats.total, stats.n_samples, stats.dtype)
    )
    ridge, value = least(path)
    if len(path) == 1:
        return GCVResult(ridge, 1.0, value, ())
    df = 1.0 if math.isinf(ridge) else 1.0 + float((curve.eig / (curve.eig + ridge + prox)).sum())
    return GCVResult(ridge, df, value, path)


ROUNDING = 32.0
"""A mean squared error is known to so many eps of the sums it is made of."""


def rounding_floor(squares: Tensor | float, n_samples: float, dtype: torch.dtype) -> float:
    """How far two mean squared errors over `n_samples` may differ by rounding alone, as differences of sums of that size."""
    return ROUNDING * torch.finfo(dtype).eps * float(squares) / n_samples


def level(score: float, at_infinity: float, floor: float) -> float:
    """The score, or the prior's where rounding alone could tell them apart."""
    return at_infinity if abs(score - at_infinity) <= floor else score


def least(path: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """The (ridge, score) of least score; of equal ones that of the largest ridge, so the prior wins a tie."""
    return min(path, key=lambda point: (point[1], -point[0]))


def _path(
    score: Callable[[np.ndarray], np.ndarray], at_infinity: float, eig: np.ndarray, n_grid: int, floor: float
) -> tuple[tuple[float, float], ...]:
    """(ridge, score) by increasing ridge: a logarithmic grid, a second one around its best point, and infinity."""
    if len(eig) == 0:
        return ((math.inf, at_infinity),)
    grid = eig.mean() * np.logspace(-6, 4, n_grid)
    scores = score(grid)
    best = int(scores.argmin())
    fine = np.geomspace(grid[max(best - 1, 0)], grid[min(best + 1, n_grid - 1)], n_grid)
    grid, scores = np.concatenate([grid, fine]), np.concatenate([scores, score(fine)])
    order = np.argsort(grid, kind="stable")
    return (*((float(grid[i]), level(float(scores[i]), at_infinity, floor)) for i in order), (math.inf, at_infinity))


class _GCVCurve(NamedTuple):
    """rss(l) = rest + sum_i |l A_i + prox B_i|^2 / (e_i (e_i + l + prox)^2), A and B the gradients at prior and previous.

    `eig` holds the e_i above zero, `aa`, `ab`, `bb` the products |A_i|^2, <A_i, B_i>, |B_i|^2.
    """

    eig: np.ndarray
    aa: np.ndarray
    ab: np.ndarray
    bb: np.ndarray
    rest: float
    total: float  # of the samples' weights
    N: float  # samples, each counted once
    prox: float
    inflation: float

    def score(self, ridges: np.ndarray) -> np.ndarray:
        """GCV at finite ridges."""
        lam, prox = ridges[:, None], self.prox
        pulled = lam * lam * self.aa + 2 * lam * prox * self.ab + prox * prox * self.bb
        rss = self.rest + (pulled / (self.eig * (self.eig + lam + prox) ** 2)).sum(1)
        with np.errstate(divide="ignore"):
            return rss / self.total / self._slack(lam + prox) ** 2

    def score_at_infinity(self) -> float:
        """GCV of the prior alone."""
        return (self.rest + float((self.aa / self.eig).sum())) / self.total / (1 - 1 / self.N) ** 2

    def _slack(self, strength: np.ndarray) -> np.ndarray:
        """(N - 1 - inflation * (df - 1)) / N; at inflation 1 a sum of positive terms, so it does not cancel at rank N - 1.

        Where inflation exhausts the samples it is 0, and the score infinite.
        """
        slack = np.maximum(0.0, self.N - 1 - len(self.eig) + (strength / (self.eig + strength)).sum(1))
        if self.inflation > 1:
            slack = np.maximum(0.0, slack - (self.inflation - 1) * (self.eig / (self.eig + strength)).sum(1))
        return slack / self.N


def _gcv_curve(
    stats: DecoderStats, prior: ArrayLike | None, prox: float, previous: ArrayLike | None, inflation: float
) -> _GCVCurve:
    values, vectors, positive = stats.spectrum()
    e = values[positive]
    P = (vectors.T @ stats.cross)[positive]

    def gradient_at(W: ArrayLike, name: str) -> Tensor:
        return P - e[:, None] * (vectors.T @ as_rows(W, name, stats))[positive]

    A = P if prior is None else gradient_at(prior, "prior")
    B = gradient_at(previous, "previous") if prox > 0 and previous is not None else torch.zeros_like(P)
    explained = float((P.square().sum(1) / e).sum())
    interpolated = stats.n_samples == stats.n_distinct and len(e) >= stats.n_samples - 1
    rest = 0.0 if interpolated else max(0.0, float(stats.total) - explained)
    eig, aa, ab, bb = (t.double().cpu().numpy() for t in (e, (A * A).sum(1), (A * B).sum(1), (B * B).sum(1)))
    return _GCVCurve(eig, aa, ab, bb, rest, stats.n_samples, stats.n_distinct, prox, inflation)


class HeldOutResult(NamedTuple):
    """A ridge chosen on held-out samples.

    `ridge` multiplies a sum over the training samples and may be `math.inf` (the prior alone); `score` is the held-out mean squared
    error at the choice (summed over d_in); `path` holds the (ridge, score) pairs looked at, by increasing ridge.
    """

    ridge: float
    score: float
    path: tuple[tuple[float, float], ...]


@torch.no_grad()
def held_out_ridge(
    stats: DecoderStats, held_out: DecoderStats, prior: ArrayLike | None = None, *, n_grid: int = 101
) -> HeldOutResult:
    """Choose the ridge of `solve_decoder` by the error of its solution (weights and bias) on held-out samples.

    GCV takes the codes as given, though the encoder was fitted to the same samples, and so trusts the decoder's solution too much.
    Held-out samples that the encoder has not seen do not. Ridges are those that `gcv_ridge` looks at, and each costs n_latents^2
    after one eigendecomposition: the error is a quadratic form in the filter factors. The prior wins a tie up to rounding.

    Args:
        stats: of the training samples; float64 is advised.
        held_out: of the held-out samples, same widths, dtype and device.
        prior: Q, the mean the ridge pulls to (n_latents, d_in); None means 0.
        n_grid: points of each of the two grids.

    Raises:
        ValueError: empty statistics, or of other widths.
    """
    require_samples(stats)
    require_samples(held_out)
    whole("n_grid", n_grid, 3)
    if (held_out.n_latents, held_out.d_in) != (stats.n_latents, stats.d_in):
        raise ValueError(
            f"the held-out statistics have (n_latents, d_in) = {(held_out.n_latents, held_out.d_in)}, those of the training samples "
            f"{(stats.n_latents, stats.d_in)}"
        )
    n = held_out.n_samples
    step_acts, step_x = held_out.mean_acts - stats.mean_acts, held_out.mean_x - stats.mean_x
    gram = held_out.gram.addr(step_acts, step_acts, alpha=n)  # about the training means, which the bias is exact at
    cross = held_out.cross.addr(step_acts, step_x, alpha=n)
    total = held_out.total + n * step_x.square().sum()
    start = torch.zeros_like(stats.cross) if prior is None else as_rows(prior, "prior", stats)
    values, vectors, positive = stats.spectrum()
    e, basis = values[positive], vectors[:, positive]
    # W = Q + basis @ diag(1 / (e + ridge)) @ A, so the error is constant + 2 h . f + f . H f in f = 1 / (e + ridge)
    A = basis.T @ stats.cross - e[:, None] * (basis.T @ start)
    moved = gram @ start - cross
    constant = float(total + ((moved - cross) * start).sum())
    floor = rounding_floor(total + ((moved - cross) * start).abs().sum(), n, stats.dtype)
    H = ((basis.T @ gram @ basis) * (A @ A.T)).double().cpu().numpy()
    h = ((basis.T @ moved) * A).sum(1).double().cpu().numpy()
    eig = e.double().cpu().numpy()

    def score(ridges: np.ndarray) -> np.ndarray:
        filters = 1 / (eig + ridges[:, None])
        return (constant + 2 * filters @ h + ((filters @ H) * filters).sum(1)) / n

    path = _path(score, constant / n, eig, n_grid, floor)
    ridge, value = least(path)
    return HeldOutResult(ridge, value, path)
