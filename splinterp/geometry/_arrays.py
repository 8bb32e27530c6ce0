"""What geometry takes: arrays and CPU tensors of any floating dtype, computed in float64."""

from __future__ import annotations

import numpy as np
import torch

from splinterp._checks import as_samples
from splinterp._typing import Array, ArrayLike

BLOCK_BYTES = 2**26
"""Scores are computed in blocks of about this size."""


def as_float64(x: ArrayLike, width: int | None = None, name: str = "x") -> Array:
    """`x` as a finite (n, width) float64 array; a vector is refused.

    Raises:
        TypeError: not an array, or integers.
        ValueError: not 2-D, wrong width, non-finite, or on another device than the CPU.
    """
    if isinstance(x, torch.Tensor):
        if x.device.type != "cpu":
            raise ValueError(f"{name} is on {x.device}; geometry runs on the CPU: pass {name}.cpu()")
        x = x.detach()
    return as_samples(x, width, dtype=torch.float64, name=name).numpy()


def as_vector(x: ArrayLike, width: int | None = None, name: str = "x") -> Array:
    """`x` as a finite (width,) float64 array. Raises as `as_float64` does."""
    if getattr(x, "ndim", None) != 1:
        raise ValueError(f"{name} must be a vector, not of shape {tuple(getattr(x, 'shape', ()))}")
    return as_float64(x[None], width, name)[0]


def blocks(n_rows: int, row_entries: int) -> list[slice]:
    """Slices of rows whose float64 entries take about BLOCK_BYTES."""
    size = max(1, BLOCK_BYTES // (8 * max(1, row_entries)))
    return [slice(start, min(start + size, n_rows)) for start in range(0, n_rows, size)]


def as_sets(sites: Array, n_sites: int, name: str = "sites") -> Array:
    """A set of site indices, sorted, as int64. Raises TypeError for numbers that are not whole, ValueError for repeated or unknown ones."""
    given = np.asarray(sites)
    if given.size and not np.issubdtype(given.dtype, np.integer):
        raise TypeError(
            f"{name} has dtype {given.dtype}: pass indices, those of region_of(sae, x).support for the region of a sample, say"
        )
    chosen = np.sort(given.astype(np.int64).reshape(-1))
    if len(chosen) and (chosen[0] < 0 or chosen[-1] >= n_sites):
        raise ValueError(f"{name}={chosen.tolist()} must lie in [0, {n_sites})")
    if (np.diff(chosen) == 0).any():
        raise ValueError(f"{name}={chosen.tolist()} names a site twice")
    return chosen
