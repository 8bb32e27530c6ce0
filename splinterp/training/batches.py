"""Batches of samples, in order or in an order drawn."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import torch

from splinterp._typing import Tensor
from splinterp.data.store import ActivationStore


def evenly_spaced(x: Tensor | ActivationStore, most: int) -> Tensor | ActivationStore:
    """`most` of the samples, evenly spaced, as a tensor; x itself where it has no more."""
    if most >= len(x):
        return x
    return x[torch.arange(most, device=x.device if isinstance(x, Tensor) else "cpu") * len(x) // most]


class Batches:
    """Batches of the rows of `x`, moved to a device and dtype; iterable any number of times.

    The last partial batch is used; a batch size above the number of rows gives one batch.
    """

    def __init__(self, x: Tensor | ActivationStore, batch_size: int, device: torch.device, dtype: torch.dtype) -> None:
        self.x, self.batch_size, self.device, self.dtype = x, min(batch_size, len(x)), device, dtype

    @property
    def n_rows(self) -> int:
        """Rows of one pass."""
        return len(self.x)

    def __len__(self) -> int:
        return math.ceil(len(self.x) / self.batch_size)

    def __iter__(self) -> Iterator[Tensor]:
        """In order."""
        yield from map(self.moved, self.x.split(self.batch_size))

    def moved(self, x: Tensor) -> Tensor:
        """Rows on the device, in the dtype."""
        return x.to(device=self.device, dtype=self.dtype)

    def part(self, index: int, of: int) -> Part:
        """One of `of` interleaved parts of the rows, which differ by at most a batch or an eighth of one; no others are read."""
        return Part(self, index, of)

    def shuffled(self, generator: torch.Generator) -> Iterator[Tensor]:
        """In an order drawn from a CPU generator, the same for every device."""
        if isinstance(self.x, ActivationStore):
            yield from map(self.moved, self.x.shuffled(self.batch_size, generator))
            return
        order = torch.randperm(len(self.x), device="cpu", generator=generator).to(self.x.device)
        for rows in order.split(self.batch_size):
            yield self.moved(self.x[rows])


class Part:
    """Some rows of `Batches`, in order, in blocks that are spread over all of them; iterable any number of times."""

    def __init__(self, batches: Batches, index: int, of: int) -> None:
        self.batches = batches
        n = len(batches.x)
        self.block = max(1, min(batches.batch_size, n // (8 * of)))
        self.starts = range(index * self.block, n, of * self.block)

    @property
    def n_rows(self) -> int:
        """Rows of one pass."""
        return sum(min(self.block, len(self.batches.x) - start) for start in self.starts)

    def __iter__(self) -> Iterator[Tensor]:
        for start in self.starts:
            yield self.batches.moved(self.batches.x[start : start + self.block])


def rows_of(batches: Iterable[Tensor], most: int) -> int:
    """How many rows batches have, as far as that can be told without a pass over them; else `most`."""
    if isinstance(batches, Batches | Part):
        return batches.n_rows
    return sum(map(len, batches)) if isinstance(batches, list | tuple) else most
