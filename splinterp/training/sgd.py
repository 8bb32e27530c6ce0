"""Joint SGD: every block moves by gradients."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from splinterp._typing import ArrayLike, Tensor
from splinterp.data.store import ActivationStore
from splinterp.sae import SAE
from splinterp.training.base import GradientOptions, TrainState, training_data
from splinterp.training.blocks import SAELike, sharing


@dataclass(frozen=True, kw_only=True)
class SGD(GradientOptions):
    """The standard trainer: one optimizer update a batch on all parameters.

    Works on any decoder and on any module with the SAELike protocol.

    Raises:
        ValueError: an option out of range.
    """

    unit_norm_decoder: bool = False
    """Rescale the decoder rows to unit norm after each update (for a tied decoder, the encoder columns); zero rows stay."""

    def init(self, sae: SAELike, x: ArrayLike | ActivationStore, total_steps: int | None = None) -> TrainState:
        """Start training on x (N, d_in) or a store. `total_steps` (batches) sets the schedule's length; None: constant step size.

        Raises TypeError, ValueError: a module or data that does not fit.
        """
        self.check_module(sae)
        if self.unit_norm_decoder and isinstance(sae, SAE) and (sae.decoder == "tied_residual" or sae.scale is not None):
            raise ValueError("unit_norm_decoder=True needs decoder='free' or 'tied' without scales")
        if self.unit_norm_decoder and not sharing(sae, sae.W_dec):
            raise TypeError(
                f"unit_norm_decoder=True writes into W_dec, which {type(sae).__name__} computes: make it a parameter"
            )
        return TrainState(self.make_optimizer(sae), training_data(sae, x), total_steps)

    def step(self, sae: SAELike, state: TrainState, x: Tensor) -> None:
        """One update on a batch (n, d_in). Raises DivergenceError."""
        self.gradient_update(sae, state, x)
        state.step += 1
        if self.unit_norm_decoder:
            with torch.no_grad():
                rows = sae.W_dec  # for a tied SAE a view of W_enc
                rows /= rows.norm(dim=1, keepdim=True).clamp_min(torch.finfo(rows.dtype).tiny)

    def end_epoch(self, sae: SAELike, state: TrainState, batches: Iterable[Tensor]) -> None:
        """Nothing to do: there is no exact block."""
