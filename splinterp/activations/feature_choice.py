"""The activation by which latents choose samples, where TopK has samples choose latents."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch

from splinterp._checks import at_least
from splinterp._typing import Float, Tensor
from splinterp.activations.base import Activation, _infeasible
from splinterp.activations.topk import _FixedCount


class FeatureChoice(_FixedCount):
    """Each latent keeps its largest positive scores of a batch while training, on its share of the samples; at inference it has a
    threshold of its own.

    Latent i (from 0) has the share k * (i + 1 + shift)^-exponent / sum_j (j + 1 + shift)^-exponent, so a sample has k latents on average
    and frequencies fall as Zipf's law says; exponent 0 gives all k / n_latents. In a batch of n it keeps round(share n), at least one:
    no latent is ever out of training (and samples of a batch of fewer than about 1 / share have more than k). Ranks are by index, and
    stay: latents start alike, so that is no loss. Thresholds are set from training samples by `fit` before each evaluation, and by
    `SAE.calibrate`; on all samples this is bias adaptation with the rule "quantile" at those frequencies. The defaults are this
    package's. (Mutual Choice, of the same paper, is `BatchTopK`.)
    Source: arXiv 2411.02124, which gives no formula for ranks or rounding.

    Args:
        k: active latents of a sample, on average.
        exponent, shift: of Zipf's law.

    Raises:
        TypeError, ValueError: k is not an int of at least 1; exponent or shift below 0; for an SAE, a share above 1.
        RuntimeError: evaluation before the thresholds are set.
    """

    couples_samples = True
    fixes_frequencies = True
    threshold: Tensor

    def __init__(self, k: int, exponent: float = 0.5, shift: float = 0.0) -> None:
        super().__init__(k)
        at_least("exponent", exponent, 0.0)
        at_least("shift", shift, 0.0)
        self.exponent, self.shift = float(exponent), float(shift)
        self.register_buffer("threshold", torch.tensor(math.nan))

    def bind(self, n_latents: int, dtype: torch.dtype, device: torch.device) -> Activation:
        bound: Any = super().bind(n_latents, dtype, device)
        share = float(self.shares_of(n_latents, self.k).max())
        if share > 1:
            raise ValueError(
                f"k={self.k} of {n_latents} latents with exponent={self.exponent:g} would have the first fire on {share:.3g} of the "
                "samples: lower exponent, or raise shift"
            )
        bound.register_buffer("threshold", torch.full((n_latents,), math.nan, dtype=dtype, device=device))
        return bound

    def shares_of(self, n_latents: int, k: float) -> Float[Tensor, " n_latents"]:
        """The share of the samples that each latent fires on, float64; their sum is k."""
        zipf = (torch.arange(1, n_latents + 1, dtype=torch.float64) + self.shift) ** -self.exponent
        return k * zipf / zipf.sum()

    def config(self) -> dict[str, Any]:
        return {**super().config(), "exponent": self.exponent, "shift": self.shift}

    def _counts(self, n: int, n_latents: int) -> Tensor:
        return (self.shares_of(n_latents, self.k) * n).round().long().clamp(1, max(n, 1))

    def forward(self, pre_acts: Float[Tensor, "n n_latents"]) -> Float[Tensor, "n n_latents"]:
        positive = torch.relu(pre_acts)
        if not self.training:
            if torch.isnan(self.threshold).any():
                raise RuntimeError(
                    "FeatureChoice has no thresholds yet: train it by fit, call SAE.calibrate(x) with training samples, or .train() to "
                    "choose from the batch"
                )
            return torch.where((pre_acts > self.threshold) | pre_acts.isnan(), positive, 0.0)
        if not len(pre_acts):
            return positive
        counts = self._counts(*pre_acts.shape).to(pre_acts.device)
        with torch.no_grad():
            top = positive.topk(int(counts.max()), dim=0).indices  # in descending order
            ranks = torch.arange(len(top), device=top.device)[:, None].expand_as(top)
            kept = torch.zeros_like(positive, dtype=torch.bool).scatter_(0, top, ranks < counts)
        return torch.where(kept | pre_acts.isnan(), positive, 0.0)

    @torch.no_grad()
    def calibrate(self, scores: Iterable[Float[Tensor, "n n_latents"]], n_samples: int) -> None:
        """Set each threshold half-way between the last score that the latent's share of all samples takes and the next; 0 where that is
        not positive. Holds as many scores of every latent as the most frequent one keeps."""
        if not n_samples:
            return
        n_latents = len(self.threshold)
        counts, kept = (
            self._counts(n_samples, n_latents).to(self.threshold.device)[None],
            self.threshold.new_zeros(0, n_latents),
        )
        most = min(n_samples, int(counts.max()) + 1)
        for block in scores:
            kept = torch.cat([kept, block.to(kept).nan_to_num(nan=-math.inf)])  # a run that diverges is told by its errors
            kept = kept.topk(min(len(kept), most), dim=0).values  # in descending order
        last = kept.gather(0, counts - 1)
        following = torch.where(counts < n_samples, kept.gather(0, counts.clamp(max=most - 1)), 0.0)
        middle = (last + following) / 2
        level = torch.where(middle < last, middle, torch.nextafter(last, torch.full_like(last, -math.inf)))
        self.threshold.copy_(level[0].clamp_min(0.0))

    def regularizer(self, acts: Float[Tensor, "n n_latents"]) -> Float[Tensor, " n"]:
        """R couples the samples of a batch: each row carries the whole batch's feasibility."""
        counts = self._counts(*acts.shape).to(acts.device)
        feasible = bool(((acts != 0).sum(0) <= counts).all() & (acts >= 0).all())
        return _infeasible(torch.full((len(acts),), not feasible, device=acts.device))
