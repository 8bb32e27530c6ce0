"""The module being trained, seen as blocks: what it must offer, and which parameters belong to which block."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from torch import nn

from splinterp._typing import Tensor
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
