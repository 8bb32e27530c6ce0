"""How PAM-SGD lets a residual in where it is not told: when, and by how large steps. Measured in experiments/RESULTS.md."""

from __future__ import annotations

from splinterp.activations._dense import is_dense
from splinterp.activations.base import Activation
from splinterp.activations.topk import TopK
from splinterp.losses.terms import L1, Term
from splinterp.training.optimizers import OPTIMIZERS

ADAMS = ("adam", "adamw", OPTIMIZERS["adam"], OPTIMIZERS["adamw"])
"""Optimizers whose steps have about the step size, whatever the gradient."""
LATE = 0.5
"""`hold` where it is not given, and codes are dense or an L1 penalty decides how dense they are."""
LARGEST_STEP = 2.4e-3
"""Step size of a residual under TopK, where `decoder_lr` is not given and codes are sparse: no more than this. Adam moves a weight by about
the step size, whatever its gradient, and a residual is small beside W_enc."""


def residual_defaults(activation: Activation | None, d_in: int, terms: tuple[Term, ...], lr: float) -> tuple[float, float]:
    """(hold, decoder_lr) of a residual that gradients move by Adam at the step size `lr`, where they are not given.

    An L1 penalty rewards an encoder for shrinking its codes, which a decoder of its own makes up for; one that counts latents does not.
    """
    l1 = any(isinstance(term, L1) and term.weight for term in terms)
    if is_dense(activation, d_in) or (l1 and activation is not None and activation.kept is None):
        return LATE, 1.0
    return 0.0, min(1.0, LARGEST_STEP / lr) if isinstance(activation, TopK) and type(activation).keep is TopK.keep else 1.0
