"""A readout: the decoder that serves a given encoder best on held-out samples, and is never worse there than the one it has.

Along a ridge l, solutions are rational functions of the centred Gram matrix A, applied to the prior Q and to the cross products C. A
ridge that a rule chooses is one of them, at equal weights of the two. Here there are several functions, all with the one pole -l, so
that one Cholesky factor serves them, and held-out samples choose their weights (stacking: Wolpert 1992, Breiman 1996). It matters where
few samples were trained on: their codes promise more than those of new samples keep, so that what the prior and the samples say both
have to be shrunk, and not by the same factor along every eigenvector.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from splinterp._checks import as_samples
from splinterp._typing import ArrayLike, Float, Tensor
from splinterp.decoder._cholesky import Factor, factored
from splinterp.decoder._factored import beginning, combinations, rank_and_mean
from splinterp.decoder._search import HIGHEST
from splinterp.decoder.ridge import HeldOutSums, squares_left
from splinterp.decoder.statistics import DecoderStats, as_rows, require_samples

DEGREE = 3
"""Functions of each kind. On MNIST and MiniLM three with one pole did as five poles with a function each."""
LOW = 1e-3
"""Of the mean eigenvalue: the smallest ridge at which the work is done in the precision of the statistics' products, where that is lower
than that of their sums."""
RANK = 1e-6
"""Relative size of the smallest singular value that weights are determined by: functions may nearly coincide."""
CAUTION = 0.01
"""What a move away from the ridge solution costs, in mean squares of a latent on the held-out samples: rows of latents that hardly
fire there would move with the others' by weights that only cancel there."""


class Readout(NamedTuple):
    """A decoder chosen on held-out samples.

    `ridge` is the l of its functions, and `weights` are those of F C, ..., l^(j-1) F^j C, ... and then of l F Q, ..., l^j F^j Q, ...
    with F = (A + l I)^{-1}; where the decoder is the one that was given they are NaN and (). `score` and `unsolved` are the
    mean squared errors on the held-out samples (summed over d_in) of it and of the one that was given.
    """

    W_dec: Float[Tensor, "n_latents d_in"]
    b_dec: Float[Tensor, " d_in"]
    ridge: float
    weights: tuple[float, ...]
    score: float
    unsolved: float


@torch.no_grad()
def squared_error(stats: DecoderStats, W_dec: ArrayLike, b_dec: ArrayLike) -> float:
    """The mean squared error (summed over d_in) of a decoder, W_dec (n_latents, d_in) and b_dec (d_in,), on the samples of statistics.

    Raises ValueError: empty statistics, other shapes.
    """
    require_samples(stats)
    W = as_rows(W_dec, "W_dec", stats)
    b = _bias(b_dec, stats)
    return float(squares_left(stats, W) / stats.n_samples + (stats.mean_x - stats.mean_acts @ W - b).square().sum())


@torch.no_grad()
def readout(
    stats: DecoderStats,
    held_out: DecoderStats,
    W_dec: ArrayLike,
    b_dec: ArrayLike,
    prior: ArrayLike | None = None,
    *,
    ridge: float | None = None,
) -> Readout:
    """The decoder of least error on held-out samples among the given one and W = sum_j (a_j / l F^j C + b_j F^j Q) l^j, j = 1, 2, 3.

    A and C are sums over the training samples, Q is the prior, F = (A + l I)^{-1}, and the bias is exact at the training means. The
    ridge solution is among them, W_1 at a_1 = b_1 = 1. The weights a and b are those of least squares on the held-out samples, with
    a small penalty on |W - W_1|^2 that keeps latents which hardly fire there in place (for more than 128 columns on 64 random
    combinations of them, the same ones in every call). The errors that are compared at the end are exact, so the choice is never worse on
    these samples than the decoder that was given.

    It costs one Cholesky factor, triangular solves of about 4 x 2 n_latents x d_in, and about two products of the Gram matrix.

    Args:
        stats: of the training samples; float64 is advised.
        held_out: of the held-out samples, same widths, dtype and device.
        W_dec, b_dec: the decoder as it is, (n_latents, d_in) and (d_in,).
        prior: Q (n_latents, d_in); None means 0.
        ridge: l, of the sums over the training samples; a ridge that a rule has chosen is a good one, and within a factor of 3 of it
            little changes. None: a fifth of the mean eigenvalue, less for many samples a latent. Infinity: the mean eigenvalue.

    Raises:
        ValueError: empty statistics, other shapes, or a ridge below 0.

    Examples:
        >>> z, x = torch.rand(40, 6, generator=torch.Generator().manual_seed(0)), torch.eye(40, 3)
        >>> sums = [DecoderStats(6, 3).update(z[part], x[part]) for part in (slice(30), slice(30, 40))]
        >>> found = readout(*sums, torch.ones(6, 3), torch.zeros(3))
        >>> found.score < found.unsolved
        True
    """
    W = as_rows(W_dec, "W_dec", stats)
    b = _bias(b_dec, stats)
    sums = HeldOutSums.of(stats, held_out)
    if ridge is not None and not ridge >= 0:
        raise ValueError(f"ridge={ridge} must be at least 0")
    unsolved = squared_error(held_out, W, b)
    found = combined(stats, sums, None if prior is None else as_rows(prior, "prior", stats), ridge)
    if found is not None:
        ridge, weights, solved = found
        score = sums.error(solved)
        if score < unsolved:
            return Readout(solved, stats.mean_x - stats.mean_acts @ solved, ridge, weights, score, unsolved)
    return Readout(W, b, math.nan, (), unsolved, unsolved)


def combined(
    stats: DecoderStats, sums: HeldOutSums, prior: Tensor | None, ridge: float | None, degree: int = DEGREE
) -> tuple[float, tuple[float, ...], Float[Tensor, "n_latents d_in"]] | None:
    """The ridge, weights and rows of the best combination on the held-out samples; None where codes never move."""
    factor = _safe_factor(stats, ridge)
    if factor is None:
        return None
    sources = [stats.cross] if prior is None else [stats.cross, factor.strength * prior]
    sources = [source.to(factor.lower.dtype) for source in sources]
    weights = _weights(factor, sources, sums, degree)
    return factor.strength, tuple(weights.flatten().tolist()), _summed(factor, sources, weights).to(stats.dtype)


def _safe_factor(stats: DecoderStats, around: float | None) -> Factor | None:
    """At the ridge, or where that is lost in rounding at the next of ten times as much that is not; None where codes never move."""
    rank, mean = rank_and_mean(stats)
    ridge = beginning(around, rank, mean, stats.n_samples)
    gram = stats.gram if ridge < LOW * mean else stats.gram.to(stats.products)
    while 0 < ridge <= HIGHEST * mean:
        factor = factored(gram, ridge)
        if factor is not None:
            return factor
        ridge *= 10
    return None


def _weights(factor: Factor, sources: list[Tensor], sums: HeldOutSums, degree: int) -> Float[Tensor, "kinds degree"]:
    """Of (l F)^(j-1) F S for each source S and j, by least squares on the held-out samples."""
    several = combinations(sums.cross, torch.Generator().manual_seed(0))
    gram, cross = (x.to(sources[0].dtype) for x in (sums.gram, sums.cross))
    cross, *starts = (x if several is None else x @ several.to(x.dtype) for x in (cross, *sources))
    moved, parts = torch.cat(starts, dim=1), []
    for j in range(degree):
        moved = factor.solve(moved if j == 0 else factor.strength * moved)
        parts += moved.split(cross.shape[1], dim=1)
    return least_squares(parts, gram, cross, len(sources)).view(degree, len(sources)).T


def least_squares(parts: list[Tensor], gram: Tensor, cross: Tensor, first: int) -> Float[Tensor, " parts"]:
    """The weights of the sum W of `parts` for which <W, H W - 2 C> + CAUTION tr(H) / m |W - W_1|^2 is least, of the Gram matrix H and the
    cross products C, where W_1 is the sum of the first parts, with weights of 1."""
    basis = torch.cat(parts, dim=1)
    flat, products = (torch.stack(x.split(cross.shape[1], dim=1)).flatten(1).double() for x in (basis, gram @ basis))
    pull = CAUTION * gram.diagonal().mean(dtype=torch.float64)
    normal = (flat @ (products + pull * flat).T).cpu()
    right = (flat @ (cross.double().flatten() + pull * flat[:first].sum(0))).cpu()
    size = normal.diagonal().clamp_min(torch.finfo(normal.dtype).tiny).rsqrt()
    scaled = size[:, None] * normal * size
    return size * torch.linalg.lstsq(scaled, (size * right)[:, None], rcond=RANK, driver="gelsd").solution[:, 0]


def _summed(factor: Factor, sources: list[Tensor], weights: Tensor) -> Float[Tensor, "n_latents d_in"]:
    """The weighted sum, by Horner's rule."""
    total = torch.zeros_like(sources[0])
    for j in reversed(range(weights.shape[1])):
        total = factor.strength * total
        for source, weight in zip(sources, weights[:, j].tolist(), strict=True):
            total.add_(source, alpha=weight)
        total = factor.solve(total)
    return total


def _bias(value: ArrayLike, stats: DecoderStats) -> Tensor:
    return as_samples(torch.as_tensor(value)[None], stats.d_in, dtype=stats.dtype, device=stats.device, name="b_dec")[0]
