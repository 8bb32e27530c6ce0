"""What the training methods share: options, and what a run starts with. The updates are those of `gradient_phase`."""

from __future__ import annotations

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
from splinterp.losses.terms import L0, L1, Reconstruction, SquaredError, Term
from splinterp.protocol import SAELike, SparseModel, as_model, sharing
from splinterp.training.gradient_phase import GradientPhase, selector
from splinterp.training.named import Named
from splinterp.training.optimizers import OPTIMIZERS, TwoModes, build, set_apart
from splinterp.training.resampling import Resampling
from splinterp.training.schedules import (
    K_SHARE,
    SCHEDULES,
    check_factors,
    check_scheduler,
    check_shares,
)
from splinterp.training.train_state import DivergenceError as DivergenceError  # methods of users import both from here
from splinterp.training.train_state import TrainState as TrainState

COLUMNS = ("epoch", "step", "loss", "train_fvu", "val_fvu", "l0", "frac_dead", "seconds", "ridge", "revived", "solve_seconds")
"""Of the history: no term may take their names."""


@documented
@dataclass(frozen=True, kw_only=True)
class GradientOptions(GradientPhase, metaclass=Named):
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
        if isinstance(self.terms, Term):
            raise TypeError(
                f"terms is one {type(self.terms).__name__}: pass a tuple of them, terms=({type(self.terms).__name__}(...),)"
            )
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
                    f"k_start={self.k_start} needs an activation with a fixed k, not {selector(model)}: leave it out"
                )
            if not k < self.k_start <= n_latents:
                raise ValueError(f"k_start={self.k_start} must be more than k={k} and at most n_latents={n_latents}")
        return model

    def start(
        self, sae: Any, x: ArrayLike | ActivationStore, total_steps: int | None, fixed: Iterable[nn.Parameter] = ()
    ) -> dict[str, Any]:
        """The arguments of a `TrainState`: model, data, optimizer without the `fixed` parameters, what terms keep.

        Raises TypeError, ValueError: a module or data that does not fit, nothing to train, shares of an unknown number of steps.
        RuntimeError: inside `torch.inference_mode`.
        """
        model = self.check_module(sae)
        data = training_data(model, x)
        if torch.is_inference_mode_enabled():
            raise RuntimeError("nothing can be trained inside torch.inference_mode(): begin outside of it")
        if not any(p.requires_grad for p in sae.parameters()):
            raise ValueError(f"every parameter of {model.label} is frozen (requires_grad=False), so there is nothing to train")
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
