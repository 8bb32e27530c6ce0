"""Hashes of what data are made from."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import torch

from splinterp.data import LanguageModel


def content_hash(parts: Iterable[Any]) -> str:
    """SHA-256 of tensors or bytes, dtypes and sizes included; 16 hexadecimal digits."""
    found = hashlib.sha256()
    for part in parts:
        if isinstance(part, torch.Tensor):
            part = part.detach().cpu().contiguous()
            found.update(f"{part.dtype}{tuple(part.shape)}".encode())
            part = part.view(-1).view(torch.uint8).numpy().data if part.numel() else b""
        found.update(len(part).to_bytes(8, "little"))
        found.update(part)
    return found.hexdigest()[:16]


def model_hash(model: LanguageModel) -> str:
    """Of the weights, whatever the layers are called."""
    return content_hash(sorted(content_hash([p]).encode() for p in model.model.parameters()))


def tokenizer_hash(tokenizer: Any) -> str:
    """Of all that a fast tokenizer does."""
    return content_hash([tokenizer.backend_tokenizer.to_str().encode()])
