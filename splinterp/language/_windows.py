"""Rows around a row, and what their tokens are of the text."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from splinterp._typing import Int, Tensor
from splinterp.data.store import ActivationStore


def window(tokens: Int[Tensor, "N 3"] | ActivationStore, row: int, before: int, after: int) -> tuple[list[int], list[int]]:
    """(rows, token ids) around a row, of its own sequence. Raises IndexError: no such row."""
    if not 0 <= row < len(tokens):
        raise IndexError(f"row={row} is not one of 0 to {len(tokens) - 1}")
    start, stop = max(0, row - before), min(len(tokens), row + after + 1)
    near = tokens.tokens(start, stop) if isinstance(tokens, ActivationStore) else tokens[start:stop]
    same = near[:, 2] == near[row - start, 2]
    return [start + i for i in same.nonzero()[:, 0].tolist()], [int(t) for t in near[same, 0]]


def pieces_of(ids: list[int], tokenizer: Any) -> list[str]:
    """What each token adds to the text that they decode to in one piece; together they are that text. The last token of a character
    that is several has all of it."""
    whole = tokenizer.decode(ids)
    ends = [common(whole, tokenizer.decode(ids[: n + 1])) for n in range(len(ids))]
    if ends:
        ends[-1] = len(whole)
    bounds = [0, *(max(ends[: i + 1]) for i in range(len(ends)))]
    return [whole[a:b] for a, b in pairwise(bounds)]


def common(whole: str, beginning: str) -> int:
    """How many characters both begin with; the end of a beginning may still be half a character."""
    return next((i for i, (a, b) in enumerate(zip(whole, beginning, strict=False)) if a != b), min(len(whole), len(beginning)))
