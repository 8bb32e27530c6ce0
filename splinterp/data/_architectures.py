"""Where transformers' architectures keep their blocks, and a block its parts."""

from __future__ import annotations

from typing import Any

from torch import nn

STACKS = (
    "encoder.layer", "transformer.h", "h", "model.layers", "layers", "gpt_neox.layers", "transformer.layer", "model.decoder.layers",
    "decoder.layers", "bert.encoder.layer", "roberta.encoder.layer", "distilbert.transformer.layer", "model.language_model.layers",
    "language_model.layers", "transformer.blocks", "encoder.layers", "blocks", "block", "encoder.block",
)  # fmt: skip
"""Where transformers' architectures keep their blocks."""
PARTS = {
    "mlp": ("mlp", "feed_forward", "ffn", "output.dense", "fc2", "layer.1.DenseReluDense"),
    "attention": ("attention.output.dense", "self_attn", "attn", "self_attention", "attention", "layer.0.SelfAttention"),
}
"""Modules of a block that make what is added to the residual stream, in the order in which they are tried."""


def that_reads(model: Any) -> Any:
    """The encoder of an encoder-decoder model, else the model itself."""
    if not getattr(getattr(model, "config", None), "is_encoder_decoder", False) or not hasattr(model, "get_encoder"):
        return model
    if model.get_encoder() is None or model.get_encoder() is model:
        return model
    reads = getattr(model.get_encoder(), "main_input_name", "input_ids")
    if reads != "input_ids":
        raise ValueError(f"the encoder of {type(model).__name__} reads {reads}, not tokens: pass a model of text")
    return model.get_encoder()


def find_blocks(model: Any, name: str | None = None) -> nn.ModuleList:
    if name is not None:
        named = descend(model, name)
        if not isinstance(named, nn.ModuleList) or not len(named):
            raise ValueError(f"blocks={name!r} is no list of modules of {type(model).__name__}{_lists(model)}")
        return named
    for part in (model, getattr(model, "base_model", None)):  # with a head, the rest has a name of its own
        for path in STACKS:
            found = descend(part, path) if isinstance(part, nn.Module) else None
            if isinstance(found, nn.ModuleList) and len(found):
                return found
    raise ValueError(
        f"{type(model).__name__} has its blocks in none of {', '.join(STACKS)}: pass the name of its list of them, "
        f"blocks=NAME{_lists(model)}"
    )


def _lists(model: nn.Module) -> str:
    """The names of a model's lists of modules, for messages."""
    lists = [name for name, part in model.named_modules() if isinstance(part, nn.ModuleList) and len(part)]
    return f" (it has {', '.join(lists[:5])})" if lists else " (it has no list of modules)"


def part_of(block: nn.Module, site: str) -> nn.Module | None:
    return next((found for path in PARTS[site] if (found := descend(block, path)) is not None), None)


def descend(module: nn.Module, path: str) -> nn.Module | None:
    for name in path.split("."):
        child = getattr(module, name, None)
        if not isinstance(child, nn.Module):
            return None
        module = child
    return module
