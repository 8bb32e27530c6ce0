"""How PAM-SGD lets a residual in: for how long it is held, and, where it is not told, when and by how large steps.

The defaults are measured in experiments/RESULTS.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from splinterp.activations._dense import is_dense
from splinterp.activations.base import Activation
from splinterp.activations.topk import TopK
from splinterp.losses.terms import L1, Term
from splinterp.protocol import Block, SparseModel
from splinterp.training.optimizers import OPTIMIZERS
from splinterp.training.pam_state import PAMState
from splinterp.training.race import Racing
from splinterp.training.when import When

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


class HeldResidual:
    """How long the residual is held, by the method's options and the state."""

    if TYPE_CHECKING:
        gradient: str
        hold: float | str
        racing: Racing
        ridge: float | str
        lr: float
        decoder_lr: float | None
        optimizer: str | Callable[..., Any]
        schedule: str | Callable[..., Any]
        when: When

        @property
        def loss_terms(self) -> tuple[Term, ...]: ...

    def _hold_of(self, model: SparseModel, block: Block, total_steps: int | None) -> float | str:
        """`hold`, its "auto" decided for a model and a number of steps."""
        if self.hold == "auto" and (total_steps is None or block.residual is None):
            return 0.0
        return self.opening(model.nonlinearity, model.shape[0])[0]

    def opening(self, activation: Activation | None, d_in: int) -> tuple[float | str, float]:
        """(`hold`, `decoder_lr`) for a tied-residual SAE of this activation in a run whose number of steps is known.

        Where they are not given, and gradients move the residual: (0.5, 1) where codes keep at least a sixth of d_in latents, or have no
        fixed number and an L1 penalty; (0, 0.0024 / lr, at most 1) under TopK by Adam or AdamW on a schedule by name; else (0, 1). Other
        activations do not reliably benefit from smaller steps (experiments/RESULTS.md, "Other candidates").
        """
        hold, rate = 0.0, 1.0
        if self.gradient == "both" and not self.when.streams:
            hold, rate = residual_defaults(activation, d_in, self.loss_terms, self.lr)
        own = self.hold != 1 and self.ridge != math.inf and isinstance(self.schedule, str) and self.optimizer in ADAMS
        return (
            hold if self.hold == "auto" else self.hold,
            self.decoder_lr if self.decoder_lr is not None else rate if own else 1.0,
        )

    def _rests(self, state: PAMState) -> bool:
        """Whether the decoder moves by gradients between solves, and nothing holds it."""
        return self.gradient != "encoder" and not state.held

    def waits(self, state: PAMState) -> bool:
        """Whether the residual is held and its share of the steps is not over; in a race, and where the tied arm has won it, until the
        last step."""
        if not state.held or state.total_steps is None:
            return False
        share = state.hold
        if isinstance(share, str):
            share = 1.0 if state.race is None or state.race.length else self.racing.otherwise
        return state.step < share * state.total_steps

    @staticmethod
    def _solves_are_late(state: PAMState) -> bool:
        """Whether half of the steps after the residual's share are over without a solve that could have let it in."""
        share = state.hold
        if isinstance(share, str) or not 0 < share < 1 or state.total_steps is None:
            return False
        return state.step >= (1 + share) / 2 * state.total_steps
