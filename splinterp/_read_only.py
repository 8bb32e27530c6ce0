"""A tensor that is computed on demand and must not be written into: what is written would be lost."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from splinterp._typing import Tensor

IN_PLACE = {"__setitem__", "__iadd__", "__isub__", "__imul__", "__itruediv__", "__ifloordiv__", "__ipow__", "__imatmul__", "__imod__",
            "__iand__", "__ior__", "__ixor__", "__ilshift__", "__irshift__", "__set__"}  # fmt: skip
HARMLESS = {"requires_grad_", "__dlpack__"}
"""End like what writes, and do not write into the values."""


class ReadOnly(torch.Tensor):
    """Reads like any tensor; writing into it, or into a view of it, is a RuntimeError.

    Results of operations are plain tensors, and so are copies, pickles and what `torch.compile` or `torch.func` see. A numpy array that
    shares its memory is not guarded.
    """

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if written := next((name for name in _writes(func, args, kwargs)), None):
            raise RuntimeError(  # not TypeError, which would turn `x += 1` into `x = x + 1`
                f"{written} would write into a W_dec that is computed from W_enc, and be lost: write into W_enc or the residual, or use "
                "decoder='free'"
            )
        with torch._C.DisableTorchFunctionSubclass():
            found = func(*args, **kwargs)
            source = args[0] if args and isinstance(args[0], cls) else None
            if source is None or _property(func):
                return found
            if isinstance(found, (tuple, list)):
                return type(found)(_as_view(part, source) for part in found) if type(found) in (tuple, list) else found
            return _as_view(found, source)

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.unbind(0))

    def __deepcopy__(self, memo: Any) -> Tensor:
        return plain(self).__deepcopy__(memo)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return plain(self).__reduce_ex__(protocol)


def _property(func: Any) -> bool:
    """Whether func reads an attribute, such as `grad`, which is nobody's view; `T` and its like are."""
    owner = getattr(func, "__self__", None)
    return getattr(func, "__name__", "") == "__get__" and getattr(owner, "__name__", "") not in (
        "T",
        "mT",
        "H",
        "mH",
        "data",
        "real",
    )


def _writes(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[str]:
    """The name of func where it would write into a ReadOnly."""
    name = getattr(func, "__name__", "")
    ends = name.endswith("_") and not name.endswith("__")
    in_place = (name in IN_PLACE or ends or bool(kwargs.get("inplace"))) and name not in HARMLESS
    if name == "__set__":
        in_place = getattr(getattr(func, "__self__", None), "__name__", "") == "data"
    targets = [*args[:1], kwargs.get("input"), kwargs.get("self")] if in_place else []
    out = kwargs.get("out")
    for target in (*targets, *(out if isinstance(out, (tuple, list)) else (out,))):
        if isinstance(target, ReadOnly) or (
            isinstance(target, (tuple, list)) and any(isinstance(part, ReadOnly) for part in target)
        ):
            yield name


def _as_view(found: Any, source: Tensor) -> Any:
    """`found`, read-only where it shares the memory of `source`."""
    if not isinstance(found, torch.Tensor) or isinstance(found, torch.nn.Parameter):
        return found
    shares = (
        found is source
        or found._is_view()
        or (found.layout == torch.strided and _storage(found) == _storage(source) is not None)
    )
    return found.as_subclass(ReadOnly) if shares else found


def _storage(x: Tensor) -> int | None:
    """Where the memory of x begins; None where it has none of its own, as under a transform of `torch.func`."""
    try:
        return x.untyped_storage().data_ptr()
    except (RuntimeError, NotImplementedError):
        return None


def plain(x: Tensor) -> Tensor:
    """x as a plain tensor."""
    with torch._C.DisableTorchFunctionSubclass():
        return x.as_subclass(torch.Tensor)


def read_only(x: Tensor) -> Tensor:
    """x, to be read; x itself where `torch.compile` or `torch.func` traces, which know plain tensors only."""
    if torch.compiler.is_compiling() or torch._C._functorch.peek_interpreter_stack() is not None:
        return x
    return x.as_subclass(ReadOnly)
