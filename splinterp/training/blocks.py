"""The module being trained, seen as blocks: what it must offer, and which parameters belong to which block."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn

from splinterp._typing import Tensor
from splinterp.activations import BatchTopK, TopActs
from splinterp.sae import SAE


@runtime_checkable
class SAELike(Protocol):
    """What a module must offer to be trained here: an `nn.Module` with these names, samples in rows.

    x_hat = encode(x) @ W_dec + b_dec, with W_enc (d_in, n_latents), b_enc (n_latents,), W_dec (n_latents, d_in) and
    b_dec (d_in,). They may be parameters or views of parameters (`self.encoder.weight.T`, say): a decoder solve writes
    into W_dec and b_dec in place.
    """

    training: bool
    W_enc: Any
    b_enc: Any
    W_dec: Any
    b_dec: Any

    def encode(self, x: Any) -> Any: ...
    def parameters(self, recurse: bool = True) -> Any: ...
    def state_dict(self) -> Any: ...
    def load_state_dict(self, state_dict: Any) -> Any: ...
    def train(self, mode: bool = True) -> Any: ...
    def eval(self) -> Any: ...


def sharing(sae: SAELike, tensor: Tensor) -> list[nn.Parameter]:
    """The parameters that `tensor` is, or is a view of."""
    storage = tensor.untyped_storage().data_ptr()
    return [p for p in sae.parameters() if p.untyped_storage().data_ptr() == storage]


SOLVE_NUMBERS = 2**22
"""Codes are collected for a solve in blocks of about so many numbers."""


def codes_of(sae: SAELike, batches: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor | TopActs]]:
    """Samples with their codes, sparse where training is; batches are joined, for the sums of a solve have a cost a block.

    BatchTopK and modules other than `SAE` see the batches as they come.
    """
    joins = isinstance(sae, SAE) and not isinstance(sae.activation, BatchTopK)
    sparse = isinstance(sae, SAE) and sae.trains_sparse
    d_in, n_latents = sae.W_enc.shape
    rows = SOLVE_NUMBERS // n_latents if joins else 1
    if sparse:  # the dense Gram matrix is added to once a block, so a block should have as many rows, if they fit
        rows = min(max(n_latents, SOLVE_NUMBERS // d_in), 4 * SOLVE_NUMBERS // d_in)
    for x in joined(batches, rows):
        yield x, sae.encode_top(x) if isinstance(sae, SAE) and sparse else sae.encode(x)


def joined(batches: Iterable[Tensor], rows: int) -> Iterator[Tensor]:
    """Batches put together until there are at least so many rows."""
    waiting: list[Tensor] = []
    for x in batches:
        waiting.append(x)
        if sum(map(len, waiting)) >= rows:
            yield torch.cat(waiting) if len(waiting) > 1 else x
            waiting = []
    if waiting:
        yield torch.cat(waiting)


def residual_of(sae: SAELike) -> Any:
    return sae.residual if isinstance(sae, SAE) else None


def encoder_parameters(sae: SAELike) -> list[nn.Parameter]:
    return sharing(sae, sae.W_enc) + sharing(sae, sae.b_enc)


def decoder_weights(sae: SAELike) -> list[nn.Parameter]:
    """The decoder's own weights: W_dec, the residual, or nothing where W_dec is the encoder's."""
    if isinstance(sae, SAE) and sae.decoder != "free":
        return [] if sae.residual is None else [sae.residual]
    encoder = {id(p) for p in encoder_parameters(sae)}
    return [p for p in sharing(sae, sae.W_dec) if id(p) not in encoder]
