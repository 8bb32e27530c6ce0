"""The bias block: the parameters that make a latent's bias, and the bias that makes it fire at a given frequency."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from splinterp._typing import Tensor
from splinterp.activations import Activation, JumpReLU
from splinterp.data.store import ActivationStore
from splinterp.sae import SAE
from splinterp.training.blocks import SAELike, sharing

SCORE_BYTES = 2**26
"""Of scores held at a time by the quantile rule."""


def activation_of(sae: SAELike) -> Activation | None:
    """The activation, where the module says what it is."""
    return sae.activation if isinstance(sae, SAE) else None


def held(sae: SAELike) -> list[nn.Parameter]:
    """The parameters that no gradient may move: b_enc, a JumpReLU's thresholds, and b_pre, which would shift every bias."""
    activation, weights = activation_of(sae), {id(p) for p in sharing(sae, sae.W_enc)}
    parameters = [p for p in sharing(sae, sae.b_enc) if id(p) not in weights]
    if isinstance(activation, JumpReLU):
        parameters.append(activation.log_threshold)
    center = getattr(sae, "b_pre", None)
    return [*parameters, center] if isinstance(center, nn.Parameter) else parameters


@contextmanager
def without_gradient(parameters: list[nn.Parameter]) -> Iterator[None]:
    """No gradients for these parameters inside, so that optimizers pass over them."""
    before = [p.requires_grad for p in parameters]
    try:
        for p in parameters:
            p.requires_grad_(False)
            p.grad = None
        yield
    finally:
        for p, flag in zip(parameters, before, strict=True):
            p.requires_grad_(flag)


def bias_of(sae: SAELike) -> Tensor:
    """The bias that is adapted, shape (n_latents,): b_enc, or minus a JumpReLU's threshold."""
    activation = activation_of(sae)
    return (-activation.threshold if isinstance(activation, JumpReLU) else sae.b_enc).detach().clone()


def _scores(sae: SAELike, x: Tensor, columns: slice) -> Tensor:
    """x W_enc without the bias, centred by b_pre where there is one; of some latents."""
    center = getattr(sae, "b_pre", None)
    return (x if center is None else x - center) @ sae.W_enc[:, columns]


def quantile_bias(sae: SAELike, data: Tensor | ActivationStore, targets: Tensor, most: int | None) -> Tensor:
    """Minus a level that exactly c = round(target N) >= 1 scores of the latent exceed; with ties, nearly so."""
    W = sae.W_enc
    if most is not None and most < len(data):
        where = data.device if isinstance(data, Tensor) else "cpu"
        data = data[torch.arange(most, device=where) * len(data) // most]
    n, bias = len(data), torch.empty(W.shape[1], dtype=W.dtype, device=W.device)
    above = (targets * n).round().long().clamp(1, n)
    width = max(1, SCORE_BYTES // (n * W.element_size()))
    rows = max(1, SCORE_BYTES // (data.shape[1] * W.element_size()))
    for start in range(0, W.shape[1], width):
        columns = slice(start, start + width)
        parts = [_scores(sae, part.to(device=W.device, dtype=W.dtype), columns).T for part in data.split(rows)]
        scores = torch.cat(parts, dim=1)  # (latents, n)
        bias[columns] = -_levels(scores, above[columns])
    return bias


def _levels(scores: Tensor, above: Tensor) -> Tensor:
    """For each row a level that `above` of its values exceed; where values tie, the nearest count to it that is not 0.

    The level lies half-way between two different values, so that rounding lets neither of them change sides; it is -inf where
    the row's smallest value must exceed it. Values that only rounding tells apart tie: a product may give equal samples scores
    that differ in their last bits, and a level between those would leave it to the next product who exceeds it.
    """
    found = torch.full((len(scores),), -math.inf, dtype=scores.dtype, device=scores.device)
    for count in above.unique().tolist():
        if count == scores.shape[1]:
            continue
        rows = above == count
        values = scores[rows]
        pivot = values.kthvalue(scores.shape[1] - count, dim=1, keepdim=True).values
        rounding = 8 * torch.finfo(values.dtype).eps * values.abs().amax(1, keepdim=True)
        over, under = values > pivot + rounding, values < pivot - rounding
        fewer, more = over.sum(1), (~under).sum(1)  # the two counts that a level here can give
        higher, top = torch.where(over, values, math.inf).amin(1), torch.where(over, -math.inf, values).amax(1)
        lower, bottom = torch.where(under, values, -math.inf).amax(1), torch.where(under, math.inf, values).amin(1)
        up = (fewer > 0) & (count - fewer <= more - count)
        found[rows] = torch.where(up, _between(top, higher), _between(lower, bottom))
    return found


def _between(low: Tensor, high: Tensor) -> Tensor:
    middle = (low + high) / 2
    return torch.where(middle < high, middle, low)  # neighbouring floats have nothing between them


def rms_norm(sae: SAELike, data: Tensor | ActivationStore) -> float:
    """Root mean square of |x - b_pre| over the training samples. Raises ValueError if it is 0."""
    center = getattr(sae, "b_pre", None)
    center = torch.zeros(data.shape[1]) if center is None else center.detach()
    total = sum(float((part.double() - center.to(part).double()).square().sum()) for part in data.split(2**14))
    if total == 0:
        raise ValueError("every centred sample is 0, so the bounds of the bias have no scale: pass data that varies")
    return math.sqrt(total / len(data))
