"""What shows that a run has come to nothing although its loss is finite."""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch

from splinterp._typing import Tensor
from splinterp._warned import outside
from splinterp.metrics import evaluate
from splinterp.protocol import SparseModel
from splinterp.training.batches import evenly_spaced
from splinterp.training.inspection import varies
from splinterp.training.train_state import DivergenceError

GROWTH = 10.0
"""An fvu above this, and above so many times that of the start, is divergence: the mean alone has 1, and a start that overshoots some
hundreds."""
START_SAMPLES = 2048


def check_dtype(model: SparseModel) -> None:
    """Raise ValueError for a dtype that cannot be trained in."""
    dtype = model.b_dec.dtype
    if dtype not in (torch.float32, torch.float64, torch.bfloat16):
        raise ValueError(
            f"the SAE is in {str(dtype).removeprefix('torch.')}, where squares and Adam's moments leave the range: train it in float32 "
            "(sae.float(), with autocast=torch.bfloat16 for speed), and convert it afterwards"
        )


def fvu_at_start(sae: Any, model: SparseModel, x: Tensor) -> float:
    """What `check_row` compares with: the fvu of some of the training samples; infinite where there is none yet."""
    x = evenly_spaced(x, START_SAMPLES)[:]
    if not varies([x]):
        return math.inf
    model.calibrate(x)
    try:
        found = evaluate(sae, x).fvu
    except RuntimeError:  # an activation of one's own may have nothing to evaluate by before it is trained
        return math.inf
    return found if math.isfinite(found) else math.inf


def check_row(sae: Any, model: SparseModel, row: dict[str, float], start: float, state: Any) -> None:
    """Raise DivergenceError where an fvu or a parameter shows that training has diverged."""
    for name, value in sae.named_parameters():
        if not bool(torch.isfinite(value).all()):
            raise DivergenceError(int(row["step"]), state, f"{name} is not finite")
    threshold = getattr(model.nonlinearity, "threshold", None)  # exp of a parameter, for a JumpReLU
    if isinstance(threshold, torch.Tensor) and bool(torch.isinf(threshold).any()):
        raise DivergenceError(int(row["step"]), state, f"{int(torch.isinf(threshold).sum())} thresholds are infinite")
    if row["train_fvu"] > GROWTH * max(1.0, start):  # held-out samples may be of another law, which is no divergence
        raise DivergenceError(int(row["step"]), state, f"train_fvu is {row['train_fvu']:.3g}, from {start:.3g} at the start")


def warn_silent(row: dict[str, float]) -> None:
    """Warn where no latent of a trained SAE fires."""
    if row["frac_dead"] == 1:
        warnings.warn(
            "no latent fires on any sample looked at: lower the penalties or the step size, or standardise x",
            stacklevel=outside(),
        )
