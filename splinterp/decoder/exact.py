"""The decoder block: exact least squares from streamed sufficient statistics.

With codes z and samples x in rows, `solve_decoder` minimises over (W, b)

    sum_r |x_r - z_r W - b|^2 + ridge |W - Q|^2 + sum_i row_ridge_i |W_i|^2 + bias_ridge |b|^2
        + prox |W - W_t|^2 + bias_prox |b - b_t|^2

All strengths multiply sums over samples. Everything needed is in sums of products, so the memory is independent of
the number of samples. Source: SplInterp, arXiv 2505.11836, Algorithm 3.1, with weights and bias solved together.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch

from splinterp._checks import as_samples, at_least, whole
from splinterp._typing import ArrayLike, Float, Tensor
from splinterp.decoder._cholesky import cholesky_in_place
from splinterp.decoder.statistics import DecoderStats, Spectrum, as_rows, eigh, require_samples

__all__ = ["DecoderSolution", "optimality_residual", "solve_decoder", "solve_scales", "tied_scale"]


class DecoderSolution(NamedTuple):
    """The minimiser: x_hat = acts @ W_dec + b_dec."""

    W_dec: Float[Tensor, "n_latents d_in"]
    b_dec: Float[Tensor, " d_in"]


@torch.no_grad()
def solve_decoder(
    stats: DecoderStats,
    *,
    ridge: float | ArrayLike,
    bias_ridge: float = 0.0,
    prox: float = 0.0,
    bias_prox: float = 0.0,
    previous: tuple[ArrayLike, ArrayLike] | None = None,
    prior: ArrayLike | None = None,
    row_ridge: ArrayLike | None = None,
    overwrite: bool = False,
) -> DecoderSolution:
    """The exact joint minimiser over weights and bias of the objective in this module's docstring.

    With ridge + prox = 0, W is the least-norm minimiser of the centred problem (eigenvalues up to 1e-12 of the
    largest count as zero): dead latents get zero rows. With ridge > 0 a dead latent gets the prior's row (zero without
    a prior); with prox > 0 alone it keeps its previous row.

    Args:
        stats: the codes' and samples' statistics.
        ridge: pull of W to `prior`, multiplying a sum over samples; `math.inf` returns the prior. One for each latent (n_latents,),
            finite, is sum_i ridge_i |W_i - Q_i|^2.
        bias_ridge: pull of b to 0, likewise; `math.inf` keeps b at 0.
        prox, bias_prox: pull of W and b to `previous`, likewise, finite.
        previous: (W, b) of shapes (n_latents, d_in) and (d_in,).
        prior: Q, shape (n_latents, d_in); None means 0.
        row_ridge: pulls of the rows of W to 0, whatever the prior, (n_latents,), likewise, finite. Rows that only their ridge determines
            are 0.
        overwrite: factor the Gram matrix where it stands, and put the solution in place of `cross`: no second copy of a large one. The
            statistics are empty afterwards.

    Returns:
        W_dec (n_latents, d_in) and b_dec (d_in,), in the dtype of the statistics.

    Raises:
        ValueError: empty statistics, a negative strength, prox or bias_prox > 0 without `previous`, wrong shapes.

    Examples:
        >>> acts = torch.tensor([[0.0], [1.0], [2.0]])
        >>> stats = DecoderStats(n_latents=1, d_in=1).update(acts, 2 * acts + 1)
        >>> W_dec, b_dec = solve_decoder(stats, ridge=0.0)
        >>> round(float(W_dec), 6), round(float(b_dec), 6)
        (2.0, 1.0)
    """
    require_samples(stats)
    rows = None if np.ndim(ridge) == 0 else _row_strengths(ridge, stats)  # type: ignore[arg-type]
    ridge = float(ridge) if rows is None else 0.0
    for name, value in {"ridge": ridge, "bias_ridge": bias_ridge, "prox": prox, "bias_prox": bias_prox}.items():
        at_least(name, value, 0.0)
    if math.isinf(prox) or math.isinf(bias_prox):
        raise ValueError("prox and bias_prox must be finite: to keep the decoder, do not solve")
    W_prev = b_prev = None
    if prox > 0 or bias_prox > 0:
        if previous is None:
            raise ValueError(f"prox={prox}, bias_prox={bias_prox} pull to the previous decoder: pass previous=(W_dec, b_dec)")
        W_prev = as_rows(previous[0], "previous W_dec", stats)
        b_prev = as_samples(previous[1][None], stats.d_in, dtype=stats.dtype, device=stats.device, name="previous b_dec")[0]
    Q = None if prior is None else as_rows(prior, "prior", stats)
    zeroed = None if row_ridge is None else _row_strengths(row_ridge, stats)

    N = stats.n_samples
    share = N / (N + bias_ridge + bias_prox)  # N / n of the derivation; 1 without bias terms, 0 at bias_ridge = inf
    pulled = bias_prox / (N + bias_ridge + bias_prox) * b_prev if b_prev is not None else None
    if math.isinf(ridge):
        W = torch.zeros_like(stats.cross) if Q is None else Q.clone()
    else:
        W = _solve_weights(stats, ridge, rows, prox, W_prev, Q, zeroed, share, pulled, overwrite)
    b = share * (stats.mean_x - stats.mean_acts @ W)
    if overwrite:
        stats.clear()
    return DecoderSolution(W, b if pulled is None else b + pulled)


def _row_strengths(ridge: ArrayLike, stats: DecoderStats) -> Tensor:
    """A ridge for each latent, (n_latents,). Raises ValueError: another number of them, one below 0 or not finite."""
    rows = torch.as_tensor(ridge, dtype=stats.dtype, device=stats.device)
    if rows.shape != (stats.n_latents,):
        raise ValueError(
            f"ridge has shape {tuple(rows.shape)}: pass one number, or one for each of the {stats.n_latents} latents"
        )
    if not (bool(torch.isfinite(rows).all()) and float(rows.min()) >= 0):
        raise ValueError("a ridge for each latent must be finite and at least 0")
    return rows


def _solve_weights(
    stats: DecoderStats,
    ridge: float,
    rows: Tensor | None,
    prox: float,
    W_prev: Tensor | None,
    Q: Tensor | None,
    zeroed: Tensor | None,
    share: float,
    pulled: Tensor | None,
    overwrite: bool,
) -> Tensor:
    """W = A^{-1} C for finite strengths; A and C from the centred sums plus what the bias terms leave uncentred."""
    right = stats.cross if overwrite else stats.cross.clone()
    if share < 1:
        target = (1 - share) * stats.mean_x if pulled is None else (1 - share) * stats.mean_x - pulled
        right.addr_(stats.mean_acts, target, alpha=stats.n_samples)
    if W_prev is not None and prox > 0:
        right.add_(W_prev, alpha=prox)
    if Q is not None and ridge > 0:
        right.add_(Q, alpha=ridge)
    if Q is not None and rows is not None:
        right.add_(Q * rows[:, None])
    strength = ridge + prox
    if share == 1 and rows is None and zeroed is None and stats._spectrum is not None:
        return _by_spectrum(stats.spectrum(), strength, right)
    known = stats._factor
    if share == 1 and rows is None and zeroed is None and known is not None and known.strength == strength:
        return known.solve(right)
    gram = stats.gram if overwrite else stats.gram.clone()
    if share < 1:
        gram.addr_(stats.mean_acts, stats.mean_acts, alpha=stats.n_samples * (1 - share))
    if rows is not None:
        gram.diagonal().add_(rows)
    if zeroed is not None:
        gram.diagonal().add_(zeroed + strength)
        return _solve_scaled(gram, right)
    if cholesky_in_place(gram, strength, right):
        return right
    return _by_spectrum(stats.spectrum() if share == 1 and rows is None else eigh(gram), strength, right)


def _solve_scaled(gram: Tensor, right: Tensor) -> Tensor:
    """gram^{-1} right, both overwritten, where the diagonal spans many orders: scaled to 1, it leaves the rank in no doubt."""
    diagonal = gram.diagonal()
    scale = torch.where(diagonal > 0, diagonal, 1.0).rsqrt()
    gram.mul_(scale).mul_(scale[:, None])
    gram.diagonal().fill_(1.0)  # also where nothing determines a row, whose right side is 0
    right.mul_(scale[:, None])
    if not cholesky_in_place(gram, 0.0, right):
        right = _by_spectrum(eigh(gram), 0.0, right)
    return scale[:, None] * right


def _by_spectrum(spectrum: Spectrum, strength: float, right: Tensor) -> Tensor:
    values, vectors, positive = spectrum
    if strength > 0:
        inverse = 1 / (values.clamp_min(0) + strength)
    else:
        inverse = torch.where(positive, 1 / torch.where(positive, values, 1.0), 0.0)
    return vectors @ (inverse[:, None] * (vectors.T @ right))


@torch.no_grad()
def optimality_residual(
    stats: DecoderStats,
    solution: DecoderSolution,
    *,
    ridge: float | ArrayLike,
    prox: float = 0.0,
    previous: ArrayLike | None = None,
    prior: ArrayLike | None = None,
    row_ridge: ArrayLike | None = None,
    columns: int | None = None,
) -> float:
    """Half the objective's gradient in W at `solution`, relative: its norm over the norm of sum (z - z̄)^T (x - x̄).

    0 at the minimiser up to rounding, for finite ridge; at ridge = inf the prior is the minimiser and 0 is returned.
    Arguments as in `solve_decoder`, with `previous` the weights alone. With `columns`, norms are those of so many random combinations of
    the decoder's columns (the same in every call), which cost n_latents^2 each.
    """
    if isinstance(ridge, int | float) and math.isinf(ridge):
        return 0.0
    strength = ridge if isinstance(ridge, int | float) else _row_strengths(ridge, stats)[:, None]
    mixing = None
    if columns is not None:
        whole("columns", columns, 1)
        drawn = torch.randn(stats.d_in, columns, device="cpu", generator=torch.Generator().manual_seed(0))
        mixing = None if columns >= stats.d_in else drawn.to(stats.cross)

    def few(x: Tensor) -> Tensor:
        return x if mixing is None else x @ mixing

    W, cross = few(solution.W_dec), few(stats.cross)
    misfit = stats.mean_acts @ W + few(solution.b_dec - stats.mean_x)
    gradient = torch.addr(stats.gram @ W - cross, stats.mean_acts, misfit, alpha=stats.n_samples)
    gradient += strength * (W if prior is None else W - few(as_rows(prior, "prior", stats)))
    if row_ridge is not None:
        gradient += _row_strengths(row_ridge, stats)[:, None] * W
    if prox > 0 and previous is not None:
        gradient += prox * (W - few(as_rows(previous, "previous", stats)))
    return float(gradient.norm() / cross.norm().clamp_min(torch.finfo(stats.dtype).tiny))


@torch.no_grad()
def tied_scale(stats: DecoderStats, rows: ArrayLike, fallback: float = 1.0) -> float:
    """The common scale s of the decoder s * rows with the least squared error; `fallback` where the codes never move."""
    P = as_rows(rows, "rows", stats)
    denominator = float((P * (stats.gram @ P)).sum())
    return float((P * stats.cross).sum()) / denominator if denominator > 0 else fallback


@torch.no_grad()
def solve_scales(stats: DecoderStats, rows: ArrayLike, previous: Tensor) -> Float[Tensor, " n_latents"]:
    """The scales a (n_latents,) of the decoder diag(a) @ rows with the least squared error, bias free.

    Where they are not determined (dead latents), the solution nearest to `previous` (n_latents,).
    """
    P = as_rows(rows, "rows", stats)
    start = previous.to(P)
    hessian = stats.gram * (P @ P.T)
    values, vectors, positive = eigh(hessian)
    downhill = vectors.T @ ((stats.cross * P).sum(1) - hessian @ start)
    return start + vectors @ torch.where(positive, downhill / torch.where(positive, values, 1.0), 0.0)
