"""What changes from step to step by the share of the steps that are done: step sizes, weights of penalties, k."""

from __future__ import annotations

import inspect
import math
from typing import Any

import torch

from splinterp._checks import share_of_steps

SCHEDULES = ("cosine", "constant")
K_SHARE = 0.1
"""Default share of the steps over which k falls."""


def step_size(schedule: str, warmup: float, decay: float, step: int, total: int) -> float:
    """What multiplies the step size in the coming step (from 0) of `total`.

    Linear over the share `warmup`, its last step at 1; then "cosine" towards 0 after the last step, or "constant" with a linear fall
    to 0 after the last step over the share `decay`.
    """
    share = min(1.0, step / total)
    if share < warmup:
        return min(1.0, (step + 1) / max(1.0, warmup * total))
    if schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * (share - warmup) / (1 - warmup)))
    return min(1.0, (1 - share) / decay) if decay else 1.0


def rising(share: float, step: int, total: int) -> float:
    """What multiplies the weights of penalties: linear from 0 at the first step to 1 after `share` of the steps."""
    return min(1.0, step / (share * total)) if share else 1.0


def annealed(k_start: int, k: int, share: float, step: int, total: int) -> int:
    """Latents to keep in the coming step: linear from k_start at the first to k after `share` of the steps, to the nearest integer
    (halves go up)."""
    done = min(1.0, step / (share * total))
    return math.floor(k_start + (k - k_start) * done + 0.5)


def check_shares(options: Any) -> None:
    """Raise TypeError or ValueError unless the options of a gradient phase that are shares of the steps, and `k_start`, fit together."""
    for name in ("warmup", "decay", "penalty_warmup"):
        share_of_steps(name, getattr(options, name))
    share_of_steps("k_share", options.k_share, strict=True)
    if options.k_start is None and options.k_share != K_SHARE:
        raise ValueError(f"k_share={options.k_share} changes nothing without k_start: set k_start or leave k_share out")
    if options.k_start is not None and (not isinstance(options.k_start, int) or isinstance(options.k_start, bool)):
        raise TypeError(f"k_start={options.k_start!r} must be an int")
    if options.warmup + options.decay > 1:
        raise ValueError(f"warmup={options.warmup} and decay={options.decay} are more than all steps together")
    if options.decay and options.schedule != "constant":
        raise ValueError(f"decay={options.decay} ends a constant step size: set schedule='constant'")
    if options.warmup and not isinstance(options.schedule, str):
        raise ValueError(f"warmup={options.warmup} is not for a torch scheduler, which has its own: leave it out")


def check_factors(optimizer: torch.optim.Optimizer, factors: dict[str, float]) -> None:
    """Raise ValueError where a scheduler has one step size for all groups, which options by name had told apart: those that are not 1."""
    given = " and ".join(f"{name}={factor:g}" for name, factor in factors.items() if factor != 1)
    for name in ("initial_lr", "max_lr", "swa_lr") if given else ():
        rates = [float(group[name]) for group in optimizer.param_groups if name in group]
        if len(rates) > 1 and len(set(rates)) == 1:
            raise ValueError(
                f"the scheduler has one {name} for all {len(rates)} groups of parameters, so that {given} would do nothing: give it a "
                "list, with a step size for each group"
            )


def check_scheduler(scheduler: Any) -> None:
    """Raise TypeError unless `scheduler` is stepped without arguments, as is done once a batch."""
    name = type(scheduler).__name__
    if not callable(getattr(scheduler, "step", None)):
        raise TypeError(f"schedule returned a {name}: return a torch scheduler, which has a step()")
    for parameter in inspect.signature(scheduler.step).parameters.values():
        positional = parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
        if positional and parameter.default is parameter.empty:
            raise TypeError(
                f"{name}.step needs {parameter.name}, which is not known at each batch: take a scheduler of the steps alone"
            )
