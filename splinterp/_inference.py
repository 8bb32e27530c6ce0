"""A module in inference mode for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from splinterp.training.blocks import SAELike


@contextmanager
def inference_mode_of(sae: SAELike) -> Iterator[None]:
    """Inside, the module is in evaluation mode; afterwards in the mode it was in."""
    was_training = sae.training
    sae.eval()
    try:
        yield
    finally:
        sae.train(was_training)
