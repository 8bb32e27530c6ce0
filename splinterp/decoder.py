"""The decoder block: exact least squares from streamed sufficient statistics.

With codes z and samples x in rows, `solve_decoder` minimises over (W, b)

    sum_r |x_r - z_r W - b|^2 + ridge |W - Q|^2 + bias_ridge |b|^2 + prox |W - W_t|^2 + bias_prox |b - b_t|^2

All strengths multiply sums over samples. Everything needed is in sums of products, so the memory is independent of
the number of samples. Source: SplInterp, arXiv 2505.11836, Algorithm 3.1, with weights and bias solved together.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import scipy.linalg
import torch

from splinterp._checks import as_samples, at_least
from splinterp._typing import ArrayLike, Float, Tensor

RANK_TOLERANCE = 1e-12
"""Eigenvalues of the centred Gram matrix up to this share of the largest count as zero (n_latents * eps where that is more)."""


class DecoderSolution(NamedTuple):
    """The minimiser: x_hat = acts @ W_dec + b_dec."""

    W_dec: Float[Tensor, "n_latents d_in"]
    b_dec: Float[Tensor, " d_in"]


class Spectrum(NamedTuple):
    """Eigendecomposition of the centred Gram matrix, gram = vectors @ diag(values) @ vectors.T, in no particular order."""

    values: Float[Tensor, " n_latents"]
    vectors: Float[Tensor, "n_latents n_latents"]
    positive: Tensor  # (n_latents,) bool: the values that count as above zero


class DecoderStats:
    """Sufficient statistics of the decoder's least squares: streamed, mergeable, of fixed size.

    Holds the number of samples, the means of codes and samples, and the sums of products about those means
    (so that nothing cancels): `gram` = sum (z - z̄)^T (z - z̄), `cross` = sum (z - z̄)^T (x - x̄) and
    `total` = sum |x - x̄|^2. Batches are centred first and combined pairwise (Chan, Golub and LeVeque 1983).

    Args:
        n_latents, d_in: widths of codes and samples.
        dtype: of products and sums; float64 keeps GCV reliable for N below n_latents, float32 is about twice as fast.
        device: where the sums live; batches must be there.

    Raises:
        ValueError: sizes below 1.
    """

    def __init__(
        self, n_latents: int, d_in: int, *, dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu"
    ) -> None:
        at_least("n_latents", n_latents, 1)
        at_least("d_in", d_in, 1)
        self.n_latents, self.d_in, self.dtype = n_latents, d_in, dtype
        self.device = torch.empty(0, device=device).device
        self.n_samples = 0
        self.mean_acts = torch.zeros(n_latents, dtype=dtype, device=device)
        self.mean_x = torch.zeros(d_in, dtype=dtype, device=device)
        self.gram = torch.zeros(n_latents, n_latents, dtype=dtype, device=device)
        self.cross = torch.zeros(n_latents, d_in, dtype=dtype, device=device)
        self.total = torch.zeros((), dtype=dtype, device=device)
        self._spectrum: Spectrum | None = None

    @torch.no_grad()
    def update(self, acts: ArrayLike, x: ArrayLike) -> DecoderStats:
        """Add a batch: acts (n, n_latents), x (n, d_in), n >= 0. Returns self. Raises TypeError, ValueError for bad input."""
        z = as_samples(acts, self.n_latents, dtype=self.dtype, device=self.device, name="acts")
        x = as_samples(x, self.d_in, dtype=self.dtype, device=self.device)
        if len(z) != len(x):
            raise ValueError(f"acts has {len(z)} rows and x has {len(x)}: pass the codes of the same samples")
        if len(x) == 0:
            return self
        mean_acts, mean_x = z.mean(0), x.mean(0)
        z, x = z - mean_acts, x - mean_x
        self._absorb(len(x), mean_acts, mean_x)
        self.gram.addmm_(z.T, z)
        self.cross.addmm_(z.T, x)
        self.total += x.square().sum()
        return self

    def merge(self, other: DecoderStats) -> DecoderStats:
        """Add the samples of `other` (same widths; converted to this dtype and device). Returns self."""
        if (other.n_latents, other.d_in) != (self.n_latents, self.d_in):
            raise ValueError(
                f"cannot merge statistics of (n_latents, d_in) = {(other.n_latents, other.d_in)} "
                f"into {(self.n_latents, self.d_in)}"
            )
        if other.n_samples:
            self._absorb(other.n_samples, other.mean_acts.to(self.mean_acts), other.mean_x.to(self.mean_x))
            self.gram += other.gram.to(self.gram)
            self.cross += other.cross.to(self.cross)
            self.total += other.total.to(self.total)
        return self

    def _absorb(self, n: int, mean_acts: Tensor, mean_x: Tensor) -> None:
        """Move the means to those of the union with n samples of other means; add the between-group products."""
        self._spectrum = None
        old, new = self.n_samples, self.n_samples + n
        step_acts, step_x = mean_acts - self.mean_acts, mean_x - self.mean_x
        if old:
            weight = old * n / new
            self.gram.addr_(step_acts, step_acts, alpha=weight)
            self.cross.addr_(step_acts, step_x, alpha=weight)
            self.total += weight * step_x.square().sum()
        self.mean_acts += step_acts * (n / new)
        self.mean_x += step_x * (n / new)
        self.n_samples = new

    def spectrum(self) -> Spectrum:
        """Eigendecomposition of `gram`, computed once and kept until the next update."""
        if self._spectrum is None:
            self._spectrum = _eigh(self.gram)
        return self._spectrum


def _eigh(gram: Float[Tensor, "n_latents n_latents"]) -> Spectrum:
    live = gram.diagonal() > 0  # a dead latent is an exact null vector; divide and conquer can fail on many of them
    values, vectors = torch.zeros_like(gram[0]), torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    if live.any():
        block = gram if live.all() else gram[live][:, live]
        try:
            found, basis = torch.linalg.eigh(block)
        except RuntimeError:  # a tight cluster of eigenvalues: QR iteration is slower and does converge
            by_qr = scipy.linalg.eigh(block.cpu().numpy(), driver="ev")
            found, basis = (torch.from_numpy(a).to(block) for a in by_qr)
        values[live] = found
        vectors[live.nonzero(), live.nonzero().T] = basis
    tolerance = max(RANK_TOLERANCE, len(gram) * torch.finfo(gram.dtype).eps)
    positive = values > tolerance * values.max().clamp_min(0)
    return Spectrum(values, vectors, positive)


def _require_samples(stats: DecoderStats) -> None:
    if stats.n_samples == 0:
        raise ValueError("the statistics are empty: call update(acts, x) first")


def _as_matrix(value: ArrayLike, name: str, stats: DecoderStats) -> Tensor:
    matrix = as_samples(value, stats.d_in, dtype=stats.dtype, device=stats.device, name=name)
    if len(matrix) != stats.n_latents:
        raise ValueError(f"{name} has {len(matrix)} rows but n_latents={stats.n_latents}")
    return matrix


@torch.no_grad()
def solve_decoder(
    stats: DecoderStats,
    *,
    ridge: float,
    bias_ridge: float = 0.0,
    prox: float = 0.0,
    bias_prox: float = 0.0,
    previous: tuple[ArrayLike, ArrayLike] | None = None,
    prior: ArrayLike | None = None,
) -> DecoderSolution:
    """The exact joint minimiser over weights and bias of the objective in this module's docstring.

    With ridge + prox = 0, W is the least-norm minimiser of the centred problem (eigenvalues up to 1e-12 of the
    largest count as zero): dead latents get zero rows. With ridge > 0 a dead latent gets the prior's row (zero without
    a prior); with prox > 0 alone it keeps its previous row.

    Args:
        stats: the codes' and samples' statistics.
        ridge: pull of W to `prior`, multiplying a sum over samples; `math.inf` returns the prior.
        bias_ridge: pull of b to 0, likewise; `math.inf` keeps b at 0.
        prox, bias_prox: pull of W and b to `previous`, likewise, finite.
        previous: (W, b) of shapes (n_latents, d_in) and (d_in,).
        prior: Q, shape (n_latents, d_in); None means 0.

    Returns:
        W_dec (n_latents, d_in) and b_dec (d_in,), in the dtype of the statistics.

    Raises:
        ValueError: empty statistics, a negative strength, prox or bias_prox > 0 without `previous`, wrong shapes.
    """
    _require_samples(stats)
    for name, value in {"ridge": ridge, "bias_ridge": bias_ridge, "prox": prox, "bias_prox": bias_prox}.items():
        at_least(name, value, 0.0)
    if math.isinf(prox) or math.isinf(bias_prox):
        raise ValueError("prox and bias_prox must be finite: to keep the decoder, do not solve")
    W_prev = b_prev = None
    if prox > 0 or bias_prox > 0:
        if previous is None:
            raise ValueError(f"prox={prox}, bias_prox={bias_prox} pull to the previous decoder: pass previous=(W_dec, b_dec)")
        W_prev = _as_matrix(previous[0], "previous W_dec", stats)
        b_prev = as_samples(previous[1][None], stats.d_in, dtype=stats.dtype, device=stats.device, name="previous b_dec")[0]
    Q = None if prior is None else _as_matrix(prior, "prior", stats)

    N = stats.n_samples
    share = N / (N + bias_ridge + bias_prox)  # N / n of the derivation; 1 without bias terms, 0 at bias_ridge = inf
    pulled = bias_prox / (N + bias_ridge + bias_prox) * b_prev if b_prev is not None else None
    if math.isinf(ridge):
        W = torch.zeros_like(stats.cross) if Q is None else Q.clone()
    else:
        W = _solve_weights(stats, ridge, prox, W_prev, Q, share, pulled)
    b = share * (stats.mean_x - stats.mean_acts @ W)
    return DecoderSolution(W, b if pulled is None else b + pulled)


def _solve_weights(
    stats: DecoderStats, ridge: float, prox: float, W_prev: Tensor | None, Q: Tensor | None, share: float, pulled: Tensor | None
) -> Tensor:
    """W = A^{-1} C for finite strengths; A and C from the centred sums plus what the bias terms leave uncentred."""
    gram, right = stats.gram, stats.cross.clone()
    if share < 1:
        target = (1 - share) * stats.mean_x if pulled is None else (1 - share) * stats.mean_x - pulled
        gram = torch.addr(gram, stats.mean_acts, stats.mean_acts, alpha=stats.n_samples * (1 - share))
        right.addr_(stats.mean_acts, target, alpha=stats.n_samples)
    if W_prev is not None and prox > 0:
        right.add_(W_prev, alpha=prox)
    if Q is not None and ridge > 0:
        right.add_(Q, alpha=ridge)
    strength = ridge + prox
    if strength > 0 and not (share == 1 and stats._spectrum is not None):
        shifted = gram.clone()
        shifted.diagonal().add_(strength)
        factor, failed = torch.linalg.cholesky_ex(shifted)
        if not failed:
            return torch.cholesky_solve(right, factor)
    spectrum = stats.spectrum() if share == 1 else _eigh(gram)
    values, vectors, positive = spectrum
    if strength > 0:
        inverse = 1 / (values.clamp_min(0) + strength)
    else:
        inverse = torch.where(positive, 1 / torch.where(positive, values, 1.0), 0.0)
    return vectors @ (inverse[:, None] * (vectors.T @ right))


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
    squares per eigenvector, never differences, so the score is right for N <= n_latents too.

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
    """
    _require_samples(stats)
    at_least("prox", prox, 0.0)
    at_least("inflation", inflation, 1.0)
    at_least("n_grid", n_grid, 3)
    N = stats.n_samples
    if N < 2:
        raise ValueError("generalised cross-validation needs at least 2 samples")
    values, vectors, positive = stats.spectrum()
    e = values[positive]
    P = (vectors.T @ stats.cross)[positive]
    explained = float((P.square().sum(1) / e).sum())
    rest = 0.0 if len(e) >= N - 1 else max(0.0, float(stats.total) - explained)
    if len(e) == 0:
        return GCVResult(math.inf, 1.0, rest / N / (1 - 1 / N) ** 2, ())
    # rss(l) = rest + sum_i |l A_i + prox B_i|^2 / (e_i (e_i + l + prox)^2), A and B the gradients at prior and previous
    A = P if prior is None else P - e[:, None] * (vectors.T @ _as_matrix(prior, "prior", stats))[positive]
    if prox > 0:
        if previous is None:
            raise ValueError(f"prox={prox} pulls to the previous decoder: pass previous=W_dec")
        B = P - e[:, None] * (vectors.T @ _as_matrix(previous, "previous", stats))[positive]
    else:
        B = torch.zeros_like(P)
    eig, aa, ab, bb = (t.double().cpu().numpy() for t in (e, (A * A).sum(1), (A * B).sum(1), (B * B).sum(1)))

    def score(ridges: np.ndarray) -> np.ndarray:
        lam = ridges[:, None]
        rss = rest + ((lam * lam * aa + 2 * lam * prox * ab + prox * prox * bb) / (eig * (eig + lam + prox) ** 2)).sum(1)
        with np.errstate(divide="ignore"):
            return rss / N / _slack(eig, lam + prox, N, inflation) ** 2

    grid = eig.mean() * np.logspace(-6, 4, n_grid)
    scores = score(grid)
    best = int(scores.argmin())
    fine = np.geomspace(grid[max(best - 1, 0)], grid[min(best + 1, n_grid - 1)], n_grid)
    grid = np.concatenate([grid, fine])
    scores = np.concatenate([scores, score(fine)])
    at_infinity = (rest + float((aa / eig).sum())) / N / (1 - 1 / N) ** 2
    order = np.argsort(grid, kind="stable")
    path = tuple((float(grid[i]), float(scores[i])) for i in order) + ((math.inf, at_infinity),)
    ridge, value = min(path, key=lambda point: point[1])
    df = 1.0 if math.isinf(ridge) else 1.0 + float((eig / (eig + ridge + prox)).sum())
    return GCVResult(ridge, df, value, path)


def _slack(eig: np.ndarray, strength: np.ndarray, N: int, inflation: float) -> np.ndarray:
    """(N - 1 - inflation * (df - 1)) / N; at inflation 1 a sum of positive terms, so it does not cancel at rank N - 1.

    Where inflation exhausts the samples it is 0, and the score infinite.
    """
    slack = max(0, N - 1 - len(eig)) + (strength / (eig + strength)).sum(1)
    if inflation > 1:
        slack = np.maximum(0.0, slack - (inflation - 1) * (eig / (eig + strength)).sum(1))
    return slack / N


@torch.no_grad()
def optimality_residual(
    stats: DecoderStats,
    solution: DecoderSolution,
    *,
    ridge: float,
    prox: float = 0.0,
    previous: ArrayLike | None = None,
    prior: ArrayLike | None = None,
) -> float:
    """Half the objective's gradient in W at `solution`, relative: its norm over the norm of sum (z - z̄)^T (x - x̄).

    0 at the minimiser up to rounding, for finite ridge; at ridge = inf the prior is the minimiser and 0 is returned.
    Arguments as in `solve_decoder`, with `previous` the weights alone.
    """
    if math.isinf(ridge):
        return 0.0
    W, b = solution
    misfit = stats.mean_acts @ W + b - stats.mean_x
    gradient = torch.addr(stats.gram @ W - stats.cross, stats.mean_acts, misfit, alpha=stats.n_samples)
    gradient += ridge * (W if prior is None else W - _as_matrix(prior, "prior", stats))
    if prox > 0 and previous is not None:
        gradient += prox * (W - _as_matrix(previous, "previous", stats))
    return float(gradient.norm() / stats.cross.norm().clamp_min(torch.finfo(stats.dtype).tiny))


@torch.no_grad()
def tied_scale(stats: DecoderStats, rows: ArrayLike, fallback: float = 1.0) -> float:
    """The common scale s of the decoder s * rows with the least squared error; `fallback` where the codes never move."""
    P = _as_matrix(rows, "rows", stats)
    denominator = float((P * (stats.gram @ P)).sum())
    return float((P * stats.cross).sum()) / denominator if denominator > 0 else fallback


@torch.no_grad()
def solve_scales(stats: DecoderStats, rows: ArrayLike, previous: Tensor) -> Float[Tensor, " n_latents"]:
    """The scales a (n_latents,) of the decoder diag(a) @ rows with the least squared error, bias free.

    Where they are not determined (dead latents), the solution nearest to `previous` (n_latents,).
    """
    P = _as_matrix(rows, "rows", stats)
    start = previous.to(P)
    hessian = stats.gram * (P @ P.T)
    values, vectors, positive = _eigh(hessian)
    downhill = vectors.T @ ((stats.cross * P).sum(1) - hessian @ start)
    return start + vectors @ torch.where(positive, downhill / torch.where(positive, values, 1.0), 0.0)
