"""The activation that keeps k latents a sample on average over a batch."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch

from splinterp._typing import Float, Tensor
from splinterp.activations.base import _infeasible
from splinterp.activations.topk import _FixedCount


class BatchTopK(_FixedCount):
    """The k * n largest positive scores of a batch of n samples while training; a fixed threshold at inference.

    The threshold (arXiv 2412.06410) is the score that k latents a sample exceed on average over training samples. Using an SAE
    never moves it: `fit` sets it before each evaluation, and `SAE.calibrate` from any samples.

    Raises:
        TypeError, ValueError: k is not an int of at least 1.
        RuntimeError: evaluation before the threshold is set.
    """

    couples_samples = True
    competes = True
    threshold: Tensor

    def __init__(self, k: int) -> None:
        super().__init__(k)
        self.register_buffer("threshold", torch.tensor(math.nan))

    def forward(self, pre_acts: Float[Tensor, "n n_latents"]) -> Float[Tensor, "n n_latents"]:
        positive = torch.relu(pre_acts)
        if not self.training:
            if torch.isnan(self.threshold):
                raise RuntimeError(
                    "BatchTopK has no threshold yet: train it by fit, call SAE.calibrate(x) with training samples, or .train() to "
                    "select by batch"
                )
            return positive * (pre_acts >= self.threshold)
        flat = positive.flatten()
        values, indices = flat.topk(min(self.k * pre_acts.shape[0], flat.numel()), sorted=False)
        return torch.zeros_like(flat).scatter(0, indices, values).view_as(pre_acts)

    @torch.no_grad()
    def calibrate(self, scores: Iterable[Float[Tensor, "n n_latents"]], n_samples: int) -> None:
        """Set the threshold to the smallest of the k n largest positive scores of all n samples; the smallest positive number
        where fewer are positive."""
        kept, most = self.threshold.new_zeros(0), self.k * n_samples
        for block in scores:
            positive = block[block > 0]
            kept = torch.cat([kept, positive.to(kept)])
            if len(kept) > 2 * most:
                kept = kept.topk(most, sorted=False).values
        if n_samples:
            tiny = torch.finfo(kept.dtype).tiny
            smallest = float(kept.topk(most, sorted=False).values.min()) if len(kept) >= most else tiny
            self.threshold.fill_(smallest)
            self.threshold.copy_(
                torch.nextafter(self.threshold, torch.zeros_like(self.threshold))
            )  # > and >= are then the same

    def regularizer(self, acts: Float[Tensor, "n n_latents"]) -> Float[Tensor, " n"]:
        """R couples the samples of a batch: each row carries the whole batch's feasibility."""
        feasible = ((acts != 0).sum() <= self.k * acts.shape[0]) & (acts >= 0).all()
        return _infeasible(~feasible).expand(acts.shape[0])
