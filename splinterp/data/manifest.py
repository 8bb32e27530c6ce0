"""What a folder of activations says of itself, and whether its files are what it says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from splinterp._checks import at_least, one_of
from splinterp._files import entry, read_object, require_file, sha256_of, unsealed
from splinterp._typing import Tensor

FORMAT, MANIFEST = "splinterp-activations-1", "manifest.json"
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def in_dtype(values: Tensor, dtype: torch.dtype) -> Tensor:
    """The values in a dtype. Raises ValueError if a finite one becomes infinite there; what is not finite already stays."""
    found = values.to(dtype)
    lost = ~torch.isfinite(found) & torch.isfinite(values)
    if lost.any():
        largest = float(values[lost].abs().max())
        wide = "torch.float32" if dtype == torch.bfloat16 else "torch.bfloat16 or torch.float32"
        name = str(dtype).removeprefix("torch.")
        raise ValueError(
            f"{int(lost.sum())} activations, the largest {largest:.4g}, do not fit {name}, which ends at {torch.finfo(dtype).max:.6g}: "
            f"take dtype={wide if dtype != torch.float32 else 'torch.float32 and scale them down'}"
        )
    return found


class CorruptStoreError(RuntimeError):
    """A shard is missing, has another size than the manifest says, or other bytes."""


def check_sizes(folder: Path, shard: dict[str, Any], manifest: dict[str, Any]) -> None:
    for key in ("activations", "tokens"):
        path = folder / shard[key]["file"]
        if not path.exists():
            raise CorruptStoreError(
                f"{path} is missing: the manifest names it; extract again into an empty folder, or restore it"
            )
        require_file(path)
        if path.stat().st_size != shard[key]["bytes"]:
            raise CorruptStoreError(
                f"{path} has {path.stat().st_size} bytes, the manifest says {shard[key]['bytes']}: restore the file"
            )


def check_bytes(folder: Path, file: dict[str, Any]) -> None:
    """Raises CorruptStoreError unless a file of a shard has the checksum that the manifest says."""
    path = folder / file["file"]
    if sha256_of(path) != file["sha256"]:
        raise CorruptStoreError(f"{path} does not have the bytes that were written: restore the file or extract again")


def read_manifest(path: Path) -> dict[str, Any]:
    """A store's manifest, without its checksum.

    Raises:
        FileNotFoundError: there is none.
        ValueError: another format, entries of wrong types, files outside the store's folder, sizes that contradict each other.
    """
    content = read_object(path)
    if content.get("format") != FORMAT:
        raise ValueError(f"{path} is not of the format {FORMAT!r}")
    for name, kind in {"d_in": int, "dtype": str, "about": dict, "complete": bool, "shards": list}.items():
        entry(path, content, name, kind)
    at_least(f"{path} has d_in", content["d_in"], 1)
    one_of(f"{path} has dtype", content["dtype"], DTYPES)
    item = DTYPES[content["dtype"]].itemsize
    for i, shard in enumerate(content["shards"]):
        if not isinstance(shard, dict):
            raise ValueError(f"{path} has shard {i} as a {type(shard).__name__}, not an object")
        at_least(f"{path} has in shard {i} rows", entry(path, shard, "rows", int), 0)
        for key, row in (("activations", content["d_in"] * item), ("tokens", 12)):
            part = entry(path, shard, key, dict)
            name, size = entry(path, part, "file", str), entry(path, part, "bytes", int)
            entry(path, part, "sha256", str)
            if name in ("", ".", "..") or set(name) & {"/", "\\", "\0"}:
                raise ValueError(f"{path} names the file {name!r}: only files of its own folder are read")
            if size != shard["rows"] * row:
                raise ValueError(f"{path} has {size} bytes for the {shard['rows']} rows of {name}, not {shard['rows'] * row}")
    return unsealed(path, content)
