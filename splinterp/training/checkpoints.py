"""Files of unfinished runs: written with checksums, looked at before anything is taken from them."""

from __future__ import annotations

import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import torch

from splinterp._files import FLOATS, reading, require_file

SAVED: dict[str, type | tuple[type, ...]] = {
    "plan": dict, "total": int, "sae": dict, "state": dict, "epoch": int, "step": int, "seconds": float, "history": list,
    "best": (dict, type(None)), "generator": torch.Tensor,
}  # fmt: skip
"""What a checkpoint holds."""


def save_summed(content: dict[str, Any], path: Path) -> None:
    """`torch.save` with the checksums that `read_checkpoint` compares, whatever torch is set to."""
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(True)
    try:
        torch.save(content, path)
    finally:
        torch.serialization.set_crc32_options(before)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """What `fit` wrote. Raises FileNotFoundError, and ValueError for a damaged file or another one."""
    with reading(path):
        try:
            with zipfile.ZipFile(require_file(path)) as archive:
                broken = archive.testzip()  # torch does not look at the checksums that it writes
        except (zipfile.BadZipFile, NotImplementedError, RuntimeError, zlib.error, EOFError, struct.error) as error:
            raise ValueError(f"{path} is no checkpoint, or is damaged ({error}): remove it to start anew") from error
        if broken is not None:
            raise ValueError(f"{path} is damaged (its part {broken}): remove it to start anew")
        saved = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(saved, dict) or not set(SAVED) <= set(saved):
            raise ValueError(f"{path} is no checkpoint of fit: it lacks {', '.join(sorted(set(SAVED) - set(saved)))}")
        if isinstance(saved["plan"], list):
            raise ValueError(f"{path} was written by an earlier version, which could not tell what data it was of: start anew")
        for name, kind in SAVED.items():
            if not isinstance(saved[name], kind) or isinstance(saved[name], bool):
                raise ValueError(f"{path} is no checkpoint of fit: its {name} is a {type(saved[name]).__name__}")
        for row in saved["history"]:
            numbers = isinstance(row, dict) and all(isinstance(value, int | float) for value in row.values())
            if not numbers or not {"epoch", "step", "val_fvu"} <= set(row):
                raise ValueError(f"{path} has the row {row!r} in its history, which fit does not write")
    return saved


def check_like(ours: dict[str, Any], theirs: dict[str, Any], what: str) -> None:
    """Raise ValueError unless the saved tensors have the names and shapes of ours, and are real numbers where ours are."""
    if set(ours) != set(theirs):
        raise ValueError(f"its {what} are {sorted(theirs)}, not {sorted(ours)}")
    for name, value in ours.items():
        if not isinstance(value, torch.Tensor):
            continue
        found = theirs[name]
        known = FLOATS.values() if value.is_floating_point() else (value.dtype,)
        if not isinstance(found, torch.Tensor) or found.shape != value.shape or found.dtype not in known:
            raise ValueError(f"{name} of its {what} does not fit: {value.dtype} {tuple(value.shape)} is expected")
