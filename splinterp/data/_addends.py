"""Which module's output a block adds to the residual stream, found by measuring one forward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn

from splinterp._typing import Tensor

FOLLOWERS = 3
"""Modules after a part that may stand between its output and the sum: dropout, a norm, a scale for each channel."""

LOUDEST = 1e3
"""Largest standard deviation of the noise: float16 ends at 65504."""


class Event(NamedTuple):
    """What went into a module of the block, or came out of it."""

    module: nn.Module
    is_output: bool
    values: list[Tensor]
    """Of the shape of the stream, flattened to (tokens, width)."""


def addend(block: nn.Module, part: nn.Module, others: list[nn.Module], run: Callable[[], None]) -> nn.Module | None:
    """The module whose output is what the block adds for `part`: the part, one that follows it, or one inside it; None: none is.

    Noise as large as the stream is added to the output of each candidate a, and a is right if then s + a = t for an s that was
    there before the part (the stream; in parallel blocks with the output of another part added) and a t that comes after a. So a
    multiplier, or a part that has added the stream itself, is seen however small the part's own output.

    Args:
        part, others: the module that the architecture names for the site, and those of other sites.
        run: a forward pass through the block, without gradients.

    Raises:
        RuntimeError: the pass never came to the block.
    """
    events = _recorded(block, run, None)
    for candidate in _candidates(part, events):
        if _is_added(block, part, others, candidate, _recorded(block, run, candidate)):
            return candidate
    return None


def _candidates(part: nn.Module, events: list[Event]) -> Iterator[nn.Module]:
    yield part
    end = next((i for i, e in enumerate(events) if e.module is part and e.is_output), None)
    if end is None:
        return
    at = end
    for _ in range(FOLLOWERS):
        out = events[at].values
        found = next(
            (e.module for e in events[at + 1 :] if not e.is_output and any(_same(a, b) for a in out for b in e.values)), None
        )
        if found is None:
            break
        yield found
        at = next((i for i, e in enumerate(events) if i > at and e.module is found and e.is_output), len(events) - 1)
    inside = {id(m) for m in part.modules()} - {id(part)}
    seen: set[int] = set()
    for event in reversed(events[:end]):
        if event.is_output and event.values and id(event.module) in inside and id(event.module) not in seen:
            seen.add(id(event.module))
            yield event.module


def _is_added(block: nn.Module, part: nn.Module, others: list[nn.Module], candidate: nn.Module, events: list[Event]) -> bool:
    begin = next((i for i, e in enumerate(events) if e.module is part), None)
    end = next((i for i, e in enumerate(events) if e.module is candidate and e.is_output), None)
    if begin is None or end is None or not events[end].values:
        return False
    a = events[end].values[0]
    streams = [[v] for e in events[: begin + 1] for v in e.values if bool(v.any())]
    entering = events[0].values[:1]
    streams += [[*entering, v] for e in events if e.is_output and any(e.module is o for o in others) for v in e.values[:1]]
    later = [v for e in events[end + 1 :] if e.module is not candidate for v in e.values]
    later = [t for t in later if not _sums([a], t)]  # handed on, with nothing added
    return any(_sums([*stream, a], t) for t in later for stream in streams)


def _sums(terms: list[Tensor], total: Tensor) -> bool:
    """Whether each entry of the total is the sum of the terms', up to a few roundings of these."""
    exact = [term.double() for term in terms]
    size = sum((term.abs() for term in exact), total.double().abs())
    eps = torch.finfo(total.dtype).eps
    return bool(((sum(exact) - total.double()).abs() <= eps * size).all())


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and bool((a == b).all())


def _recorded(block: nn.Module, run: Callable[[], None], noisy: nn.Module | None) -> list[Event]:
    """What goes through the block's modules in one pass, in order, with noise on the output of one of them."""
    events: list[Event] = []
    shape: torch.Size | None = None

    def values(*arguments: Any) -> list[Tensor]:
        tensors = [t for t in arguments if isinstance(t, Tensor) and t.is_floating_point()]
        assert shape is not None
        fit = [t for t in tensors if t.shape[-1:] == shape[-1:] and t.numel() == shape.numel()]
        return [t.detach().reshape(-1, shape[-1]).clone() for t in fit]  # cloned: some add in place

    def enters(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        nonlocal shape
        if module is block:
            shape = next((t.shape for t in (*args, *kwargs.values()) if isinstance(t, Tensor) and t.is_floating_point()), None)
        if shape is not None:
            events.append(Event(module, False, values(*args, *kwargs.values())))

    def leaves(module: nn.Module, _: Any, output: Any) -> Any:
        changed = None
        first = output[0] if isinstance(output, tuple) else output
        if module is noisy and events and isinstance(first, Tensor):
            scale = max(float(v.float().square().mean().sqrt()) for v in (*events[0].values[:1], first))
            noise = torch.randn(first.shape, device="cpu", generator=torch.Generator().manual_seed(0)).to(first) * (
                min(scale, LOUDEST) or 1.0
            )
            output = first + noise if not isinstance(output, tuple) else (first + noise, *output[1:])
            changed = output
        if shape is not None:
            events.append(Event(module, True, values(*(output if isinstance(output, tuple) else (output,)))))
        return changed

    with _hooked(block, enters, leaves):
        run()
    if not events:
        raise RuntimeError(f"the forward pass never came to the {type(block).__name__}")
    return events


@contextmanager
def _hooked(block: nn.Module, enters: Callable[..., Any], leaves: Callable[..., Any]) -> Iterator[None]:
    handles = []
    for module in block.modules():
        handles.append(module.register_forward_pre_hook(enters, with_kwargs=True))
        handles.append(module.register_forward_hook(leaves))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
