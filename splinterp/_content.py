"""Hashes of what tensors hold."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import torch

from splinterp._typing import Tensor

PIECE = 2**22
"""Entries that are copied from another device, and hashed, at a time."""


def content_hash(parts: Iterable[Tensor | bytes]) -> str:
    """SHA-256 of tensors or bytes, dtypes and shapes included; 16 hexadecimal digits."""
    found = hashlib.sha256()
    for part in parts:
        _add(found, part)
    return found.hexdigest()[:16]


def hash_of(value: Tensor) -> str:
    """`content_hash` of one tensor."""
    found = hashlib.sha256()
    _add(found, value)
    return found.hexdigest()[:16]


def _add(found: Any, part: Tensor | bytes) -> None:
    if isinstance(part, bytes):
        found.update(len(part).to_bytes(8, "little"))
        found.update(part)
        return
    part = part.detach()
    found.update(f"{part.dtype}{tuple(part.shape)}".encode())
    found.update((part.numel() * part.element_size()).to_bytes(8, "little"))
    for piece in part.reshape(-1).split(PIECE) if part.numel() else ():
        found.update(piece.cpu().contiguous().view(torch.uint8).numpy().data)
