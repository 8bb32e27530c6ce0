"""What PAM-SGD keeps between steps."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from splinterp._typing import Tensor
from splinterp.data.store import ActivationStore
from splinterp.decoder import DecoderStats
from splinterp.training.distributed import ProcessGroup
from splinterp.training.race import Race, load_race, saved_race
from splinterp.training.train_state import TrainState, copy_whole

SUMS = ("mean_acts", "mean_x", "gram", "cross", "total")
SAVED = (
    "ridge",
    "residual",
    "anchor",
    "since_solve",
    "epochs_since_solve",
    "solves",
    "in_epoch",
    "held",
    "solve_seconds",
    "read_at",
    "read_last",
    "batch_size",
)


@dataclass
class PAMState(TrainState):
    """State of PAMSGD.

    `ridge` is the strength at the last solve (None before the first one of a rule); `residual` is the optimality
    residual of that solve (`splinterp.decoder.optimality_residual`); `anchor` holds the encoder's parameters that
    `prox_enc` pulls to; `since_solve` and `epochs_since_solve` count the steps and the ends of epochs since the last solve, `solves` the
    solves; `held` says that no gradient moves the residual
    until the first solve; `held_out` (n, d_in) are the samples that ridges and readouts are chosen by.
    """

    ridge: float | None = None
    residual: float = math.nan
    held_out: Tensor | ActivationStore | None = None
    anchor: list[Tensor] | None = None
    since_solve: int = 0
    epochs_since_solve: int = 0
    solves: int = 0
    in_epoch: bool = False
    held: bool = False
    hold: float | str = 0.0
    """The method's `hold`, its "auto" decided."""
    solve_seconds: float = 0.0
    """Of solves so far, codes and statistics included."""
    sae: Any = None
    """The module that is trained."""
    reads: bool = False
    """Whether there are readouts."""
    race: Race | None = None
    """Of hold="race": its plan, and after it who won and by what."""
    one_process: str = ""
    """The option that takes one process to train, if any."""
    read_last: bool = False
    """Whether the decoder is the readout of the last step."""
    read_at: int = 0
    """The step of the last readout."""
    batch_size: int = 0
    """The largest batch so far."""
    totals: dict[str, Tensor] = field(default_factory=dict)
    """Each latent's sums for penalties on the decoder's rows, by the term's name, of the samples of the statistics."""

    stats: DecoderStats | None = None
    """Of a stream so far (`when=Refresh(...)`)."""
    window: list[Tensor] = field(default_factory=list)
    """Its batches since the last refresh."""

    def join(self, processes: ProcessGroup) -> None:
        """As for every method. Raises ValueError for a race or readouts, which one process does."""
        if self.one_process:
            raise ValueError(f"{self.one_process} is for one process: leave it out, or train in one")
        super().join(processes)
        self.reads = False

    def log(self) -> dict[str, float]:
        return {**super().log(), "ridge": math.nan if self.ridge is None else self.ridge, "solve_seconds": self.solve_seconds}

    def state_dict(self) -> dict[str, Any]:
        saved = {**super().state_dict(), **{name: getattr(self, name) for name in SAVED}, "race": saved_race(self)}
        if self.stats is None:
            return saved
        sums = {name: getattr(self.stats, name) for name in SUMS}
        counts = {"n_samples": self.stats.n_samples, "n_distinct": self.stats.n_distinct}
        return {**saved, **counts, "sums": sums, "totals": self.totals, "window": self.window}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        super().load_state_dict(saved)
        if saved["anchor"] is not None:
            shapes = [p.shape for p in self.model.encoder_parameters()]
            if [part.shape for part in saved["anchor"]] != shapes:
                raise ValueError(f"the saved anchor has shapes other than the encoder's {[tuple(shape) for shape in shapes]}")
        for name in SAVED:
            setattr(self, name, saved[name])
        load_race(self, saved.get("race"))
        if self.stats is None:
            return
        self.stats.n_samples, self.stats.n_distinct = saved["n_samples"], saved["n_distinct"]
        self.stats.altered()
        for name in SUMS:
            copy_whole(getattr(self.stats, name), saved["sums"][name], name)
        for name, total in saved["totals"].items():
            copy_whole(self.totals[name], total, f"total of {name}")
        for part in saved["window"]:
            if part.ndim != 2 or part.shape[1] != self.model.width:
                raise ValueError(f"a saved batch has shape {tuple(part.shape)}, not (n, {self.model.width})")
        self.window = list(saved["window"])
