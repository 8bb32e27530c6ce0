"""The best decoder for the codes of a model as it is: of all samples, or one for each group of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from splinterp._checks import as_samples
from splinterp._typing import ArrayLike
from splinterp.decoder.exact import DecoderSolution, solve_decoder
from splinterp.decoder.ridge import gcv_ridge
from splinterp.decoder.statistics import DecoderStats
from splinterp.protocol import as_model, inference_mode_of

ROWS = 4096


@torch.no_grad()
def code_statistics(sae: Any, x: ArrayLike, name: str = "x") -> DecoderStats:
    """Statistics of a model's codes, as at inference, and of what they are to reconstruct, over samples x (n, d_in).

    Raises TypeError, ValueError: samples that do not fit; `name` is what they are called.
    """
    model = as_model(sae)
    x = as_samples(x, model.width, dtype=model.b_dec.dtype, device=model.b_dec.device, name=name)
    stats = DecoderStats(model.shape[1], model.shape[0], device=model.b_dec.device)
    with inference_mode_of(sae):
        for part in x.split(ROWS):
            stats.update(model.code(part), model.target(part))
    return stats


@torch.no_grad()
def best_decoder(sae: Any, x: ArrayLike, *, ridge: float | str = "gcv", name: str = "x") -> DecoderSolution:
    """The exact decoder for a model's codes of samples x (n, d_in); the model is left as it is.

    ridge: pull to the decoder that it has, on sums over samples, or "gcv" to choose it. With ridge 0 no decoder has a lower error on x.
    Raises TypeError, ValueError: samples that do not fit, a ridge below 0.
    """
    stats, prior = code_statistics(sae, x, name), as_model(sae).W_dec.detach()
    return solve_decoder(stats, ridge=gcv_ridge(stats, prior).ridge if ridge == "gcv" else float(ridge), prior=prior)


def group_decoders(sae: Any, groups: Mapping[str, ArrayLike], *, ridge: float | str = "gcv") -> dict[str, DecoderSolution]:
    """The best decoder of each group of samples for the codes of one SAE, which is left as it is.

    For an SAE that is trained on several layers of a model at once (layer groups, arXiv 2410.21508): latents and their codes are shared,
    and what a latent writes differs by layer. Standardise each group by itself before training, or the one of the largest norm wins.
    With ridge 0 no decoder has a lower error on a group's samples, the shared one included.

    Args:
        groups: samples (n, d_in) of each, by name.
        ridge: pull to the SAE's decoder, on sums over samples, or "gcv" to choose it for each group.

    Raises:
        TypeError, ValueError: no groups, samples that do not fit, a ridge below 0.
    """
    if not groups:
        raise ValueError("groups is empty: pass samples by the name of their group")
    return {name: best_decoder(sae, x, ridge=ridge, name=f"groups[{name!r}]") for name, x in groups.items()}
