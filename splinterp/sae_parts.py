"""The parts of an SAE as others see them: the decoder as a solve does, the bias as bias adaptation does, nested parts of a code."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from splinterp._typing import Tensor
from splinterp.activations import GroupedActs, TopActs
from splinterp.protocol import BiasBlock, Block, Code
from splinterp.sparse_kernels import decode_nested, decode_sparse


def decoder_of(sae: Any) -> Block:
    """The decoder of an SAE."""
    own = sae.own_rows
    prior = None if sae.decoder == "free" else sae.tied_rows()

    def write(W_dec: Tensor, b_dec: Tensor) -> None:
        if sae.decoder == "free":
            sae.W_dec.copy_(W_dec)
        elif sae.residual is not None:
            sae.residual.copy_(W_dec - sae.tied_rows())
        sae.b_dec.copy_(b_dec)

    return Block(() if own is None else (own,), (sae.b_dec,), sae.scale, prior, write)


def bias_of(sae: Any, by_own_score: bool) -> BiasBlock:
    """The bias of an SAE, or minus its threshold. Raises TypeError where there is none for each latent."""
    if not sae.encoder.by_latents:
        raise TypeError(f"the encoder {sae.encoder} has no bias for each latent, so there is none to adapt")
    activation: Any = sae.activation
    center = (sae.b_pre,) if isinstance(sae.b_pre, nn.Parameter) else ()

    def write_bias(bias: Tensor) -> None:
        sae.b_enc.copy_(bias)

    if activation.threshold_parameter is None:
        return BiasBlock(sae.b_enc.detach().clone(), write_bias, (sae.b_enc, *center), None, by_own_score)
    threshold = activation.threshold
    held = (sae.b_enc, activation.threshold_parameter, *center)

    def write(bias: Tensor) -> None:
        sae.b_enc.zero_()
        activation.set_threshold(-bias)

    return BiasBlock(-threshold.detach().clone(), write, held, threshold.detach(), by_own_score)


def decoded_in_parts(sae: Any, code: Code, depth: Tensor, n_parts: int) -> Sequence[Tensor] | None:
    """`decode_nested` of a plain SAE, in one pass over the decoder; None where there is no faster way than part by part."""
    W_dec, by_latent = sae.decoder_rows(), code.by_latent if isinstance(code, GroupedActs) else None
    if isinstance(code, TopActs) and W_dec.device.type == "cpu":
        return decode_nested(*code, depth, n_parts, W_dec, sae.b_dec, by_latent).unbind()
    if isinstance(code, TopActs):
        kept = (torch.where(depth <= part, code.top_acts, 0.0) for part in range(n_parts))
        return [decode_sparse(acts, code.top_indices, W_dec, sae.b_dec, by_latent) for acts in kept]
    if depth.ndim == 1 and bool((depth.diff() >= 0).all()):  # columns in order: each part adds some to the one before
        sizes = torch.bincount(depth.clamp(max=n_parts), minlength=n_parts + 1).tolist()
        pieces = zip(code.split(sizes, 1)[:n_parts], W_dec.split(sizes)[:n_parts], strict=True)
        return list(itertools.accumulate((acts @ rows for acts, rows in pieces), initial=sae.b_dec))[1:]
    return None
