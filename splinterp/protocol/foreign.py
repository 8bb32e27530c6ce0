"""The boundary to modules of somebody else's: `as_model` makes them models."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from splinterp._typing import Tensor
from splinterp.protocol.blocks import BiasBlock, Block
from splinterp.protocol.code import dense
from splinterp.protocol.model import NAMES, SparseModel, alike, full_precision, inference_mode_of


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

    def check(self, x: Tensor) -> None:
        """Raises TypeError where its own `decode` or `forward` is not acts @ W_dec + b_dec, which training and evaluation go by."""
        with torch.no_grad(), inference_mode_of(self.module), full_precision(x):
            code = dense(self.code(x), self.shape[1])
            ours = self.decode(code)
            if not bool(torch.isfinite(ours).all()):
                return  # which is told elsewhere
            for name, given in (("decode", code), ("forward", x)):
                found = _reconstruction(getattr(self.module, name, None), given, ours)
                if found is not None and not alike(found, ours):
                    raise TypeError(
                        f"{self.label}.{name} is not acts @ W_dec + b_dec, which training and evaluation go by: it differs by up to "
                        f"{float((found - ours).abs().max()):.2g}; move what it adds into encode, W_dec and b_dec, or into the data, or "
                        "subclass splinterp.protocol.SparseModel, whose `decode` is asked"
                    )

    def reads_b_dec(self, x: Tensor) -> bool:
        with torch.no_grad(), inference_mode_of(self.module):
            kept = self.b_dec.detach().clone()
            before = dense(self.code(x), self.shape[1])
            self.b_dec.copy_(kept + 1 + kept.abs())
            try:
                after = dense(self.code(x), self.shape[1])
            finally:
                self.b_dec.copy_(kept)
        return not torch.equal(before, after)

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


def _reconstruction(call: Any, given: Tensor, like: Tensor) -> Tensor | None:
    """What a module's own method makes of `given`, where that is a reconstruction of samples, or begins with one; else None."""
    try:
        found = call(given)
    except Exception:  # another signature, or none: it is not asked in training either
        return None
    for name in ("x_hat", "sae_out"):
        found = getattr(found, name, found)
    found = found[0] if isinstance(found, tuple) and found else found
    return found.to(like) if isinstance(found, Tensor) and found.shape == like.shape and found.is_floating_point() else None


def as_model(module: Any) -> SparseModel:
    """`module` itself where it is a `SparseModel`, else wrapped. Raises TypeError where it lacks a name of `SAELike`.

    Of what `torch.compile` returns it is the module inside: a compiled `forward` is of no use here.
    """
    if isinstance(module, nn.Module):
        module = module._modules.get("_orig_mod") or module
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
