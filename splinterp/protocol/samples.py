"""The blocks of samples that codes are taken in for a solve."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch

from splinterp._typing import Tensor
from splinterp.protocol.model import SparseModel

SOLVE_NUMBERS = 2**22
"""Codes are collected for a solve in blocks of about so many numbers."""


def sample_blocks(model: SparseModel, batches: Iterable[Tensor], alone: bool = False) -> Iterator[Tensor]:
    """Samples in the blocks that their codes are taken in for a solve: batches joined, for its sums have a cost a block.

    A model that couples samples sees the batches as they come, as it does with `alone`.
    """
    d_in, n_latents = model.shape
    rows = 1 if model.couples_samples or alone else SOLVE_NUMBERS // n_latents
    if rows > 1 and model.trains_sparse:
        # the dense Gram matrix is added to once a block, so a block has as many rows, if they fit
        rows = min(max(n_latents, SOLVE_NUMBERS // d_in), 4 * SOLVE_NUMBERS // d_in)
    waiting: list[Tensor] = []
    for x in batches:
        waiting.append(x)
        if sum(map(len, waiting)) >= rows:
            yield torch.cat(waiting) if len(waiting) > 1 else x
            waiting = []
    if waiting:
        yield torch.cat(waiting)
