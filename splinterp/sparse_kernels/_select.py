"""The k largest of each row on the CPU, in threads; and buffers that are used again."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from splinterp._typing import Float, Int, Tensor

PARALLEL_SCORES = 2**15
"""Blocks of fewer scores are searched in one thread."""

_pools: dict[tuple[int, int], ThreadPoolExecutor] = {}
_workspace = threading.local()


def workspace(name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """An uninitialised CPU tensor that the next call of this name in this thread reuses: fresh pages cost as much as the products."""
    size = math.prod(shape)
    kept = getattr(_workspace, name, None)
    if kept is None or kept.dtype != dtype or kept.numel() < size:
        with torch.inference_mode(False):  # a tensor of inference mode could not be written outside it
            kept = torch.empty(size, dtype=dtype)
        setattr(_workspace, name, kept)
    return kept[:size].view(shape)


def select_largest(scores: Float[Tensor, "n n_latents"], k: int, magnitude: bool = False) -> Int[Tensor, "n k"]:
    """Indices of the k largest scores of each row, or of largest magnitude, in no order.

    Ties are broken arbitrarily, NaN counts as largest. On the CPU latents are grouped; the k groups of largest maximum hold the
    k largest scores, so NumPy's partition sees about 2 sqrt(k n_latents) numbers a row instead of n_latents.
    """
    n, m = scores.shape
    if k == m:
        return torch.arange(m, device=scores.device).expand(n, m).contiguous()
    scores = scores.detach()
    if scores.device.type != "cpu" or scores.dtype not in (torch.float32, torch.float64):
        return (scores.abs() if magnitude else scores).topk(k, dim=1, sorted=False).indices
    size = max(1, round(math.sqrt(m / k)))
    groups = m // size  # group j: latents j, j + groups, j + 2 groups, ...; the rest are candidates of every row
    if size == 1:
        return _partition(scores.abs() if magnitude else scores, k)
    members = scores[:, : size * groups].view(n, size, groups)
    if magnitude:
        low, high = torch.aminmax(members, dim=1)
        best = torch.maximum(high, -low)
    else:
        best = members.amax(dim=1)
    chosen = _partition(best, k)
    candidates = members.gather(2, chosen[:, None, :].expand(n, size, k)).view(n, size * k)
    rest = m - size * groups
    if rest:
        candidates = torch.cat([candidates, scores[:, m - rest :]], dim=1)
    found = _partition(candidates.abs_() if magnitude else candidates, k)
    grouped = torch.div(found, k, rounding_mode="floor") * groups + chosen.gather(1, found % k)
    return torch.where(found < size * k, grouped, found + (size * groups - size * k)) if rest else grouped


def settle_ties(scores: Float[Tensor, "n n_latents"], found: Int[Tensor, "n k"], magnitude: bool = False) -> Int[Tensor, "n k"]:
    """`select_largest` with equal scores given to the lowest indices; those of 0 or below (of 0, by magnitude) stay as they are."""
    values = scores.detach().abs() if magnitude else scores.detach()
    least = values.gather(1, found).amin(1, keepdim=True)
    rows = (((values >= least).sum(1) > found.shape[1]) & (least[:, 0] > 0)).nonzero()[:, 0]
    if not len(rows):
        return found
    values, least = values[rows], least[rows]
    above, tied = values > least, values == least
    room = found.shape[1] - above.sum(1, keepdim=True)
    kept = above | (tied & (tied.cumsum(1) <= room))
    return found.index_copy(0, rows, kept.nonzero()[:, 1].view(len(rows), found.shape[1]))


def _partition(values: Tensor, k: int) -> Tensor:
    """Indices of the k largest of each row, by NumPy's partition, in threads."""
    n, m = values.shape
    array, found = values.numpy(), np.empty((n, k), dtype=np.int64)
    if k == m:
        found[:] = np.arange(m)
        return torch.from_numpy(found)
    threads = torch.get_num_threads() if values.numel() >= PARALLEL_SCORES else 1
    chunk = max(1, min(-(-n // threads), PARALLEL_SCORES // m))  # the partition's own index array stays in the cache

    def search(start: int) -> None:
        rows = slice(start, start + chunk)
        found[rows] = np.argpartition(array[rows], m - k, axis=1)[:, m - k :]

    in_threads(search, range(0, n, chunk), threads)
    return torch.from_numpy(found)


def in_threads(work: Callable[[int], None], starts: range, threads: int) -> None:
    """Call `work`, which must spend its time outside the interpreter's lock, for each of `starts`."""
    if threads == 1 or len(starts) == 1:
        for start in starts:
            work(start)
        return
    key = (os.getpid(), threads)  # a forked child has none of its parent's threads
    if key not in _pools:
        _pools[key] = ThreadPoolExecutor(threads, thread_name_prefix="splinterp")
    list(_pools[key].map(work, starts))
