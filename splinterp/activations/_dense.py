"""Codes that keep a large part of d_in latents, which want another start and a later residual."""

from __future__ import annotations

from splinterp.activations.base import Activation

DENSE_SHARE = 1 / 6
"""Of d_in latents, that codes of such an SAE keep. Measured by `python -m experiments biases`: at a quarter a random start of more than
d_in latents ends at a higher error than d_in latents do, at a twelfth far below, and at an eighth it depends on the data."""


def is_dense(activation: Activation | None, d_in: int) -> bool:
    """Whether an activation makes such codes: it keeps so many latents, and none of negative scores, which a bias does not make rare."""
    if activation is None or activation.signed:
        return False
    return activation.kept is not None and activation.kept >= DENSE_SHARE * d_in
