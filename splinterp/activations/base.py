"""What every activation is, and the sparse form of its codes."""

from __future__ import annotations

import copy
import math
from typing import Any, ClassVar, NamedTuple

import torch
from torch import nn

from splinterp._typing import Float, Int, Tensor


class TopActs(NamedTuple):
    """The sparse form of `acts`: row r has `top_acts[r, j]` at latent `top_indices[r, j]` and zeros elsewhere.

    Indices in a row are distinct and in no particular order; a kept value may be 0 (TopK of negative scores).
    """

    top_acts: Float[Tensor, "n k"]
    top_indices: Int[Tensor, "n k"]


class Activation(nn.Module):
    """Base of the activations: a map from `pre_acts (n, n_latents)` to `acts` of the same shape.

    `allows_l1` / `allows_l0` say which sparsity penalty of the training methods the activation can take.
    """

    allows_l1: ClassVar[bool] = False
    allows_l0: ClassVar[bool] = False

    def bind(self, n_latents: int, dtype: torch.dtype, device: torch.device) -> Activation:
        """Return an independent copy for an SAE of `n_latents` latents.

        Raises ValueError where the activation does not fit that many latents.
        """
        return copy.deepcopy(self).to(device=device, dtype=dtype)

    def config(self) -> dict[str, Any]:
        """The constructor's arguments, with the class name under "name"."""
        raise NotImplementedError

    def top(self, pre_acts: Float[Tensor, "n n_latents"]) -> TopActs:
        """The sparse form of `acts`. Raises TypeError for activations without a fixed number of active latents."""
        raise TypeError(f"{type(self).__name__} has no fixed number of active latents; use the dense acts")

    def regularizer(self, acts: Float[Tensor, "n n_latents"]) -> Float[Tensor, " n"]:
        """R(z) of each sample, `inf` where z is not feasible."""
        raise NotImplementedError

    def extra_repr(self) -> str:
        return ", ".join(f"{key}={value!r}" for key, value in self.config().items() if key != "name")


def _infeasible(condition: Tensor) -> Tensor:
    return torch.where(condition, math.inf, 0.0)
