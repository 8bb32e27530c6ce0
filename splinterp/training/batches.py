"""Batches of samples, in order or in an order drawn."""

from __future__ import annotations

import math
from collections.abc import Iterator

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

    def __len__(self) -> int:
        return math.ceil(len(self.x) / self.batch_size)

    def __iter__(self) -> Iterator[Tensor]:
        """In order."""
        for part in self.x.split(self.batch_size):
            yield part.to(device=self.device, dtype=self.dtype)

    def part(self, index: int, of: int) -> Iterator[Tensor]:
        """Every `of`-th batch of those in order, from the one of this index on; no others are read."""
        for start in range(index * self.batch_size, len(self.x), of * self.batch_size):
            yield self.x[start : start + self.batch_size].to(device=self.device, dtype=self.dtype)

    def shuffled(self, generator: torch.Generator) -> Iterator[Tensor]:
        """In an order drawn from a CPU generator, the same for every device."""
        if isinstance(self.x, ActivationStore):
            for part in self.x.shuffled(self.batch_size, generator):
                yield part.to(device=self.device, dtype=self.dtype)
            return
        order = torch.randperm(len(self.x), generator=generator).to(self.x.device)
        for rows in order.split(self.batch_size):
            yield self.x[rows].to(device=self.device, dtype=self.dtype)
