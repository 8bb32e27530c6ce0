"""Values of a code on a given support: least squares, and non-negative least squares by active sets, for many samples at once."""

from __future__ import annotations

import torch

from splinterp._checks import as_samples
from splinterp._typing import ArrayLike, Float, Int, Tensor

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
    rows = rows_together(support.shape[1], x.shape[1])
    parts = [
        _fitted((part - b_dec).double(), W_dec[chosen].double(), nonnegative)
        for part, chosen in zip(x.split(rows), support.split(rows), strict=True)
    ]
    return torch.cat(parts).to(W_dec.dtype)


def rows_together(k: int, d: int, m: int = 1) -> int:
    return max(1, NUMBERS // max(k * d, m, 1))


def over(values: Tensor, norms: Tensor) -> Tensor:
    """values / norms, 0 where the norm is."""
    there = norms > 0
    return torch.where(there, values / torch.where(there, norms, 1.0), 0.0)


def _fitted(centred: Tensor, rows: Tensor, nonnegative: bool) -> Tensor:
    """Values (n, k) of samples (n, d) on their rows (n, k, d), float64."""
    norms = torch.linalg.vector_norm(rows, dim=2)
    unit = over(rows, norms[:, :, None])
    gram = unit @ unit.mT
    gram.diagonal(dim1=1, dim2=2).add_(JITTER).masked_fill_(norms == 0, 1.0)
    right = (unit @ centred[:, :, None])[:, :, 0]
    found = nonnegative_values(gram, right) if nonnegative else solved(gram, right)
    return over(found, norms)


def solved(gram: Tensor, right: Tensor) -> Tensor:
    return torch.cholesky_solve(right[:, :, None], torch.linalg.cholesky(gram))[:, :, 0]


def nonnegative_values(gram: Tensor, right: Tensor, start: Tensor | None = None) -> Tensor:
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
            solution = solved(inside, torch.where(held, right[rows], 0.0))
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
