"""The bias block: holding it still, and the bias that makes a latent fire at a given frequency."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from splinterp._typing import Tensor
from splinterp.data.store import ActivationStore
from splinterp.protocol import SparseModel, inference_mode_of
from splinterp.training.batches import evenly_spaced

SCORE_BYTES = 2**26
"""Of scores held at a time by the quantile rule."""


@contextmanager
def without_gradient(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
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


def _scores(model: SparseModel, x: Tensor, columns: slice) -> Tensor:
    """x W_enc without the bias, centred by b_pre where there is one; of some latents."""
    W, center = model.encoder_weights(), model.center
    assert W is not None
    x = model.inputs(x)
    return (x if center is None else x - center) @ W[:, columns]


def quantile_bias(model: SparseModel, data: Tensor | ActivationStore, targets: Tensor, most: int | None) -> Tensor:
    """Minus a level that exactly c = round(target N) >= 1 scores of the latent exceed; with ties, nearly so."""
    W = model.encoder_weights()
    assert W is not None
    data = data if most is None else evenly_spaced(data, most)
    n, bias = len(data), torch.empty(W.shape[1], dtype=W.dtype, device=W.device)
    above = (targets * n).round().long().clamp(1, n)
    width = max(1, SCORE_BYTES // (n * W.element_size()))
    rows = max(1, SCORE_BYTES // (data.shape[1] * W.element_size()))
    for start in range(0, W.shape[1], width):
        columns = slice(start, start + width)
        parts = [_scores(model, part.to(device=W.device, dtype=W.dtype), columns).T for part in data.split(rows)]
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


GAIN_SAMPLES = 4096


@torch.no_grad()
def fitting_gain(model: SparseModel, data: Tensor | ActivationStore) -> float:
    """The number that x_hat - b_dec times it is nearest to x - b_dec, in least squares over training samples, evenly spaced; 1 where
    none above 0 is."""
    x = evenly_spaced(data, GAIN_SAMPLES)[:].to(model.b_dec)
    with inference_mode_of(model, training=model.couples_samples):  # what selects from batches may have no other way yet
        out = (model.decode(model.code(x)) - model.b_dec).double()
    squares = float(out.square().sum())
    gain = float((out * (model.target(x) - model.b_dec)).sum()) / squares if squares > 0 else 1.0
    return gain if gain > 0 else 1.0


def multiply_output(model: SparseModel, gain: float) -> None:
    """Multiply the decoder's rows where their scale is a parameter of its own. Raises ValueError where it is not."""
    if model.multiply_output(gain):
        return
    block = model.decoder_block()
    own = [*block.weights, *(() if block.scales is None else (block.scales,))]
    if not own or (block.prior is not None and block.scales is None):
        raise ValueError(
            f"bias adaptation starts from output scales, and the decoder of {model.label} has the encoder's: build it with a free decoder "
            "or, where it takes one, tie_scale=True, or pass gain=1 to start from what it has (with many latents features are then "
            "hardly found)"
        )
    if not all(parameter.requires_grad for parameter in own):
        raise ValueError("bias adaptation sets the start of the decoder, which is frozen (requires_grad=False): pass gain=1")
    with torch.no_grad():
        for parameter in own:
            parameter.mul_(gain)


def rms_norm(model: SparseModel, data: Tensor | ActivationStore) -> float:
    """Root mean square of |x - b_pre| over the training samples. Raises ValueError if it is 0."""
    center = torch.zeros(()) if model.center is None else model.center.detach()
    total = sum(float((model.inputs(part).double() - center.to(part).double()).square().sum()) for part in data.split(2**14))
    if total == 0:
        raise ValueError("every centred sample is 0, so the bounds of the bias have no scale: pass data that varies")
    return math.sqrt(total / len(data))
