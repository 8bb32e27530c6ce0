"""The one training loop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tqdm.auto import tqdm

from splinterp._atomic import check_writable
from splinterp._checks import as_samples, whole
from splinterp._random import as_generator
from splinterp._typing import ArrayLike, Tensor
from splinterp.data.store import ActivationStore
from splinterp.data.stream import ActivationStream
from splinterp.protocol import SAELike, SparseModel, as_model
from splinterp.training.base import training_data
from splinterp.training.batches import Batches
from splinterp.training.distributed import ProcessGroup
from splinterp.training.health import check_dtype, fvu_at_start, warn_silent
from splinterp.training.inspection import inspect, set_aside, start_at, warn_other_source
from splinterp.training.method import STATE_NAMES, Method, State, check_method
from splinterp.training.run import Run
from splinterp.training.stream_batches import StreamBatches, check_streams, looked_at, warn_ended


class FitResult(NamedTuple):
    """The trained SAE (the object passed in), one history row a logged epoch, and the method's final state."""

    sae: Any
    history: list[dict[str, float]]
    state: Any


def fit(
    sae: SAELike,
    x: ArrayLike | ActivationStore | ActivationStream,
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
    checkpoint_every_steps: int | None = None,
    resume: bool = False,
    progress: bool = False,
    processes: ProcessGroup | None = None,
    autocast: torch.dtype | None = None,
) -> FitResult:
    """Train `sae` in place on x (N, d_in) with `method` (SGD, PAMSGD, ...), and leave it in evaluation mode.

    x may be an `ActivationStore`: it is read by memory map and shuffled within its memory budget, so it may be larger than memory. Or an
    `ActivationStream`, whose rows are made while they are asked for, and seen once: by SGD, StreamingPAMSGD, or BiasAdaptation around
    either, for `steps` batches or until its `max_tokens`. An epoch of a stream is one buffer of it; its next rows stand for the training
    samples in `train_fvu` and wherever else some are looked at.

    b_dec (and b_pre, where there is one) starts at the training mean (`start_at_mean`), for every method, so that an SAE of this
    package is trained alike on x and on x + c. Batches are moved to the SAE's
    device and dtype. The same generator seed gives the same weights, bit for bit, on the CPU. The threshold of a BatchTopK is set
    from training samples before each evaluation.

    A history row is a dict: `epoch` and `step` (both from 1; the epoch is the one the row lies in), `train_fvu`, `val_fvu` (NaN
    without x_val), `l0` and `frac_dead` (on x_val, else on the training samples looked at), `seconds` (training so far, evaluation
    excluded), and what the method logs: `loss` (last batch, published scale), the values of its loss terms by name where there are
    several, and for PAMSGD `ridge` and `solve_seconds`, the part of `seconds` that went into solves.

    Args:
        epochs, batch_size: passes over x (None: 20), and samples a step; the last partial batch is used.
        steps: a budget of batches in place of epochs; the last pass is cut short.
        x_val: held-out samples (n, d_in), or a store of them, for the history, and for methods that choose by them. Where there are none
            and the method chooses by some, a twentieth of x (50 to 5,000 samples, the same ones in every call) is set aside for that,
            and not trained on; a warning says so.
        generator: CPU generator of the data order, or an int that seeds one; None means one seeded by a draw from torch's global
            generator, so that `torch.manual_seed` decides.
        log_every: epochs between history rows; the last epoch always has one.
        log_every_steps: batches between history rows, in place of epochs; the end always has one.
        train_eval_samples: `train_fvu` is over the first so many training samples.
        keep_best: end with the parameters of the logged row of lowest `val_fvu`; needs x_val.
        callback: called with each row, for a logger. During the call the SAE is the one that the row describes: it holds
            the readout's decoder, if there is one, and gets its own back afterwards.
        checkpoint: file to write every `checkpoint_every` epochs, every `checkpoint_every_steps` batches within one, and at the end (whole,
            or not at all; through a link to its target).
        resume: continue from `checkpoint` if it exists; the result equals that of an undisturbed run, bit for bit. A finished run
            can be extended: with more epochs or steps (of a stream: steps, its max_tokens as they were) it goes on, under the schedule
            of the new length. Without a generator the
            data order goes on as the checkpoint has it.
        progress: show a progress bar on stderr.
        processes: of several processes that run this same call on the same data: each takes its rows of every batch, the first one
            writes checkpoints (one before the first epoch too), calls back and shows progress.
        autocast: torch.bfloat16 takes the products of gradient steps in that dtype (`torch.autocast`; for TopK and AbsTopK of few
            latents the one that decides which are kept). Parameters, losses, decoder solves and evaluation keep the SAE's dtype.

    Raises:
        TypeError, ValueError: data, options, method or module that do not fit, a checkpoint that is damaged or of another run.
        DivergenceError: non-finite loss, reconstruction error or parameters; an fvu above 10 and above ten times that of the start.
        WorkerLostError: another process is gone.

    Examples:
        >>> from splinterp import PAMSGD, SAE, TopK
        >>> x = torch.randn(200, 8, generator=torch.Generator().manual_seed(0))
        >>> result = fit(SAE(8, 16, TopK(2), decoder="tied_residual"), x, PAMSGD(), epochs=2)
        >>> len(result.history), result.history[-1]["l0"] <= 2
        (2, True)
    """
    options = _Options(
        epochs=epochs, steps=steps, batch_size=batch_size, log_every=log_every, log_every_steps=log_every_steps,
        train_eval_samples=train_eval_samples, keep_best=keep_best, callback=callback,
        checkpoint=None if checkpoint is None else Path(checkpoint), checkpoint_every=checkpoint_every,
        checkpoint_every_steps=checkpoint_every_steps, resume=resume, progress=progress, processes=processes, autocast=autocast,
    )  # fmt: skip
    check_method(method)
    if keep_best and x_val is None:
        raise ValueError("keep_best=True chooses by val_fvu: pass x_val")
    run, data, held_out = _started(sae, x, method, x_val, generator, options)
    _carry_out(run, data, held_out, options)
    warn_silent(run.history[-1])
    if run.best is not None:
        sae.load_state_dict(run.best)
    return FitResult(sae, run.history, run.state)


@dataclass(frozen=True, kw_only=True)
class _Options:
    """Of a call of `fit`. Raises TypeError, ValueError: one out of range, or two that exclude each other."""

    epochs: int | None
    steps: int | None
    batch_size: int
    log_every: int
    log_every_steps: int | None
    train_eval_samples: int
    keep_best: bool
    callback: Callable[[dict[str, float]], object] | None
    checkpoint: Path | None
    checkpoint_every: int
    checkpoint_every_steps: int | None
    resume: bool
    progress: bool
    processes: ProcessGroup | None
    autocast: torch.dtype | None

    def __post_init__(self) -> None:
        if self.epochs is not None and self.steps is not None:
            raise ValueError(f"epochs={self.epochs} and steps={self.steps} are two budgets: pass one of them")
        given = [n for n in ("epochs", "steps", "log_every_steps", "checkpoint_every_steps") if getattr(self, n) is not None]
        least = {**dict.fromkeys((*given, "batch_size", "log_every", "checkpoint_every"), 1), "train_eval_samples": 2}
        for name, low in least.items():
            object.__setattr__(self, name, whole(name, getattr(self, name), low))
        if self.log_every_steps is not None and self.log_every != 1:
            raise ValueError(
                f"log_every={self.log_every} changes nothing beside log_every_steps={self.log_every_steps}: drop one of them"
            )
        if self.autocast not in (None, torch.bfloat16):
            raise ValueError(f"autocast={self.autocast!r} is not torch.bfloat16 (float16 would need its gradients scaled)")
        if self.resume and self.checkpoint is None:
            raise ValueError("resume=True needs checkpoint=PATH")
        if self.callback is not None and not callable(self.callback):
            raise TypeError(
                f"callback is a {type(self.callback).__name__}: pass a function of a row; several are one by splinterp.training.several"
            )
        if self.processes is not None and not isinstance(self.processes, ProcessGroup):
            raise TypeError(
                f"processes={self.processes!r} is not a splinterp.training.ProcessGroup: pass ProcessGroup(), in every process"
            )

    @property
    def first(self) -> bool:
        """Whether this process writes, calls back and shows progress."""
        return self.processes is None or self.processes.first


Samples = Tensor | ActivationStore


def _started(
    sae: SAELike, x: Any, method: Method, x_val: Any, generator: torch.Generator | int | None, options: _Options
) -> tuple[Run, Samples, Samples | None]:
    """The run where it begins or goes on, the training samples (or what is looked at of a stream), and the held-out ones."""
    model = as_model(sae)
    check_dtype(model)
    if isinstance(x, ActivationStream):
        check_streams(method, options.epochs, options.processes, x_val)
        data = training_data(model, looked_at(x, options.train_eval_samples))
    else:
        data = training_data(model, x)
        if isinstance(data, ActivationStore):
            warn_other_source(sae, data)
    if method.wants_x_val and x_val is None:
        data, x_val = set_aside(data, type(method).__name__)
    held_out = None if x_val is None else _validation_data(x_val, data)
    mean = inspect(model, data, held_out, options.train_eval_samples)
    batches: Batches | StreamBatches
    if isinstance(x, ActivationStream):
        batches = StreamBatches(x, options.batch_size, model.b_dec.device, model.b_dec.dtype)
        total = batches.budget(options.steps)
    else:
        batches = Batches(data, options.batch_size, model.b_dec.device, model.b_dec.dtype)
        epochs = 20 if options.epochs is None else options.epochs
        total = epochs * len(batches) if options.steps is None else options.steps
    run = Run(sae, method, as_generator(generator), options.keep_best, options.autocast, total, batches)
    kept = options.checkpoint is not None
    run.describe(data, held_out, generator is None, kept, compared=kept or options.processes is not None)
    if options.checkpoint is not None and options.first:
        check_writable(options.checkpoint)
    undo = start_at(sae, data, mean)
    try:
        run.state = method.init(sae, data, total_steps=total, x_val=held_out)
        if not isinstance(run.state, State):
            missing = [name for name in STATE_NAMES if name not in dir(run.state)]
            raise TypeError(f"the state of {type(method).__name__} lacks {', '.join(missing)}: see splinterp.training.State")
        _begin(run, model, data, options)
    except Exception:  # a call that is refused leaves a trained SAE as it was
        undo()
        raise
    return run, data, held_out


def _begin(run: Run, model: SparseModel, data: Samples, options: _Options) -> None:
    """Go on from the checkpoint where there is one to go on from, and with the other processes."""
    if options.resume and options.checkpoint is not None and options.checkpoint.exists():
        run.load(options.checkpoint, len(run.batches))
    else:
        run.start_fvu = fvu_at_start(run.sae, model, data[: options.train_eval_samples])
    if options.processes is not None:
        run.join(options.processes)
        if options.checkpoint is not None and options.first:
            run.save(options.checkpoint)


def _carry_out(run: Run, data: Samples, held_out: Samples | None, options: _Options) -> None:
    """Epochs until the budget is spent, with rows and checkpoints where they are due; the SAE is left in evaluation mode."""
    bar = tqdm(total=run.total, initial=run.step, disable=not (options.progress and options.first), unit="step")

    def tell(row: dict[str, float]) -> None:
        bar.set_postfix(fvu=row["train_fvu"])
        if options.callback is not None and options.first:
            options.callback(dict(row))  # which it may take apart

    def log() -> None:
        run.log(data[: options.train_eval_samples], held_out, tell)

    def save() -> None:
        if options.checkpoint is not None and options.first:
            run.save(options.checkpoint)

    try:
        last = False
        while run.step < run.total and not last:
            found = run.train_epoch(bar, options.log_every_steps, log, options.checkpoint_every_steps, save)
            last = run.step == run.total or not found
            if not found:
                warn_ended(run.batches, run.step, run.total)
            if not run.logged and (last or (options.log_every_steps is None and run.epoch % options.log_every == 0)):
                log()
            if last or run.epoch % options.checkpoint_every == 0:
                save()
    finally:
        bar.close()
        for p in run.sae.parameters():  # of the last step, which would be added to in a loop of one's own
            p.grad = None
        run.sae.eval()
        run.state.set_training(False)


def _validation_data(x_val: ArrayLike | ActivationStore, data: Tensor | ActivationStore) -> Tensor | ActivationStore:
    d_in = data.shape[1]
    found = x_val.of_width(d_in) if isinstance(x_val, ActivationStore) else as_samples(x_val, d_in, name="x_val").detach()
    if len(found) < 2:
        raise ValueError(f"x_val has {len(found)} samples, and fvu needs at least 2")
    return found
