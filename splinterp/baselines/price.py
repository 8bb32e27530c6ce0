"""What an SAE pays for its interpretability: its error against the best piecewise affine map on its own partition."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from splinterp._documented import documented
from splinterp._typing import Array, ArrayLike, Float, Int
from splinterp.baselines._affine import best_flat, by_region
from splinterp.geometry._arrays import as_float64, blocks
from splinterp.geometry._encoder import decoder_of, encoder_of
from splinterp.geometry.regions import Regions, regions_of
from splinterp.sae import SAE

ENOUGH = 10
"""A region of rank r is covered from 10 (r + 1) samples on: fewer hardly determine its r + 1 vectors."""


@documented
class LocalPCABound(NamedTuple):
    """The least error of any piecewise affine map on a partition; all are sums of squares over samples and features."""

    total: float
    per_region: Float[Array, " n_regions"]
    counts: Int[Array, " n_regions"]
    """Samples in each region."""


def local_pca_bound(x: ArrayLike, regions: ArrayLike, rank: int | Array) -> LocalPCABound:
    """The least squared error that any piecewise affine map of this rank reaches on this partition of these samples.

    In each region that is local PCA: the sum of the squared singular values beyond the rank of its centred samples
    (claim 9; Eckart and Young).

    Args:
        x: (n, d).
        regions: (n,) whole numbers from 0, as `predict_region` or `regions_of(sae, x).labels` give them.
        rank: one for all regions, or one for each.

    Raises:
        ValueError: lengths that differ, negative regions or ranks.
    """
    x = as_float64(x)
    labels = np.asarray(regions)
    if labels.shape != (len(x),) or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"regions must be {len(x)} integers, one for each sample, not {labels.dtype} of shape {labels.shape}")
    if len(labels) and labels.min() < 0:
        raise ValueError(f"regions must not be negative, but one is {labels.min()}")
    n_regions = int(labels.max(initial=-1)) + 1
    ranks = np.broadcast_to(np.asarray(rank), (n_regions,))
    if n_regions and ranks.min() < 0:
        raise ValueError(f"rank={ranks.min()} must be at least 0")
    errors = np.zeros(n_regions)
    for region, rows in by_region(labels, n_regions):
        errors[region] = _beyond(x[rows], int(ranks[region]))
    return LocalPCABound(float(errors.sum()), errors, np.bincount(labels, minlength=n_regions))


def _beyond(x: Array, rank: int) -> float:
    """Sum of the squared singular values beyond `rank` of the centred rows."""
    if rank >= min(len(x) - 1, x.shape[1]):  # centred, n rows have rank n - 1 at most
        return 0.0
    centred = x - x.mean(axis=0)
    square = centred.T @ centred if len(x) > x.shape[1] else centred @ centred.T
    return float(np.maximum(np.linalg.eigvalsh(square)[: len(square) - rank], 0).sum()) if rank else float((centred**2).sum())


@documented
@dataclass(frozen=True, eq=False)
class InterpretabilityPrice:
    """What `interpretability_price` found. Errors are sums of squares over samples and features."""

    error: float
    """Of the SAE."""
    bound: float
    """Of local PCA on the SAE's own partition, with each region's number of active latents as its rank."""
    price: float
    """error - bound, never negative up to rounding."""
    variance: float
    """Sum of squared deviations from the mean: errors over it are fractions of variance unexplained."""
    counts: Int[Array, " n_regions"]
    """Samples in each region, in order of first appearance."""
    ranks: Int[Array, " n_regions"]
    """Active latents of each region."""
    errors: Float[Array, " n_regions"]
    """Of the SAE in each region."""
    bounds: Float[Array, " n_regions"]
    """Of local PCA in each region."""
    share_covered: float
    """Share of the samples in regions of at least 10 (rank + 1) samples; where it is small, most of the bound is 0 because
    samples are alone, and the price says nothing."""
    covered_error: float
    """Of the SAE on the covered samples."""
    covered_bound: float
    """Of local PCA on the covered samples."""
    held_out_error: float
    """On the covered samples, of local PCA fitted to one half of each region and scored on the other, both ways."""


def interpretability_price(sae: SAE, x: ArrayLike, generator: torch.Generator | None = None) -> InterpretabilityPrice:
    """The error of an SAE minus that of the best piecewise affine map of its ranks on its own partition (claim 9).

    Args:
        sae: on the CPU; evaluated in float64.
        x: (n, d_in); the same standardisation as in training.
        generator: CPU generator of the halves; None is one seeded with 0.

    Raises as `regions_of` does.
    """
    rows = as_float64(x, sae.d_in)
    regions = regions_of(sae, rows, margins=False)
    labels = regions.labels
    counts = np.bincount(labels)
    ranks = np.zeros(len(counts), dtype=np.int64)
    ranks[labels] = np.diff(regions.starts)
    squares = ((reconstruct_by_region(sae, rows, regions) - rows) ** 2).sum(axis=1)
    errors = np.bincount(labels, weights=squares)
    bounds = local_pca_bound(rows, labels, ranks).per_region
    covered = counts >= ENOUGH * (ranks + 1)
    generator = generator if generator is not None else torch.Generator().manual_seed(0)
    order = torch.randperm(len(rows), device="cpu", generator=generator).numpy()
    held_out = 0.0
    for region, chosen in by_region(labels[order], len(counts)):
        if covered[region]:
            held_out += _held_out(rows[order[chosen]], int(ranks[region]))
    return InterpretabilityPrice(
        error=float(errors.sum()), bound=float(bounds.sum()), price=float(errors.sum() - bounds.sum()),
        variance=float(((rows - rows.mean(axis=0)) ** 2).sum()), counts=counts, ranks=ranks, errors=errors, bounds=bounds,
        share_covered=float(counts[covered].sum() / len(rows)), covered_error=float(errors[covered].sum()),
        covered_bound=float(bounds[covered].sum()), held_out_error=held_out,
    )  # fmt: skip


def _held_out(x: Array, rank: int) -> float:
    half, error = len(x) // 2, 0.0
    for fitted, scored in ((x[:half], x[half:]), (x[half:], x[:half])):
        mean, components = best_flat(fitted, None, rank, "exact")
        away = scored - mean
        error += float((away**2).sum() - ((away @ components.T) ** 2).sum())
    return error


def reconstruct_by_region(sae: SAE, x: ArrayLike, regions: Regions) -> Float[Array, "n d_in"]:
    """The SAE as a local affine autoencoder: each region's own map x @ matrix + offset applied to its samples, in float64.

    Regions are those of `regions_of(sae, x)`; maps of rank |support| are applied in two factors and never formed.
    """
    encoder, (W_dec, b_dec) = encoder_of(sae), decoder_of(sae)
    x = as_float64(x, sae.d_in)
    x_hat = np.tile(b_dec, (len(x), 1))
    for _, rows in by_region(regions.labels, int(regions.labels.max(initial=-1)) + 1):
        support = regions.support(int(rows[0]))
        for part in blocks(len(rows), x.shape[1]):
            chosen = rows[part]
            x_hat[chosen] += ((x[chosen] - encoder.centre) @ encoder.weights[support].T + encoder.biases[support]) @ W_dec[
                support
            ]
    return x_hat
