"""The one training loop."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tqdm.auto import tqdm

from splinterp._atomic import check_writable
from splinterp._checks import as_samples, check_finite, check_scale, varies, warn_outliers, whole
from splinterp._random import as_generator
from splinterp._typing import ArrayLike, Tensor
from splinterp.data.store import ActivationStore
from splinterp.protocol import SAELike, as_model
from splinterp.training.base import training_data
from splinterp.training.batches import Batches
from splinterp.training.distributed import ProcessGroup
from splinterp.training.health import check_dtype, fvu_at_start, warn_silent
from splinterp.training.method import STATE_NAMES, Method, State, check_method
from splinterp.training.run import Run


class FitResult(NamedTuple):
    """The trained SAE (the object passed in), one history row a logged epoch, and the method's final state."""

    sae: Any
    history: list[dict[str, float]]
    state: Any


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
        DivergenceError: non-finite loss, reconstruction error or parameters; an fvu above 10 and above ten times that of the start.
        WorkerLostError: another process is gone.

    >>> from splinterp import PAMSGD, SAE, TopK
    >>> x = torch.randn(200, 8, generator=torch.Generator().manual_seed(0))
    >>> result = fit(SAE(8, 16, TopK(2), decoder="tied_residual"), x, PAMSGD(), epochs=2)
    >>> len(result.history), result.history[-1]["l0"] <= 2
    (2, True)
    """
    if epochs is not None and steps is not None:
        raise ValueError(f"epochs={epochs} and steps={steps} are two budgets: pass one of them")
    epochs, steps, log_every_steps = (
        None if value is None else whole(name, value, 1)
        for name, value in (("epochs", epochs), ("steps", steps), ("log_every_steps", log_every_steps))
    )
    batch_size, log_every = whole("batch_size", batch_size, 1), whole("log_every", log_every, 1)
    checkpoint_every = whole("checkpoint_every", checkpoint_every, 1)
    train_eval_samples = whole("train_eval_samples", train_eval_samples, 2)
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
    check_dtype(model)
    data = training_data(model, x)
    mean = _mean(data)
    norms, deviations = _norms(data, mean)
    check_scale(deviations, data.shape[1], model.b_dec.dtype)
    warn_outliers(norms)
    x_val = None if x_val is None else _validation_data(x_val, data)
    _check_varies(data[:train_eval_samples], x_val, len(data))
    batches = Batches(data, batch_size, model.b_dec.device, model.b_dec.dtype)
    total = steps if steps is not None else (20 if epochs is None else epochs) * len(batches)
    run = Run(sae, method, as_generator(generator), keep_best, autocast, total)
    kept = checkpoint is not None
    run.describe(data, x_val, batches.batch_size, generator is None, kept, compared=kept or processes is not None)
    _start_at(sae, mean)
    if model.center is None:
        _warn_offset(mean, deviations)
    if checkpoint is not None and (processes is None or processes.first):
        check_writable(Path(checkpoint))
    run.state = method.init(sae, data, total_steps=total, x_val=x_val)
    if not isinstance(run.state, State):
        missing = [name for name in STATE_NAMES if name not in dir(run.state)]
        raise TypeError(f"the state of {type(method).__name__} lacks {', '.join(missing)}: see splinterp.training.State")
    if resume and Path(str(checkpoint)).exists():
        run.load(Path(str(checkpoint)), len(batches))
    else:
        run.start_fvu = fvu_at_start(sae, model, data[:train_eval_samples])

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
    warn_silent(run.history[-1])
    if run.best is not None:
        sae.load_state_dict(run.best)
    return FitResult(sae, run.history, run.state)


def _validation_data(x_val: ArrayLike | ActivationStore, data: Tensor | ActivationStore) -> Tensor | ActivationStore:
    d_in = data.shape[1]
    found = x_val.of_width(d_in) if isinstance(x_val, ActivationStore) else as_samples(x_val, d_in, name="x_val").detach()
    if len(found) < 2:
        raise ValueError(f"x_val has {len(found)} samples, and fvu needs at least 2")
    return found


OFFSET = 2.0
"""Norm of the mean over the median distance from it, above which an encoder that does not centre is warned of."""


def _warn_offset(mean: Tensor, deviations: Tensor) -> None:
    typical = float(deviations.median())
    ratio = float(mean.norm()) / typical if typical > 0 else 0.0
    if ratio > OFFSET:
        warnings.warn(
            f"the mean of x is {ratio:.1f} times as long as its deviations, and the encoder sees x uncentred: latents die of it; "
            'take SAE(b_pre="fixed"), or subtract the mean first',
            stacklevel=3,
        )


def _check_varies(looked_at: Tensor, x_val: Tensor | ActivationStore | None, n: int) -> None:
    """fvu is over the variance of the samples looked at: found before training rather than after an epoch."""
    if not varies([looked_at]):
        few = len(looked_at) < n
        advice = "shuffle the rows, or raise train_eval_samples" if few else "there is nothing to train on"
        raise ValueError(
            f"the {'first ' if few else ''}{len(looked_at)} rows of x are all equal, and fvu is over their variance: {advice}"
        )
    if x_val is not None and not varies(x_val.split(4096)):
        raise ValueError(
            f"the {len(x_val)} rows of x_val are all equal, and fvu is over their variance: pass samples that differ"
        )


def _norms(data: Tensor | ActivationStore, mean: Tensor) -> tuple[Tensor, Tensor]:
    """Of the samples, and of their deviations from the mean, float64 (n,): squares of small float32 numbers vanish."""
    norms, deviations = [], []
    for part in data.split(4096):
        if isinstance(data, ActivationStore):
            check_finite(part, f"the store in {data.folder}")
        norms.append(torch.linalg.vector_norm(part, dim=1, dtype=torch.float64))
        deviations.append(torch.linalg.vector_norm(part.double() - mean.to(part.device), dim=1))
    return torch.cat(norms), torch.cat(deviations)


def _mean(data: Tensor | ActivationStore) -> Tensor:
    return data.mean(0, dtype=torch.float64) if isinstance(data, Tensor) else data.statistics()["mean"]


def start_at_mean(sae: SAELike, x: ArrayLike | ActivationStore) -> None:
    """Set b_dec, and the input centre b_pre where there is one, to the mean of training samples x (N, d_in); frozen parameters stay.

    `fit` begins with it; a loop of one's own should too: without it a mean that is large beside the deviations kills latents.

    Raises:
        TypeError, ValueError: samples that do not fit.
    """
    _start_at(sae, _mean(training_data(as_model(sae), x)))


@torch.no_grad()
def _start_at(sae: SAELike, mean: Tensor) -> None:
    for center in (sae.b_dec, as_model(sae).center):
        if center is not None and (
            center.requires_grad or not isinstance(center, torch.nn.Parameter)
        ):  # a frozen parameter stays
            center.copy_(mean)
