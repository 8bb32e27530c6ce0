"""Which sequences go through a model together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from splinterp._checks import whole
from splinterp._typing import Tensor
from splinterp.data.language_model import LanguageModel

WORKING_BYTES = 2**28
"""Of one forward pass, roughly: what `batch_tokens=None` allows."""


def length_batches(ids: list[list[int]], batch_tokens: int) -> Iterator[list[int]]:
    """Indices of sequences of like length together, longest first, at most `batch_tokens` with padding (but one at least)."""
    order = sorted(range(len(ids)), key=lambda i: -len(ids[i]))
    while order:
        n = max(1, batch_tokens // len(ids[order[0]]))
        yield order[:n]
        order = order[n:]


def padded(ids: list[list[int]]) -> tuple[Tensor, Tensor]:
    """(token ids, attention mask), (n, longest); padded on the right with token 0, which the mask hides."""
    longest = max(map(len, ids))
    tokens = torch.zeros(len(ids), longest, dtype=torch.int64)
    mask = torch.zeros(len(ids), longest, dtype=torch.int64)
    for i, row in enumerate(ids):
        tokens[i, : len(row)] = torch.tensor(row)
        mask[i, : len(row)] = 1
    return tokens, mask


def batch_of(model: LanguageModel, sequences: Sequence[Sequence[int]], batch_tokens: int | None) -> int:
    """Tokens a forward pass over sequences, as asked for or as they fit. Raises ValueError: below 1, or a sequence that is too long."""
    longest = max(map(len, sequences))
    model.check_context(longest)
    return fitting_batch(model, longest) if batch_tokens is None else whole("batch_tokens", batch_tokens, 1)


def fitting_batch(model: LanguageModel, longest: int) -> int:
    """Tokens a forward pass whose widest values (a hidden layer of the MLP, a row of attention for each head) fit WORKING_BYTES."""
    config = model.text_config
    inner = _widest(config, "intermediate_size") or _widest(config, "n_inner") or 4 * model.d_model
    heads = _widest(config, "num_attention_heads") or 1
    size = torch.finfo(next(model.model.parameters()).dtype).bits // 8
    return max(longest, WORKING_BYTES // (size * (2 * inner + 4 * model.d_model + 2 * heads * longest)))


def _widest(config: Any, name: str) -> int:
    """A size of a configuration, the largest where it is one for each layer; 0 where it is not there."""
    value = getattr(config, name, None) or 0
    return max(map(int, value), default=0) if isinstance(value, list | tuple) else int(value)
