"""What lies between the last block of a model and its unembedding, as linear maps of a direction of the stream."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from splinterp._typing import Float, Tensor
from splinterp.data.language_model import LanguageModel

IDLE = (nn.Dropout, nn.Identity)
CLOSE = 1e-2
"""Relative error up to which a module is taken for a norm with the gain and centring that were found."""


@torch.no_grad()
def linear_parts(model: LanguageModel, rows: Float[Tensor, "n d_model"], output: nn.Module) -> Float[Tensor, "n d_out"]:
    """Directions of the stream after the last block, as they come to the unembedding `output`: through gain and centring of norms, without
    their division, and through linear maps.

    Raises TypeError: another module on the way.
    """
    parts, stream, arrives = _between(model, output)
    expected = stream
    for part in parts:
        expected = part(expected)
    if expected.shape != arrives.shape or not torch.allclose(
        expected, arrives, rtol=1e-3, atol=1e-4 * float(arrives.abs().max())
    ):
        raise TypeError(
            f"between the last block of {type(model.model).__name__} and its unembedding is more than its modules "
            f"{', '.join(type(part).__name__ for part in parts) or '(none)'}: what a direction becomes there is not known"
        )
    for part in parts:
        rows = _through(part, rows)
    return rows


def _between(model: LanguageModel, output: nn.Module) -> tuple[list[nn.Module], Tensor, Tensor]:
    """(modules without modules of their own that run after the last block and before the unembedding, what leaves the last block, what
    arrives at the unembedding)."""
    inside = {id(module) for block in model.blocks for module in block.modules()}
    found: list[nn.Module] = []
    after = False
    stream: list[Tensor] = []
    arrives: list[Tensor] = []

    def last(_: nn.Module, __: Any, made: Any) -> None:
        nonlocal after
        after = True
        found.clear()
        stream[:] = [made[0] if isinstance(made, tuple) else made]

    def comes(_: nn.Module, args: tuple[Any, ...]) -> None:
        arrives[:] = [args[0]]

    def ran(module: nn.Module, *_: Any) -> None:
        if after and module is not output and not isinstance(module, IDLE):
            found.append(module)

    handles = [model.blocks[-1].register_forward_hook(last), output.register_forward_pre_hook(comes)]
    for module in model.model.modules():
        if id(module) not in inside and not any(True for _ in module.children()):
            handles.append(module.register_forward_hook(ran))
    tokens = torch.ones(1, 4, dtype=torch.int64, device=model.device)
    try:
        model.model(input_ids=tokens, attention_mask=torch.ones_like(tokens))
    finally:
        for handle in handles:
            handle.remove()
    if not stream or not arrives:
        raise TypeError(f"a forward pass of {type(model.model).__name__} does not end in its unembedding")
    return found, stream[0], arrives[0]


def _through(part: nn.Module, rows: Tensor) -> Tensor:
    if isinstance(part, nn.Linear):
        return rows @ part.weight.float().T
    gain, centred = _gain(part, rows.shape[1], rows.device)
    return (rows - rows.mean(1, keepdim=True) if centred else rows) * gain


def _gain(norm: nn.Module, width: int, device: torch.device) -> tuple[Float[Tensor, " d_model"], bool]:
    """A norm's gain, and whether it centres, by what it makes of a few inputs, however it keeps them. Raises TypeError: it is no norm."""
    dtype = next((p.dtype for p in norm.parameters()), torch.float32)

    def made(x: Tensor) -> Tensor:
        return norm(x.to(dtype)[None, None])[0, 0].float()

    g = torch.Generator().manual_seed(0)
    try:
        bias = made(torch.zeros(width, device=device))
        signs = torch.ones(width, device=device)
        signs[1::2] = -1.0
        if width % 2:
            signs[-1] = 0.0
        size = signs.square().mean().sqrt()  # their mean is 0
        gain = (made(signs) - bias) * signs * size
        if width % 2:
            signs = signs.roll(1)
            gain[-1] = ((made(signs) - bias) * signs * size)[-1]
        x = torch.randn(width, device="cpu", generator=g).to(device) + 1
        for centred in (True, False):
            seen = x - x.mean() if centred else x
            expected = gain * seen / seen.square().mean().sqrt() + bias
            if float((made(x) - expected).norm()) <= CLOSE * float(expected.norm()):
                return gain, centred
    except (RuntimeError, TypeError, ValueError, IndexError):
        pass
    raise TypeError(
        f"{type(norm).__name__}, before the unembedding, is no norm or linear map: what a direction becomes there is not known"
    )
