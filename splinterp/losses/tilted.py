"""Tilted empirical risk: samples that are reconstructed badly count for more."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch

from splinterp._documented import documented
from splinterp._typing import Tensor
from splinterp.losses.forward import Forward
from splinterp.losses.terms import Reconstruction, State
from splinterp.protocol import Code


@documented
@dataclass(frozen=True, kw_only=True)
class Tilted(Reconstruction):
    """(1 / t) log mean_r exp(t l_r) over the samples r of a batch, l_r the mean over d_in of their squared error.

    Its gradient weighs samples by softmax(t l). t towards 0 is the mean, t to infinity the worst sample; t below 0 takes weight
    from outliers. t is in units of 1 / l. A solve takes the weights n softmax(t l) of each batch from the decoder before it.
    Below 0 that never raises the value; above 0 it is one step of a fixed point, and where t l is large, so that a few samples
    have all the weight, it fits those alone: keep t l of the order of 1, or train by gradients. Source: Tilted empirical risk
    minimization, arXiv 2007.01162; for SAEs (SSAE) arXiv 2411.00743.

    Raises:
        ValueError: tilt=0, or not finite.
    """

    couples_samples: ClassVar[bool] = True

    tilt: float = 1.0
    """t."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tilt == 0 or not math.isfinite(self.tilt):
            raise ValueError(f"tilt={self.tilt} must be finite and not 0: for the plain mean use SquaredError()")

    def codes(self, out: Forward) -> Iterator[tuple[float | Tensor, Code]]:
        losses = out.error.detach().square().mean(1)
        yield len(losses) * torch.softmax(self.tilt * losses, 0), out.code

    def __call__(self, out: Forward, state: State) -> Tensor:
        losses = out.error.square().mean(1)
        peak = (
            losses.max() if self.tilt > 0 else losses.min()
        ).detach()  # exponents are at most 0, and small t loses no digits
        return peak + torch.log1p(torch.expm1(self.tilt * (losses - peak)).mean()) / self.tilt
