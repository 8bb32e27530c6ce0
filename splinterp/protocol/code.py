"""A code in either form, and what is the same for both."""

from __future__ import annotations

from typing import Any

import torch

from splinterp._typing import Tensor
from splinterp.activations import TopActs

Code = Tensor | TopActs
"""Either form of a code: dense `acts` (n, n_latents), or sparse."""


def dense(code: Any, n_latents: int) -> Tensor:
    """The dense form (n, n_latents) of a code."""
    if not isinstance(code, TopActs):
        return code
    values, indices = code
    return values.new_zeros(len(values), n_latents).scatter_add(1, indices, values)


def masked(code: Code, kept: Tensor) -> Code:
    """The code with zeros where `kept`, bool in the shape of its values (or of its last axis), does not hold."""
    if isinstance(code, TopActs):
        return code.with_values(torch.where(kept, code.top_acts, 0.0))
    return torch.where(kept, code, 0.0)


def times_fired(code: Any, n_latents: int) -> Tensor:
    """On how many samples each latent is non-zero, int64 (n_latents,), without a dense code."""
    if not isinstance(code, TopActs):
        return torch.count_nonzero(code, dim=0)
    values, indices = code
    return torch.bincount(indices[values != 0], minlength=n_latents)
