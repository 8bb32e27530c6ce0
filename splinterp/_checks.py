"""Early, clear errors for the input that users really pass."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Sequence
from numbers import Integral, Real

import numpy as np
import torch

from splinterp._typing import ArrayLike, Tensor

INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
"""Dtypes of indices."""


def one_of(name: str, value: object, known: Iterable[object]) -> None:
    """Raise ValueError unless `value` is among the `known` options."""
    options = list(known)
    if value not in options:
        raise ValueError(f"{name}={value!r} is unknown; known: {', '.join(repr(o) for o in options)}")


def at_least(name: str, value: float, low: float, strict: bool = False) -> None:
    """Raise ValueError unless `value >= low` (`> low` if strict); a NaN always fails. TypeError: no number."""
    if not isinstance(value, Real) and not (isinstance(value, torch.Tensor | np.ndarray) and value.ndim == 0):
        raise TypeError(f"{name}={value!r} must be a number")
    if not (value > low if strict else value >= low):
        raise ValueError(f"{name}={value} must be {'greater than' if strict else 'at least'} {low}")


def share_of_steps(name: str, value: float, strict: bool = False) -> None:
    """Raise ValueError unless `value` is a share, from 0 (above 0 if strict) to 1."""
    at_least(name, value, 0.0, strict)
    if value > 1:
        raise ValueError(f"{name}={value} is a share of the steps: at most 1")


def whole(name: str, value: object, low: int) -> int:
    """`value` as an int. Raises TypeError unless it is one (of Python or NumPy), ValueError unless it is at least `low`."""
    if not isinstance(value, Integral) or isinstance(value, bool):
        close = f", e.g. {round(value)}" if isinstance(value, float) and math.isfinite(value) else ""
        raise TypeError(f"{name}={value!r} must be an int{close}")
    at_least(name, int(value), low)
    return int(value)


def usable_device(device: torch.device | str) -> torch.device:
    """A device. Raises ValueError where this torch has none of the kind."""
    device = torch.device(device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device={str(device)!r}: torch sees no GPU here; pass device='cpu'")
    return device


def check_finite(x: Tensor, name: str = "x") -> None:
    """Raise ValueError with the count and the first index of the non-finite entries of `x`."""
    if torch.isfinite(x.sum()):  # one pass; an overflowing sum of finite entries is cleared below
        return
    bad = ~torch.isfinite(x)
    if bad.any():
        first = tuple(int(i) for i in bad.nonzero()[0])
        raise ValueError(f"{name} has {int(bad.sum())} non-finite entries, the first at index {first}: remove or impute them")


def as_samples(
    x: ArrayLike,
    width: int | None = None,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | None = None,
    name: str = "x",
    finite: bool = True,
) -> Tensor:
    """Return `x` as a floating (n, width) tensor, or say why it cannot be one.

    NumPy arrays become tensors without a copy where the dtype allows; half-precision input is converted to
    `dtype` (float32 if None). `device` is compared, never changed. Under `torch.no_grad` the result carries no graph.

    Raises:
        TypeError: not an array, or integers.
        ValueError: not 2-D, wrong width, another device, or (if `finite`) non-finite entries.
    """
    if isinstance(x, np.ma.MaskedArray):
        raise TypeError(f"{name} is a masked array, whose mask would be lost: fill or drop the masked entries")
    if isinstance(x, np.ndarray):
        if not np.issubdtype(x.dtype, np.floating):
            usual = "" if x.dtype == bool else " / 255 for images"
            raise TypeError(f"{name} has dtype {x.dtype}; convert it first, e.g. {name}.astype('float32'){usual}")
        if x.dtype.itemsize > 8:
            raise TypeError(f"{name} has dtype {x.dtype}, which torch has not; convert it first, e.g. {name}.astype('float64')")
        x = torch.from_numpy(np.ascontiguousarray(x, dtype=x.dtype.newbyteorder("=")))
    if not isinstance(x, torch.Tensor):
        raise TypeError(f"{name} is a {type(x).__name__}; pass a torch tensor or a NumPy array{_array_hint(x)}")
    if x.layout != torch.strided:
        raise TypeError(f"{name} is a sparse tensor; pass a dense one, e.g. {name}.to_dense()")
    if not x.is_floating_point():
        usual = "" if x.dtype == torch.bool else " / 255 for images"
        raise TypeError(f"{name} has dtype {x.dtype}; convert it first, e.g. {name}.float(){usual}")
    if x.dtype.itemsize < 2:
        raise TypeError(f"{name} has dtype {x.dtype}, which nothing is computed in; convert it first, e.g. {name}.float()")
    if x.ndim != 2:
        raise ValueError(f"{name} has shape {tuple(x.shape)}; samples are rows: {_rows_hint(name, tuple(x.shape), width)}")
    if width is not None and x.shape[1] != width:
        advice = f"samples are rows: pass {name}.T" if x.shape[0] == width else "check d_in"
        raise ValueError(f"{name} has {x.shape[1]} columns but {width} are expected: {advice}")
    if device is not None and x.device != device:
        raise ValueError(f"{name} is on {x.device} but the SAE is on {device}: move one of them with .to()")
    if dtype is None:
        dtype = torch.float32 if x.dtype in (torch.float16, torch.bfloat16) else x.dtype
    x = x.to(dtype)
    if not torch.is_grad_enabled():  # else a graph from outside is kept where none is wanted, and NumPy refuses the tensor
        x = x.detach()
    if finite:
        check_finite(x, name)
    return x


def _array_hint(x: object) -> str:
    """How something else becomes an array, where that is known."""
    if isinstance(x, torch.utils.data.DataLoader | torch.utils.data.IterableDataset):
        return (
            ": join its batches by torch.cat, or write them into a store as they come (splinterp.data.StoreWriter), which may be larger "
            "than memory"
        )
    if isinstance(x, torch.utils.data.TensorDataset):
        return ", e.g. dataset.tensors[0]"
    if hasattr(x, "to_numpy"):
        return ", e.g. x.to_numpy()"
    if not isinstance(x, Sequence) or isinstance(x, str | bytes):
        return ""
    if isinstance(x, tuple) and hasattr(x, "top_acts"):
        return ": that is a code of few latents a sample; pass the dense one (encode)"
    if not (x and isinstance(x[0], torch.Tensor)):
        return ", e.g. torch.tensor(x)"
    if isinstance(x, tuple) and len(x) == 2 and all(isinstance(part, torch.Tensor) and part.ndim == 2 for part in x):
        return (
            ": pairs (inputs, targets) of a transcoder are one array, splinterp.paired(*x); batches are joined by torch.cat(x)"
        )
    return ", e.g. torch.cat(x)" if x[0].ndim == 2 else ", e.g. torch.stack(x)"


def _rows_hint(name: str, shape: tuple[int, ...], width: int | None) -> str:
    """How an array that is not (n, width) becomes one, if it can."""
    entries = math.prod(shape)
    if width is None and len(shape) < 2:
        return "reshape to (n, d_in)"
    width = shape[-1] if width is None else width
    if shape and shape[-1] == width:
        return f"{name}.reshape({entries // max(1, width)}, {width}) gives ({entries // max(1, width)}, {width})"
    if entries and entries % width == 0:
        return f"reshape to ({entries // width}, {width}) if each {width} entries in a row are a sample"
    return f"(n, {width}) is expected, and {entries} entries are no whole number of rows of {width}: check d_in"


def as_positions(index: object, n: int, name: str = "index") -> Tensor:
    """An index into n rows, as PyTorch understands it, as int64 positions on the CPU: of its own shape, () for an int.

    A mask (n,) gives the positions where it is true. Positions are not compared with n.

    Raises:
        TypeError: neither whole numbers nor booleans; 8-bit unsigned ones, which PyTorch takes for a mask.
        IndexError: a mask of another shape.
    """
    if isinstance(index, bool | np.bool_):
        raise TypeError(f"{name}={index} is one boolean: pass a mask of all {n} rows, or positions")
    if not isinstance(index, torch.Tensor | np.ndarray):
        try:  # an int; else as NumPy reads lists, whose dtype says whether they hold booleans, whole numbers or others
            index = np.asarray(operator.index(index), dtype=np.int64)  # type: ignore[arg-type]
        except TypeError:
            index = _listed(index, name)
    dtype = str(index.dtype).removeprefix("torch.")
    if dtype == "bool":
        if tuple(index.shape) != (n,):
            raise IndexError(
                f"{name} is a mask of shape {tuple(index.shape)}: pass one boolean for each of the {n} rows, ({n},)"
            )
        return torch.as_tensor(index).cpu().nonzero()[:, 0]
    if dtype == "uint8" or not dtype.startswith(("int", "uint")):
        hint = f"; PyTorch takes uint8 for a mask: pass {name} != 0 for a mask" if dtype == "uint8" else ""
        raise TypeError(f"{name} has dtype {dtype}: pass whole numbers (int64) or booleans{hint}")
    found = torch.from_numpy(index.astype(np.int64)) if isinstance(index, np.ndarray) else index.cpu().long()
    return found.detach()


def chosen_latents(latents: object, n_latents: int) -> Tensor:
    """Positions (n,) of the latents asked for, of all where that is None. Raises ValueError: one that there is not."""
    if latents is None:
        return torch.arange(n_latents)
    chosen = as_positions(latents, n_latents, "latents").reshape(-1)
    if len(chosen) and not (int(chosen.min()) >= 0 and int(chosen.max()) < n_latents):
        raise ValueError(f"latents must be in 0 to {n_latents - 1}, got {int(chosen.min())} to {int(chosen.max())}")
    return chosen


def _listed(index: object, name: str) -> np.ndarray:
    if not isinstance(index, Sequence) or isinstance(index, str | bytes | tuple):
        raise TypeError(
            f"{name} is a {type(index).__name__}: pass an int, a slice, or a list, array or tensor of ints or booleans"
        )
    entries = [e.item() if isinstance(e, torch.Tensor) and e.ndim == 0 else e for e in index]
    if not entries:
        return np.empty(0, dtype=np.int64)
    if any(np.ndim(e) for e in entries):  # PyTorch has changed its mind about what these mean
        raise TypeError(f"{name} is a nested list: pass one list of rows, or a tensor of any shape")
    if len({isinstance(e, bool | np.bool_) for e in entries}) > 1:
        raise TypeError(f"{name} holds booleans and others: pass a mask, or positions")
    return np.asarray(entries)


def as_code(
    values: ArrayLike, indices: Tensor, x: ArrayLike, n_latents: int, d_in: int, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """The values (n, k) of a sparse code and its samples x (n, d_in) as tensors of `dtype`.

    Raises:
        TypeError, ValueError: as `as_samples`; shapes that do not belong together, an index of no latent.
    """
    values = as_samples(values, dtype=dtype, device=device, name="top_acts")
    x = as_samples(x, d_in, dtype=dtype, device=device)
    if len(values) != len(x) or indices.shape != values.shape:
        raise ValueError(
            f"top_acts {tuple(values.shape)} and top_indices {tuple(indices.shape)} must have the {len(x)} rows of x"
        )
    if indices.dtype not in INTEGERS:
        raise TypeError(f"top_indices has dtype {indices.dtype}: pass whole numbers, e.g. top_indices.long()")
    if indices.numel() and (indices.min() < 0 or indices.max() >= n_latents):
        raise ValueError(f"top_indices must lie in 0 ... {n_latents - 1}: the statistics have n_latents={n_latents}")
    return values, x
