"""What the training methods share: options, state, and one gradient update.

Losses are in the published scale: the mean over batch and d_in of the squared error, plus `l1` times the mean over
samples of |z|_1, plus `l0` times the mean count of active latents, plus any further `splinterp.losses` terms.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from splinterp._checks import as_samples, at_least, one_of
from splinterp._documented import documented
from splinterp._typing import ArrayLike, Tensor
from splinterp.data.store import ActivationStore
from splinterp.losses.forward import Forward
from splinterp.losses.terms import L0, L1, Reconstruction, SquaredError, State, Term
from splinterp.protocol import Code, SAELike, SparseModel, as_model, sharing
from splinterp.training.distributed import ProcessGroup
from splinterp.training.named import Named
from splinterp.training.optimizers import OPTIMIZERS, TwoModes, build, set_apart
from splinterp.training.resampling import Resampling
from splinterp.training.schedules import (
    K_SHARE,
    SCHEDULES,
    annealed,
    check_factors,
    check_scheduler,
    check_shares,
    rising,
    step_size,
)
from splinterp.training.train_state import DivergenceError as DivergenceError
from splinterp.training.train_state import TrainState as TrainState

COLUMNS = ("epoch", "step", "loss", "train_fvu", "val_fvu", "l0", "frac_dead", "seconds", "ridge", "revived", "solve_seconds")
"""Of the history: no term may take their names."""


@documented
@dataclass(frozen=True, kw_only=True)
class GradientOptions(metaclass=Named):
    """Options of the gradient phase, one definition and one default for every method."""

    couples_batches = False
    """Whether the method looks at whole batches, so that one process trains."""
    wants_x_val = False
    """Whether it chooses by held-out samples."""

    lr: float = 3e-3
    """Step size at the start (after `warmup`)."""
    bias_lr: float = 1.0
    """What multiplies the step size of b_enc. More than 1 lets some latents become busy and others rare; `SAE(init_bias=-1)` does so from
    the start, and costs less where that does not help."""
    decoder_lr: float | None = None
    """What multiplies the step size of the decoder's own weights: W_dec, the residual beside a tied one, or whatever else W_dec is
    computed from. Less than 1 lets the encoder take large steps without the noise that such steps leave in a decoder. None: 1, or what
    `decoder_rate` says for the model."""
    optimizer: str | Callable[..., torch.optim.Optimizer] = "adam"
    """One of "adam", "adamw", "sgd", "muon" (`splinterp.training.Muon`); a torch optimizer class that takes `lr`; or a function of the
    parameter groups (dicts with "params" and "weight_decay") that returns an optimizer, whose own step sizes then stand in for `lr`."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Of Adam, AdamW and Muon, and of an optimizer class that takes them."""
    schedule: str | Callable[[torch.optim.Optimizer], Any] = "cosine"
    """Either "cosine" (towards 0 after the last step; constant where the number of steps is unknown) or "constant"; or a function of
    the optimizer that returns a torch scheduler, stepped once a batch."""
    warmup: float = 0.0
    """Share of the steps over which the step size rises linearly from 0, before the schedule."""
    decay: float = 0.0
    """Share of the steps, the last ones, over which a constant step size falls linearly to 0."""
    clip: float | None = None
    """Largest gradient norm over all moved parameters; None does not clip."""
    weight_decay: float = 0.0
    """The optimizer's weight decay (L2 for Adam, decoupled for AdamW), on weights."""
    decay_biases: bool = False
    """Apply `weight_decay` to all other parameters too, save b_dec and b_pre."""
    terms: tuple[Term, ...] = (SquaredError(),)
    """What is minimised: a sum of `splinterp.losses` terms, at least one of them a `Reconstruction`."""
    l1: float = 0.0
    """Shorthand for the term L1(weight=l1): times the mean over samples of |z|_1; ReLU and JumpReLU only."""
    l0: float = 0.0
    """Shorthand for the term L0(weight=l0): times the mean over samples of the number of active latents, by JumpReLU's
    straight-through estimator."""
    penalty_warmup: float = 0.0
    """Share of the steps over which the weights of all terms but reconstructions rise linearly from 0."""
    resample: Resampling | None = None
    """When and how latents that have fallen silent start again; None: never."""
    k_start: int | None = None
    """Latents that an activation with a fixed k keeps in the first step; from there their number falls to k. Only gradients see it:
    solves, evaluation and what is saved go by k. None: k from the start."""
    k_share: float = K_SHARE
    """Share of the steps over which it falls linearly from `k_start` to k, to the nearest integer (halves go up)."""

    def __post_init__(self) -> None:
        at_least("lr", self.lr, 0.0, strict=True)
        at_least("bias_lr", self.bias_lr, 0.0, strict=True)
        if self.decoder_lr is not None:
            at_least("decoder_lr", self.decoder_lr, 0.0, strict=True)
        if isinstance(self.schedule, str):
            one_of("schedule", self.schedule, SCHEDULES)
        if isinstance(self.optimizer, str):
            one_of("optimizer", self.optimizer, OPTIMIZERS)
        if self.clip is not None:
            at_least("clip", self.clip, 0.0, strict=True)
        for name in ("weight_decay", "l1", "l0"):
            at_least(name, getattr(self, name), 0.0)
        if self.optimizer == "sgd" and self.betas != GradientOptions.betas:
            raise ValueError(f"betas={self.betas} changes nothing with optimizer='sgd': choose 'adam' or 'adamw'")
        if self.decay_biases and self.weight_decay == 0:
            raise ValueError("decay_biases=True changes nothing at weight_decay=0: set weight_decay")
        check_shares(self)
        if self.resample is not None and not isinstance(self.resample, Resampling):
            raise TypeError(f"resample is a {type(self.resample).__name__}: pass Resampling(every=..., dead_after=...)")
        object.__setattr__(self, "terms", tuple(self.terms))
        for term in self.terms:
            if not isinstance(term, Term):
                raise TypeError(f"terms holds a {type(term).__name__}: pass splinterp.losses terms, e.g. SquaredError()")
        if not any(isinstance(term, Reconstruction) for term in self.terms):
            raise ValueError("terms has no Reconstruction, so nothing would be reconstructed: add SquaredError()")
        names = [term.name for term in self.loss_terms]
        taken = next((name for name in names if name in COLUMNS), None)
        if taken is not None:
            raise ValueError(f"a term is called {taken}, which is a column of the history: override `name`")
        if not any(term.weight for term in self.terms if isinstance(term, Reconstruction)):
            raise ValueError("every Reconstruction in terms has weight 0, so nothing would be reconstructed: give one a weight")
        doubled = next((name for name in names if names.count(name) > 1), None)
        if doubled is not None:
            raise ValueError(f"two terms are called {doubled}: add their weights, or override `name`")
        if self.penalty_warmup and all(isinstance(term, Reconstruction) for term in self.loss_terms):
            raise ValueError(f"penalty_warmup={self.penalty_warmup} changes nothing without a penalty: add a term, l1 or l0")

    @functools.cached_property
    def loss_terms(self) -> tuple[Term, ...]:
        """All terms, those of the shorthands too."""
        extra = ((L1(weight=self.l1),) if self.l1 else ()) + ((L0(weight=self.l0),) if self.l0 else ())
        return (*self.terms, *extra)

    @functools.cached_property
    def _plain(self) -> bool:
        """Whether the loss is the squared error alone, which models have kernels for."""
        return self.loss_terms == (SquaredError(),)

    def check_module(self, sae: Any) -> SparseModel:
        """`sae` as a model. Raises TypeError if it lacks the protocol, ValueError if it cannot take these options."""
        model = as_model(sae)
        for term in self.loss_terms:
            term.check(model)
        if self.penalty_warmup and self._own_loss:
            raise ValueError(
                f"penalty_warmup={self.penalty_warmup} does not act on the loss that {type(self).__name__} overrides: leave it out"
            )
        if self.k_start is not None:
            k, n_latents = model.kept, model.shape[1]
            if k is None:
                raise ValueError(
                    f"k_start={self.k_start} needs an activation with a fixed k, not {_selector(model)}: leave it out"
                )
            if not k < self.k_start <= n_latents:
                raise ValueError(f"k_start={self.k_start} must be more than k={k} and at most n_latents={n_latents}")
        return model

    @property
    def _own_loss(self) -> bool:
        return type(self).loss is not GradientOptions.loss

    def start(
        self, sae: Any, x: ArrayLike | ActivationStore, total_steps: int | None, fixed: Iterable[nn.Parameter] = ()
    ) -> dict[str, Any]:
        """The arguments of a `TrainState`: model, data, optimizer without the `fixed` parameters, what terms keep.

        Raises TypeError, ValueError: a module or data that does not fit, shares of an unknown number of steps.
        """
        model = self.check_module(sae)
        data = training_data(model, x)
        shares = ["warmup", "decay", "penalty_warmup", *(["k_share"] if self.k_start is not None else [])]
        for name in shares:
            if getattr(self, name) and total_steps is None:
                raise ValueError(
                    f"{name}={getattr(self, name)} is a share of the steps, whose number is not known: pass total_steps"
                )
        model.check(data[:16].to(model.b_dec))
        kept = [term.init(model) for term in self.loss_terms]
        if self._own_loss and any(kept):
            name = next(term.name for term, own in zip(self.loss_terms, kept, strict=True) if own)
            raise ValueError(
                f"{name} keeps a state from batch to batch, which {type(self).__name__}.loss does not pass on: drop one of them"
            )
        optimizer = self.make_optimizer(sae, fixed)
        if isinstance(optimizer, TwoModes) and model.constrained:
            raise ValueError(
                f"{model.label} holds parameters in sets, in which the average that {type(optimizer).__name__} ends with need not be: "
                "take another optimizer"
            )
        silence = None if self.resample is None else self.resample.start(model, optimizer, total_steps)
        rates = [group["lr"] for group in optimizer.param_groups]
        scheduler = None
        if not isinstance(self.schedule, str):
            scheduler = self.schedule(optimizer)
            check_scheduler(scheduler)
            check_factors(optimizer, {"bias_lr": self.bias_lr, "decoder_lr": self.decoder_rate(model)})
        return {
            "optimizer": optimizer, "data": data, "total_steps": total_steps, "model": model, "scheduler": scheduler,
            "terms": kept, "rates": rates, "last_rates": list(rates), "silence": silence,
        }  # fmt: skip

    def make_optimizer(self, sae: SAELike, fixed: Iterable[nn.Parameter] = ()) -> torch.optim.Optimizer:
        """An optimizer of all parameters of `sae` but the `fixed` ones, in two groups: decayed, and not.

        Decayed are the weights (two axes or more), and with `decay_biases` all but b_dec. Parameters that need no gradient stay. With
        `bias_lr` and `decoder_lr` b_enc and the decoder's own weights are in further ones.
        """
        still = {id(p) for p in fixed}
        moved = [p for p in sae.parameters() if id(p) not in still]
        model = as_model(sae)
        centres = {id(p) for p in (*model.decoder_block().bias, model.center)}  # where the data lie is no weight
        decayed = [p for p in moved if p.ndim >= 2 or (self.decay_biases and id(p) not in centres)]
        kept = {id(p) for p in decayed}
        others = [p for p in moved if id(p) not in kept]
        options = {"lr": self.lr, "betas": self.betas, "weight_decay": self.weight_decay}
        optimizer = build(self.optimizer, decayed, others, options)
        if self.bias_lr != 1:
            bias = model.encoder_bias()
            groups = [] if bias is None else set_apart(optimizer, (p for p in sharing(sae, bias) if p.requires_grad))
            if len(groups) != 1 or len(groups[0]["params"]) > 1 or groups[0]["params"][0].ndim > 1:
                raise ValueError(
                    f"bias_lr={self.bias_lr} acts on b_enc, which is no trained parameter of its own here: leave it out"
                )
            _multiply(groups, self.bias_lr)
        factor = self.decoder_rate(model)
        if factor != 1:
            block = model.decoder_block()
            groups = set_apart(optimizer, (p for p in block.weights if p.requires_grad))
            alone = bool(groups) and not {id(p) for p in block.weights} & {id(p) for p in block.bias}
            if not alone and self.decoder_lr is not None:
                raise ValueError(
                    f"decoder_lr={factor} acts on the decoder's own weights, which are no trained parameters of their own here: "
                    "leave it out"
                )
            if alone:
                _multiply(groups, factor)
        return optimizer

    def decoder_rate(self, model: SparseModel) -> float:
        """What multiplies the step size of the decoder's own weights: `decoder_lr`, or 1."""
        return 1.0 if self.decoder_lr is None else self.decoder_lr

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
            raise ValueError(f"{_selector(state.model)} selects from whole batches: train it in one process")
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


def _selector(model: SparseModel) -> str:
    return type(model if model.nonlinearity is None else model.nonlinearity).__name__


def _detached(code: Code) -> Code:
    return code.detach() if isinstance(code, Tensor) else type(code)(code[0].detach(), code[1])


def training_data(model: Any, x: ArrayLike | ActivationStore) -> Tensor | ActivationStore:
    """Training samples (N, d_in) as a tensor or a store, checked. Raises TypeError, ValueError; N must be at least 2.

    The graph that a tensor carries is left behind: nothing trains through it. The rows of a store are not read here.
    """
    width = as_model(model).width
    if isinstance(x, ActivationStore):
        data: Tensor | ActivationStore = x.of_width(width)
    else:
        data = as_samples(x, width, name="x").detach()
    if len(data) < 2:
        raise ValueError(f"training needs at least 2 samples, got {len(data)}")
    return data


def _multiply(groups: Iterable[dict[str, Any]], factor: float) -> None:
    for group in groups:
        group["lr"] = group["lr"] * factor  # a new one: groups may share a tensor
