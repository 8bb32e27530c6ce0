"""Encoders with noise while they train: on samples (denoising), or on scores (variational)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from splinterp._checks import at_least
from splinterp._documented import documented
from splinterp._random import drawing_from, seeded_state
from splinterp._typing import Tensor
from splinterp.encoders.base import Encoder


class _Noise(Encoder):
    """Draws on the CPU from a generator whose state is a buffer of the SAE: saved, resumed, and apart from all other draws."""

    seed: int

    def buffers(self, d_in: int, n_latents: int) -> dict[str, Tensor]:
        return {"noise_state": seeded_state(self.seed)}

    def _draw(self, sae: Any, like: Tensor) -> Tensor:
        with drawing_from(sae.noise_state) as generator:
            return torch.randn(like.shape, device="cpu", generator=generator, dtype=torch.float32).to(like)

    @staticmethod
    def _on(sae: Any) -> bool:
        """In gradient steps alone: solves, evaluation and use are without noise."""
        return bool(sae.training and torch.is_grad_enabled())


@documented
@dataclass(frozen=True)
class InputNoise(_Noise):
    """pre_acts = (x - b_pre + scale * noise) @ W_enc + b_enc in gradient steps, noise ~ N(0, 1): a denoising SAE.

    The target stays x. To first order it is a ridge on the encoder's rows, scale^2 |w|^2 each. Source: Vincent et al. 2008, Extracting and
    composing robust features with denoising autoencoders.

    Raises:
        ValueError: scale not above 0.
    """

    couples_samples: ClassVar[bool] = True  # draws are of a batch
    plain_at_inference: ClassVar[bool] = True

    scale: float
    """Standard deviation, in the units of x (of standardised data: of their standard deviation)."""
    seed: int = 0

    def __post_init__(self) -> None:
        at_least("scale", self.scale, 0.0, strict=True)

    def pre_acts(self, sae: Any, centred: Tensor) -> Tensor:
        noisy = centred + self.scale * self._draw(sae, centred) if self._on(sae) else centred
        return super().pre_acts(sae, noisy)


@documented
@dataclass(frozen=True)
class Variational(_Noise):
    """Codes of pre_acts + sigma * noise in gradient steps, noise ~ N(0, 1): the sampled code of a variational SAE with fixed sigma.

    Take AbsTopK, as published, and the term `losses.GaussianPrior` for its KL divergence. With sigma towards 0 and no such term it is the
    activation alone. At a fixed support the noise adds sigma^2 sum_i |w_i|^2 over the active latents to the expected error, which is a
    ridge on the decoder (a solve has that by `ridge`). Its authors report more dead latents and a worse fit than TopK.
    Source: arXiv 2509.22994.

    Raises:
        ValueError: sigma not above 0.
    """

    couples_samples: ClassVar[bool] = True  # draws are of a batch
    plain_at_inference: ClassVar[bool] = True

    sigma: float = 1.0
    """Standard deviation, in the units of `pre_acts`."""
    seed: int = 0

    def __post_init__(self) -> None:
        at_least("sigma", self.sigma, 0.0, strict=True)

    def acts(self, sae: Any, pre_acts: Tensor) -> Tensor:
        return super().acts(sae, pre_acts + self.sigma * self._draw(sae, pre_acts) if self._on(sae) else pre_acts)
