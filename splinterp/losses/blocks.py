"""Several SAEs in one: each block of the dictionary reconstructs by itself, and blocks may be drawn towards each other."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.nn import functional as F

from splinterp._checks import whole
from splinterp._documented import documented
from splinterp._typing import Tensor
from splinterp.losses.forward import Forward
from splinterp.losses.terms import Reconstruction, State, Term
from splinterp.protocol import Code, SparseModel, masked


@dataclass(frozen=True, kw_only=True)
class _OfBlocks(Term):
    least: ClassVar[int] = 1
    """Blocks that it needs."""

    blocks: int
    """Into how many equal parts, one after the other, the latents are divided."""

    def __post_init__(self) -> None:
        super().__post_init__()
        whole("blocks", self.blocks, self.least)

    def check(self, model: SparseModel) -> None:
        if model.shape[1] % self.blocks:
            raise ValueError(f"blocks={self.blocks} does not divide n_latents={model.shape[1]}")


@documented
@dataclass(frozen=True, kw_only=True)
class Blocks(_OfBlocks, Reconstruction):
    """The mean over blocks, samples and d_in of the squared error of each block's own reconstruction, z_block W_block + b_dec.

    With `BlockTopK` it trains that many SAEs at once, which share b_pre and b_dec, and an exact solve solves for all of them.

    Raises:
        ValueError: blocks below 1; on a model, blocks that do not divide n_latents.
    """

    def codes(self, out: Forward) -> Iterator[tuple[float | Tensor, Code]]:
        block = out.latents() // (out.model.shape[1] // self.blocks)
        for j in range(self.blocks):
            yield 1 / self.blocks, masked(out.code, block == j)


@documented
@dataclass(frozen=True, kw_only=True)
class Mutual(_OfBlocks):
    """The mean over ordered pairs of blocks (a, b) of 1 - MMCS, MMCS the mean over rows of W_dec in a of the largest cosine with one
    in b: mutual feature regularisation.

    What independent SAEs find both is taken for a feature of the data. Goes with `Blocks` and `BlockTopK`. Identical blocks have 0, and
    stay identical: let them start apart. Several rows may match one. It has no unit (see `OrtSAE`); a solve does not see it, and may
    undo it. Costs blocks (blocks - 1) products of block and block. Source: arXiv 2411.01220.

    Raises:
        ValueError: blocks below 2; on a model, blocks that do not divide n_latents.
    """

    least: ClassVar[int] = 2

    def __call__(self, out: Forward, state: State) -> Tensor:
        units = F.normalize(out.W_dec, dim=1).chunk(self.blocks)
        apart = []
        for a, b in itertools.permutations(units, 2):
            with torch.no_grad():  # gradients reach the pairs that are found
                partners = (a @ b.T).argmax(1)
            apart.append(1 - (a * b[partners]).sum(1).mean())
        return torch.stack(apart).mean()
