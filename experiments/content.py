"""Hashes of what data are made from."""

from __future__ import annotations

from typing import Any

from splinterp._content import content_hash
from splinterp.data import LanguageModel


def model_hash(model: LanguageModel) -> str:
    """Of the weights, whatever the layers are called."""
    return content_hash(sorted(content_hash([p]).encode() for p in model.model.parameters()))


def tokenizer_hash(tokenizer: Any) -> str:
    """Of all that a fast tokenizer does."""
    return content_hash([tokenizer.backend_tokenizer.to_str().encode()])
