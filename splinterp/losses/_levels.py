"""What the terms with several nested codes share: their sizes and weights."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from splinterp._checks import at_least


def check_levels(name: str, levels: Sequence[int]) -> None:
    """Raise ValueError unless `levels` has ints of at least 1 that increase."""
    if not levels:
        raise ValueError(f"{name} is empty: pass at least one")
    at_least(f"the first of {name}", levels[0], 1)
    if any(later <= earlier for earlier, later in itertools.pairwise(levels)):
        raise ValueError(f"{name}={tuple(levels)} must increase")


def check_weights(weights: Sequence[float] | None) -> None:
    """Raise ValueError for a weight below 0, or where all are 0."""
    for weight in weights or ():
        at_least("each of weights", weight, 0.0)
    if weights is not None and not any(weights):
        raise ValueError(f"weights={tuple(weights)} leaves nothing to reconstruct: give one level a weight above 0")


def shares(weights: Sequence[float] | None, n: int) -> Sequence[float]:
    """The weights of n levels: those given, or equal ones that sum to 1."""
    return [1.0 / n] * n if weights is None else weights
