"""Gated: one bias says whether a latent fires, another, with a gain, how strongly."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from splinterp._typing import Tensor
from splinterp.activations import JumpReLU
from splinterp.encoders.base import Encoder


@dataclass(frozen=True)
class Gated(Encoder):
    """z = 1[activation(pre_acts) > 0] * max(magnitudes, 0), where pre_acts = (x - b_pre) @ W_enc + b_enc and
    magnitudes = exp(r_mag) * (pre_acts - b_enc) + b_mag.

    `r_mag` and `b_mag` (n_latents,) are parameters that start at 0; with b_mag = b_enc and r_mag = 0 it is the activation itself. No
    gradient of the squared error passes the gate: train with the terms `GateL1` and `GateError` (`splinterp.losses`), as published
    with ReLU. With ReLU the map is that of a JumpReLU at fixed thresholds (`splinterp.interop.to_jumprelu`). Source: Improving
    dictionary learning with gated sparse autoencoders, arXiv 2404.16014, equations 6 to 8.

    Raises:
        TypeError: JumpReLU, whose threshold no gradient would reach; an activation with negative codes.
    """

    couples_samples: ClassVar[bool] = False

    def check(self, n_latents: int, activation: Any, decoder: str) -> None:
        if isinstance(activation, JumpReLU) or activation.signed:
            raise TypeError(
                f"Gated takes only which latents fire from the activation: pass ReLU(), TopK or BatchTopK, not {activation!r}"
            )

    def parameters(self, d_in: int, n_latents: int) -> dict[str, Tensor]:
        return {"r_mag": torch.zeros(n_latents), "b_mag": torch.zeros(n_latents)}

    def of_latents(self) -> dict[str, float]:
        return {"r_mag": 0.0, "b_mag": 0.0}

    def acts(self, sae: Any, pre_acts: Tensor) -> Tensor:
        magnitudes = torch.relu(sae.r_mag.exp() * (pre_acts - sae.b_enc) + sae.b_mag)
        with torch.no_grad():
            fires = sae.activation(pre_acts) > 0
        return torch.where(fires | magnitudes.isnan(), magnitudes, 0.0)  # NaN stays NaN, so that divergence is seen
