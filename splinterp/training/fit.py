"""The one training loop."""

from __future__ import annotations

import copy
import hashlib
import math
import re
import struct
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from tqdm.auto import tqdm

from splinterp._atomic import replace_file
from splinterp._checks import as_samples, at_least, check_finite, warn_outliers
from splinterp._files import FLOATS, check_numbers, reading, require_file
from splinterp._random import as_generator
from splinterp._typing import ArrayLike, Tensor
from splinterp.data.store import ActivationStore
from splinterp.metrics import evaluate
from splinterp.protocol import SAELike, as_model
from splinterp.training.base import DivergenceError, training_data
from splinterp.training.distributed import ProcessGroup


@runtime_checkable
class State(Protocol):
    """What `fit` asks of a method's state."""

    def log(self) -> dict[str, float]:
        """The method's columns of the history, `loss` among them."""

    def check_finite(self) -> None:
        """Raise DivergenceError where the last loss is not finite."""

    def set_training(self, training: bool) -> None:
        """Before steps (True), and before evaluation and an epoch's end (False): for optimizers that have two modes."""

    def join(self, processes: Any) -> None:
        """Share every batch with other processes from now on (asked of methods that do not couple batches)."""

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to continue, as `torch.load(weights_only=True)` reads it."""

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Continue from `state_dict()`."""


@runtime_checkable
class Method(Protocol):
    """What `fit` asks of a training method, all of it."""

    @property
    def couples_batches(self) -> bool:
        """Whether it looks at whole batches, so that one process trains."""

    @property
    def wants_x_val(self) -> bool:
        """Whether it chooses by held-out samples, so that `fit` needs x_val."""

    def init(self, sae: Any, x: Any, total_steps: int | None = None, *, x_val: Any = None) -> Any:
        """Start; returns a `State`."""

    def step(self, sae: Any, state: Any, x: Any) -> None:
        """Train on a batch."""

    def end_epoch(self, sae: Any, state: Any, batches: Any) -> None:
        """Finish a pass over the `batches`."""


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
    epochs: int | None = None,
    steps: int | None = None,
    batch_size: int = 128,
    x_val: ArrayLike | ActivationStore | None = None,
    generator: torch.Generator | int | None = None,
    log_every: int = 1,
    log_every_steps: int | None = None,
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
    """Train `sae` in place on x (N, d_in) with `method` (SGD, PAMSGD, ...), and leave it in evaluation mode.

    x may be an `ActivationStore`: it is read by memory map and shuffled within its memory budget, so it may be larger than memory.

    b_dec (and b_pre, where there is one) starts at the training mean, for every method. Batches are moved to the SAE's
    device and dtype. The same generator seed gives the same weights, bit for bit, on the CPU. The threshold of a BatchTopK is set
    from training samples before each evaluation.

    A history row is a dict: `epoch` and `step` (both from 1; the epoch is the one the row lies in), `train_fvu`, `val_fvu` (NaN
    without x_val), `l0` and `frac_dead` (on x_val, else on the training samples looked at), `seconds` (training so far, evaluation
    excluded), and what the method logs: `loss` (last batch, published scale), the values of its loss terms by name where there are
    several, and for PAMSGD `ridge`.

    Args:
        epochs, batch_size: passes over x (None: 20), and samples a step; the last partial batch is used.
        steps: a budget of batches in place of epochs; the last pass is cut short.
        x_val: held-out samples (n, d_in), or a store of them, for the history, and for methods that choose by them.
        generator: CPU generator of the data order, or an int that seeds one; None means one seeded by a draw from torch's global
            generator, so that `torch.manual_seed` decides.
        log_every: epochs between history rows; the last epoch always has one.
        log_every_steps: batches between history rows, in place of epochs; the end always has one.
        train_eval_samples: `train_fvu` is over the first so many training samples.
        keep_best: end with the parameters of the logged row of lowest `val_fvu`; needs x_val.
        callback: called with each row, for a logger.
        checkpoint: file to write every `checkpoint_every` epochs and at the end (whole, or not at all; through a link to its target).
        resume: continue from `checkpoint` if it exists; the result equals that of an undisturbed run, bit for bit. A finished run
            can be extended: with more epochs or steps it goes on, under the schedule of the new length. Without a generator the
            data order goes on as the checkpoint has it.
        progress: show a progress bar on stderr.
        processes: of several processes that run this same call on the same data: each takes its rows of every batch, the first one
            writes checkpoints (one before the first epoch too), calls back and shows progress.
        autocast: torch.bfloat16 takes the products of gradient steps in that dtype (`torch.autocast`; for TopK and AbsTopK of few
            latents the one that decides which are kept). Parameters, losses, decoder solves and evaluation keep the SAE's dtype.

    Raises:
        TypeError, ValueError: data, options, method or module that do not fit, a checkpoint that is damaged or of another run.
        DivergenceError: non-finite loss or reconstruction error.
        WorkerLostError: another process is gone.

    >>> from splinterp import PAMSGD, SAE, TopK
    >>> x = torch.randn(200, 8, generator=torch.Generator().manual_seed(0))
    >>> result = fit(SAE(8, 16, TopK(2), decoder="tied_residual"), x, PAMSGD(), epochs=2)
    >>> len(result.history), result.history[-1]["l0"] <= 2
    (2, True)
    """
    if epochs is not None and steps is not None:
        raise ValueError(f"epochs={epochs} and steps={steps} are two budgets: pass one of them")
    counts = {"epochs": epochs, "steps": steps, "batch_size": batch_size, "log_every": log_every, "checkpoint_every": checkpoint_every,
              "log_every_steps": log_every_steps}  # fmt: skip
    _check_counts(counts, train_eval_samples)
    if log_every_steps is not None and log_every != 1:
        raise ValueError(f"log_every={log_every} changes nothing beside log_every_steps={log_every_steps}: drop one of them")
    check_method(method)
    if keep_best and x_val is None:
        raise ValueError("keep_best=True chooses by val_fvu: pass x_val")
    if method.wants_x_val and x_val is None:
        raise ValueError(f"{type(method).__name__} chooses by held-out samples here (ridge='held_out'): pass x_val")
    if autocast not in (None, torch.bfloat16):
        raise ValueError(f"autocast={autocast} is not torch.bfloat16 (float16 would need its gradients scaled)")
    if resume and checkpoint is None:
        raise ValueError("resume=True needs checkpoint=PATH")
    model = as_model(sae)
    data = training_data(model, x)
    warn_outliers(_norms(data))
    x_val = None if x_val is None else _validation_data(x_val, data)
    batches = Batches(data, batch_size, model.b_dec.device, model.b_dec.dtype)
    total = steps if steps is not None else (20 if epochs is None else epochs) * len(batches)
    run = _Run(sae, method, as_generator(generator), keep_best, autocast, total)
    run.describe(data, x_val if method.wants_x_val else None, batches.batch_size, generator is None, checkpoint is not None)
    _start_at_mean(sae, data)
    run.state = method.init(sae, data, total_steps=total, x_val=x_val)
    if not isinstance(run.state, State):
        missing = [name for name in STATE_NAMES if name not in dir(run.state)]
        raise TypeError(f"the state of {type(method).__name__} lacks {', '.join(missing)}: see splinterp.training.State")
    if resume and Path(str(checkpoint)).exists():
        run.load(Path(str(checkpoint)), len(batches))

    if processes is not None:
        run.join(processes)
        if checkpoint is not None and processes.first:
            run.save(Path(checkpoint))
    first = processes is None or processes.first
    bar = tqdm(total=total, initial=run.step, disable=not (progress and first), unit="step")

    def log() -> None:
        row = run.log(data[:train_eval_samples], x_val)
        bar.set_postfix(fvu=row["train_fvu"])
        if callback is not None and first:
            callback(row)

    try:
        while run.step < total:
            run.train_epoch(batches, bar, log_every_steps, log)
            last = run.step == total
            if (last and not run.logged) or (log_every_steps is None and run.epoch % log_every == 0):
                log()
            if checkpoint is not None and first and (last or run.epoch % checkpoint_every == 0):
                run.save(Path(checkpoint))
    finally:
        bar.close()
        sae.eval()
        run.state.set_training(False)
    if run.best is not None:
        sae.load_state_dict(run.best)
    return FitResult(sae, run.history, run.state)


def check_method(method: Any) -> None:
    """Raises TypeError, with what is missing, unless `method` is a training method."""
    if not isinstance(method, Method):
        missing = [name for name in METHOD_NAMES if name not in dir(method)]
        raise TypeError(
            f"{type(method).__name__} is no training method: it lacks {', '.join(missing)}; see splinterp.training.Method"
        )


METHOD_NAMES = ("couples_batches", "wants_x_val", "init", "step", "end_epoch")
STATE_NAMES = ("log", "check_finite", "set_training", "join", "state_dict", "load_state_dict")


def _check_counts(counts: dict[str, int | None], train_eval_samples: int) -> None:
    for name, value in counts.items():
        if value is not None:
            at_least(name, value, 1)
            if value != int(value):
                raise ValueError(f"{name}={value} must be a whole number")
    at_least("train_eval_samples", train_eval_samples, 2)


def _validation_data(x_val: ArrayLike | ActivationStore, data: Tensor | ActivationStore) -> Tensor | ActivationStore:
    d_in = data.shape[1]
    found = x_val.of_width(d_in) if isinstance(x_val, ActivationStore) else as_samples(x_val, d_in, name="x_val").detach()
    if len(found) < 2:
        raise ValueError(f"x_val has {len(found)} samples, and fvu needs at least 2")
    return found


def _content(data: Tensor | ActivationStore) -> Any:
    return float(data.sum(dtype=torch.float64)) if isinstance(data, Tensor) else data.fingerprint()


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
    for center in (sae.b_dec, as_model(sae).center):
        if center is not None and center.requires_grad:  # a frozen one stays
            center.copy_(mean)


ORDER = 7
"""Where a run's plan tells the order of its data."""


class _Run:
    """What one call of `fit` moves, with its checkpoint."""

    def __init__(
        self, sae: SAELike, method: Method, generator: torch.Generator, keep_best: bool, autocast: torch.dtype | None, total: int
    ) -> None:  # fmt: skip
        self.sae, self.method, self.generator, self.keep_best, self.autocast = sae, method, generator, keep_best, autocast
        self.total = total
        self.state: Any = None
        self.plan: list[Any] = []
        self.processes: ProcessGroup | None = None
        self.epoch, self.step, self.seconds = 0, 0, 0.0
        self.history: list[dict[str, float]] = []
        self.best: dict[str, Tensor] | None = None

    def describe(
        self,
        data: Tensor | ActivationStore,
        held_out: Tensor | ActivationStore | None,
        batch_size: int,
        drawn: bool,
        kept: bool,
    ) -> None:
        """Set `plan`: what must be equal for a checkpoint to belong to this run: method, module, options, data, data order."""
        for part in (self.method, self.sae):
            if kept and re.search(r"object at 0x[0-9a-f]+", str(part)):
                raise TypeError(
                    f"str() of the {type(part).__name__} is {str(part)!r}, which no later run would have: give it a __repr__ of its "
                    "options (a dataclass has one), so that a checkpoint can be told to be its own"
                )
        shapes = [f"{name} {tuple(value.shape)}" for name, value in self.sae.state_dict().items()]
        order = "drawn" if drawn else hashlib.sha256(self.generator.get_state().numpy().tobytes()).hexdigest()
        method = re.sub(r" at 0x[0-9a-f]+", "", str(self.method))  # where a function lies in memory
        self.plan = [method, str(self.sae), shapes, self.keep_best, len(data), _content(data), batch_size, order]
        if self.autocast is not None:
            self.plan.append(f"autocast={self.autocast}")
        if held_out is not None:
            self.plan.append(f"held out: {_content(held_out)}")

    def join(self, processes: ProcessGroup) -> None:
        """Start from the first process's parameters, and share every batch from now on."""
        if self.method.couples_batches:
            raise ValueError(f"{type(self.method).__name__} looks at whole batches: train with it in one process")
        processes.broadcast_(p.detach() for p in self.sae.parameters())
        self.processes = processes
        self.state.join(processes)

    @property
    def logged(self) -> bool:
        """Whether the history has a row of this step."""
        return bool(self.history) and self.history[-1]["step"] == self.step

    def train_epoch(self, batches: Batches, bar: Any, log_every_steps: int | None, log: Callable[[], None]) -> None:
        """One pass, or what is left of the budget of steps."""
        self._set_training(True)
        processes, start = self.processes, time.perf_counter()
        self.epoch += 1
        left = min(len(batches), self.total - self.step)
        for index, x in enumerate(batches.shuffled(self.generator)):
            if index == left:
                break
            with nullcontext() if self.autocast is None else torch.autocast(x.device.type, self.autocast):
                self.method.step(self.sae, self.state, x if processes is None else processes.share(x))
            self.step += 1
            bar.update()
            if log_every_steps is not None and self.step % log_every_steps == 0 and index < left - 1:
                self._stop_clock(batches, start)
                self._set_training(False)
                log()
                self._set_training(True)
                start = time.perf_counter()
        self.state.check_finite()
        self.state.set_training(False)
        self.method.end_epoch(self.sae, self.state, batches)
        self._stop_clock(batches, start)
        if log_every_steps is not None and self.step % log_every_steps == 0:
            log()

    def _set_training(self, training: bool) -> None:
        if training:
            self.sae.train()
        self.state.set_training(training)

    def _stop_clock(self, batches: Batches, start: float) -> None:
        if batches.device.type == "cuda":
            torch.cuda.synchronize(batches.device)
        self.seconds += time.perf_counter() - start

    def log(self, x: Tensor, x_val: Tensor | ActivationStore | None) -> dict[str, float]:
        """Evaluate, and add a row to the history."""
        as_model(self.sae).calibrate(x)
        train = evaluate(self.sae, x)
        if not math.isfinite(train.fvu):  # the last update diverged, after its loss was checked
            raise DivergenceError(self.step, self.state)
        held_out = train if x_val is None else evaluate(self.sae, x_val)
        own = self.state.log()
        row: dict[str, float] = {
            "epoch": self.epoch, "step": self.step, "loss": own.pop("loss", math.nan), "train_fvu": train.fvu,
            "val_fvu": math.nan if x_val is None else held_out.fvu, "l0": held_out.l0, "frac_dead": held_out.frac_dead,
            "seconds": self.seconds, **own,
        }  # fmt: skip
        if self.keep_best and not any(r["val_fvu"] <= row["val_fvu"] for r in self.history):
            self.best = copy.deepcopy(self.sae.state_dict())
        self.history.append(row)
        return row

    def save(self, path: Path) -> None:
        content = {
            "plan": self.plan, "total": self.total, "sae": self.sae.state_dict(), "state": self.state.state_dict(), "epoch": self.epoch,
            "step": self.step, "seconds": self.seconds, "history": self.history, "best": self.best,
            "generator": self.generator.get_state(),
        }  # fmt: skip
        replace_file(path, lambda temporary: _save_summed(content, temporary))

    def load(self, path: Path, per_epoch: int) -> None:
        saved = read_checkpoint(path)
        if saved["plan"] != self.plan:
            ours, theirs = next(
                ((a, b) for a, b in zip_longest(self.plan, saved["plan"]) if a != b),
                (type(self.plan).__name__, type(saved["plan"]).__name__),
            )
            if ours == self.plan[ORDER]:
                raise ValueError(
                    f"{path} belongs to a run with another order of the data: pass the seed it began with, or a generator that is "
                    "where that run's was when it began (a generator that was drawn from since is not)"
                )
            raise ValueError(f"{path} belongs to another run: it has {theirs!r}, this one {ours!r}")
        extended = saved["total"] != self.total
        if extended and saved["step"] != saved["total"]:
            raise ValueError(
                f"{path} is of an unfinished run of {saved['total']} steps (at {saved['step']}), this one has {self.total}: finish it "
                f"first, with epochs={saved['total'] / per_epoch:g}, then extend it"
            )
        if self.total < saved["step"]:
            raise ValueError(f"{path} has trained {saved['step']} steps already, more than the {self.total} asked for")
        with reading(path):
            if saved["best"] is not None:
                _check_like(self.sae.state_dict(), saved["best"], "best parameters")
            _check_like(self.sae.state_dict(), saved["sae"], "parameters")
            for name, value in saved["sae"].items():
                if isinstance(value, torch.Tensor) and name not in _buffers(self.sae):  # those may be NaN until they are set
                    check_numbers(path, name, value, infinite=True)
            self.sae.load_state_dict(saved["sae"])
            self.state.load_state_dict({**saved["state"], "total_steps": self.total} if extended else saved["state"])
            self.generator.set_state(saved["generator"])
        self.epoch, self.step, self.seconds, self.history, self.best = (
            saved[k] for k in ("epoch", "step", "seconds", "history", "best")
        )


SAVED: dict[str, type | tuple[type, ...]] = {
    "plan": list, "total": int, "sae": dict, "state": dict, "epoch": int, "step": int, "seconds": float, "history": list,
    "best": (dict, type(None)), "generator": torch.Tensor,
}  # fmt: skip
"""What a checkpoint holds."""


def _save_summed(content: dict[str, Any], path: Path) -> None:
    """`torch.save` with the checksums that `read_checkpoint` compares, whatever torch is set to."""
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(True)
    try:
        torch.save(content, path)
    finally:
        torch.serialization.set_crc32_options(before)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """What `fit` wrote. Raises FileNotFoundError, and ValueError for a damaged file or another one."""
    with reading(path):
        try:
            with zipfile.ZipFile(require_file(path)) as archive:
                broken = archive.testzip()  # torch does not look at the checksums that it writes
        except (zipfile.BadZipFile, NotImplementedError, RuntimeError, zlib.error, EOFError, struct.error) as error:
            raise ValueError(f"{path} is no checkpoint, or is damaged ({error}): remove it to start anew") from error
        if broken is not None:
            raise ValueError(f"{path} is damaged (its part {broken}): remove it to start anew")
        saved = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(saved, dict) or not set(SAVED) <= set(saved):
            raise ValueError(f"{path} is no checkpoint of fit: it lacks {', '.join(sorted(set(SAVED) - set(saved)))}")
        for name, kind in SAVED.items():
            if not isinstance(saved[name], kind) or isinstance(saved[name], bool):
                raise ValueError(f"{path} is no checkpoint of fit: its {name} is a {type(saved[name]).__name__}")
        for row in saved["history"]:
            numbers = isinstance(row, dict) and all(isinstance(value, int | float) for value in row.values())
            if not numbers or not {"epoch", "step", "val_fvu"} <= set(row):
                raise ValueError(f"{path} has the row {row!r} in its history, which fit does not write")
    return saved


def _buffers(sae: Any) -> set[str]:
    return {name for name, _ in sae.named_buffers()} if isinstance(sae, torch.nn.Module) else set()


def _check_like(ours: dict[str, Any], theirs: dict[str, Any], what: str) -> None:
    """Raise ValueError unless the saved tensors have the names and shapes of ours, and are real numbers where ours are."""
    if set(ours) != set(theirs):
        raise ValueError(f"its {what} are {sorted(theirs)}, not {sorted(ours)}")
    for name, value in ours.items():
        if not isinstance(value, torch.Tensor):
            continue
        found = theirs[name]
        known = FLOATS.values() if value.is_floating_point() else (value.dtype,)
        if not isinstance(found, torch.Tensor) or found.shape != value.shape or found.dtype not in known:
            raise ValueError(f"{name} of its {what} does not fit: {value.dtype} {tuple(value.shape)} is expected")
