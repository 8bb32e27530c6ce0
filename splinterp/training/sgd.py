"""Joint SGD: every block moves by gradients."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from splinterp._documented import documented
from splinterp._typing import ArrayLike, Tensor
from splinterp.data.store import ActivationStore
from splinterp.protocol import SAELike, sharing
from splinterp.training.base import GradientOptions
from splinterp.training.train_state import TrainState


@documented
@dataclass(frozen=True, kw_only=True)
class SGD(GradientOptions):
    """The standard trainer: one optimizer update a batch on all parameters.

    Works on any decoder and on any module with the SAELike protocol.

    Raises:
        ValueError: an option out of range.
    """

    unit_norm_decoder: bool = False
    """Rescale the decoder rows to unit norm after each update (for a tied decoder, the encoder columns); zero rows stay."""
    project_gradient: bool = False
    """Before each update drop the part of the gradient of a unit row that lies along it (needs `unit_norm_decoder`)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.project_gradient and not self.unit_norm_decoder:
            raise ValueError("project_gradient=True is for unit rows: set unit_norm_decoder=True")

    def init(
        self,
        sae: SAELike,
        x: ArrayLike | ActivationStore,
        total_steps: int | None = None,
        *,
        x_val: Tensor | ActivationStore | None = None,
    ) -> TrainState:
        """Start training on x (N, d_in) or a store. `total_steps` (batches) sets the schedule's length; None: constant step size.

        Raises TypeError, ValueError: a module or data that does not fit.
        """
        options = self.start(sae, x, total_steps)
        if self.unit_norm_decoder:
            block = options["model"].decoder_block()
            held = block.solve is not None and not sharing(options["model"], options["model"].W_dec)
            if block.residual is not None or block.scales is not None or held:
                raise ValueError("unit_norm_decoder=True needs decoder='free' or 'tied' without scales")
            if not block.tied and not block.weights:
                raise TypeError(
                    f"unit_norm_decoder=True writes into W_dec, which {type(sae).__name__} computes: make it a parameter"
                )
        return TrainState(**options)

    def step(self, sae: SAELike, state: TrainState, x: Tensor) -> None:
        """One update on a batch (n, d_in). Raises DivergenceError."""
        self.gradient_update(sae, state, x)
        state.step += 1
        if self.unit_norm_decoder:
            with torch.no_grad():
                rows = _rows(state)
                rows /= rows.norm(dim=1, keepdim=True).clamp_min(torch.finfo(rows.dtype).tiny)

    @torch.no_grad()
    def adjust_gradients(self, sae: SAELike, state: TrainState) -> None:
        """With `project_gradient`, drop the part of the rows' gradients along the rows."""
        if not self.project_gradient:
            return
        block = state.model.decoder_block()
        owner = block.weights[0] if block.weights else state.model.encoder_weights()
        assert owner is not None
        if owner.grad is None:
            return
        gradient, rows = (owner.grad, _rows(state)) if block.weights else (owner.grad.T, _rows(state))
        unit = rows / rows.norm(dim=1, keepdim=True).clamp_min(torch.finfo(rows.dtype).tiny)
        gradient -= (gradient * unit).sum(1, keepdim=True) * unit

    def end_epoch(self, sae: SAELike, state: TrainState, batches: Iterable[Tensor]) -> None:
        """Nothing to do: there is no exact block."""


def _rows(state: TrainState) -> Tensor:
    """The decoder's rows where they are kept: W_dec, or the transposed encoder of a tied SAE."""
    if state.model.decoder_block().tied:
        owner = state.model.encoder_weights()
        assert owner is not None
        return owner.detach().T
    return state.model.W_dec.detach()
