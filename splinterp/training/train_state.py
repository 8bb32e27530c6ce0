"""What moves besides the parameters while a gradient method trains."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from splinterp._typing import Int, Tensor
from splinterp.data.store import ActivationStore
from splinterp.losses.terms import State
from splinterp.protocol import Code, SparseModel
from splinterp.training.distributed import ProcessGroup
from splinterp.training.optimizers import OPTIMIZERS, training_mode

GPU_CHECK_EVERY = 50


ENTRYWISE = (*OPTIMIZERS.values(), torch.optim.Adagrad, torch.optim.RMSprop)
"""Optimizers that keep, of each parameter, tensors of its own shape and a count of steps."""

MOMENTS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer")


def copy_whole(ours: Tensor, theirs: Any, name: str) -> None:
    """Copy what was saved into a tensor. Raises ValueError for another shape, which `copy_` might spread over it instead."""
    if (
        not isinstance(theirs, torch.Tensor)
        or theirs.shape != ours.shape
        or theirs.is_floating_point() != ours.is_floating_point()
    ):
        found = f"{theirs.dtype} {tuple(theirs.shape)}" if isinstance(theirs, torch.Tensor) else type(theirs).__name__
        raise ValueError(f"the saved {name} is {found}, not {ours.dtype} {tuple(ours.shape)}")
    ours.copy_(theirs)


def check_moments(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
    """Raise ValueError unless what an optimizer kept of each parameter fits it: fused kernels write by the parameter's size."""
    if not isinstance(optimizer, ENTRYWISE):  # it may keep something else altogether
        return
    groups, theirs = optimizer.param_groups, saved["param_groups"]
    if [len(group["params"]) for group in groups] != [len(group["params"]) for group in theirs]:
        raise ValueError("the saved optimizer has other groups of parameters")
    known = type(optimizer) in ENTRYWISE  # a subclass may keep more
    places = [i for group in theirs for i in group["params"]]
    parameters = [p for group in groups for p in group["params"]]
    if len(set(places)) != len(places) or set(saved["state"]) - set(places):
        raise ValueError("the saved optimizer names parameters that it does not have")
    for i, parameter in zip(places, parameters, strict=True):
        kept = saved["state"].get(i, {})
        for name, value in kept.items():
            if value is None or not (known or name in MOMENTS):  # SGD without momentum keeps None
                continue
            shape = () if name == "step" else tuple(parameter.shape)
            if not isinstance(value, torch.Tensor) or tuple(value.shape) != shape or not value.is_floating_point():
                found = f"{value.dtype} {tuple(value.shape)}" if isinstance(value, torch.Tensor) else repr(value)
                raise ValueError(f"the saved optimizer's {name} of parameter {i} is {found}, not floating point {shape}")
            if bool(torch.isnan(value).any()):
                raise ValueError(
                    f"the saved optimizer's {name} of parameter {i} is NaN in {int(torch.isnan(value).sum())} entries"
                )
        if isinstance(optimizer, torch.optim.Adam | torch.optim.AdamW) and kept and not {"step", *MOMENTS[:2]} <= set(kept):
            raise ValueError(f"the saved optimizer's state of parameter {i} has {sorted(kept)} alone")


def lay_out_moments(optimizer: torch.optim.Optimizer) -> None:
    """Give what is kept of each parameter, entry by entry, the parameter's own layout in memory, which fused kernels go by."""
    if not isinstance(optimizer, ENTRYWISE):
        return
    for parameter, kept in optimizer.state.items():
        for name, value in kept.items():
            fits = isinstance(value, torch.Tensor) and value.shape == parameter.shape
            if fits and value.stride() != parameter.stride():
                kept[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


class DivergenceError(RuntimeError):
    """The loss became non-finite, or (found where a history row is made) a parameter did or fvu grew far beyond the start's.

    `step` is the failing step (from 0), or the number of steps so far; `state` is the method's state.

    On the CPU the parameters are those before the failing update. On a GPU the loss is looked at every 50 steps and
    at each epoch's end, so they may be non-finite too.
    """

    def __reduce__(self) -> tuple[Any, ...]:  # so that it survives a process pool
        return type(self), (self.step, self.state, self.found)

    def __init__(self, step: int, state: Any, found: str = "the loss is not finite") -> None:
        super().__init__(f"{found} at step {step}: lower lr, set clip, standardise x, or look for outliers in it")
        self.step = step
        self.state = state
        self.found = found


@dataclass
class Silence:
    """What resampling keeps: for how many samples each latent has been silent, and where its draws come from."""

    samples: Int[Tensor, " n_latents"]
    """Training samples since the last batch in which a latent fired, int64."""
    generator: torch.Generator
    """Of draws; on the CPU."""
    done: int = 0
    """The last step at which latents were looked through."""
    revived: int = 0
    """How many latents have been re-initialised so far."""

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to continue; the generator's state is a uint8 tensor."""
        return {"samples": self.samples, "generator": self.generator.get_state(), "done": self.done, "revived": self.revived}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Continue from `state_dict()`."""
        copy_whole(self.samples, saved["samples"], "samples of silence")
        self.generator.set_state(saved["generator"].cpu())
        self.done, self.revived = saved["done"], saved["revived"]


@dataclass
class TrainState:
    """What moves besides the parameters. `step` counts batches, `loss` is the last batch's (None before the first)."""

    optimizer: torch.optim.Optimizer
    data: Tensor | ActivationStore
    total_steps: int | None
    model: SparseModel
    """The module being trained, as a `SparseModel`."""
    terms: list[State] = field(default_factory=list)
    """What each loss term keeps."""
    scheduler: Any = None
    """A torch scheduler that was asked for; it moves the step size instead of the method."""
    step: int = 0
    loss: Tensor | None = None
    values: dict[str, Tensor] = field(default_factory=dict)
    """Of the loss's terms on the last batch, by name, without their weights."""
    observer: Callable[[Code], object] | None = None
    """Called with the code of every batch that a gradient is taken of."""
    processes: ProcessGroup | None = None
    """Where gradients and statistics are summed over processes."""
    rates: list[float] = field(default_factory=list)
    """Step size of each of the optimizer's groups at the start."""
    last_rates: list[float] = field(default_factory=list)
    """The same in the last update, to tell whether somebody else moves them."""
    scheduled: int = 0
    """Batches that the scheduler was stepped for."""
    silence: Silence | None = None
    """What resampling keeps."""

    @property
    def n_samples(self) -> int:
        """Number of training samples."""
        return len(self.data)

    @property
    def finished(self) -> bool:
        """Whether all steps are done; not where their number is unknown."""
        return self.total_steps is not None and self.step >= self.total_steps

    def log(self) -> dict[str, float]:
        """The method's columns of the history."""
        row = {"loss": math.nan if self.loss is None else float(self.loss)}
        if self.silence is not None:
            row["revived"] = float(self.silence.revived)
        return {**row, **{name: float(value) for name, value in self.values.items()}}

    def set_training(self, training: bool) -> None:
        """Switch an optimizer that has two modes to training, or to evaluation."""
        training_mode(self.optimizer, training)

    def join(self, processes: ProcessGroup) -> None:
        """Share every batch with other processes from now on. Raises ValueError with `resample`, which counts whole batches."""
        if self.silence is not None:
            raise ValueError("resample=Resampling(...) counts whole batches: train with it in one process")
        self.processes = processes

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to continue, without the data."""
        saved = {
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "total_steps": self.total_steps,
            "terms": self.terms,
        }
        if self.scheduler is not None:
            saved.update(scheduler=self.scheduler.state_dict(), scheduled=self.scheduled)
        return saved if self.silence is None else {**saved, "silence": self.silence.state_dict()}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Continue from `state_dict()`. Raises ValueError for a tensor of another shape than its parameter's."""
        for name, value in {"step": saved["step"], "total_steps": saved["total_steps"]}.items():
            if not isinstance(value, int) and not (value is None and name == "total_steps"):
                raise ValueError(f"the saved {name} is {value!r}, not a whole number")
        check_moments(self.optimizer, saved["optimizer"])
        self.optimizer.load_state_dict(saved["optimizer"])
        lay_out_moments(self.optimizer)
        self.step, self.total_steps = saved["step"], saved["total_steps"]
        for ours, theirs in zip(self.terms, saved.get("terms", []), strict=False):
            for name, value in theirs.items():
                copy_whole(ours[name], value, f"{name} of a loss term")
        self.last_rates = [group["lr"] for group in self.optimizer.param_groups]
        if self.scheduler is not None:
            self.scheduler.load_state_dict(saved["scheduler"])
            self.scheduled = saved["scheduled"]
        if self.silence is not None:
            self.silence.load_state_dict(saved["silence"])

    def check_finite(self) -> None:
        """Raise DivergenceError if the last loss is not finite (waits for a GPU)."""
        if self.loss is not None and not math.isfinite(float(self.loss)):
            raise DivergenceError(self.step, self)

    def watch(self) -> None:
        """`check_finite`, on a GPU every 50 steps only."""
        if self.loss is not None and (not self.loss.is_cuda or self.step % GPU_CHECK_EVERY == 0):
            self.check_finite()
