"""What the training methods share: options, state, and one gradient update.

Losses are in the published scale: the mean over batch and d_in of the squared error, plus `l1` times the mean over
samples of |z|_1, plus `l0` times the mean count of active latents.
"""

from __future__ import annotations

import contextlib
import inspect
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from splinterp._checks import as_samples, at_least, one_of
from splinterp._typing import ArrayLike, Tensor
from splinterp.activations import BatchTopK, JumpReLU
from splinterp.data.store import ActivationStore
from splinterp.sae import SAE
from splinterp.training.blocks import SAELike, sharing
from splinterp.training.distributed import ProcessGroup
from splinterp.training.sparse_gradients import sparse_gradients, takes_sparse_gradients

OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "sgd": torch.optim.SGD,
}
SCHEDULES = ("cosine", "constant")
GPU_CHECK_EVERY = 50


class DivergenceError(RuntimeError):
    """The loss became non-finite. `step` is the failing step (from 0); `state` is the method's state.

    On the CPU the parameters are those before the failing update. On a GPU the loss is looked at every 50 steps and
    at each epoch's end, so they may be non-finite too.
    """

    def __reduce__(self) -> tuple[Any, ...]:  # so that it survives a process pool
        return type(self), (self.step, self.state)

    def __init__(self, step: int, state: Any) -> None:
        super().__init__(f"the loss is not finite at step {step}: lower lr, set clip, or look for outliers in the data")
        self.step = step
        self.state = state


@dataclass
class TrainState:
    """What moves besides the parameters. `step` counts batches, `loss` is the last batch's (None before the first)."""

    optimizer: torch.optim.Optimizer
    data: Tensor | ActivationStore
    total_steps: int | None
    step: int = 0
    loss: Tensor | None = None
    observer: Callable[[Tensor], object] | None = None
    """Called with the codes (n, n_latents) of every batch that a loss is taken of."""
    processes: ProcessGroup | None = None
    """Where gradients and statistics are summed over processes."""

    @property
    def n_samples(self) -> int:
        """Number of training samples."""
        return len(self.data)

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to continue, without the data."""
        return {"optimizer": self.optimizer.state_dict(), "step": self.step, "total_steps": self.total_steps}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Continue from `state_dict()`."""
        self.optimizer.load_state_dict(saved["optimizer"])
        self.step, self.total_steps = saved["step"], saved["total_steps"]

    def check_finite(self) -> None:
        """Raise DivergenceError if the last loss is not finite (waits for a GPU)."""
        if self.loss is not None and not math.isfinite(float(self.loss)):
            raise DivergenceError(self.step, self)

    def watch(self) -> None:
        """`check_finite`, on a GPU every 50 steps only."""
        if self.loss is not None and (not self.loss.is_cuda or self.step % GPU_CHECK_EVERY == 0):
            self.check_finite()


@dataclass(frozen=True, kw_only=True)
class GradientOptions:
    """Options of the gradient phase, one definition and one default for every method."""

    lr: float = 3e-3
    """Step size at the start."""
    optimizer: str | type[torch.optim.Optimizer] = "adam"
    """One of "adam", "adamw", "sgd", or any torch optimizer class that takes `lr`."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Of Adam and AdamW, and of an optimizer class that takes them."""
    schedule: str = "cosine"
    """Either "cosine" (towards 0 after the last step; constant where the number of steps is unknown) or "constant"."""
    clip: float | None = None
    """Largest gradient norm over all moved parameters; None does not clip."""
    weight_decay: float = 0.0
    """The optimizer's weight decay (L2 for Adam, decoupled for AdamW), on weights."""
    decay_biases: bool = False
    """Apply `weight_decay` to all other parameters too, save b_dec."""
    l1: float = 0.0
    """Times the mean over samples of |z|_1; ReLU and JumpReLU only."""
    l0: float = 0.0
    """Times the mean over samples of the number of active latents, by JumpReLU's straight-through estimator."""

    def __post_init__(self) -> None:
        at_least("lr", self.lr, 0.0, strict=True)
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

    def check_module(self, sae: Any) -> None:
        """Raise TypeError if `sae` lacks the protocol, ValueError if it cannot take these options."""
        missing = [name for name in ("encode", "W_enc", "b_enc", "W_dec", "b_dec", "parameters") if not hasattr(sae, name)]
        if missing:
            raise TypeError(f"{type(sae).__name__} lacks {', '.join(missing)}: see splinterp.training.SAELike")
        if not isinstance(sae, SAE):
            if self.l0:
                raise ValueError(f"l0={self.l0} needs a splinterp SAE with a JumpReLU, not {type(sae).__name__}")
            return
        name = type(sae.activation).__name__
        if self.l1 and not sae.activation.allows_l1:
            raise ValueError(f"l1={self.l1} has no effect on the sparsity of {name}, which fixes it by k: set l1=0")
        if self.l0 and not sae.activation.allows_l0:
            raise ValueError(f"l0={self.l0} needs JumpReLU, not {name}: set l0=0")

    def make_optimizer(self, sae: SAELike, fixed: Iterable[nn.Parameter] = ()) -> torch.optim.Optimizer:
        """An optimizer of all parameters of `sae` but the `fixed` ones, in two groups: decayed, and not.

        Decayed are the weights (two axes or more), and with `decay_biases` all but b_dec.
        """
        still = {id(p) for p in fixed}
        moved = [p for p in sae.parameters() if id(p) not in still]
        b_dec = {id(p) for p in sharing(sae, sae.b_dec)}
        decayed = [p for p in moved if p.ndim >= 2 or (self.decay_biases and id(p) not in b_dec)]
        kept = {id(p) for p in decayed}
        groups = [
            {"params": decayed, "weight_decay": self.weight_decay},
            {"params": [p for p in moved if id(p) not in kept], "weight_decay": 0.0},
        ]
        groups = [group for group in groups if group["params"]]
        cls = OPTIMIZERS[self.optimizer] if isinstance(self.optimizer, str) else self.optimizer
        options = inspect.signature(cls).parameters
        if self.weight_decay and "weight_decay" not in options:
            raise ValueError(f"weight_decay={self.weight_decay} has no effect on {cls.__name__}, which has no such option")
        extra: dict[str, Any] = {"betas": self.betas} if "betas" in options else {}
        if cls in OPTIMIZERS.values():
            extra["fused"] = True
        return cls(groups, lr=self.lr, **extra)  # type: ignore[call-arg]

    def rate(self, state: TrainState) -> float:
        """The step size of the coming step."""
        if self.schedule == "constant" or state.total_steps is None:
            return self.lr
        return 0.5 * self.lr * (1 + math.cos(math.pi * min(1.0, state.step / state.total_steps)))

    def loss(self, sae: SAELike, x: Tensor, observer: Callable[[Tensor], object] | None = None) -> Tensor:
        """The differentiable loss of a batch (n, d_in), in the published scale; penalties on parameters excluded.

        `observer` is called with the codes.
        """
        if isinstance(sae, SAE):
            if observer is None and sae.trains_sparse:  # no penalty acts on these activations
                return F.mse_loss(sae.reconstruct(x)[0], x)
            pre_acts = sae.pre_acts(x)
            acts = sae.activation(pre_acts)
        else:
            acts = sae.encode(x)
        if observer is not None:
            observer(acts.detach())
        loss = F.mse_loss(torch.addmm(sae.b_dec, acts, sae.W_dec), x)
        if self.l1:
            loss = loss + self.l1 * acts.abs().sum(1).mean()
        if self.l0 and isinstance(sae, SAE) and isinstance(sae.activation, JumpReLU):
            loss = loss + self.l0 * sae.activation.count(pre_acts).mean()
        return loss

    def gradient_update(self, sae: SAELike, state: TrainState, x: Tensor) -> None:
        """One optimizer update on a batch; sets `state.loss`, leaves `state.step` alone. Raises DivergenceError."""
        for group in state.optimizer.param_groups:
            group["lr"] = self.rate(state)
        moved = [p for group in state.optimizer.param_groups for p in group["params"]]
        if state.processes is None:
            self.gradients(sae, state, x, moved)
        else:
            self.shared_gradients(sae, state, state.processes, x, moved)
        self.adjust_gradients(sae, state)
        if self.clip is not None:
            nn.utils.clip_grad_norm_(moved, self.clip)
        state.optimizer.step()

    def gradients(self, sae: SAELike, state: TrainState, x: Tensor, moved: list[nn.Parameter]) -> None:
        """Set `state.loss` and the gradients of the `moved` parameters. Raises DivergenceError."""
        if isinstance(sae, SAE) and state.observer is None and takes_sparse_gradients(sae):
            state.loss = sparse_gradients(sae, x, {id(p) for p in moved})  # no penalty acts on these activations
            state.watch()
            return
        for p in sae.parameters():
            p.grad = None
        loss = self.loss(sae, x) if state.observer is None else self.loss(sae, x, state.observer)
        state.loss = loss.detach()
        state.watch()
        loss.backward()

    def shared_gradients(
        self, sae: SAELike, state: TrainState, processes: ProcessGroup, x: Tensor, moved: list[nn.Parameter]
    ) -> None:
        """`gradients` of a batch of which every process has its own rows. All of them fail where one loss is not finite."""
        if isinstance(getattr(sae, "activation", None), BatchTopK):
            raise ValueError("BatchTopK selects from whole batches: train it in one process")
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


def training_data(sae: SAELike, x: ArrayLike | ActivationStore) -> Tensor | ActivationStore:
    """Training samples (N, d_in) as a tensor or a store, checked. Raises TypeError, ValueError; N must be at least 2.

    The rows of a store are not read here.
    """
    if isinstance(x, ActivationStore):
        data: Tensor | ActivationStore = x.of_width(sae.W_enc.shape[0])
    else:
        data = as_samples(x, sae.W_enc.shape[0], name="x")
    if len(data) < 2:
        raise ValueError(f"training needs at least 2 samples, got {len(data)}")
    return data
