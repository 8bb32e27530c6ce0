"""Pursuits: codes by a greedy search over the rows of a decoder.

A pursuit works with rows of unit norm and returns codes for the rows as they are. Codes that must not be negative go by non-negative
correlations and non-negative least squares. Rows of zeros are never chosen.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn import functional as F

from splinterp._checks import as_samples, whole
from splinterp._typing import ArrayLike, Tensor
from splinterp.activations import TopActs
from splinterp.inference.least_squares import JITTER, nonnegative_values, over, rows_together, solved


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
            return solved(gram, kept["right"]).to(centred.dtype)
        return nonnegative_values(gram, kept["right"], F.pad(values, (0, 1)).double()).to(centred.dtype)

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
        step = over(direction.square().sum(1, keepdim=True), moved.square().sum(1, keepdim=True))
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
    for part in x.split(rows_together(k, *unit.shape[::-1])):
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
    check_k(k, W_dec)
    norms = torch.linalg.vector_norm(W_dec, dim=1)
    return x, over(W_dec, norms[:, None]), norms


def check_k(k: int, W_dec: Tensor) -> int:
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
    return TopActs(over(values, norms[support]), support)


def _pursued(x: ArrayLike, W_dec: Tensor, b_dec: Tensor, k: int, nonnegative: bool, update: Callable[..., Tensor]) -> TopActs:
    """k distinct rows of each sample by their correlation with the residual, values by `update` after each, which may keep what it needs
    from one to the next."""
    x, unit, norms = _prepared(x, W_dec, k)
    found = []
    for part in x.split(rows_together(k, *unit.shape[::-1])):
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
