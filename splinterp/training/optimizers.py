"""The boundary to torch's optimizers and those of others: how they are made, and those that keep two sets of parameters."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn

from splinterp.training.muon import Muon

OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "sgd": torch.optim.SGD,
    "muon": Muon,
}


L2_DECAY = ("adam", "sgd")
"""Those whose weight decay is added to the gradient."""


@runtime_checkable
class TwoModes(Protocol):
    """An optimizer whose parameters are others in training than in evaluation (schedule-free ones: Defazio et al., arXiv 2405.15682)."""

    def train(self) -> Any:
        """Make the parameters those that gradients are taken at."""

    def eval(self) -> Any:
        """Make the parameters those that are evaluated and saved."""


def training_mode(optimizer: Any, training: bool) -> None:
    """Switch an optimizer that has two modes; nothing for others."""
    if isinstance(optimizer, TwoModes):
        _ = optimizer.train() if training else optimizer.eval()


@contextmanager
def evaluated(optimizer: Any) -> Iterator[None]:
    """Inside, the parameters are those that are evaluated; afterwards those that gradients are taken at. Only from there."""
    training_mode(optimizer, False)
    try:
        yield
    finally:
        training_mode(optimizer, True)


def build(
    optimizer: str | Callable[..., torch.optim.Optimizer],
    decayed: list[nn.Parameter],
    others: list[nn.Parameter],
    options: dict[str, Any],
) -> torch.optim.Optimizer:
    """An optimizer of two parameter groups, decayed and not: by name, by class, or by a function of the groups.

    `options` are lr, betas and weight_decay. A class is called with lr, and with betas if it takes them; a function with groups alone.

    Raises ValueError: a weight decay that the class does not have.
    """
    decay = options["weight_decay"]
    groups: list[dict[str, Any]] = [{"params": decayed, "weight_decay": decay}, {"params": others, "weight_decay": 0.0}]
    groups = [group for group in groups if group["params"]]
    made_by = OPTIMIZERS[optimizer] if isinstance(optimizer, str) else optimizer
    if not isinstance(made_by, type):
        return made_by(groups)
    known = inspect.signature(made_by).parameters
    if decay and "weight_decay" not in known:
        raise ValueError(f"weight_decay={decay} has no effect on {made_by.__name__}, which has no such option")
    extra: dict[str, Any] = {"betas": options["betas"]} if "betas" in known else {}
    if "fused" in known and made_by in OPTIMIZERS.values():
        extra["fused"] = True
    return made_by(groups, lr=options["lr"], **extra)


def set_apart(optimizer: torch.optim.Optimizer, parameters: Iterable[nn.Parameter]) -> list[dict[str, Any]]:
    """Move parameters to groups that hold no others, with the options of those that they come from; returns them, none where the
    optimizer moves none of the parameters."""
    wanted, found = {id(p) for p in parameters}, []
    for group in list(optimizer.param_groups):
        chosen = [p for p in group["params"] if id(p) in wanted]
        if not chosen:
            continue
        if len(chosen) == len(group["params"]):
            found.append(group)
            continue
        group["params"] = [p for p in group["params"] if id(p) not in wanted]
        optimizer.add_param_group({**group, "params": chosen})
        found.append(optimizer.param_groups[-1])
    return found
