"""A k-sparse code transposed: which entries each latent has."""

from __future__ import annotations

import functools
import importlib.util
from typing import NamedTuple

import numpy as np
import scipy.sparse
import torch

from splinterp._checks import INTEGERS
from splinterp._typing import Int, Tensor


class Transposed(NamedTuple):
    """Which entries of a k-sparse code each latent has: latent m has `order[starts[m] : starts[m + 1]]`.

    `order` are positions in the flattened (n, k) arrays and `samples` their rows.
    """

    starts: Tensor  # (n_latents + 1,) int32
    samples: Tensor  # (n k,) int32
    order: Tensor  # (n k,) int64


@functools.cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def takes_triton(x: Tensor) -> bool:
    """Whether products with a code on this tensor's device are Triton's: a GPU, and Triton is installed."""
    return x.is_cuda and _has_triton()


def check_indices(top_indices: Tensor, n_latents: int) -> None:
    """Raise ValueError for an index of no latent, which the kernels would read and write beyond their arrays by."""
    if top_indices.dtype not in INTEGERS:
        raise ValueError(f"top_indices has dtype {top_indices.dtype}: pass whole numbers, e.g. top_indices.long()")
    if not top_indices.numel():
        return
    low, high = (int(bound) for bound in torch.aminmax(top_indices))
    if low < 0 or high >= n_latents:
        raise ValueError(
            f"top_indices has the index {low if low < 0 else high} but must lie in 0 ... {n_latents - 1}: n_latents={n_latents}"
        )


def transpose_code(top_indices: Int[Tensor, "n k"], n_latents: int) -> Transposed | None:
    """Entries of a code grouped by latent, samples in order; None where nothing takes it (a GPU without Triton).

    On the CPU a counting sort, n k + n_latents work.

    Raises:
        ValueError: an index of no latent, indices that are no whole numbers.
    """
    check_indices(top_indices, n_latents)
    return transpose_known(top_indices, n_latents)


def transpose_known(top_indices: Tensor, n_latents: int) -> Transposed | None:
    """`transpose_code` of indices that were found among n_latents scores."""
    if top_indices.device.type == "cpu":
        return transpose_on_cpu(top_indices, n_latents)
    if not takes_triton(top_indices):
        return None
    return _transpose_by_sorting(top_indices, n_latents)


def transpose_on_cpu(top_indices: Tensor, n_latents: int) -> Transposed:
    """`transpose_code` of a code on the CPU."""
    n, k = top_indices.shape
    if n * k > np.iinfo(np.int32).max:  # positions are 32 bits wide
        raise ValueError(f"a code of {n} x {k} entries is too large to group at once: pass fewer samples at a time")
    rows = np.arange(n + 1, dtype=np.int32) * np.int32(k)
    columns = top_indices.numpy().ravel().astype(np.int32)
    by_latent = scipy.sparse.csr_matrix((np.arange(n * k, dtype=np.int32), columns, rows), shape=(n, n_latents)).tocsc()
    return Transposed(*(torch.from_numpy(a) for a in (by_latent.indptr, by_latent.indices, by_latent.data.astype(np.int64))))


def _transpose_by_sorting(top_indices: Tensor, n_latents: int) -> Transposed:
    found = top_indices.flatten().sort(stable=True)
    starts = torch.searchsorted(found.values, torch.arange(n_latents + 1, device=top_indices.device), out_int32=True)
    return Transposed(starts, (found.indices // top_indices.shape[1]).int(), found.indices)


def check_grouping(by: Transposed | None, top_indices: Tensor, n_latents: int) -> None:
    if by is not None and (by.starts.shape[0] != n_latents + 1 or by.order.numel() != top_indices.numel()):
        raise ValueError(
            f"by_latent groups {by.order.numel()} entries by {len(by.starts) - 1} latents, and the code has {top_indices.numel()} "
            f"of n_latents={n_latents}: pass transpose_code(top_indices, {n_latents})"
        )
