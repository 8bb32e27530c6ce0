"""A tensor that is computed on demand and must not be written into: what is written would be lost."""

from __future__ import annotations

from typing import Any

import torch

from splinterp._typing import Tensor

IN_PLACE = {"__setitem__", "__iadd__", "__isub__", "__imul__", "__itruediv__", "__ifloordiv__", "__ipow__", "__imatmul__"}


class ReadOnly(torch.Tensor):
    """Reads like any tensor; writing into it, or into a view of it, is a TypeError. Results of operations are plain tensors."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        in_place = name in IN_PLACE or (name.endswith("_") and not name.endswith("__"))
        if (in_place and args and isinstance(args[0], cls)) or isinstance(kwargs.get("out"), cls):
            raise TypeError(
                f"{name} would write into a W_dec that is computed from W_enc, and be lost: write into W_enc or the residual, or use "
                "decoder='free'"
            )
        with torch._C.DisableTorchFunctionSubclass():
            found = func(*args, **kwargs)
        if not isinstance(found, torch.Tensor) or not args or not isinstance(args[0], cls):
            return found
        with torch._C.DisableTorchFunctionSubclass():
            view = found.layout == torch.strided and found.untyped_storage().data_ptr() == args[0].untyped_storage().data_ptr()
            return found.as_subclass(cls) if view else found


def read_only(x: Tensor) -> Tensor:
    """x, to be read."""
    return x.as_subclass(ReadOnly)
