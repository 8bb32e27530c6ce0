"""The gradients of a batch's squared error for a TopK or AbsTopK SAE, written straight into the parameters' `grad`.

The same numbers as autograd gives through `SAE.reconstruct`, without its copies: in large dictionaries, fresh gradient
buffers and the addition of a tied decoder's two gradients cost more than the sparse products.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import partial
from typing import Any

import torch
from torch import nn

from splinterp._typing import Float, Tensor
from splinterp.activations.topk import RowTop
from splinterp.sparse_kernels import autocast_dtype, decode_rows, kept_scores, sum_by_latent
from splinterp.sparse_kernels._select import workspace
from splinterp.sparse_kernels.grouping import transpose_known
from splinterp.sparse_kernels.products import products_known


@torch.no_grad()
def sparse_gradients(sae: Any, x: Float[Tensor, "n d_in"], moved: Collection[int]) -> Tensor:
    """The mean squared error of x; its gradient goes to `grad` of the parameters whose ids are in `moved`, in place where it exists."""
    activation = sae.activation
    assert isinstance(activation, RowTop)
    centred = sae._centred(x)
    lower = autocast_dtype(x.device)
    scores, top_indices, _ = kept_scores(centred, sae.W_enc, sae.b_enc, activation.select, activation.k, lower)
    acts = activation.keep(scores)
    rows = _decoder_rows(sae)
    error = decode_rows(acts, top_indices, rows).add_(sae.b_dec).sub_(sae.target(x))
    loss = error.square().mean()
    error *= 2 / error.numel()
    d_scores = activation.keep_backward(products_known(top_indices, rows, error), acts)
    d_b_enc = error.new_zeros(sae.n_latents).index_add_(0, top_indices.flatten(), d_scores.flatten())
    _set(sae.b_dec, error.sum(0), moved)
    _set(sae.b_enc, d_b_enc, moved)
    if sae.b_pre is not None and id(sae.b_pre) in moved:
        with torch.autocast(x.device.type, enabled=False):
            _set(sae.b_pre, -(sae.W_enc @ d_b_enc), moved)

    by_latent = transpose_known(top_indices, sae.n_latents)
    decoder_sum = partial(sum_by_latent, acts, top_indices, error, sae.n_latents, by_latent)
    own: Any = sae.W_dec if sae.decoder == "free" else sae.residual
    d_own = None if own is None or id(own) not in moved else decoder_sum(out=_buffer(own))
    if id(sae.W_enc) in moved:
        d_encoder, tied = _buffer(sae.W_enc).T, sae.decoder != "free"
        if d_own is not None and tied:
            d_encoder.copy_(d_own)
        elif tied:
            decoder_sum(out=d_encoder)
        sum_by_latent(d_scores, top_indices, centred, sae.n_latents, by_latent, out=d_encoder, add=tied)
    return loss


def _decoder_rows(sae: Any) -> Tensor:
    if sae.residual is None:
        return sae.decoder_rows().detach()
    if sae.residual.is_cuda:
        return sae.W_enc.T + sae.residual
    return torch.add(sae.W_enc.T, sae.residual, out=workspace("decoder", tuple(sae.residual.shape), sae.residual.dtype))


def _set(parameter: nn.Parameter, gradient: Tensor, moved: Collection[int]) -> None:
    if id(parameter) in moved:
        parameter.grad = gradient


def _buffer(parameter: nn.Parameter) -> Tensor:
    """The parameter's `grad`, made where there is none of its layout; its content is what it was."""
    if parameter.grad is None or parameter.grad.stride() != parameter.stride():
        parameter.grad = torch.empty_like(parameter)
    return parameter.grad
