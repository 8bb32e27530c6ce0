"""The boundary to modules of somebody else's: `as_model` makes them models."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from splinterp._typing import Tensor
from splinterp.protocol.blocks import BiasBlock, Block
from splinterp.protocol.code import dense
from splinterp.protocol.model import NAMES, SparseModel


def sharing(module: Any, tensor: Tensor) -> tuple[nn.Parameter, ...]:
    """The parameters of `module` that `tensor` is, or is a view of."""
    storage = tensor.untyped_storage().data_ptr()
    return tuple(p for p in module.parameters() if p.untyped_storage().data_ptr() == storage)


class ForeignModel(SparseModel):
    """A module of somebody else's as a `SparseModel`: dense codes, batches as they come."""

    def __init__(self, module: Any) -> None:
        super().__init__()
        self.module = module

    @property
    def W_dec(self) -> Tensor:  # type: ignore[override]  # noqa: N802
        return self.module.W_dec

    @property
    def label(self) -> str:
        return type(self.module).__name__

    @property
    def b_dec(self) -> Tensor:  # type: ignore[override]
        return self.module.b_dec

    def code(self, x: Tensor) -> Tensor:
        return self.module.encode(x)

    def decode(self, code: Any) -> Tensor:
        return torch.addmm(self.b_dec, dense(code, self.shape[1]), self.W_dec)

    def decoder_block(self) -> Block:
        encoder = {id(p) for p in self.encoder_parameters()}
        weights = tuple(p for p in sharing(self.module, self.W_dec) if id(p) not in encoder)

        def write(W_dec: Tensor, b_dec: Tensor) -> None:
            self.module.W_dec.copy_(W_dec)
            self.module.b_dec.copy_(b_dec)

        return Block(weights, sharing(self.module, self.b_dec), None, None, write)

    def encoder_parameters(self) -> list[nn.Parameter]:
        return [*sharing(self.module, self.module.W_enc), *sharing(self.module, self.module.b_enc)]

    def encoder_weights(self) -> Any:
        return self.module.W_enc if sharing(self.module, self.module.W_enc) else None

    def encoder_bias(self) -> Any:
        return self.module.b_enc if sharing(self.module, self.module.b_enc) else None

    @property
    def bias(self) -> BiasBlock:
        weights = {id(p) for p in sharing(self.module, self.module.W_enc)}
        held = [p for p in sharing(self.module, self.module.b_enc) if id(p) not in weights]
        if not held:
            name = type(self.module).__name__
            raise TypeError(
                f"bias adaptation holds b_enc still, which {name} computes or shares with W_enc: make it a parameter"
            )
        center = self.center
        if isinstance(center, nn.Parameter):
            held.append(center)
        return BiasBlock(self.module.b_enc.detach().clone(), self.module.b_enc.copy_, tuple(held), None, False)

    @property
    def center(self) -> Tensor | None:
        named = {**dict(self.module.named_parameters(recurse=False)), **dict(self.module.named_buffers(recurse=False))}
        found = self.module.b_pre if "b_pre" in named else None
        return found if isinstance(found, torch.Tensor) else None


def as_model(module: Any) -> SparseModel:
    """`module` itself where it is a `SparseModel`, else wrapped. Raises TypeError where it lacks a name of `SAELike`."""
    if isinstance(module, SparseModel):
        return module
    if isinstance(module, type):
        raise TypeError(f"the SAE is the class {module.__name__}: pass an object of it")
    if isinstance(module, Tensor):
        raise TypeError("the SAE is a tensor: it comes first, and then the samples")
    missing = [name for name in NAMES if not hasattr(module, name)]
    if missing:
        raise TypeError(f"{type(module).__name__} lacks {', '.join(missing)}: see splinterp.training.SAELike")
    return ForeignModel(module)


def said_of(sae: Any) -> dict[str, Any]:
    """What a saved SAE says that it is of (`SAE.about`); {} of a module that says nothing."""
    return getattr(sae, "about", None) or {}
