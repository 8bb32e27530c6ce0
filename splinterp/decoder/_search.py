"""What every choice of a ridge shares: when scores count as equal, and the search along log(ridge)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from splinterp._typing import Tensor

LOWEST, HIGHEST = 1e-6, 1e4
"""Finite ridges that are looked at lie between these multiples of the mean positive eigenvalue."""
GAIN = 3e-4
"""Relative gain that a step must promise to be taken."""
TRUSTED, LARGEST = math.log(2), math.log(10)
"""A step up to the first, whose score is as foretold, ends the search without another look; none is longer than the second."""
LOOKS = 12
"""At most."""

ROUNDING = 32.0
"""A mean squared error is known to so many eps of the sums it is made of."""


def rounding_floor(squares: Tensor | float, n_samples: float, dtype: torch.dtype) -> float:
    """How far two mean squared errors over `n_samples` may differ by rounding alone, as differences of sums of that size."""
    return ROUNDING * torch.finfo(dtype).eps * float(squares) / n_samples


def level(score: float, at_infinity: float, floor: float) -> float:
    """The score, or the prior's where rounding alone could tell them apart."""
    return at_infinity if abs(score - at_infinity) <= floor else score


def least(path: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """The (ridge, score) of least score; of equal ones that of the largest ridge, so the prior wins a tie."""
    return min(path, key=lambda point: (point[1], -point[0]))


class DoubtError(Exception):
    """A score at a ridge that factors cannot tell well enough."""


class Point(NamedTuple):
    """A score at a ridge, and where its minimum should be: `slope` is the derivative of log(score) by log(ridge), `step` the way in
    log(ridge) to where that vanishes, by a model of the curve; `math.nan` where the model has no minimum."""

    slope: float
    step: float


def search(
    look: Callable[[float], Point],
    score: Callable[[float], float],
    start: float,
    mean: float,
    falls_to_infinity: Callable[[], bool],
) -> float:
    """A ridge whose score is within about `GAIN` of a local minimum's, by steps in log(ridge) that stay between what is known to
    fall and what is known to rise; `math.inf` where the score falls to infinity from where it was looked at.

    Args:
        look: what the score does at a ridge.
        score: the score at a ridge, which costs less.
        start: where to begin.
        mean: the mean positive eigenvalue.
        falls_to_infinity: whether infinity is a local minimum.
    """
    lowest, highest = math.log(LOWEST * mean), math.log(HIGHEST * mean)
    falls, rises = -math.inf, math.inf
    at = min(max(math.log(start), lowest), highest)
    for _ in range(LOOKS):
        slope, step = look(math.exp(at))
        trusted = abs(step) <= LARGEST and step * slope <= 0  # never where the step is NaN
        if slope < 0:
            falls = max(falls, at)
            if not trusted and falls_to_infinity():
                return math.inf
        else:
            rises = min(rises, at)
        if trusted and abs(slope * step) < 2 * GAIN:
            return math.exp(at)
        to = at + (step if trusted else -math.copysign(LARGEST, slope))
        if not falls < to < rises:
            to = (falls + rises) / 2  # both are known, for a step goes away from the one that was found last
        to = min(max(to, lowest), highest)
        if to == at:
            return math.exp(at)
        if trusted and abs(to - at) <= TRUSTED:
            gained = math.log(score(math.exp(at)) / score(math.exp(to)))
            if abs(gained + slope * (to - at) / 2) <= 2 * GAIN:  # as the model said, so it was right
                return math.exp(to)
        at = to
    return math.exp(at)
