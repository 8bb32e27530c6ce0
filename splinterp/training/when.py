"""When PAM-SGD solves for the decoder, and from which samples."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from splinterp._checks import at_least, whole
from splinterp._documented import documented
from splinterp._typing import Tensor
from splinterp.decoder import DecoderStats
from splinterp.training.batches import Batches
from splinterp.training.pam_state import PAMState

GAP = 50
"""Least number of steps between two solves, unless said otherwise."""
PRICE = 0.1
"""Share of the gradient steps' time that the solves between them are to take."""
FACTORS, EIGENVECTORS = 3, 10
"""What choosing a ridge costs, in factors with their triangular solves: by factors, and by an eigendecomposition."""
LEAST_SOLVES = 3
"""The longest gap is the run by this, whatever a solve costs."""
ROWS = 2
"""Samples a latent that a part must have."""
NEVER = 10**9
"""Steps between solves, where there is only the last one."""
GRAM_LATENTS = 8_192
"""Latents up to which a Gram matrix is formed: it has 512 MiB in float64."""


@dataclass(frozen=True, kw_only=True)
class When:
    """When a solve is due. A subclass is a frozen dataclass that overrides some of these; all are told before and after each event."""

    @property
    def streams(self) -> bool:
        """Whether it keeps statistics of its own from batch to batch, and never passes over past data."""
        return False

    def start(self, state: PAMState, dtype: Any) -> None:
        """Called once, by `init`."""

    def before_epoch(self, state: PAMState) -> bool:
        """Whether to solve before an epoch's first step."""
        return False

    def after_step(self, state: PAMState, x: Tensor) -> bool:
        """Whether to solve after a step on the batch x."""
        return False

    def after_epoch(self, state: PAMState, rests: bool) -> bool:
        """Whether to solve at an epoch's end. `rests`: the decoder moves by gradients between solves, and nothing holds it."""
        return False

    def rows(self, state: PAMState, batches: Iterable[Tensor], rests: bool) -> Iterable[Tensor]:
        """Those of an epoch's batches that a solve which is due goes by; `rests` as of `after_epoch`."""
        return batches

    def renew(self, state: PAMState, gather: Callable[[DecoderStats, Iterable[Tensor]], None]) -> DecoderStats:
        """Of one that streams: the statistics that a solve which is due goes by; gather(stats, batches) adds current codes to them."""
        raise NotImplementedError


def factor_cost(d_in: int, n_latents: int) -> float:
    """Of a Cholesky factor and its triangular solves, in samples that a gradient step goes by: they have n^3 / 6 + n^2 d_in
    multiplications in float64, a gradient step has 2 n d_in for a sample in float32."""
    return n_latents**2 / (6 * d_in) + n_latents


def _unfinished(state: PAMState) -> bool:
    return state.total_steps is not None and not state.finished


@documented
@dataclass(frozen=True, kw_only=True)
class EveryEpoch(When):
    """At ends of epochs; the last epoch always ends on a solve of all samples.

    A solve costs about as much as gradient steps on the samples that it goes by, and a factor. Unless `gap` is given, those before the
    last are spaced so that they take about a tenth of the time of the gradient steps, but a third of the steps is the longest gap, and
    50 steps the shortest; and they go by one half of the samples, in turn, if that has twice as many as there are latents and the
    ridge is chosen by a rule: what it chooses on a half stands for all (it is a ratio of variances, which does not grow with N), while
    strengths that are given multiply sums over all samples. (On few samples an epoch is a few steps, and solving that often raised
    the validation error.) Where the decoder moves by solves alone, and where the number of steps is unknown, every epoch ends on a
    solve of all samples.

    Raises:
        ValueError: a gap or a number of parts below 1.
    """

    gap: int | None = None
    """Least number of steps between two solves; None: by what they cost."""
    parts: int | None = None
    """Solves before the last go by one of so many interleaved parts of the samples of `fit`, in turn; None: two where `gap` is None and
    they are large enough, else one."""
    first: bool = False
    """Solve at the start of each epoch instead: the decoder is then evaluated stale (as published for LLMs)."""

    def __post_init__(self) -> None:
        if self.gap is not None:
            whole("solve_gap", self.gap, 1)
        if self.parts is not None:
            whole("solve_parts", self.parts, 1)
        for name, value in {"solve_gap": self.gap, "solve_parts": self.parts}.items():
            if self.first and value is not None:
                raise ValueError(
                    f"{name}={value} changes nothing with solve_first=True, which solves at every epoch's start: leave it out"
                )

    def before_epoch(self, state: PAMState) -> bool:
        return self.first

    def after_epoch(self, state: PAMState, rests: bool) -> bool:
        waits = rests and _unfinished(state) and not self._due(state)
        return not self.first and state.since_solve > 0 and not waits

    def _due(self, state: PAMState) -> bool:
        if self.gap is not None:
            return state.since_solve >= self.gap
        assert state.total_steps is not None
        if state.since_solve < GAP or 2 * (state.total_steps - state.step) < state.since_solve:  # the last one is near
            return False
        paid = PRICE * state.epochs_since_solve * len(state.data) >= self._cost(state)
        return paid or LEAST_SOLVES * state.since_solve >= state.total_steps

    def _cost(self, state: PAMState) -> float:
        """Of a solve, in samples that a gradient step goes by."""
        rows, (d_in, n_latents) = len(state.data) / self._parts(state), state.model.shape
        block = state.model.decoder_block()
        if block.solve is not None:
            return rows + block.solve_cost
        return rows + (FACTORS if rows > n_latents else EIGENVECTORS) * factor_cost(d_in, n_latents)

    def _parts(self, state: PAMState) -> int:
        if self.parts is not None or self.gap is not None:
            return self.parts or 1
        return 2 if len(state.data) >= 2 * ROWS * state.model.shape[1] else 1

    def rows(self, state: PAMState, batches: Iterable[Tensor], rests: bool) -> Iterable[Tensor]:
        parts = self._parts(state) if rests and _unfinished(state) else 1
        if parts == 1 or not isinstance(batches, Batches) or batches.n_rows < 2 * parts:
            return batches
        return batches.part(state.solves % parts, parts)


@dataclass(frozen=True, kw_only=True)
class EverySteps(When):
    """After every `n` steps, and at the end of an epoch that did not end on one.

    Raises:
        ValueError: n below 1.
    """

    n: int

    def __post_init__(self) -> None:
        whole("decoder_every", self.n, 1)

    def after_step(self, state: PAMState, x: Tensor) -> bool:
        return state.step % self.n == 0

    def after_epoch(self, state: PAMState, rests: bool) -> bool:
        return state.since_solve > 0


@dataclass(frozen=True, kw_only=True)
class AtEnd(When):
    """After the last step alone (at every epoch's end where the number of steps is unknown, or the decoder moves by solves alone)."""

    def after_epoch(self, state: PAMState, rests: bool) -> bool:
        waits = rests and _unfinished(state)
        return state.since_solve > 0 and not waits


@documented
@dataclass(frozen=True, kw_only=True)
class Refresh(When):
    """For a stream: no pass over past data is ever made.

    After `every` steps the batches since the last refresh are encoded once more, by the encoder as it is now; their statistics are
    added to `keep` times the earlier ones, and the decoder is solved for. Strengths multiply sums over the effective number of
    samples, of which there are at most `every * batch / (1 - keep)`. An epoch's end refreshes too, so `fit(..., epochs=1)` ends on a
    solve. By hand: `init` on the first batch, then `step` on each.

    Raises:
        ValueError: every below 1, keep outside [0, 1).
    """

    every: int = 100
    """Steps between refreshes; their batches are kept in memory."""
    keep: float = 0.5
    """Weight of what was gathered before a refresh, in [0, 1): 0 forgets all of it. Earlier codes are of an earlier encoder."""

    def __post_init__(self) -> None:
        whole("refresh_every", self.every, 1)
        at_least("keep", self.keep, 0.0)
        if self.keep >= 1:
            raise ValueError(f"keep={self.keep} must be below 1: codes of an old encoder have to fade")

    @property
    def streams(self) -> bool:
        return True

    def start(self, state: PAMState, dtype: Any) -> None:
        d_in, n_latents = state.model.shape
        if n_latents >= GRAM_LATENTS:
            raise ValueError(
                f"{n_latents} latents need a Gram matrix of {8 * n_latents**2 / 2**30:.1f} GiB here: use when=EveryEpoch()"
            )
        state.stats = DecoderStats(n_latents, d_in, dtype=dtype, device=state.model.b_dec.device)

    def after_step(self, state: PAMState, x: Tensor) -> bool:
        state.window.append(x.detach())
        return state.step % self.every == 0

    def after_epoch(self, state: PAMState, rests: bool) -> bool:
        return bool(state.window)

    def renew(self, state: PAMState, gather: Callable[[DecoderStats, Iterable[Tensor]], None]) -> DecoderStats:
        """Forget, add the window's statistics, and return them all."""
        assert state.stats is not None
        state.stats.forget(self.keep)
        for total in state.totals.values():
            total *= self.keep
        gather(state.stats, state.window)
        state.window = []
        return state.stats
