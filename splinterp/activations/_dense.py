"""Codes that keep a large part of d_in latents, which want another start and a later residual."""

from __future__ import annotations

from splinterp.activations.base import Activation

DENSE_SHARE = 1 / 6
"""Of d_in latents, that codes of such an SAE keep. Measured by `python -m experiments biases`: at a quarter a random start of more than
d_in latents ends at a higher error than d_in latents do, at a twelfth far below, and at an eighth it depends on the data."""


def is_dense(activation: Activation | None, d_in: int) -> bool:
    """Whether an activation keeps so many latents; None, or one of no fixed number, does not."""
    k = None if activation is None else activation.kept
    return k is not None and k >= DENSE_SHARE * d_in
