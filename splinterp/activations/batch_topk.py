"""The activation that keeps k latents a sample on average over a batch."""

from __future__ import annotations

import math
from typing import Any

import torch

from splinterp._typing import Float, Tensor
from splinterp.activations.base import _infeasible
from splinterp.activations.topk import _FixedCount


class BatchTopK(_FixedCount):
    """The k * n largest positive scores of a batch of n samples while training; a fixed threshold at inference.

    The threshold is the running mean, over training batches, of the smallest value kept (arXiv 2412.06410): an
    exponential mean with the given momentum that starts at the first batch. It moves only while gradients are
    enabled, so collecting codes for a decoder solve leaves it alone.

    Raises:
        TypeError, ValueError: k is not an int of at least 1, momentum outside [0, 1).
        RuntimeError: evaluation before any training batch has set the threshold.
    """

    threshold: Tensor

    def __init__(self, k: int, momentum: float = 0.99) -> None:
        super().__init__(k)
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum={momentum} must be in [0, 1)")
        self.momentum = float(momentum)
        self.register_buffer("threshold", torch.tensor(math.nan))

    def config(self) -> dict[str, Any]:
        return {**super().config(), "momentum": self.momentum}

    def forward(self, pre_acts: Float[Tensor, "n n_latents"]) -> Float[Tensor, "n n_latents"]:
        positive = torch.relu(pre_acts)
        if not self.training:
            if torch.isnan(self.threshold):
                raise RuntimeError("BatchTopK has no threshold yet: train it first, or call .train() to select by batch")
            return positive * (pre_acts >= self.threshold)
        flat = positive.flatten()
        values, indices = flat.topk(min(self.k * pre_acts.shape[0], flat.numel()), sorted=False)
        if torch.is_grad_enabled():
            self._update_threshold(values.detach())
        return torch.zeros_like(flat).scatter(0, indices, values).view_as(pre_acts)

    def _update_threshold(self, kept: Tensor) -> None:
        active = kept[kept > 0]
        if active.numel():
            smallest = active.min()
            mean = self.momentum * self.threshold + (1 - self.momentum) * smallest
            self.threshold.copy_(torch.where(torch.isnan(self.threshold), smallest, mean))

    def regularizer(self, acts: Float[Tensor, "n n_latents"]) -> Float[Tensor, " n"]:
        """R couples the samples of a batch: each row carries the whole batch's feasibility."""
        feasible = ((acts != 0).sum() <= self.k * acts.shape[0]) & (acts >= 0).all()
        return _infeasible(~feasible).expand(acts.shape[0])
