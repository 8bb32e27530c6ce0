"""What PAM-SGD keeps between steps."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from splinterp._typing import Tensor
from splinterp.training.base import TrainState

SAVED = ("ridge", "residual", "anchor", "since_solve", "in_epoch", "held")


@dataclass
class PAMState(TrainState):
    """State of PAMSGD.

    `ridge` is the strength at the last solve (None before the first one with ridge="gcv"); `residual` is the optimality
    residual of that solve (`splinterp.decoder.optimality_residual`); `anchor` holds the encoder's parameters that
    `prox_enc` pulls to; `since_solve` counts the steps since the last solve; `held` says that no gradient moves the residual
    until the first solve; `held_out` (n, d_in) are the samples that ridge="held_out" chooses by.
    """

    ridge: float | None = None
    residual: float = math.nan
    wants_held_out: bool = False
    held_out: Tensor | None = None
    anchor: list[Tensor] | None = None
    since_solve: int = 0
    in_epoch: bool = False
    held: bool = False

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), **{name: getattr(self, name) for name in SAVED}}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        super().load_state_dict(saved)
        for name in SAVED:
            setattr(self, name, saved[name])
