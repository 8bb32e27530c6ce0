"""AdaptiveK: how many latents a sample has is a function of a linear probe of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from splinterp._checks import as_samples, at_least, whole
from splinterp._typing import ArrayLike, Tensor
from splinterp.encoders._needs import needs_relu
from splinterp.encoders.base import Encoder
from splinterp.protocol import as_model

STRENGTHS = (0.01, 0.1, 1.0, 10.0, 100.0, 1000.0)


@dataclass(frozen=True)
class AdaptiveK(Encoder):
    """The k(x) largest positive scores of a sample, k(x) = round(lowest + (highest - lowest) sigmoid(slope s(x))).

    s is a linear probe of x: the buffers `probe` (d_in,) and `probe_bias`, 0 until `fit_probe` sets them, so that every sample
    has (lowest + highest) / 2. It predicts how hard a sample is, in standard deviations. k is rounded, so training moves the probe not
    at all. Source: AdaptiveK, arXiv 2508.17320: its scores from 0 to 10, 5 in the middle and 2.5 apart, through
    20 + 300 sigmoid(6 (score / 10 - 1 / 2)), are the defaults here.

    Raises:
        TypeError: an activation other than ReLU, a number that is not an int.
        ValueError: lowest below 1, highest below lowest or above n_latents, a slope below 0.
    """

    couples_samples: ClassVar[bool] = False

    lowest: int = 20
    highest: int = 320
    slope: float = 1.5

    def __post_init__(self) -> None:
        whole("lowest", self.lowest, 1)
        whole("highest", self.highest, self.lowest)
        at_least("slope", self.slope, 0.0)

    def check(self, n_latents: int, activation: Any, decoder: str) -> None:
        needs_relu(self, activation)
        if self.highest > n_latents:
            raise ValueError(f"highest={self.highest} is larger than n_latents={n_latents}")

    def buffers(self, d_in: int, n_latents: int) -> dict[str, Tensor]:
        return {"probe": torch.zeros(d_in), "probe_bias": torch.zeros(())}

    def acts_of(self, sae: Any, pre_acts: Tensor, x: Tensor) -> Tensor:
        acts = self.acts(sae, pre_acts)
        with torch.no_grad():
            share = torch.sigmoid(self.slope * (x @ sae.probe + sae.probe_bias))
            k = (self.lowest + (self.highest - self.lowest) * share).nan_to_num(self.lowest).round().long()
            top = acts.topk(self.highest, dim=1).indices  # in descending order
            ranks = torch.arange(self.highest, device=acts.device).expand_as(top)
            kept = torch.zeros_like(acts, dtype=torch.bool).scatter_(1, top, ranks < k[:, None])
        return torch.where(kept | acts.isnan(), acts, 0.0)


@torch.no_grad()
def fit_probe(sae: Any, x: ArrayLike, hardness: ArrayLike) -> float:
    """Set the probe of an SAE whose encoder is `AdaptiveK` to predict how hard samples x (n, d_in) are.

    Args:
        hardness: (n,), larger for harder: rated complexity as published, a token's loss, or the norm that a small SAE leaves of a
            sample. Its mean and standard deviation do not matter.

    The probe is a ridge regression with its strength by leave-one-out error from 0.01 to 1000; its predictions are scaled to mean 0 and
    standard deviation 1 over x. Returns its R2 on x.

    Raises:
        TypeError: another encoder.
        ValueError: shapes that do not fit, fewer than 3 samples, hardness that does not vary.
    """
    from sklearn.linear_model import RidgeCV  # a second of import for this alone

    if not isinstance(as_model(sae).parametrisation, AdaptiveK):
        raise TypeError(f"fit_probe sets the probe of an SAE with encoder=AdaptiveK(...), not of {sae!r}")
    x = as_samples(x, sae.d_in, dtype=torch.float64).cpu()
    target = torch.as_tensor(hardness).detach().double().cpu()
    at_least("samples", len(x), 3)
    if target.shape != (len(x),) or not target.isfinite().all():
        raise ValueError(f"hardness has shape {tuple(target.shape)}: pass one finite number for each of the {len(x)} samples")
    if float(target.std()) <= 1e-12 * float(target.abs().max()):
        raise ValueError("hardness is the same for all samples, so there is nothing to predict: leave the probe at 0")
    found = RidgeCV(STRENGTHS).fit(x.numpy(), target.numpy())
    predicted = torch.from_numpy(found.predict(x.numpy()))
    scale = float(predicted.std())
    scale = scale if scale > 0 else 1.0
    sae.probe.copy_(torch.from_numpy(found.coef_ / scale))
    sae.probe_bias.fill_((float(found.intercept_) - float(predicted.mean())) / scale)
    return float(found.score(x.numpy(), target.numpy()))
