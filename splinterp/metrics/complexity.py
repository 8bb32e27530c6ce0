"""What codes cost to send, and how much of an SAE's error is a linear function of its input."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from splinterp._checks import as_samples, at_least
from splinterp._documented import documented
from splinterp._typing import ArrayLike, Float, Tensor
from splinterp.activations import TopActs
from splinterp.decoder import DecoderStats, gcv_ridge, solve_decoder
from splinterp.protocol import SAELike, SparseModel, as_model, inference_mode_of

ROWS = 4096


class DescriptionLength(NamedTuple):
    """Bits a sample, in all and by latents (n_latents,), float64."""

    bits: float
    by_latent: Float[Tensor, " n_latents"]


@torch.no_grad()
def description_length(sae: SAELike | SparseModel, x: ArrayLike, precision: float) -> DescriptionLength:
    """Bits a sample to send the code of x (n, d_in), each latent by itself: sum_i H(p_i) + p_i H(values of i, where it fires).

    p_i is the share of the samples on which latent i fires, H the entropy in bits; values are z_i |w_i|, which folding does not change,
    cut into bins of width `precision` (in the units of x). Entropies are those of the samples: with few of them beside the bins they
    are too low. Compare at one precision and equal error; as a rule for choosing n_latents and k, take the least bits at the error
    wanted. Source: Interpretability as compression, arXiv 2410.11179.

    Raises:
        TypeError, ValueError: bad input, no samples, a precision not above 0.
    """
    at_least("precision", precision, 0.0, strict=True)
    model = as_model(sae)
    x = as_samples(x, model.width, finite=False)
    at_least("samples", len(x), 1)
    n_latents = model.shape[1]
    norms = torch.linalg.vector_norm(model.W_dec.detach().double(), dim=1)
    bins, numbers = torch.zeros(2, 0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64)
    with inference_mode_of(sae):
        for part in x.split(ROWS):
            code = model.code(part.to(model.b_dec))
            values, latents = (code.top_acts, code.top_indices) if isinstance(code, TopActs) else (code, None)
            latents = torch.arange(n_latents, device=values.device).expand_as(values) if latents is None else latents
            fired = values != 0
            sizes = values[fired].double() * norms[latents[fired]]
            found = torch.stack([latents[fired], (sizes / precision).floor().long()]).cpu()
            merged = torch.cat([bins, found], 1)
            weights = torch.cat([numbers, torch.ones(found.shape[1], dtype=torch.int64)])
            bins, where = merged.unique(dim=1, return_inverse=True)
            numbers = torch.zeros(bins.shape[1], dtype=torch.int64).index_add_(0, where, weights)
    counts = torch.zeros(n_latents, dtype=torch.int64).index_add_(0, bins[0], numbers).double()
    n, p = len(x), counts / len(x)
    firing = torch.special.entr(p) + torch.special.entr(1 - p)
    shares = numbers.double() / counts[bins[0]]
    entropies = torch.zeros(n_latents, dtype=torch.float64).index_add_(0, bins[0], torch.special.entr(shares))
    by_latent = (firing + counts / n * entropies) / torch.log(torch.tensor(2.0, dtype=torch.float64))
    return DescriptionLength(float(by_latent.sum()), by_latent)


@documented
class ErrorPredictability(NamedTuple):
    """R2 on held-out samples, at most 1; below 0 where the mean would have done better, NaN where what is predicted does not vary."""

    error: float
    """Of the error vector x - x_hat, from x by a linear map."""
    squared_norm: float
    """Of |x - x_hat|^2."""


@torch.no_grad()
def error_predictability(sae: SAELike | SparseModel, x: ArrayLike, x_held_out: ArrayLike) -> ErrorPredictability:
    """How much of an SAE's error a linear map of its input tells ("dark matter"): fitted on x (n, d_in), R2 on x_held_out.

    The maps have intercepts, and ridges by generalised cross-validation. What is predicted linearly is there for a wider dictionary to
    find, or is a rescaling of what was found; the rest is not linear in x. Source: Decomposing the dark matter of sparse autoencoders,
    arXiv 2410.14670.

    Raises:
        TypeError, ValueError: bad input, fewer than 2 samples on either side.
    """
    model = as_model(sae)
    x, x_held_out = (as_samples(part, model.width, finite=False) for part in (x, x_held_out))
    d_in, d_out = model.inputs(x[:1]).shape[1], model.shape[0]
    at_least("samples of x", len(x), 2)
    at_least("samples of x_held_out", len(x_held_out), 2)

    def targets(part: Tensor) -> tuple[Tensor, Tensor]:
        error = model.target(part) - model.run(part)[0]
        return error, error.square().sum(1, keepdim=True)

    stats = [DecoderStats(d_in, width, device=model.b_dec.device) for width in (d_out, 1)]
    with inference_mode_of(sae):
        for part in x.split(ROWS):
            part = part.to(model.b_dec)
            for own, target in zip(stats, targets(part), strict=True):
                own.update(model.inputs(part), target)
        maps = [solve_decoder(own, ridge=gcv_ridge(own).ridge) for own in stats]
        pairs = []
        for part in x_held_out.split(ROWS):
            part = part.to(model.b_dec)
            pairs.append(
                [
                    (t.double(), model.inputs(part).double() @ W.double() + b.double())
                    for (W, b), t in zip(maps, targets(part), strict=True)
                ]
            )
    found = []
    for which in range(2):
        truth, guess = (torch.cat([pair[which][side] for pair in pairs]) for side in range(2))
        deviation = float((truth - truth.mean(0)).square().sum())
        found.append(1 - float((truth - guess).square().sum()) / deviation if deviation > 0 else math.nan)
    return ErrorPredictability(*found)
