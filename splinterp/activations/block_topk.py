"""TopK in each block of the dictionary: several SAEs in one."""

from __future__ import annotations

from typing import Any

import torch

from splinterp._checks import whole
from splinterp._typing import Float, Int, Tensor
from splinterp.activations.base import Activation, _infeasible
from splinterp.activations.topk import RowTop, TopK
from splinterp.sparse_kernels import select_largest, settle_ties


class BlockTopK(RowTop):
    """The k / blocks largest scores of each block of n_latents / blocks neighbours, then ReLU.

    A dictionary of blocks that choose apart is several SAEs side by side (`losses.Blocks` reconstructs from each by itself). One block
    is TopK.

    Args:
        k: latents of a sample, of all blocks together.
        blocks: equal parts of the dictionary.

    Raises:
        TypeError, ValueError: k or blocks below 1, or not a multiple; for an SAE, n_latents that is not a multiple of blocks, or blocks
            of fewer than k / blocks.
    """

    couples_samples = False
    keep, keep_backward = TopK.keep, TopK.keep_backward

    def __init__(self, k: int, blocks: int) -> None:
        super().__init__(k)
        self.blocks = whole("blocks", blocks, 1)
        if self.k % self.blocks:
            raise ValueError(f"k={k} is not a multiple of blocks={blocks}: each block keeps as many latents")

    def bind(self, n_latents: int, dtype: torch.dtype, device: torch.device) -> Activation:
        if n_latents % self.blocks:
            raise ValueError(f"n_latents={n_latents} is not a multiple of blocks={self.blocks}")
        return super().bind(n_latents, dtype, device)

    def config(self) -> dict[str, Any]:
        return {**super().config(), "blocks": self.blocks}

    def keeping(self, k: int) -> Any:
        return super().keeping(self.blocks * -(-k // self.blocks))  # as many in each block, rounded up

    def _of_blocks(self, pre_acts: Tensor, settled: bool) -> Tensor:
        n, width, each = len(pre_acts), pre_acts.shape[1] // self.blocks, self.k // self.blocks
        scores = pre_acts.reshape(n * self.blocks, width)
        found = select_largest(scores, each)
        found = settle_ties(scores, found, False) if settled else found
        first = torch.arange(self.blocks, device=found.device)[:, None] * width
        return (found.view(n, self.blocks, each) + first).flatten(1)

    def select(self, pre_acts: Float[Tensor, "n n_latents"]) -> Int[Tensor, "n k"]:
        return self._of_blocks(pre_acts, False)

    def select_settled(self, pre_acts: Float[Tensor, "n n_latents"]) -> Int[Tensor, "n k"]:
        return self._of_blocks(pre_acts, True)

    def regularizer(self, acts: Float[Tensor, "n n_latents"]) -> Float[Tensor, " n"]:
        fired = (acts != 0).unflatten(1, (self.blocks, -1)).sum(2)
        return _infeasible((fired > self.k // self.blocks).any(dim=1) | (acts < 0).any(dim=1))
