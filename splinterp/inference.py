"""Codes by sparse coding in place of an encoder: pursuits over the rows of a decoder, and the dictionary that they train (MOD).

An encoder makes a code in one product; what it loses against a search for a code is the amortisation gap. A pursuit works with rows of
unit norm and returns codes for the rows as they are. Codes that must not be negative go by non-negative correlations and non-negative
least squares. Rows of zeros are never chosen.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from splinterp._checks import as_samples, at_least, one_of, whole
from splinterp._random import as_generator
from splinterp._typing import ArrayLike, Float, Int, Tensor
from splinterp.activations import TopActs
from splinterp.decoder import DecoderStats, solve_decoder
from splinterp.protocol import Code, SparseModel, as_model, dense

NUMBERS = 2**24
"""Of chosen rows held at a time: as many samples are coded together."""
JITTER = 1e-10
"""Added to Gram matrices of unit rows, in float64: rows that repeat share their code."""


@torch.no_grad()
def least_squares_codes(
    x: ArrayLike, W_dec: Tensor, b_dec: Tensor, support: Int[Tensor, "n k"], *, nonnegative: bool = False
) -> Float[Tensor, "n k"]:
    """The values at `support` that reconstruct x (n, d) best: x - b_dec by least squares on rows W_dec[support] (refitting).

    Computed in float64 from k x k Gram matrices; where rows repeat or depend on each other, any of the best values. `nonnegative` takes
    the best values of at least 0 (Lawson and Hanson's active set).

    Raises:
        TypeError, ValueError: x that is not (n, d), a support of other samples.
    """
    x = as_samples(x, W_dec.shape[1], dtype=W_dec.dtype, device=W_dec.device)
    if support.ndim != 2 or len(support) != len(x):
        raise ValueError(f"support has shape {tuple(support.shape)}: pass k latents for each of the {len(x)} samples")
    rows = _rows(support.shape[1], x.shape[1])
    parts = [
        _fitted((part - b_dec).double(), W_dec[chosen].double(), nonnegative)
        for part, chosen in zip(x.split(rows), support.split(rows), strict=True)
    ]
    return torch.cat(parts).to(W_dec.dtype)


def _rows(k: int, d: int, m: int = 1) -> int:
    return max(1, NUMBERS // max(k * d, m, 1))


def _over(values: Tensor, norms: Tensor) -> Tensor:
    """values / norms, 0 where the norm is."""
    there = norms > 0
    return torch.where(there, values / torch.where(there, norms, 1.0), 0.0)


def _fitted(centred: Tensor, rows: Tensor, nonnegative: bool) -> Tensor:
    """Values (n, k) of samples (n, d) on their rows (n, k, d), float64."""
    norms = torch.linalg.vector_norm(rows, dim=2)
    unit = _over(rows, norms[:, :, None])
    gram = unit @ unit.mT
    gram.diagonal(dim1=1, dim2=2).add_(JITTER).masked_fill_(norms == 0, 1.0)
    right = (unit @ centred[:, :, None])[:, :, 0]
    found = _nonnegative(gram, right) if nonnegative else _solved(gram, right)
    return _over(found, norms)


def _solved(gram: Tensor, right: Tensor) -> Tensor:
    return torch.cholesky_solve(right[:, :, None], torch.linalg.cholesky(gram))[:, :, 0]


def _nonnegative(gram: Tensor, right: Tensor, start: Tensor | None = None) -> Tensor:
    """argmin_z>=0 of z' G z / 2 - z' r for each of n problems of k unknowns, by Lawson and Hanson's active sets, from `start` >= 0."""
    n, k = right.shape
    z = torch.zeros_like(right) if start is None else start.clone()
    passive = z > 0
    tolerance = 1e-12 * right.abs().amax(1, keepdim=True)
    identity, open_ = torch.eye(k, dtype=gram.dtype, device=gram.device), torch.arange(n, device=right.device)
    for _ in range(3 * k):
        slope = right[open_] - (gram[open_] @ z[open_, :, None])[:, :, 0]
        slope = torch.where(passive[open_], -torch.inf, slope)
        best, entering = slope.max(1)
        keep = best > tolerance[open_, 0]
        open_, entering = open_[keep], entering[keep]
        if not len(open_):
            break
        passive[open_, entering] = True
        rows = open_
        for _ in range(k + 1):
            held = passive[rows]
            inside = torch.where(held[:, :, None] & held[:, None], gram[rows], identity)
            solution = _solved(inside, torch.where(held, right[rows], 0.0))
            low = held & (solution <= 0)
            leaves = low.any(1)
            z[rows[~leaves]] = solution[~leaves]
            rows, solution, low = rows[leaves], solution[leaves], low[leaves]
            if not len(rows):
                break
            now = z[rows]
            ratio = torch.where(low, now / (now - solution).clamp_min(torch.finfo(now.dtype).tiny), torch.inf)
            step = ratio.amin(1, keepdim=True)
            now = now + step * (solution - now)
            gone = low & (ratio <= step * (1 + 1e-12))
            passive[rows] &= ~gone
            z[rows] = torch.where(passive[rows], now, 0.0)
    return z


@torch.no_grad()
def orthogonal_matching_pursuit(x: ArrayLike, W_dec: Tensor, b_dec: Tensor, k: int, *, nonnegative: bool = False) -> TopActs:
    """OMP: k times, take the row that correlates most with the residual, and fit all values anew by least squares.

    Args:
        x: samples (n, d).
        W_dec, b_dec: (m, d), (d,).
        k: steps; a sample has at most so many latents.
        nonnegative: only rows with a positive correlation are taken, and values are the best of at least 0.

    Costs k products with W_dec and k Cholesky factors of at most k x k for each sample (a few more if `nonnegative`: each fit starts at
    the last one's active set). A sample that no row correlates with ends early, with values of 0. Source: Pati, Rezaiifar and
    Krishnaprasad 1993; non-negative: Bruckstein, Elad and Zibulevsky 2008.

    Raises:
        TypeError, ValueError: x that is not (n, d), k below 1 or above m.
    """

    def update(
        centred: Tensor, unit: Tensor, support: Tensor, values: Tensor, correlation: Tensor, kept: dict[str, Tensor]
    ) -> Tensor:
        row = unit[support[:, -1]].double()
        products = torch.einsum("nd,nkd->nk", row, unit[support].double())
        products[:, -1] = torch.where(products[:, -1] > 0, products[:, -1] + JITTER, 1.0)  # 1 for a row of 0
        gram = products[:, :, None] if not kept else F.pad(kept["gram"], (0, 1, 0, 1))
        gram[:, -1], gram[:, :, -1] = products, products
        right = (row * centred).sum(1, keepdim=True)
        kept["gram"], kept["right"] = gram, torch.cat([kept["right"], right], 1) if "right" in kept else right
        if not nonnegative:
            return _solved(gram, kept["right"]).to(centred.dtype)
        return _nonnegative(gram, kept["right"], F.pad(values, (0, 1)).double()).to(centred.dtype)

    return _pursued(x, W_dec, b_dec, k, nonnegative, update)


@torch.no_grad()
def gradient_pursuit(x: ArrayLike, W_dec: Tensor, b_dec: Tensor, k: int, *, nonnegative: bool = False) -> TopActs:
    """Gradient pursuit: as OMP, with one exact line step along the gradient in the values of the chosen rows in place of least squares.

    Values below 0 are clipped if `nonnegative`. Arguments and errors as `orthogonal_matching_pursuit`.
    Source: Blumensath and Davies 2008, "Gradient pursuits"; for SAEs: Smith 2024, "Inference-time optimisation".
    """

    def update(
        centred: Tensor, unit: Tensor, support: Tensor, values: Tensor, correlation: Tensor, kept: dict[str, Tensor]
    ) -> Tensor:
        values, direction = F.pad(values, (0, 1)), correlation.gather(1, support)
        if nonnegative:  # what is at 0 can only rise
            direction = torch.where((values > 0) | (direction > 0), direction, 0.0)
        moved = torch.einsum("nk,nkd->nd", direction, unit[support])
        step = _over(direction.square().sum(1, keepdim=True), moved.square().sum(1, keepdim=True))
        values = values + step * direction
        return values.clamp_min(0.0) if nonnegative else values

    return _pursued(x, W_dec, b_dec, k, nonnegative, update)


@torch.no_grad()
def matching_pursuit(x: ArrayLike, W_dec: Tensor, b_dec: Tensor, k: int, *, nonnegative: bool = False) -> TopActs:
    """MP: k times, add to a code the row that correlates most with the residual, by its correlation.

    A row may be taken again, so a sample can have fewer than k latents. Arguments and errors as `orthogonal_matching_pursuit`.
    Source: Mallat and Zhang 1993; as an SAE's encoder: arXiv 2506.03093.
    """
    x, unit, norms = _prepared(x, W_dec, k)
    found = []
    for part in x.split(_rows(k, *unit.shape[::-1])):
        residual, codes = part - b_dec, part.new_zeros(len(part), len(unit))
        for _ in range(k):
            best, chosen = _best(residual @ unit.T, norms, nonnegative)
            codes.scatter_add_(1, chosen, best)
            residual = residual - best * unit[chosen[:, 0]]
        support = codes.abs().topk(k, dim=1).indices
        found.append((codes.gather(1, support), support))
    return _joined(found, norms)


def _prepared(x: ArrayLike, W_dec: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Checked samples, unit rows and their norms."""
    x = as_samples(x, W_dec.shape[1], dtype=W_dec.dtype, device=W_dec.device)
    _check_k(k, W_dec)
    norms = torch.linalg.vector_norm(W_dec, dim=1)
    return x, _over(W_dec, norms[:, None]), norms


def _check_k(k: int, W_dec: Tensor) -> int:
    whole("k", k, 1)
    if k > len(W_dec):
        raise ValueError(f"k={k} is larger than n_latents={len(W_dec)}: choose k <= n_latents")
    return int(k)


def _best(correlation: Tensor, norms: Tensor, nonnegative: bool, taken: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The largest correlation (n, 1) of each sample and its row (n, 1); 0 where none is positive."""
    lowest = torch.finfo(correlation.dtype).min  # rows of zeros come last, and rows that are taken never again
    ranked = torch.where(norms > 0, correlation if nonnegative else correlation.abs(), lowest)
    if taken is not None:
        ranked = ranked.scatter(1, taken, -torch.inf)
    chosen = ranked.argmax(1, keepdim=True)
    best = correlation.gather(1, chosen)
    return torch.where(ranked.gather(1, chosen) > 0, best, 0.0), chosen


def _joined(found: list[tuple[Tensor, Tensor]], norms: Tensor) -> TopActs:
    """The code for rows as they are, of blocks of (values for unit rows, support)."""
    values, support = (torch.cat(parts) for parts in zip(*found, strict=True))
    return TopActs(_over(values, norms[support]), support)


def _pursued(x: ArrayLike, W_dec: Tensor, b_dec: Tensor, k: int, nonnegative: bool, update: Callable[..., Tensor]) -> TopActs:
    """k distinct rows of each sample by their correlation with the residual, values by `update` after each, which may keep what it needs
    from one to the next."""
    x, unit, norms = _prepared(x, W_dec, k)
    found = []
    for part in x.split(_rows(k, *unit.shape[::-1])):
        centred = part - b_dec
        support = torch.zeros(len(part), 0, dtype=torch.int64, device=part.device)
        values = part.new_zeros(len(part), 0)
        correlation, kept = centred @ unit.T, dict[str, Tensor]()
        for _ in range(k):
            best, chosen = _best(correlation, norms, nonnegative, support)
            support = torch.cat([support, chosen], 1)
            values = update(centred, unit, support, values, correlation, kept)
            values[:, -1:] = torch.where(best == 0, 0.0, values[:, -1:])  # a place with nothing in it
            correlation = (centred - torch.einsum("nk,nkd->nd", values, unit[support])) @ unit.T
        found.append((values, support))
    return _joined(found, norms)


PURSUITS: dict[str, Callable[..., TopActs]] = {
    "omp": orthogonal_matching_pursuit, "gradient": gradient_pursuit, "mp": matching_pursuit,
}  # fmt: skip


class Dictionary(SparseModel):
    """A decoder whose codes are found by a search. It is evaluated as an SAE is (`metrics.evaluate`), and not trained by gradients.

    Args:
        W_dec, b_dec: (m, d), (d,); copied.
        k: latents of a sample.
        pursuit: "omp", "gradient" or "mp".
        nonnegative: whether codes must be.

    Raises:
        ValueError: an unknown pursuit, k below 1 or above m.
    """

    couples_samples = False

    def __init__(self, W_dec: Tensor, b_dec: Tensor, k: int, pursuit: str = "omp", *, nonnegative: bool = True) -> None:
        super().__init__()
        one_of("pursuit", pursuit, PURSUITS)
        self.k, self.pursuit, self.nonnegative = _check_k(k, W_dec), pursuit, bool(nonnegative)
        self.W_dec = nn.Parameter(W_dec.detach().clone(), requires_grad=False)
        self.b_dec = nn.Parameter(b_dec.detach().clone(), requires_grad=False)

    @classmethod
    def of(cls, sae: Any, k: int | None = None, pursuit: str = "omp") -> Dictionary:
        """The decoder of an SAE. k: None takes that of its activation; codes are as free of sign as the SAE's.

        Raises ValueError where the SAE has no fixed k and none is given.
        """
        model = as_model(sae)
        k = model.kept if k is None else k
        if k is None:
            raise ValueError(f"{model.label} has no fixed number of latents a sample: pass k")
        signed = model.nonlinearity is not None and model.nonlinearity.signed
        return cls(model.W_dec, model.b_dec, k, pursuit, nonnegative=not signed)

    @property
    def kept(self) -> int | None:
        return self.k

    def code(self, x: Tensor) -> Code:
        return PURSUITS[self.pursuit](x, self.W_dec, self.b_dec, self.k, nonnegative=self.nonnegative)

    def encode(self, x: ArrayLike) -> Tensor:
        """The dense code (n, m) of x (n, d)."""
        return dense(self.code(as_samples(x, self.shape[0], dtype=self.b_dec.dtype, device=self.b_dec.device)), self.shape[1])

    def decode(self, code: Any) -> Tensor:
        return torch.addmm(self.b_dec, dense(code, self.shape[1]), self.W_dec)


@torch.no_grad()
def learn_dictionary(
    x: ArrayLike,
    n_latents: int,
    k: int,
    *,
    iterations: int = 20,
    pursuit: str = "omp",
    nonnegative: bool = True,
    ridge: float = 0.0,
    generator: torch.Generator | int | None = None,
) -> Dictionary:
    """The method of optimal directions (MOD): codes by a pursuit, the decoder by exact least squares, in turn.

    No gradients, and no encoder: the classical baseline of every SAE. Rows start as distinct samples less their mean, b_dec at the
    mean. After each solve a row that no sample uses is replaced by the sample that is reconstructed worst (each by another one).
    Rows have unit norm at the end of each iteration; the next search finds codes for them.

    Args:
        x: samples (n, d), n >= n_latents.
        iterations: of both steps.
        ridge: of the solve, on sums over samples.

    Raises:
        TypeError, ValueError: x that is not (n, d), fewer samples than latents, options out of range.

    Source: Engan, Aase and Husoy 1999, "Method of optimal directions for frame design".
    """
    x = as_samples(x)
    whole("n_latents", n_latents, 1)
    whole("iterations", iterations, 1)
    at_least("ridge", ridge, 0.0)
    at_least("samples (one for each latent)", len(x), n_latents)
    start = x[torch.randperm(len(x), generator=as_generator(generator))[:n_latents]]
    mean = x.mean(0)
    found = Dictionary(F.normalize(start - mean, dim=1), mean, k, pursuit, nonnegative=nonnegative)
    for _ in range(iterations):
        stats, worst = DecoderStats(n_latents, x.shape[1], device=x.device), x.new_zeros(len(x))
        used = torch.zeros(n_latents, dtype=torch.int64, device=x.device)
        for rows in torch.arange(len(x)).split(4096):
            code = found.code(x[rows])
            stats.update(code, x[rows])
            worst[rows] = (x[rows] - found.decode(code)).square().sum(1)
            used += torch.bincount(code.top_indices[code.top_acts != 0], minlength=n_latents)  # type: ignore[union-attr]
        W_dec, b_dec = solve_decoder(stats, ridge=ridge)
        silent = (used == 0).nonzero().flatten()
        W_dec[silent] = (x[worst.topk(len(silent)).indices] - b_dec).to(W_dec)
        found.W_dec.copy_(F.normalize(W_dec, dim=1))
        found.b_dec.copy_(b_dec)
    return found
