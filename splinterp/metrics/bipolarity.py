"""Bipolarity: do the latents of a signed dictionary serve one pole or two?

Arises with AbsTopK (arXiv 2510.00404). That a latent ever fires with both signs says little; how often it does is what is
counted here. On data symmetric about the encoder's centre an untrained dictionary has minority shares near one half.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from splinterp._checks import as_samples, at_least, whole
from splinterp._documented import documented
from splinterp._typing import ArrayLike, Float, Int, Tensor
from splinterp.metrics.features import BLOCK_ENTRIES, unit_rows
from splinterp.protocol import SAELike, as_model, dense, inference_mode_of

QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9)


@documented
class Bipolarity(NamedTuple):
    """How often, and with what total magnitude, each latent fired with either sign."""

    positive: Int[Tensor, " n_latents"]
    """Number of samples with acts > 0."""
    negative: Int[Tensor, " n_latents"]
    """Number of samples with acts < 0."""
    positive_mass: Float[Tensor, " n_latents"]
    """Sum of acts over the former, float64."""
    negative_mass: Float[Tensor, " n_latents"]
    """Sum of -acts over the latter, float64."""

    def minority_shares(self, min_firings: int = 100, weighted: bool = False) -> Tensor:
        """min(n+, n-) / (n+ + n-) of each latent with at least `min_firings` firings, in [0, 1/2]; float64.

        `weighted` takes magnitudes in place of counts. Raises ValueError for `min_firings` below 1.
        """
        whole("min_firings", min_firings, 1)
        chosen = self.positive + self.negative >= min_firings
        one, other = (self.positive_mass, self.negative_mass) if weighted else (self.positive.double(), self.negative.double())
        one, other = one[chosen], other[chosen]
        return torch.minimum(one, other) / (one + other)

    def summary(self, min_firings: int = 100, weighted: bool = False) -> dict[str, float]:
        """Number of latents looked at ("n_latents"), quantiles of their minority shares ("q10" to "q90"), and the shares of them
        above 0.10 and 0.25 ("above_10", "above_25"); NaN where no latent fires often enough."""
        shares = self.minority_shares(min_firings, weighted)
        if not len(shares):
            names = [*(f"q{100 * q:.0f}" for q in QUANTILES), "above_10", "above_25"]
            return {"n_latents": 0, **dict.fromkeys(names, float("nan"))}
        quantiles = torch.quantile(shares, torch.tensor(QUANTILES, dtype=shares.dtype)).tolist()
        found = {f"q{100 * q:.0f}": value for q, value in zip(QUANTILES, quantiles, strict=True)}
        above = {f"above_{100 * t:.0f}": float((shares > t).double().mean()) for t in (0.10, 0.25)}
        return {"n_latents": len(shares), **found, **above}


@torch.no_grad()
def bipolarity(sae: SAELike, x: ArrayLike, batch_size: int = 4096) -> Bipolarity:
    """Count the signs of the codes of x (n, d_in) in one pass of bounded memory, with activations in inference mode.

    The module's training mode is restored. Raises TypeError, ValueError: bad input, no samples.
    """
    whole("batch_size", batch_size, 1)
    model = as_model(sae)
    x = as_samples(x, model.width)
    at_least("number of samples", len(x), 1)
    device, n_latents = model.b_dec.device, model.shape[1]
    counts = torch.zeros(2, n_latents, dtype=torch.int64, device=device)
    masses = torch.zeros(2, n_latents, dtype=torch.float64, device=device)
    with inference_mode_of(sae):
        for part in x.split(batch_size):
            acts = dense(model.code(part.to(device=device, dtype=model.b_dec.dtype)), n_latents)
            for row, signed in enumerate((acts, -acts)):
                kept = signed.clamp_min(0)
                counts[row] += torch.count_nonzero(kept, dim=0)
                masses[row] += kept.sum(0, dtype=torch.float64)
    counts, masses = counts.cpu(), masses.cpu()
    return Bipolarity(counts[0], counts[1], masses[0], masses[1])


def anti_parallel_share(rows: ArrayLike, live: Tensor | None = None, threshold: float = -0.9) -> float:
    """Share of the live rows of a dictionary (n_latents, d) that have an anti-parallel twin: a live row of cosine below `threshold`.

    A non-negative code needs two latents for a feature of two poles, and they show up as twins.

    Args:
        rows: such as `sae.W_dec`; normalised inside, and compared in blocks.
        live: boolean (n_latents,), such as `evaluate(sae, x).frequencies > 0`; None takes all rows. With none live the share is NaN.
        threshold: in [-1, 0].

    Raises:
        TypeError, ValueError: bad input, a mask of another length.
    """
    if not -1 <= threshold <= 0:
        raise ValueError(f"threshold={threshold} must be in [-1, 0]: twins point in opposite directions")
    unit = unit_rows(rows, "rows")
    if live is not None:
        if live.dtype != torch.bool or live.shape != (len(unit),):
            raise ValueError(f"live has dtype {live.dtype} and shape {tuple(live.shape)}: pass {len(unit)} booleans")
        unit = unit[live.cpu()]
    if not len(unit):
        return float("nan")
    parts = unit.split(max(1, BLOCK_ENTRIES // len(unit)))
    twins = sum(int(((part @ unit.T).amin(1) < threshold).sum()) for part in parts)
    return twins / len(unit)
