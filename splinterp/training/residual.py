"""How PAM-SGD lets a residual in where it is not told: when, and by how large steps. Measured in experiments/RESULTS.md."""

from __future__ import annotations

from splinterp.activations._dense import is_dense
from splinterp.activations.base import Activation
from splinterp.activations.topk import TopK

LATE = 0.5
"""`hold` where it is not given, and codes are dense or an L1 penalty decides how dense they are."""
SMALL_STEPS = 0.3
"""`decoder_lr` of a residual under TopK where it is not given and codes are sparse."""


def residual_defaults(activation: Activation | None, d_in: int, l1: bool) -> tuple[float, float]:
    """(hold, decoder_lr) of a residual that gradients move, where they are not given.

    An L1 penalty rewards an encoder for shrinking its codes, which a decoder of its own makes up for; one that counts latents does not.
    """
    if is_dense(activation, d_in) or (l1 and activation is not None and activation.kept is None):
        return LATE, 1.0
    return 0.0, SMALL_STEPS if isinstance(activation, TopK) else 1.0
