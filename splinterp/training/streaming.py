"""PAM-SGD on data seen once: statistics with forgetting, and a decoder refreshed every so many steps."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch

from splinterp._checks import at_least
from splinterp._typing import ArrayLike, Tensor
from splinterp.data.store import ActivationStore
from splinterp.decoder import DecoderStats
from splinterp.training.blocks import SAELike
from splinterp.training.pam import MATRIX_FREE_FROM, PAMSGD
from splinterp.training.pam_state import PAMState

SUMS = ("mean_acts", "mean_x", "gram", "cross", "total")


@dataclass
class StreamState(PAMState):
    """State of StreamingPAMSGD: besides PAMState's, the statistics so far and the batches since the last refresh."""

    stats: DecoderStats | None = None
    window: list[Tensor] = field(default_factory=list)

    def state_dict(self) -> dict[str, Any]:
        assert self.stats is not None
        sums = {name: getattr(self.stats, name) for name in SUMS}
        return {**super().state_dict(), "n_samples": self.stats.n_samples, "sums": sums, "window": self.window}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        super().load_state_dict(saved)
        assert self.stats is not None
        self.stats.n_samples = saved["n_samples"]
        for name in SUMS:
            getattr(self.stats, name).copy_(saved["sums"][name])
        self.window = list(saved["window"])


@dataclass(frozen=True, kw_only=True)
class StreamingPAMSGD(PAMSGD):
    """PAM-SGD for a stream: no pass over past data is ever made.

    After every `refresh_every` steps the batches since the last refresh are encoded once more, by the encoder as it is now; their
    statistics are added to `keep` times the earlier ones, and the decoder is solved for. `ridge` and the other strengths multiply
    sums over the effective number of samples, of which there are at most `refresh_every * batch / (1 - keep)`. An epoch's end
    refreshes too, so `fit(..., epochs=1)` ends on a solve. By hand: `init` on the first batch, then `step` on each.

    Raises:
        ValueError: an option out of range, or one of PAMSGD that says when to solve.
    """

    refresh_every: int = 100
    """Steps between refreshes; their batches are kept in memory."""
    keep: float = 0.5
    """Weight of what was gathered before a refresh, in [0, 1): 0 forgets all of it. Earlier codes are of an earlier encoder."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("refresh_every", self.refresh_every, 1)
        at_least("keep", self.keep, 0.0)
        if self.keep >= 1:
            raise ValueError(f"keep={self.keep} must be below 1: codes of an old encoder have to fade")
        if self.decoder_every is not None or self.solve_first or self.solve_gap != PAMSGD.solve_gap:
            raise ValueError("decoder_every, solve_first and solve_gap do not act on a stream: set refresh_every")

    def init(self, sae: SAELike, x: ArrayLike | ActivationStore, total_steps: int | None = None) -> StreamState:
        """Start on x (N, d_in), a store, or the stream's first batch. Raises TypeError, ValueError as PAMSGD's."""
        state = super().init(sae, x, total_steps)
        W_dec = sae.W_dec
        if len(W_dec) >= MATRIX_FREE_FROM:
            raise ValueError(
                f"{len(W_dec)} latents need a Gram matrix of {8 * len(W_dec) ** 2 / 2**30:.1f} GiB here: use PAMSGD"
            )
        stats = DecoderStats(*W_dec.shape, dtype=self.stats_dtype, device=W_dec.device)
        return StreamState(
            state.optimizer, state.data, total_steps, ridge=state.ridge, anchor=state.anchor, stats=stats,
            wants_held_out=state.wants_held_out, held=state.held,
        )  # fmt: skip

    def step(self, sae: SAELike, state: PAMState, x: Tensor) -> None:
        """The gradient phase on a batch (n, d_in), and a refresh where one is due. Raises DivergenceError."""
        assert isinstance(state, StreamState)
        if state.processes is not None:
            raise ValueError("a stream is trained in one process")
        super().step(sae, state, x)
        state.window.append(x.detach())
        if state.step % self.refresh_every == 0:
            self.refresh(sae, state)

    def end_epoch(self, sae: SAELike, state: PAMState, batches: Iterable[Tensor]) -> None:
        """A refresh, where there were steps since the last one; `batches` are not read."""
        assert isinstance(state, StreamState)
        state.in_epoch = False
        if state.window:
            self.refresh(sae, state)

    @torch.no_grad()
    def refresh(self, sae: SAELike, state: StreamState) -> None:
        """Forget, add the window's statistics, solve. Raises DivergenceError if a code is not finite."""
        assert state.stats is not None
        state.stats.forget(self.keep)
        self.gather(sae, state, state.stats, state.window)
        state.window = []
        if not self.waits(state):
            self.solve(sae, state, state.stats)

    def solved_numbers(self, state: PAMState) -> float:
        """Numbers, d_in for each effective sample, that the strengths' sums run over."""
        assert isinstance(state, StreamState)
        assert state.stats is not None
        return max(1.0, state.stats.n_samples) * state.stats.d_in
