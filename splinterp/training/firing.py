"""How often each latent fires, counted over a stream of codes."""

from __future__ import annotations

from typing import NamedTuple

import torch

from splinterp._typing import Float, Tensor
from splinterp.activations import TopActs
from splinterp.protocol import Code, times_fired


class Firing(NamedTuple):
    """How a latent fired over the samples since the last bias update."""

    frequency: Float[Tensor, " n_latents"]
    """Share of samples on which the latent was non-zero, float64."""
    peak: Float[Tensor, " n_latents"]
    """Largest pre-activation, threshold subtracted; 0 where it never fired. In units of `pre_acts`."""


class FiringCounter:
    """Firing frequency and peak of each latent over a stream of codes: (n_latents,) numbers however long the stream.

    Latents fire where acts != 0, so codes that keep negative values are counted as non-zero, and their peak is the largest
    positive one.
    """

    def __init__(self, n_latents: int, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> None:
        self.n_samples = 0
        self.fired = torch.zeros(n_latents, dtype=torch.int64, device=device)
        self.largest = torch.zeros(n_latents, dtype=dtype, device=device)

    def update(self, acts: Code) -> FiringCounter:
        """Add the codes of n samples, dense (n, n_latents) or sparse."""
        if isinstance(acts, TopActs):
            return self._update_top(acts)
        acts = acts.detach()
        self.n_samples += len(acts)
        self.fired += torch.count_nonzero(acts, dim=0)
        if len(acts):
            torch.maximum(self.largest, acts.amax(0).to(self.largest.dtype), out=self.largest)
        return self

    def _update_top(self, top: TopActs) -> FiringCounter:
        values = top.top_acts.detach().flatten().to(self.largest.dtype)
        self.n_samples += len(top.top_acts)
        self.fired += times_fired(top, len(self.fired))
        self.largest.scatter_reduce_(0, top.top_indices.flatten(), values, "amax")
        return self

    def firing(self, threshold: Tensor | None = None) -> Firing:
        """What has been seen. `threshold` (n_latents,) is subtracted from the peaks. Raises ValueError before any sample."""
        if not self.n_samples:
            raise ValueError("no samples were counted, so there is no firing frequency: call update first")
        peak = self.largest if threshold is None else (self.largest - threshold).clamp_min(0)
        return Firing(self.fired.double() / self.n_samples, torch.where(self.fired > 0, peak, 0.0))

    def reset(self) -> None:
        """Forget everything."""
        self.n_samples = 0
        self.fired.zero_()
        self.largest.zero_()
