"""Data that the benches of solves and fits measure on: MNIST and MiniLM's activations, or the digits in the quick form."""

from __future__ import annotations

import os

import torch

from experiments.errors import UsageError
from experiments.runs import Run, split


def folder() -> str:
    """The folder with the data. Raises UsageError where there is none."""
    found = os.environ.get("SPLINTERP_DATA")
    if not found:
        raise UsageError(
            "this bench is of MNIST and WikiText-2: set $SPLINTERP_DATA to a folder that has both, or pass --quick"
        )
    return found


def samples(data: str, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(training, validation) samples of "mnist", "minilm-3" or "digits", standardised."""
    run = Run(data=data, method="PAM", activation="TopK", k=1, n_latents=1, n_train=n, epochs=1, lr=1e-3, seed=0)
    found = split(run, None if data == "digits" else folder())
    return found.x, found.x_val
