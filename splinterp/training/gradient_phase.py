"""The gradient phase: one optimizer update on a batch, as every method makes it.

Losses are in the published scale: the mean over batch and d_in of the squared error, plus `l1` times the mean over
samples of |z|_1, plus `l0` times the mean count of active latents, plus any further `splinterp.losses` terms.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from splinterp._typing import Tensor
from splinterp.losses.forward import Forward
from splinterp.losses.terms import Reconstruction, SquaredError, State, Term
from splinterp.protocol import Code, SAELike, SparseModel, as_model
from splinterp.training.distributed import ProcessGroup
from splinterp.training.resampling import Resampling
from splinterp.training.schedules import annealed, rising, step_size
from splinterp.training.train_state import DivergenceError, TrainState


class GradientPhase:
    """Updates by the method's options."""

    if TYPE_CHECKING:
        schedule: str | Callable[[torch.optim.Optimizer], Any]
        warmup: float
        decay: float
        clip: float | None
        penalty_warmup: float
        resample: Resampling | None
        k_start: int | None
        k_share: float

        @property
        def loss_terms(self) -> tuple[Term, ...]: ...

    @functools.cached_property
    def _plain(self) -> bool:
        """Whether the loss is the squared error alone, which models have kernels for."""
        return self.loss_terms == (SquaredError(),)

    @property
    def _own_loss(self) -> bool:
        return type(self).loss is not GradientPhase.loss

    def rate(self, state: TrainState) -> float:
        """What multiplies the step size at the start in the coming step."""
        if state.total_steps is None or not isinstance(self.schedule, str):
            return 1.0
        return step_size(self.schedule, self.warmup, self.decay, state.step, state.total_steps)

    def loss(self, sae: SAELike, x: Tensor, observer: Callable[[Code], object] | None = None) -> Tensor:
        """The differentiable loss of a batch (n, d_in), in the published scale; penalties on parameters excluded.

        `observer` is called with the code. A subclass that overrides this is trained by it.
        """
        model = as_model(sae)
        total, _, out = self._total(model, x, [term.init(model) for term in self.loss_terms], None)
        if observer is not None:
            observer(_detached(out.code))
        return total

    def penalty_share(self, state: TrainState | None) -> float:
        """What `penalty_warmup` makes of the weights of penalties in the coming step."""
        if state is None or state.total_steps is None:
            return 1.0
        return rising(self.penalty_warmup, state.step, state.total_steps)

    def _total(
        self, model: SparseModel, x: Tensor, kept: list[State], state: TrainState | None
    ) -> tuple[Tensor, dict[str, Tensor], Forward]:
        """(loss, value of each term, forward pass)."""
        terms = self.loss_terms
        out = Forward(model, x, scores=any(term.reads_scores for term in terms))
        factor = self.penalty_share(state)
        total, values = None, {}
        for term, own in zip(terms, kept, strict=True):
            value = term(out, own)
            values[term.name] = value.detach()
            weight = term.weight if isinstance(term, Reconstruction) else term.weight * factor
            part = value if weight == 1 else weight * value
            total = part if total is None else total + part
        assert total is not None
        return total, values, out

    def gradient_update(self, sae: SAELike, state: TrainState, x: Tensor) -> None:
        """One optimizer update on a batch; sets `state.loss`, leaves `state.step` alone. Raises DivergenceError.

        Before it, where it is time, silent latents are resampled; `adjust_resampled` is told.
        """
        if self.resample is not None and self.resample.due(state):
            self.adjust_resampled(state, self.resample.revive(state))
        self._set_rates(state)
        torch.clear_autocast_cache()  # of an earlier update on this batch: the parameters have moved
        moved = []
        for p in (p for group in state.optimizer.param_groups for p in group["params"]):
            if p.requires_grad:
                moved.append(p)
            else:
                p.grad = None  # of an earlier run: the optimizer would move a frozen parameter by it
        with self._keeping(state):
            if state.processes is None:
                self.gradients(sae, state, x, moved)
            else:
                self.shared_gradients(sae, state, state.processes, x, moved)
        state.model.project_gradients()
        self.adjust_gradients(sae, state)
        if self.clip is not None:
            nn.utils.clip_grad_norm_(moved, self.clip)
        state.optimizer.step()
        state.model.project()

    def _set_rates(self, state: TrainState) -> None:
        """The step sizes of the coming update. Raises ValueError where somebody else moves them too."""
        if state.scheduler is not None:
            for _ in range(state.step - state.scheduled):  # once a batch, however many updates it has
                state.scheduler.step()
            state.scheduled = state.step
            return
        groups, factor = state.optimizer.param_groups, self.rate(state)
        foreign = any("initial_lr" in group for group in groups)
        if foreign or any(group["lr"] != last for group, last in zip(groups, state.last_rates, strict=True)):
            raise ValueError(
                "the step size of the method's optimizer is moved from outside, e.g. by a torch scheduler attached to it: pass that as "
                "schedule=, a function of the optimizer"
            )
        for group, start in zip(groups, state.rates, strict=True):
            group["lr"] = start * factor
        state.last_rates = [group["lr"] for group in groups]

    def _keeping(self, state: TrainState) -> contextlib.AbstractContextManager[None]:
        """Inside, the model keeps as many latents as in the coming step."""
        if self.k_start is None or state.total_steps is None:
            return contextlib.nullcontext()
        k = state.model.kept
        assert k is not None  # checked at the start
        now = annealed(self.k_start, k, self.k_share, state.step, state.total_steps)
        return contextlib.nullcontext() if now == k else state.model.keeping(now)

    def gradients(self, sae: SAELike, state: TrainState, x: Tensor, moved: list[nn.Parameter]) -> None:
        """Set `state.loss` and the gradients of the `moved` parameters, of nothing that x comes from. Raises DivergenceError."""
        x = x.clone() if x.is_inference() else x.detach()  # tensors of `inference_mode` cannot be saved for a gradient
        with torch.enable_grad():
            self._set_gradients(sae, state, x, moved)

    def _set_gradients(self, sae: SAELike, state: TrainState, x: Tensor, moved: list[nn.Parameter]) -> None:
        own_loss = self._own_loss
        counter = self.resample if self.resample is not None and self.resample.counts(state) else None
        if not own_loss and state.observer is None and counter is None and self._plain:
            loss = state.model.squared_error_gradients(x, {id(p) for p in moved})
            if loss is not None:
                state.loss = loss
                state.watch()
                return
        for p in sae.parameters():
            p.grad = None
        out = None
        if own_loss:
            total = self.loss(sae, x) if state.observer is None else self.loss(sae, x, state.observer)
        else:
            total, values, out = self._total(state.model, x, state.terms, state)
            state.values = {} if self._plain else values  # which the loss is already
        state.loss = total.detach()
        state.watch()
        total.backward()
        if counter is not None:
            with torch.no_grad():  # a loss of one's own does not say what it coded
                counter.count(state, (Forward(state.model, x) if out is None else out).fired(), len(x))
        if out is not None:
            with torch.no_grad():
                if state.observer is not None:
                    state.observer(_detached(out.code))
                for term, own in zip(self.loss_terms, state.terms, strict=True):
                    term.after(out, own)

    def shared_gradients(
        self, sae: SAELike, state: TrainState, processes: ProcessGroup, x: Tensor, moved: list[nn.Parameter]
    ) -> None:
        """`gradients` of a batch of which every process has its own rows. All of them fail where one loss is not finite."""
        if state.model.couples_samples:
            raise ValueError(f"{selector(state.model)} selects from whole batches: train it in one process")
        for term, own in zip(self.loss_terms, state.terms, strict=True):
            if term.couples_samples or own:
                raise ValueError(f"{term.name} looks at whole batches: train with it in one process")
        if len(x):
            with contextlib.suppress(DivergenceError):  # the others must hear of it first
                self.gradients(sae, state, x, moved)
        else:
            state.loss = torch.zeros((), dtype=x.dtype, device=x.device)
        for p in moved:
            if p.grad is None or not len(x):
                p.grad = torch.zeros_like(p)
        assert state.loss is not None
        state.loss = processes.merge_gradients(moved, state.loss, len(x))
        state.check_finite()

    def adjust_gradients(self, sae: SAELike, state: Any) -> None:
        """Add the gradients of penalties on parameters, or drop those of frozen blocks."""

    def adjust_resampled(self, state: Any, entries: list[tuple[nn.Parameter, Tensor]]) -> None:
        """Called after a resampling with the parameters that were written into and masks of the entries."""


def selector(model: SparseModel) -> str:
    """What selects latents, as messages name it: the activation's class, or the module's."""
    return type(model if model.nonlinearity is None else model.nonlinearity).__name__


def _detached(code: Code) -> Code:
    return code.detach() if isinstance(code, Tensor) else type(code)(code[0].detach(), code[1])
