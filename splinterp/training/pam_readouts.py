"""Readouts as PAM-SGD takes them: whether there are any, when, and at the end."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from splinterp.decoder import Readout
from splinterp.losses.terms import Term
from splinterp.protocol import Block, SAELike, SparseModel
from splinterp.training.pam_state import PAMState
from splinterp.training.reading import read_is_paid, readout_of, write
from splinterp.training.solver import DecoderSolver
from splinterp.training.when import When

READ_SAMPLES = 10_000
"""Training samples that a readout at a history row goes by, or four times the latents; the last one goes by all."""


class Readouts:
    """Readouts by the method's options."""

    if TYPE_CHECKING:
        hold: float | str
        readout: bool | None
        ridge: float | str
        prox_dec: float
        solver: DecoderSolver
        when: When

        @property
        def row_penalties(self) -> tuple[Term, ...]: ...

        def matrix_free(self, model: SparseModel) -> bool: ...

        def after_solve(self, state: PAMState) -> None: ...

    @property
    def _readouts_asked(self) -> str:
        """The option that asks for readouts, if any."""
        return "hold='race'" if self.hold == "race" else "readout=True" if self.readout else ""

    @property
    def _why_no_readouts(self) -> str:
        """Why there are no readouts with these options, with advice; "" where there may be some."""
        if self.when.streams:
            return "looks at all of the data: it is not for a stream"
        if not self.solver.chooses:
            return (
                f"shrinks the solution by held-out samples, for which ridge={self.ridge} and prox_dec={self.prox_dec} leave no room: "
                "leave them out"
            )
        return ""

    def _why_no_readouts_of(self, model: SparseModel, block: Block) -> str:
        """Why there is no readout of this model, with advice; "" where there may be one."""
        if block.solve is not None:
            return f"is of decoders that may be any matrix, and {model.label} has a solve of its own: leave it out"
        if not block.weights:
            return f"solves for a decoder of its own, which {model.label}'s is not: leave it out"
        if self.row_penalties:
            return f"does not see penalties on the decoder's rows ({self.row_penalties[0].name}): leave one of them out"
        if self.matrix_free(model):
            return f"needs the Gram matrix, which is not formed for {model.shape[1]} latents: leave it out"
        return self._why_no_readouts

    def _end_on_a_readout(self, sae: SAELike, state: PAMState) -> None:
        """Make the readout that goes by all samples the SAE's decoder, in place of the last solve."""
        found = readout_of(self, sae, state)
        write(sae, found)
        if not math.isnan(found.ridge) and (state.ridge is None or math.isinf(state.ridge)):
            state.ridge = found.ridge  # a residual that is not 0 is not to be held
        self.after_solve(state)
        state.read_last = True

    def _reads_out(self, state: PAMState) -> bool:
        """Whether there are readouts in this run."""
        return state.reads and state.held_out is not None

    def read_out(self, sae: SAELike, state: PAMState) -> Readout | None:
        """What the SAE's decoder would be, chosen on held-out samples, from at most `READ_SAMPLES` training samples (evenly spaced); None
        where there are no readouts, where none is due, and at the end, where it is the decoder already. Nothing is moved."""
        if not self._reads_out(state) or state.read_last:
            return None
        most = max(READ_SAMPLES, 4 * state.model.shape[1])
        if self.readout is None and not read_is_paid(state, most):
            return None
        state.read_at = state.step
        return readout_of(self, sae, state, most)
