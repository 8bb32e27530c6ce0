"""PAM-SGD: gradients on the encoder (and, if wanted, the decoder), exact least squares on the decoder.

Source: SplInterp, arXiv 2505.11836, Algorithm 3.1. The tied-residual decoder, the choice of the ridge and the gradient phase
on both blocks are this package's own.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from splinterp._documented import documented
from splinterp._typing import ArrayLike, Tensor
from splinterp.data.store import ActivationStore
from splinterp.protocol import SAELike, SparseModel, as_model
from splinterp.training.base import GradientOptions
from splinterp.training.optimizers import L2_DECAY, evaluated, set_apart
from splinterp.training.pam_checks import check_block, check_codes, check_options
from splinterp.training.pam_readouts import Readouts
from splinterp.training.pam_solves import Solves
from splinterp.training.pam_state import PAMState
from splinterp.training.race import Racing
from splinterp.training.race_step import plan, race_step
from splinterp.training.residual import HeldResidual
from splinterp.training.rules import ENOUGH, GCV, Rule, named
from splinterp.training.shorthands import WHEN_SHORTHANDS, Shorthands, gap_of
from splinterp.training.solver import DecoderSolver
from splinterp.training.when import AtEnd, EveryEpoch, EverySteps, When

PULLED = "pulled by the ridge"
"""Mark of the group of parameters whose decay is the ridge's."""


@documented
@dataclass(frozen=True, kw_only=True)
class PAMSGD(GradientOptions, Solves, Readouts, HeldResidual, metaclass=Shorthands):
    """Alternate a gradient phase with an exact decoder solve.

    By default, and best with `SAE(decoder="tied_residual")`: gradients move every block; at ends of epochs, as often as a tenth of the
    gradient steps' time allows, the decoder is solved for exactly. With at least 200 held-out samples (`x_val` of `fit`) they choose the
    solves' ridge; and where it is better, the result, `keep_best` and some history rows use a readout: solutions combined with weights
    that are chosen on them. Without them the ridge is by GCV, which takes near-copies among the samples (a language model's tokens) for
    evidence. Under TopK the residual's steps are no larger than 0.0024 (`decoder_lr`); where codes keep at least a sixth of d_in latents,
    or an L1 penalty decides how many they keep, it waits for half of the steps instead (`hold`).
    Alternatives: with few samples or k = 1, try `hold=0.1` or `hold=1` (tied SGD, then one readout; gains of up to 3.4 %, not always);
    `PAMSGD.published()` for the paper's algorithm; SGD where nothing may be held back and no solve is wanted. See experiments/RESULTS.md.

    To drive it by hand: `encoder_step` (which `fit` calls as `step`) on batches, `end_epoch` after each pass, or `decoder_step` when you
    want the solve; `read_out` tells what a readout would be.

    All strengths multiply sums over the N training samples; the gradient phase, whose loss is a mean, divides them by
    N d_in. The solve minimises over weights and bias together: a free W_dec is pulled to 0 by the ridge, a tied-residual
    one to W_enc.T; of a tied decoder only b_dec moves (and its scales, where it has them).

    Shorthands, in place of `solver`: `ridge` (a number, "auto", "gcv" or "held_out"), `gcv_inflation`, `bias`, `bias_ridge`, `bias_prox`,
    `prox_dec`, `scale`, `stats_dtype`; in place of `when`: `solve_gap`, `solve_parts` and `solve_first` (EveryEpoch), `decoder_every`
    (EverySteps).
    They can be read as attributes too.

    Raises:
        ValueError: an option out of range, or two that exclude each other.
    """

    gradient: str = "both"
    """Blocks the gradient phase moves: "both"; "tied": all but the residual of a tied-residual decoder, which moves by solves alone;
    or "encoder" (the decoder, bias and all, moves by solves alone)."""
    hold: float | str = "auto"
    """Share of the steps for which the residual of a tied-residual decoder stays as it starts, at 0, and nothing is solved; the first
    solve after it decides by its ridge whether the residual comes in. 0: let in from the first step. "auto": 0.5 where codes keep at
    least a sixth of d_in latents, or have an L1 penalty and no fixed number (ReLU), the number of steps is known and gradients
    move a residual; else 0, which is best for centred SAEs of sparser codes in all but the smallest data. Where the number of steps is
    unknown, any other share means until the first solve; where it is known and no solve comes in the first half of the rest (a single
    epoch), until that is over. "race": decided in the run, see `racing`."""
    racing: Racing = field(default=Racing())
    """Of hold="race": after a first part of the steps two arms train on the same batches, one with the residual held and one with it let
    in, and the one of the lower held-out error, both after a readout, goes on. The steps of both count, so that the run makes no more
    updates than it was asked for; the other arm's are lost. `state.race` says who won and by what."""
    readout: bool | None = None
    """At every history row, and at the end in place of the last solve, the decoder is read out: solved for as a combination of what the
    training samples and the prior say, with weights that held-out samples choose, where that is better there than the decoder as it is
    (`splinterp.decoder.readout`). Training goes on from the decoder as it was; the row, `keep_best` and the result have the readout. None:
    where there are at least 200 held-out samples, and the ridge is chosen by a rule from a Gram matrix; and of the rows those that are
    far enough from the last such one for a readout to take about a tenth of the steps' time."""
    encoder_updates: int = 1
    """Gradient updates on each batch; steps and the schedule count batches."""
    prox_enc: float = 0.0
    """Pull of W_enc and b_enc to their values at the last solve; multiplies a sum over samples."""
    solver: DecoderSolver = field(default=DecoderSolver())
    """How the decoder is solved for."""
    when: When = field(default=EveryEpoch())
    """When: EveryEpoch, EverySteps, AtEnd, or Refresh for a stream."""

    if TYPE_CHECKING:  # the shorthands, as a type checker is to see them
        ridge: float | str = "auto"
        gcv_inflation: float = 1.0
        bias: str = "joint"
        bias_ridge: float = 0.0
        prox_dec: float = 0.0
        bias_prox: float = 0.0
        scale: str = "one"
        stats_dtype: torch.dtype = torch.float64
        solve_gap: int | None = None
        solve_parts: int | None = None
        decoder_every: int | None = None
        solve_first: bool = False
    else:
        ridge = property(lambda self: named(self.solver.ridge))
        gcv_inflation = property(lambda self: self.solver.ridge.inflation if isinstance(self.solver.ridge, GCV) else 1.0)
        bias = property(lambda self: self.solver.bias)
        bias_ridge = property(lambda self: self.solver.bias_ridge)
        prox_dec = property(lambda self: self.solver.prox)
        bias_prox = property(lambda self: self.solver.bias_prox)
        scale = property(lambda self: self.solver.scale)
        stats_dtype = property(lambda self: self.solver.dtype)
        solve_gap = property(lambda self: gap_of(self.when))
        solve_parts = property(lambda self: self.when.parts if isinstance(self.when, EveryEpoch) else None)
        decoder_every = property(lambda self: self.when.n if isinstance(self.when, EverySteps) else None)
        solve_first = property(lambda self: isinstance(self.when, EveryEpoch) and self.when.first)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_options(self)

    @property
    def couples_batches(self) -> bool:  # type: ignore[override]
        """Whether it looks at whole batches: a stream keeps them."""
        return self.when.streams

    @property
    def passes_over_data(self) -> bool:
        """Whether solves go over all of the data, so that it cannot be seen once alone."""
        return not self.when.streams

    @classmethod
    def published(
        cls,
        *,
        mu: float = 0.0,
        nu: float = 0.0,
        weight_decay: float = 0.0,
        n_samples: int | None = None,
        d_in: int | None = None,
        **options: Any,
    ) -> PAMSGD:
        """The algorithm of arXiv 2505.11836 as its scripts run it; `options` override.

        Encoder-only gradients at a constant step size, weights solved without the bias, and the decay entering the
        solve squared. mu and nu are the paper's strengths (its loss is a mean), converted by N d_in to sums.

        Raises ValueError: mu or nu without `n_samples` and `d_in`.
        """
        if (mu or nu) and (n_samples is None or d_in is None):
            raise ValueError("mu and nu are strengths of a mean loss: pass n_samples and d_in to convert them")
        size = (n_samples or 0) * (d_in or 0)
        solve = {} if "solver" in options else {"ridge": weight_decay**2, "bias": "separate", "prox_dec": nu * size}
        defaults: dict[str, Any] = {
            "gradient": "encoder", "readout": False, "schedule": "constant", "weight_decay": weight_decay, "prox_enc": mu * size, **solve,
        }  # fmt: skip
        return cls(**{**defaults, **options})

    @classmethod
    def final_solve(cls, **options: Any) -> PAMSGD:
        """Tied SGD, then one exact solve for the residual, its ridge chosen on held-out samples; `options` override.

        For few samples seen many times: a decoder of its own overfits in training, and changes what the encoder learns.
        """
        timed = any(name in options for name in WHEN_SHORTHANDS)
        solve = {} if "solver" in options else {"ridge": "held_out"}
        defaults: dict[str, Any] = {"gradient": "tied", "readout": False, **solve, **({} if timed else {"when": AtEnd()})}
        return cls(**{**defaults, **options})

    def init(
        self,
        sae: SAELike,
        x: ArrayLike | ActivationStore,
        total_steps: int | None = None,
        *,
        x_val: Tensor | ActivationStore | None = None,
    ) -> PAMState:
        """Start training on x (N, d_in) or a store. `total_steps` (batches) sets the schedule's length; None: constant step size.

        `x_val` (n, d_in) are the samples that ridges and readouts are chosen by.

        Raises TypeError, ValueError: a module or data that does not fit.
        """
        model = self.check_module(sae)
        block = model.decoder_block()
        check_block(self, sae, model, block)
        hold = self._hold_of(model, block, total_steps)
        if (self.gradient == "tied" or hold) and block.residual is None:
            option = "gradient='tied'" if self.gradient == "tied" else f"hold={hold!r}"
            raise ValueError(f"{option} holds a residual: it needs SAE(decoder='tied_residual')")
        unread = self._why_no_readouts_of(model, block)
        if self._readouts_asked and unread:
            raise ValueError(f"{self._readouts_asked} {unread}")
        if self.hold == "race" and total_steps is None:
            raise ValueError("hold='race' is planned by the number of steps, which is not known: pass total_steps")
        scales = () if block.scales is None else (block.scales,)
        fixed = {"both": (), "tied": block.weights, "encoder": (*block.weights, *block.bias, *scales)}[self.gradient]
        known = self.solver.ridge
        ridge = None if block.tied or isinstance(known, Rule) else float(known)
        n_held_out = 0 if x_val is None or unread else len(x_val)
        state = PAMState(
            **self.start(sae, x, total_steps, fixed), ridge=ridge, held=hold != 0, hold=hold, held_out=x_val, sae=sae
        )
        state.reads = n_held_out >= ENOUGH if self.readout is None else self.readout and n_held_out > 0
        state.one_process = self._readouts_asked
        model.check_linear()
        check_codes(model, state.data[:16].to(model.b_dec))
        state.totals = self.no_totals(model)
        self.when.start(state, self.solver.dtype)
        self._set_anchor(state)
        return state

    def decoder_rate(self, model: SparseModel) -> float:
        """What multiplies the step size of the decoder's own weights: `decoder_lr`, that of `opening` for a residual where it is not given,
        or 1."""
        if self.decoder_lr is not None or model.decoder_block().residual is None:
            return super().decoder_rate(model)
        return self.opening(model.nonlinearity, model.shape[0])[1]

    @property
    def wants_x_val(self) -> bool:  # type: ignore[override]
        """Whether the ridge, a race or a readout goes by held-out samples."""
        return self.solver.wants_x_val or bool(self._readouts_asked)

    def make_optimizer(self, sae: SAELike, fixed: Iterable[nn.Parameter] = ()) -> torch.optim.Optimizer:
        """As for other methods, but the decoder's own weights are a third group where the ridge's gradient can be the optimizer's L2
        decay, which costs no pass of its own: clipping has to see it, and a scheduler of one's own may count the groups."""
        optimizer = super().make_optimizer(sae, fixed)
        if self.gradient == "both" and self.optimizer in L2_DECAY and self.clip is None and isinstance(self.schedule, str):
            for group in set_apart(optimizer, as_model(sae).decoder_block().weights):
                group[PULLED] = True
        return optimizer

    def step(self, sae: SAELike, state: PAMState, x: Tensor) -> int:
        """The gradient phase on a batch (n, d_in), and a solve where one is due; in a race, of both arms.

        Returns the number of steps that this counts for. Raises DivergenceError.
        """
        state.batch_size = max(state.batch_size, len(x))
        if self.hold == "race" and state.race is None and state.step == 0:
            plan(self.racing, state, len(x))
        if state.race is None or not state.race.runs_at(state.step):
            self.step_of_one(sae, state, x)
            return 1
        race_step(self, sae, state, state.race, x)
        return 2

    encoder_step = step

    def step_of_one(self, sae: SAELike, state: PAMState, x: Tensor) -> None:
        """A step that is not of a race, or of the arm of it that moves."""
        if state.processes is not None and self.when.streams:
            raise ValueError("a stream is trained in one process")
        if state.held and self._solves_are_late(state):
            state.held = False
        if not state.in_epoch and self.when.before_epoch(state) and not self.waits(state):
            with evaluated(state.optimizer):
                self._solve_due(sae, state, state.data.split(state.batch_size))
        state.in_epoch = True
        for _ in range(self.encoder_updates):
            self.gradient_update(sae, state, x)
        state.step += 1
        state.since_solve += 1
        state.read_last = False
        if self.when.after_step(state, x):
            with evaluated(state.optimizer):
                self._solve_due(sae, state, state.data.split(state.batch_size))

    def end_epoch(self, sae: SAELike, state: PAMState, batches: Iterable[Tensor]) -> None:
        """The exact solve on `batches`, or some of them, if one is due: see `when`, `hold` and `readout`; of both arms of a race."""
        if state.race is not None and state.race.other is not None:
            with state.race.open_arm(state):
                self._end_epoch(sae, state, batches)
        self._end_epoch(sae, state, batches)

    def _end_epoch(self, sae: SAELike, state: PAMState, batches: Iterable[Tensor]) -> None:
        state.in_epoch = False
        state.epochs_since_solve += 1
        if self._reads_out(state) and state.finished:
            if not state.read_last:
                self.timed(state, lambda: self._end_on_a_readout(sae, state))
        elif self.when.after_epoch(state, self._rests(state)):
            self._solve_due(sae, state, batches)

    def _solve_due(self, sae: SAELike, state: PAMState, batches: Iterable[Tensor]) -> None:
        """A solve that is due: of a stream on what it has gathered, else on `batches`; none while the residual is held."""
        self.timed(state, lambda: self._solve(sae, state, batches))

    @staticmethod
    def timed(state: PAMState, solve: Callable[[], None]) -> None:
        """A solve in full precision, whose seconds are counted."""
        start, device = time.perf_counter(), state.model.b_dec.device
        with torch.autocast(device.type, enabled=False):
            solve()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        state.solve_seconds += time.perf_counter() - start

    def _solve(self, sae: SAELike, state: PAMState, batches: Iterable[Tensor]) -> None:
        if self.when.streams:
            with torch.no_grad():
                stats = self.when.renew(state, lambda found, window: self.gather(sae, state, found, window, state.totals))
            if not self.waits(state):
                self.solve(sae, state, stats)
        elif not self.waits(state):
            found = self.when.rows(state, batches, self._rests(state)) if self.solver.chooses else batches
            self.decoder_step(sae, state, found)

    def after_solve(self, state: PAMState) -> None:
        """What a solve changes besides the decoder."""
        super().after_solve(state)
        self._set_anchor(state)

    def _set_anchor(self, state: PAMState) -> None:
        if self.prox_enc:
            state.anchor = [p.detach().clone() for p in state.model.encoder_parameters()]

    def adjust_gradients(self, sae: SAELike, state: PAMState) -> None:
        """Add the gradients of prox_enc and of the last solve's ridge; an infinite ridge holds a residual at 0, as `hold` does.

        Before the first solve there is no chosen ridge yet, and none acts.
        """
        size = self.solved_numbers(state)  # strengths of sums become strengths of the mean loss
        if self.prox_enc and state.anchor is not None:
            for p, anchor in zip(state.model.encoder_parameters(), state.anchor, strict=True):
                if p.grad is not None:
                    p.grad.add_(p.detach() - anchor.to(p), alpha=2 * self.prox_enc / size)
        block = state.model.decoder_block()
        if block.residual is not None and (state.held or state.ridge == math.inf):
            block.residual.grad = None
        elif pulled := [group for group in state.optimizer.param_groups if group.get(PULLED)]:
            for group in pulled:
                group["weight_decay"] = self.weight_decay + 2 * (state.ridge or 0.0) / size
        elif state.ridge and self.gradient == "both":
            for p in block.weights:
                if p.grad is not None:
                    p.grad.add_(p.detach(), alpha=2 * state.ridge / size)

    def adjust_resampled(self, state: PAMState, entries: list[tuple[nn.Parameter, Tensor]]) -> None:
        """`prox_enc` pulls new columns to where they start."""
        for p, anchor in zip(state.model.encoder_parameters(), state.anchor or [], strict=False):
            for written, mask in entries:
                if written is p:
                    anchor.copy_(torch.where(mask, p.detach(), anchor.to(p)))

    def solved_numbers(self, state: PAMState) -> float:
        """N d_in, of a transcoder N d_out: the numbers that the strengths' sums run over, a ridge chosen on a part included; of a stream,
        d_in for each effective sample."""
        return (
            len(state.data) * state.model.shape[0]
            if state.stats is None
            else max(1.0, state.stats.n_samples) * state.stats.d_in
        )
