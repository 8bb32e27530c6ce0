"""Choosing the decoder's ridge: by generalised cross-validation, or on held-out samples."""

from __future__ import annotations

import math
from typing import NamedTuple, TypeVar

import torch

from splinterp._checks import at_least, one_of, whole
from splinterp._typing import ArrayLike, Float, Tensor
from splinterp.decoder._factored import Curve, GCVCurve, HeldOutCurve
from splinterp.decoder._search import DoubtError, least, level, rounding_floor
from splinterp.decoder._spectral import Path, full_path, gcv_spectrum, held_out_path
from splinterp.decoder.exact import DecoderSolution, solve_decoder
from splinterp.decoder.statistics import DecoderStats, as_rows, require_samples

SEARCHES = ("auto", "full", "factors")
"""How the ridges to look at are found."""
N_GRID = 101
"""Points of each of the two grids of a full search."""
NEAR = 1.1
"""Samples for each latent that fires, up to which the full search is taken: scores at small ridges are 0 / 0 up to 1."""
SMALL = 128
"""Latents up to which "auto" takes the eigendecomposition: it is as fast there."""


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


class HeldOutResult(NamedTuple):
    """A ridge chosen on held-out samples.

    `ridge` multiplies a sum over the training samples and may be `math.inf` (the prior alone); `score` is the held-out mean squared
    error at the choice (summed over d_in); `path` holds the (ridge, score) pairs looked at, by increasing ridge.
    """

    ridge: float
    score: float
    path: tuple[tuple[float, float], ...]


class HeldOutSums(NamedTuple):
    """Sums over held-out samples about the training means, at which the bias of a solve is exact."""

    gram: Float[Tensor, "n_latents n_latents"]
    cross: Float[Tensor, "n_latents d_in"]
    total: Tensor
    n: float

    @classmethod
    def of(cls, stats: DecoderStats, held_out: DecoderStats) -> HeldOutSums:
        """Those of `held_out` about the means of `stats`. Raises ValueError: empty statistics, or of other widths."""
        require_samples(stats)
        require_samples(held_out)
        if (held_out.n_latents, held_out.d_in) != (stats.n_latents, stats.d_in):
            raise ValueError(
                f"the held-out statistics have (n_latents, d_in) = {(held_out.n_latents, held_out.d_in)}, those of the training "
                f"samples {(stats.n_latents, stats.d_in)}"
            )
        n = held_out.n_samples
        step_acts, step_x = held_out.mean_acts - stats.mean_acts, held_out.mean_x - stats.mean_x
        return cls(
            held_out.gram.addr(step_acts, step_acts, alpha=n),
            held_out.cross.addr(step_acts, step_x, alpha=n),
            held_out.total + n * step_x.square().sum(),
            n,
        )

    def error(self, W: Float[Tensor, "n_latents d_in"]) -> float:
        """The mean squared error (summed over d_in) of a decoder whose bias is exact at the training means."""
        return float(squares_left(self, W) / self.n)


def usable_ridge(chosen: GCVResult | HeldOutResult, prior: Tensor | None) -> float:
    """The chosen ridge; without a prior the largest finite one looked at in place of infinity, since W_dec = 0 would stop the
    encoder for good."""
    if prior is not None or math.isfinite(chosen.ridge):
        return chosen.ridge
    return chosen.path[-2][0] if len(chosen.path) > 1 else 0.0


def squares_left(sums: DecoderStats | HeldOutSums, W: Float[Tensor, "n_latents d_in"]) -> Tensor:
    """The sum of squares of x - z W, both about the means that the sums are about."""
    return sums.total + ((sums.gram @ W - 2 * sums.cross) * W).sum()


Result = TypeVar("Result", GCVResult, HeldOutResult)


@torch.no_grad()
def gcv_ridge(
    stats: DecoderStats,
    prior: ArrayLike | None = None,
    *,
    prox: float = 0.0,
    previous: ArrayLike | None = None,
    inflation: float = 1.0,
    around: float | None = None,
    search: str = "auto",
    n_grid: int = N_GRID,
) -> GCVResult:
    """Choose the ridge of `solve_decoder` by generalised cross-validation (Golub, Heath and Wahba 1979).

    search="full" looks at a logarithmic grid from 1e-6 to 1e4 times the mean positive eigenvalue, refined around its best point by a
    second grid, and at infinity, all by one eigendecomposition of the centred Gram matrix. Residuals are sums of squares per
    eigenvector, never differences, so the score is right for N <= n_latents too.

    search="factors" goes from `around` downhill, with one Cholesky factor a ridge, of which there are one to three. Squared errors
    are exact; their derivatives and the degrees of freedom are estimated by 64 random vectors, the same ones in every call (exact for
    small problems). It finds a local minimum, or infinity, and a score that is about 3e-4 above it. On 50 problems of real codes
    the score of its choice was within 1e-3 of the full search's (`python -m experiments bench ridge`). Where factors cannot tell,
    it takes the full search all the same: for N at most 1.1 times the number of latents that fire, where scores at small ridges are
    (nearly) 0 / 0; where the estimate's error is not small beside N - df; or where hardly anything is left of the squares.

    search="auto" takes factors, but the full search for at most 128 latents, with prox, and where the eigendecomposition is known.

    Where only rounding could tell a score from the prior's, they count as equal, and the prior wins. Samples with several codes, or
    with weights, are counted once each.

    Args:
        stats: the statistics; float64 is advised.
        prior: Q, the mean the ridge pulls to (n_latents, d_in); None means 0.
        prox: strength of the pull to `previous` (n_latents, d_in) that the solve will have.
        inflation: factor on the degrees of freedom beyond the bias in the denominator, at least 1 (plain GCV). Above 1
            it guards against the optimism of GCV (Kim and Gu 2004 advise 1.4), which is larger here because the
            encoder was fitted to the same samples.
        around: an earlier choice, at which factors begin; None: a fifth of the mean eigenvalue, less for many samples a latent.
        search: "auto", "full" or "factors".
        n_grid: points of each of the two grids of the full search.

    Raises:
        ValueError: empty statistics, a single sample, prox > 0 without `previous`, or with search="factors".

    Examples:
        >>> x = torch.randn(200, 4, generator=torch.Generator().manual_seed(0))
        >>> gcv_ridge(DecoderStats(4, 4).update(x, x)).ridge < 1e-3  # nothing to shrink: the codes are the samples
        True
    """
    return _gcv(stats, prior, prox, previous, inflation, around, search, n_grid)[0]


@torch.no_grad()
def solve_by_gcv(
    stats: DecoderStats, prior: ArrayLike | None = None, *, inflation: float = 1.0, around: float | None = None
) -> tuple[DecoderSolution, GCVResult]:
    """`gcv_ridge` and `solve_decoder` at its choice in one: what the search has solved for is not solved for again.

    Arguments and errors as of `gcv_ridge`.
    """
    return _solved(stats, prior, *_gcv(stats, prior, 0.0, None, inflation, around))


@torch.no_grad()
def held_out_ridge(
    stats: DecoderStats,
    held_out: DecoderStats,
    prior: ArrayLike | None = None,
    *,
    around: float | None = None,
    search: str = "auto",
    n_grid: int = N_GRID,
) -> HeldOutResult:
    """Choose the ridge of `solve_decoder` by the error of its solution (weights and bias) on held-out samples.

    GCV takes the codes as given, though the encoder was fitted to the same samples, and so trusts the decoder's solution too much.
    Held-out samples that the encoder has not seen do not. The error is a quadratic form in the solution, exact at every ridge looked
    at. Those are found as `gcv_ridge` finds them, by factors or by a full search; the prior is always one, so the choice is
    never worse than the prior. The prior wins a tie up to rounding.

    Args:
        stats: of the training samples; float64 is advised.
        held_out: of the held-out samples, same widths, dtype and device.
        prior: Q, the mean the ridge pulls to (n_latents, d_in); None means 0.
        around: an earlier choice, at which factors begin.
        search: "auto", "full" or "factors".
        n_grid: points of each of the two grids of the full search.

    Raises:
        ValueError: empty statistics, or of other widths.
    """
    return _held_out(stats, HeldOutSums.of(stats, held_out), prior, around, search, n_grid)[0]


@torch.no_grad()
def solve_by_held_out(
    stats: DecoderStats, held_out: DecoderStats, prior: ArrayLike | None = None, *, around: float | None = None
) -> tuple[DecoderSolution, HeldOutResult]:
    """`held_out_ridge` and `solve_decoder` at its choice in one. Arguments and errors as of `held_out_ridge`."""
    return _solved(stats, prior, *_held_out(stats, HeldOutSums.of(stats, held_out), prior, around))


def _check_search(search: str, n_grid: int, around: float | None) -> None:
    one_of("search", search, SEARCHES)
    whole("n_grid", n_grid, 3)
    if around is not None and not around >= 0:
        raise ValueError(f"around={around} must be at least 0")


def _takes_factors(stats: DecoderStats, search: str) -> bool:
    """Whether to try factors: where they are asked for, or pay. Statistics of codes that never move have nothing to factor."""
    live = int((stats.gram.diagonal() > 0).sum())
    if search == "full" or live == 0 or stats.n_distinct <= NEAR * live:
        return False
    return search == "factors" or (stats.n_latents > SMALL and stats._spectrum is None)


def _solved(stats: DecoderStats, prior: ArrayLike | None, chosen: Result, W: Tensor | None) -> tuple[DecoderSolution, Result]:
    """The solution at a choice, by its rows where they are known."""
    if W is None:
        return solve_decoder(stats, ridge=chosen.ridge, prior=prior), chosen
    return DecoderSolution(W.contiguous(), stats.mean_x - stats.mean_acts @ W), chosen


def _by_factors(curve: Curve, around: float | None, floor: float) -> tuple[Path, Tensor] | None:
    """What a search by factors looked at, and the solution's rows at the best of it; None where factors cannot tell."""
    try:
        curve.search(around)
        looked = sorted(curve.looked.items())
        if curve.infinity_loses(floor):
            path = tuple(looked)
        else:
            at_infinity = curve.at_infinity()
            path = (*((ridge, level(score, at_infinity, floor)) for ridge, score in looked), (math.inf, at_infinity))
        ridge, _ = least(path)
        return path, curve.at_the_prior() if math.isinf(ridge) else curve.solve(ridge)[1]
    except DoubtError:
        return None


def _gcv(
    stats: DecoderStats, prior: ArrayLike | None, prox: float, previous: ArrayLike | None, inflation: float, around: float | None,
    search: str = "auto", n_grid: int = N_GRID,
) -> tuple[GCVResult, Tensor | None]:  # fmt: skip
    """The choice, and the solution's rows where factors found them."""
    _check_search(search, n_grid, around)
    require_samples(stats)
    at_least("prox", prox, 0.0)
    at_least("inflation", inflation, 1.0)
    if stats.n_distinct < 2:
        raise ValueError("generalised cross-validation needs at least 2 samples")
    if prox > 0 and previous is None:
        raise ValueError(f"prox={prox} pulls to the previous decoder: pass previous=W_dec")
    if prox > 0 and search == "factors":
        raise ValueError(f"prox={prox} takes the full search: leave search='factors' out")
    floor = rounding_floor(stats.total, stats.n_samples, stats.products)
    if prox == 0 and _takes_factors(stats, search):
        by_factors = GCVCurve(stats, None if prior is None else as_rows(prior, "prior", stats), inflation)
        found = _by_factors(by_factors, around, floor)
        if found is not None:
            ridge, score = least(found[0])
            return GCVResult(ridge, by_factors.df.get(ridge, 1.0), score, found[0]), found[1]
    curve = gcv_spectrum(stats, prior, prox, previous, inflation)
    path = full_path(curve.score, curve.score_at_infinity(), curve.eig, n_grid, floor)
    ridge, score = least(path)
    if len(path) == 1:
        return GCVResult(ridge, 1.0, score, ()), None
    df = 1.0 if math.isinf(ridge) else 1.0 + float((curve.eig / (curve.eig + ridge + prox)).sum())
    return GCVResult(ridge, df, score, path), None


def _held_out(
    stats: DecoderStats, sums: HeldOutSums, prior: ArrayLike | None, around: float | None, search: str = "auto", n_grid: int = N_GRID
) -> tuple[HeldOutResult, Tensor | None]:  # fmt: skip
    """The choice, and the solution's rows where factors found them."""
    _check_search(search, n_grid, around)
    gram, cross, total, n = sums
    Q = torch.zeros_like(stats.cross) if prior is None else as_rows(prior, "prior", stats)
    moved = gram @ Q - cross
    pulled = (moved - cross) * Q
    constant, floor = float(total + pulled.sum()), rounding_floor(total + pulled.abs().sum(), n, stats.products)
    found = None
    if stats.n_distinct >= 2 and _takes_factors(stats, search):
        found = _by_factors(HeldOutCurve(stats, None if prior is None else Q, gram, moved, constant, n), around, floor)
    path, W = found or (held_out_path(stats, Q, gram, moved, constant, n, floor, n_grid), None)
    return HeldOutResult(*least(path), path), W
