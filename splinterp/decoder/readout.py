"""A readout: the decoder that serves a given encoder best on held-out samples, and is never worse there than the one it has."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from splinterp._checks import as_samples
from splinterp._typing import ArrayLike, Float, Tensor
from splinterp.decoder.ridge import solve_by_held_out
from splinterp.decoder.statistics import DecoderStats, as_rows, require_samples

LARGEST = 10.0
"""A scale above it, or below its reciprocal, tells of held-out codes that hardly move, and is not tried."""


class Readout(NamedTuple):
    """A decoder chosen on held-out samples.

    `scale` and `ridge` are those of the solve that it comes from, `ridge` NaN where the decoder is the one that was given; `score` and
    `unsolved` are the mean squared errors on the held-out samples (summed over d_in) of it and of the one that was given.
    """

    W_dec: Float[Tensor, "n_latents d_in"]
    b_dec: Float[Tensor, " d_in"]
    scale: float
    ridge: float
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
    about_means = stats.total + ((stats.gram @ W - 2 * stats.cross) * W).sum()
    return float(about_means / stats.n_samples + (stats.mean_x - stats.mean_acts @ W - b).square().sum())


def _bias(value: ArrayLike, stats: DecoderStats) -> Tensor:
    return as_samples(torch.as_tensor(value)[None], stats.d_in, dtype=stats.dtype, device=stats.device, name="b_dec")[0]


@torch.no_grad()
def readout(
    stats: DecoderStats,
    held_out: DecoderStats,
    W_dec: ArrayLike,
    b_dec: ArrayLike,
    prior: ArrayLike | None = None,
    *,
    around: float | None = None,
) -> Readout:
    """The decoder of least error on held-out samples among the given one and solutions W = s Q + (A + l I)^{-1} (C - s A Q).

    A and C are sums over the training samples, Q the prior. The ridge l is chosen on the held-out samples, the prior alone (infinity)
    included; the scale s is 1 or the prior's best one there, <Q, C_H> / <Q, A_H Q> of the held-out sums about the training means. All
    errors are exact, so the choice is never worse there than the decoder that was given.

    Args:
        stats: of the training samples; float64 is advised.
        held_out: of the held-out samples, same widths, dtype and device.
        W_dec, b_dec: the decoder as it is, (n_latents, d_in) and (d_in,).
        prior: Q (n_latents, d_in); None means 0, and no scale.
        around: an earlier choice of the ridge, at which its search begins.

    Raises:
        ValueError: empty statistics, or other shapes.

    >>> z, x = torch.rand(40, 6, generator=torch.Generator().manual_seed(0)), torch.eye(40, 3)
    >>> sums = [DecoderStats(6, 3).update(z[part], x[part]) for part in (slice(30), slice(30, 40))]
    >>> found = readout(*sums, torch.ones(6, 3), torch.zeros(3))
    >>> found.score < found.unsolved
    True
    """
    require_samples(stats)
    W = as_rows(W_dec, "W_dec", stats)
    b = _bias(b_dec, stats)
    unsolved = squared_error(held_out, W, b)
    best = Readout(W, b, 1.0, math.nan, unsolved, unsolved)
    Q = None if prior is None else as_rows(prior, "prior", stats)
    for scale in (1.0,) if Q is None else (1.0, held_out_scale(stats, held_out, Q)):
        if not 1 / LARGEST <= scale <= LARGEST:
            continue
        solution, chosen = solve_by_held_out(stats, held_out, Q if Q is None or scale == 1 else scale * Q, around=around)
        if chosen.score < best.score:
            best = Readout(*solution, scale, chosen.ridge, chosen.score, unsolved)
        if 0 < chosen.ridge < math.inf:
            around = chosen.ridge
    return best


def held_out_scale(stats: DecoderStats, held_out: DecoderStats, prior: Float[Tensor, "n_latents d_in"]) -> float:
    """The s that makes s Q, with the bias that is exact at the training means, best on the held-out samples; NaN where none is."""
    step_acts, step_x = held_out.mean_acts - stats.mean_acts, held_out.mean_x - stats.mean_x
    shift, n = step_acts @ prior, held_out.n_samples
    above = (held_out.cross * prior).sum() + n * (shift * step_x).sum()
    below = ((held_out.gram @ prior) * prior).sum() + n * shift.square().sum()
    return float(above / below) if float(below) > 0 else math.nan
