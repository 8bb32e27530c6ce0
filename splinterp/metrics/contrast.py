"""Whether a few latents tell two stories of one subject apart, and a subject from all others: CE-Bench without a judge."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from splinterp._checks import as_samples, at_least
from splinterp._documented import documented
from splinterp._typing import ArrayLike, Float, Int, Tensor
from splinterp.data.store import ActivationStore
from splinterp.protocol import SAELike, SparseModel, as_model, dense, inference_mode_of

ROWS = 4096
ROUNDING = 1e-12
"""Of sums of float64, beside the codes' means."""


@documented
class ContrastScores(NamedTuple):
    """One number a pair of stories, float64: a largest z-score over the latents, between 0 and (n_latents - 1) / sqrt(n_latents)."""

    contrast: Float[Tensor, " n_pairs"]
    """Of |V1 - V2|, V1 and V2 the mean codes of a pair's two stories."""
    independence: Float[Tensor, " n_pairs"]
    """Of |I - mean of I over all pairs|, I the mean code of all tokens of a pair."""
    interpretability: Float[Tensor, " n_pairs"]
    """Of the sum of the two."""
    latents: Int[Tensor, "n_pairs 3"]
    """The latents of the three scores: the one that tells the stories apart, the one that is the subject's, and the one of the sum."""


@torch.no_grad()
def contrast_scores(sae: SAELike | SparseModel, x: ArrayLike | ActivationStore, stories: ArrayLike) -> ContrastScores:
    """CE-Bench's contrast and independence of an SAE, on pairs of stories that share a subject and differ in one respect.

    A code is of use if few latents carry the difference: |V1 - V2| is set off against its own mean and standard deviation (n - 1) over
    the latents, and the largest z-score is the score of the pair. It grows with n_latents (one latent alone gives the bound) and with
    sparsity, so SAEs are to be compared at equal n_latents and l0, and with pairs that share no subject as the control. A pair whose
    latents all differ alike has 0. Source: CE-Bench, arXiv 2509.00691, sections 3.2 and 3.3; the code that its authors published leaves
    the mean over all pairs at 0, here it is that mean. Its judgements of one score by a regression on another benchmark are left out.

    Args:
        sae: of codes (n, n_latents).
        x: activations of the tokens of all stories (N, d_in), or a store.
        stories: the story of each (N,): 2p and 2p + 1 are those of pair p. As `extract_activations` gives it with documents
            [first of pair 0, second of pair 0, first of pair 1, ...]: `found.tokens[:, 1]`.

    Raises:
        TypeError, ValueError: bad input, labels that are no whole numbers from 0, a story without tokens, fewer than 2 latents.
    """
    model = as_model(sae)
    n_latents = model.shape[1]
    at_least("latents", n_latents, 2)
    data = x.of_width(model.width) if isinstance(x, ActivationStore) else as_samples(x, model.width)
    labels = _labels(stories, len(data))
    found, counts = labels.unique(return_counts=True)  # sorted
    n_pairs = -(-len(found) // 2)
    missing = (found != torch.arange(len(found))).nonzero()
    if len(missing) or len(found) % 2:
        empty = int(missing[0]) if len(missing) else len(found)
        raise ValueError(
            f"story {empty}, of pair {empty // 2}, has no tokens: leave the pair out and number the others from 0 on"
        )
    sums = torch.zeros(2 * n_pairs, n_latents, dtype=torch.float64)
    with inference_mode_of(sae):
        for part, own in zip(data.split(ROWS), labels.split(ROWS), strict=True):
            codes = dense(model.code(part.to(device=model.b_dec.device, dtype=model.b_dec.dtype)), n_latents)
            sums.index_add_(0, own, codes.double().cpu())
    by_pair = sums.reshape(n_pairs, 2, n_latents)
    number = counts.reshape(n_pairs, 2, 1)
    first, second = (by_pair / number).unbind(1)
    subject = by_pair.sum(1) / number.sum(1)
    apart, own = (first - second).abs(), (subject - subject.mean(0)).abs()
    sizes = by_pair.abs().div(number).amax((1, 2))
    noise = ROUNDING * torch.stack([sizes, sizes.max().expand(n_pairs), sizes.max().expand(n_pairs)], 1)
    contrast, independence, both = (
        _z_scores(distance, noise[:, j]).max(1) for j, distance in enumerate((apart, own, apart + own))
    )
    latents = torch.stack([contrast.indices, independence.indices, both.indices], 1)
    return ContrastScores(contrast.values, independence.values, both.values, latents)


def _labels(stories: ArrayLike, n: int) -> Tensor:
    labels = torch.from_numpy(stories.copy()) if isinstance(stories, np.ndarray) else torch.as_tensor(stories)
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise TypeError(f"stories holds {labels.dtype}: pass whole numbers, 2p and 2p + 1 for the stories of pair p")
    if labels.shape != (n,):
        raise ValueError(f"stories has shape {tuple(labels.shape)}: pass one label a row of x, ({n},)")
    at_least("samples", n, 1)
    labels = labels.long().cpu()
    if int(labels.min()) < 0:
        raise ValueError(f"stories holds {int(labels.min())}: labels begin with 0")
    return labels


def _z_scores(distances: Float[Tensor, "n m"], noise: Float[Tensor, " n"]) -> Float[Tensor, "n m"]:
    """Over the latents of each row; 0 where they differ by no more than rounding."""
    centred = distances - distances.mean(1, keepdim=True)
    spread = distances.std(1, keepdim=True)
    return torch.where(spread > noise[:, None], centred / spread, 0.0)
