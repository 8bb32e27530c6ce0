"""What the encoders that choose latents themselves ask of an activation."""

from __future__ import annotations

from typing import Any

from splinterp.activations import ReLU


def needs_relu(encoder: Any, activation: Any) -> None:
    """Raise TypeError unless the activation is a ReLU: the encoder chooses which of the positive scores are kept."""
    if type(activation) is not ReLU:
        raise TypeError(
            f"{type(encoder).__name__} chooses itself which positive scores are kept: pass activation=ReLU(), not {activation!r}"
        )
