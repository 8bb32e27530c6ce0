"""The one training loop."""

from __future__ import annotations

import copy
import hashlib
import math
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from tqdm.auto import tqdm

from splinterp._atomic import replace_file
from splinterp._checks import as_samples, at_least, check_finite, warn_outliers
from splinterp._typing import ArrayLike, Tensor
from splinterp.data.store import ActivationStore
from splinterp.metrics import evaluate
from splinterp.training.base import DivergenceError, training_data
from splinterp.training.blocks import SAELike
from splinterp.training.distributed import ProcessGroup


@runtime_checkable
class Method(Protocol):
    """What `fit` asks of a training method."""

    def init(self, sae: Any, x: Any, total_steps: int | None = None) -> Any: ...
    def step(self, sae: Any, state: Any, x: Any) -> None: ...
    def end_epoch(self, sae: Any, state: Any, batches: Any) -> None: ...


class FitResult(NamedTuple):
    """The trained SAE (the object passed in), one history row a logged epoch, and the method's final state."""

    sae: Any
    history: list[dict[str, float]]
    state: Any


class Batches:
    """Batches of the rows of `x`, moved to a device and dtype; iterable any number of times.

    The last partial batch is used; a batch size above the number of rows gives one batch.
    """

    def __init__(self, x: Tensor | ActivationStore, batch_size: int, device: torch.device, dtype: torch.dtype) -> None:
        self.x, self.batch_size, self.device, self.dtype = x, min(batch_size, len(x)), device, dtype

    def __len__(self) -> int:
        return math.ceil(len(self.x) / self.batch_size)

    def __iter__(self) -> Iterator[Tensor]:
        """In order."""
        for part in self.x.split(self.batch_size):
            yield part.to(device=self.device, dtype=self.dtype)

    def shuffled(self, generator: torch.Generator) -> Iterator[Tensor]:
        """In an order drawn from a CPU generator, the same for every device."""
        if isinstance(self.x, ActivationStore):
            for part in self.x.shuffled(self.batch_size, generator):
                yield part.to(device=self.device, dtype=self.dtype)
            return
        order = torch.randperm(len(self.x), generator=generator).to(self.x.device)
        for rows in order.split(self.batch_size):
            yield self.x[rows].to(device=self.device, dtype=self.dtype)


def fit(
    sae: SAELike,
    x: ArrayLike | ActivationStore,
    method: Method,
    *,
    epochs: int = 20,
    batch_size: int = 128,
    x_val: ArrayLike | None = None,
    generator: torch.Generator | None = None,
    log_every: int = 1,
    train_eval_samples: int = 10_000,
    keep_best: bool = False,
    callback: Callable[[dict[str, float]], object] | None = None,
    checkpoint: str | Path | None = None,
    checkpoint_every: int = 1,
    resume: bool = False,
    progress: bool = False,
    processes: ProcessGroup | None = None,
    autocast: torch.dtype | None = None,
) -> FitResult:
    """Train `sae` in place on x (N, d_in) with `method` (SGD, PAMSGD, ...).

    x may be an `ActivationStore`: it is read by memory map and shuffled within its memory budget, so it may be larger than memory.

    b_dec (and b_pre, where there is one) starts at the training mean, for every method. Batches are moved to the SAE's
    device and dtype. The same generator seed gives the same weights, bit for bit, on the CPU.

    A history row is a dict: `epoch` and `step` (both from 1 at the first epoch's end), `loss` (last batch, published
    scale), `train_fvu`, `val_fvu` (NaN without x_val), `l0` and `frac_dead` (on x_val, else on the training samples
    looked at), `seconds` (training so far, evaluation excluded), and for PAMSGD `ridge`.

    Args:
        epochs, batch_size: passes over x, and samples a step; the last partial batch is used.
        x_val: held-out samples (n, d_in) for the history.
        generator: CPU generator of the data order; None means a new one seeded with 0.
        log_every: epochs between history rows; the last epoch always has one.
        train_eval_samples: `train_fvu` is over the first so many training samples.
        keep_best: end with the parameters of the logged row of lowest `val_fvu`; needs x_val.
        callback: called with each row, for a logger.
        checkpoint: file to write (to a temporary name, then renamed) every `checkpoint_every` epochs and at the end.
        resume: continue from `checkpoint` if it exists; the result equals that of an undisturbed run, bit for bit.
        progress: show a progress bar on stderr.
        processes: of several processes that run this same call on the same data: each takes its rows of every batch, the first one
            writes checkpoints (one before the first epoch too), calls back and shows progress.
        autocast: torch.bfloat16 takes the products of gradient steps in that dtype (`torch.autocast`; for TopK and AbsTopK of few
            latents the one that decides which are kept). Parameters, losses, decoder solves and evaluation keep the SAE's dtype.

    Raises:
        TypeError, ValueError: data, options or module that do not fit, a checkpoint of another run.
        DivergenceError: non-finite loss or reconstruction error.
        WorkerLostError: another process is gone.

    >>> from splinterp import PAMSGD, SAE, TopK
    >>> x = torch.randn(200, 8, generator=torch.Generator().manual_seed(0))
    >>> result = fit(SAE(8, 16, TopK(2), decoder="tied_residual"), x, PAMSGD(), epochs=2)
    >>> len(result.history), result.history[-1]["l0"] <= 2
    (2, True)
    """
    _check_options(epochs, batch_size, log_every, checkpoint_every, train_eval_samples)
    if keep_best and x_val is None:
        raise ValueError("keep_best=True chooses by val_fvu: pass x_val")
    if autocast not in (None, torch.bfloat16):
        raise ValueError(f"autocast={autocast} is not torch.bfloat16 (float16 would need its gradients scaled)")
    if resume and checkpoint is None:
        raise ValueError("resume=True needs checkpoint=PATH")
    data = training_data(sae, x)
    warn_outliers(_norms(data))
    x_val = None if x_val is None else _validation_data(x_val, data)
    batches = Batches(data, batch_size, sae.W_enc.device, sae.W_enc.dtype)
    run = _Run(sae, method, generator if generator is not None else torch.Generator().manual_seed(0), keep_best, autocast)
    run.plan = run.describe(data, batches.batch_size, epochs)
    _start_at_mean(sae, data)
    run.state = method.init(sae, data, total_steps=epochs * len(batches))
    if _hold_out(run.state, x_val):
        run.plan.append(f"held out: {float(x_val.sum(dtype=torch.float64))}")  # type: ignore[union-attr]
    if resume and Path(str(checkpoint)).exists():
        run.load(Path(str(checkpoint)))

    if processes is not None:
        run.join(processes)
        if checkpoint is not None and processes.first:
            run.save(Path(checkpoint))
    first = processes is None or processes.first
    bar = tqdm(total=epochs * len(batches), initial=run.epoch * len(batches), disable=not (progress and first), unit="step")
    was_training = sae.training
    try:
        while run.epoch < epochs:
            run.train_epoch(batches, bar)
            last = run.epoch == epochs
            if last or run.epoch % log_every == 0:
                row = run.log(data[:train_eval_samples], x_val)
                bar.set_postfix(fvu=row["train_fvu"])
                if callback is not None and first:
                    callback(row)
            if checkpoint is not None and first and (last or run.epoch % checkpoint_every == 0):
                run.save(Path(checkpoint))
    finally:
        bar.close()
        sae.train(was_training)
    if run.best is not None:
        sae.load_state_dict(run.best)
    return FitResult(sae, run.history, run.state)


def _check_options(epochs: int, batch_size: int, log_every: int, checkpoint_every: int, train_eval_samples: int) -> None:
    counts = {"epochs": epochs, "batch_size": batch_size, "log_every": log_every, "checkpoint_every": checkpoint_every}
    for name, value in counts.items():
        at_least(name, value, 1)
    at_least("train_eval_samples", train_eval_samples, 2)


def _validation_data(x_val: ArrayLike, data: Tensor | ActivationStore) -> Tensor:
    x_val = as_samples(x_val, data.shape[1], name="x_val")
    if len(x_val) < 2:
        raise ValueError(f"x_val has {len(x_val)} samples, and fvu needs at least 2")
    return x_val


def _hold_out(state: Any, x_val: Tensor | None) -> bool:
    """Give a method that chooses by held-out samples the validation data. Returns whether it is one."""
    state = getattr(state, "base", state)  # a method around another one
    if not getattr(state, "wants_held_out", False):
        return False
    if x_val is None:
        raise ValueError("ridge='held_out' chooses by held-out samples: pass x_val")
    state.held_out = x_val
    return True


def _norms(data: Tensor | ActivationStore) -> Tensor:
    if isinstance(data, Tensor):
        return data.norm(dim=1)
    norms = []
    for part in data.split(4096):
        check_finite(part, f"the store in {data.folder}")
        norms.append(part.norm(dim=1))
    return torch.cat(norms)


@torch.no_grad()
def _start_at_mean(sae: SAELike, data: Tensor | ActivationStore) -> None:
    mean = data.mean(0, dtype=torch.float64) if isinstance(data, Tensor) else data.statistics()["mean"]
    sae.b_dec.copy_(mean)
    center = getattr(sae, "b_pre", None)
    if isinstance(center, torch.Tensor):
        center.copy_(mean)


class _Run:
    """What one call of `fit` moves, with its checkpoint."""

    def __init__(
        self, sae: SAELike, method: Method, generator: torch.Generator, keep_best: bool, autocast: torch.dtype | None
    ) -> None:
        self.sae, self.method, self.generator, self.keep_best, self.autocast = sae, method, generator, keep_best, autocast
        self.state: Any = None
        self.plan: list[Any] = []
        self.epoch, self.seconds = 0, 0.0
        self.history: list[dict[str, float]] = []
        self.best: dict[str, Tensor] | None = None

    def describe(self, data: Tensor | ActivationStore, batch_size: int, epochs: int) -> list[Any]:
        """What must be equal for a checkpoint to belong to this run: method, module, options, data, data order."""
        shapes = [f"{name} {tuple(value.shape)}" for name, value in self.sae.state_dict().items()]
        order = hashlib.sha256(self.generator.get_state().numpy().tobytes()).hexdigest()
        total = float(data.sum(dtype=torch.float64)) if isinstance(data, Tensor) else data.fingerprint()
        plan = [str(self.method), str(self.sae), shapes, self.keep_best, len(data), total, batch_size, epochs, order]
        return plan if self.autocast is None else [*plan, f"autocast={self.autocast}"]

    def join(self, processes: ProcessGroup) -> None:
        """Start from the first process's parameters, and share every batch from now on."""
        if not hasattr(self.state, "processes") or getattr(self.method, "whole_batches", False):
            raise ValueError(f"{type(self.method).__name__} looks at whole batches: train with it in one process")
        processes.broadcast_(p.detach() for p in self.sae.parameters())
        self.state.processes = processes

    def train_epoch(self, batches: Batches, bar: Any) -> None:
        self.sae.train()
        processes = getattr(self.state, "processes", None)
        start = time.perf_counter()
        for x in batches.shuffled(self.generator):
            with nullcontext() if self.autocast is None else torch.autocast(x.device.type, self.autocast):
                self.method.step(self.sae, self.state, x if processes is None else processes.share(x))
            bar.update()
        if hasattr(self.state, "check_finite"):
            self.state.check_finite()
        self.method.end_epoch(self.sae, self.state, batches)
        if batches.device.type == "cuda":
            torch.cuda.synchronize(batches.device)
        self.seconds += time.perf_counter() - start
        self.epoch += 1

    def log(self, x: Tensor, x_val: Tensor | None) -> dict[str, float]:
        train = evaluate(self.sae, x)
        if not math.isfinite(train.fvu):  # the last update diverged, after its loss was checked
            raise DivergenceError(self.state.step, self.state)
        held_out = train if x_val is None else evaluate(self.sae, x_val)
        row: dict[str, float] = {
            "epoch": self.epoch, "step": self.state.step, "loss": float(self.state.loss), "train_fvu": train.fvu,
            "val_fvu": math.nan if x_val is None else held_out.fvu, "l0": held_out.l0, "frac_dead": held_out.frac_dead,
            "seconds": self.seconds,
        }  # fmt: skip
        if hasattr(self.state, "ridge"):
            row["ridge"] = math.nan if self.state.ridge is None else self.state.ridge
        if self.keep_best and not any(r["val_fvu"] <= row["val_fvu"] for r in self.history):
            self.best = copy.deepcopy(self.sae.state_dict())
        self.history.append(row)
        return row

    def save(self, path: Path) -> None:
        content = {
            "plan": self.plan, "sae": self.sae.state_dict(), "state": self.state.state_dict(), "epoch": self.epoch,
            "seconds": self.seconds, "history": self.history, "best": self.best, "generator": self.generator.get_state(),
        }  # fmt: skip
        replace_file(path, lambda temporary: torch.save(content, temporary))

    def load(self, path: Path) -> None:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        if saved["plan"] != self.plan:
            ours, theirs = next((a, b) for a, b in zip_longest(self.plan, saved["plan"]) if a != b)
            raise ValueError(f"{path} belongs to another run: it has {theirs!r}, this one {ours!r}")
        self.sae.load_state_dict(saved["sae"])
        self.state.load_state_dict(saved["state"])
        self.generator.set_state(saved["generator"])
        self.epoch, self.seconds, self.history, self.best = (saved[k] for k in ("epoch", "seconds", "history", "best"))
