"""Reading what anybody may have written: regular files only, checksums, and errors that name the file."""

from __future__ import annotations

import hashlib
import json
import math
import os
import pickle
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from splinterp._typing import Tensor

FLOATS = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64}
"""Dtypes of weights, by safetensors' names."""
CHECKSUM = "checksum"


@contextmanager
def reading(path: str | Path) -> Iterator[None]:
    """Inside, whatever goes wrong becomes a ValueError that names `path`; a missing file stays a FileNotFoundError."""
    try:
        yield
    except FileNotFoundError as error:
        if str(path) in str(error):
            raise
        raise FileNotFoundError(f"{path}: {error}") from error
    except pickle.UnpicklingError as error:  # torch's own message advises to load without its protection
        raise ValueError(f"{path} holds something else than tensors and plain values, or is damaged: it is not read") from error
    except ValueError as error:
        if str(path) in str(error) and type(error) is ValueError:
            raise
        raise ValueError(f"{path} cannot be read: {_said(error)}") from error
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}") from error
    except KeyError as error:
        raise ValueError(f"{path} has no entry {error}") from error
    except Exception as error:  # of libraries that read damaged content, none of which names the file
        raise ValueError(f"{path} cannot be read: {_said(error)}") from error


def _said(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}{': ' + text[0][:300] if text else ''}"


def require_file(path: Path) -> Path:
    """`path`, which is a regular file: opening a FIFO would wait for ever. Raises FileNotFoundError, ValueError."""
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(f"{path} is missing") from None
    if not stat.S_ISREG(mode):
        raise ValueError(f"{path} is {'a folder' if stat.S_ISDIR(mode) else 'no regular file'}: a file is expected there")
    return path


def read_object(path: Path) -> dict[str, Any]:
    """A JSON file that holds one object."""
    with reading(path):
        found = json.loads(require_file(path).read_bytes().decode())
        if not isinstance(found, dict):
            raise ValueError(f"{path} holds a JSON {type(found).__name__}, not an object")
    return found


def entry(path: Path, content: Mapping[str, Any], name: str, kind: type | tuple[type, ...]) -> Any:
    """An entry of what was read from `path`. Raises ValueError where it is missing or of another type (a bool is no int)."""
    if name not in content:
        raise ValueError(f"{path} has no entry {name!r}")
    value = content[name]
    kinds = kind if isinstance(kind, tuple) else (kind,)
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        raise ValueError(f"{path} has {name}={value!r}, which must be {' or '.join(k.__name__ for k in kinds)}")
    return value


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """The content with a checksum of itself."""
    return {**content, CHECKSUM: _digest(content)}


def unsealed(path: Path, content: Mapping[str, Any]) -> dict[str, Any]:
    """The content without its checksum. Raises ValueError where that differs; a file without one was written before there was one."""
    rest = {name: value for name, value in content.items() if name != CHECKSUM}
    if CHECKSUM in content and content[CHECKSUM] != _digest(rest):
        raise ValueError(
            f"{path} does not have the content that was written: restore it (or remove its {CHECKSUM!r} if you edited it on purpose)"
        )
    return rest


def _digest(content: Mapping[str, Any]) -> str:
    plain = json.loads(json.dumps(content))  # as it will be read
    return hashlib.sha256(json.dumps(plain, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def sha256_of(path: Path) -> str:
    """The checksum of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_sha256(path: Path, expected: object) -> None:
    """Raise ValueError where the file's bytes have another checksum."""
    if sha256_of(path) != expected:
        raise ValueError(f"{path} does not have the bytes that were written: restore the file, or save again")


def tensor_header(path: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    """(shape, safetensors' name of the dtype) of every tensor of a safetensors file, which is as long as these say."""
    with reading(path), safe_open(require_file(path), framework="pt") as file:
        parts = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        return {name: (tuple(part.get_shape()), part.get_dtype()) for name, part in parts.items()}


def check_header(path: Path, shapes: Mapping[str, tuple[int, ...]], said_by: str) -> None:
    """Raise ValueError unless the safetensors file has exactly these tensors, of a floating dtype that weights have."""
    found = tensor_header(path)
    if set(found) != set(shapes):
        raise ValueError(f"{path} has the tensors {sorted(found)}, not {sorted(shapes)}")
    for name, (shape, dtype) in found.items():
        if shape != shapes[name]:
            raise ValueError(f"{name} in {path} has shape {shape}, {said_by} says {shapes[name]}")
        if dtype not in FLOATS:
            raise ValueError(f"{name} in {path} has dtype {dtype}; known: {', '.join(FLOATS)}")


def check_numbers(path: Path | str, name: str, value: Tensor, infinite: bool = False) -> None:
    """Raise ValueError for a NaN among what was read, or is to be written (or an infinity, unless those may be there)."""
    bad = torch.isnan(value) if infinite else ~torch.isfinite(value)
    if bool(bad.any()):
        raise ValueError(f"{name} in {path} has {int(bad.sum())} entries that are NaN{'' if infinite else ' or infinite'}")


def is_positive_integer(value: object) -> bool:
    """Whether a JSON value is a whole number above 0 (4.0 is one for writers that know no integers)."""
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and math.isfinite(value)
        and value >= 1
        and value == int(value)
    )
