"""Comparing methods over paired seeds: intervals and verdicts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats
from scipy.interpolate import PchipInterpolator

NOT_WORSE = math.log(1.01)
"""A method is not worse if the upper end of the interval of its log ratio lies below this."""


class Interval(NamedTuple):
    """Mean with its 95 % t interval; the half-width is NaN for a single value."""

    mean: float
    half: float

    @property
    def low(self) -> float:
        return self.mean - self.half

    @property
    def high(self) -> float:
        return self.mean + self.half


def t_interval(values: Sequence[float]) -> Interval:
    """Mean and half-width of the two-sided 95 % t interval."""
    v = np.asarray(values, dtype=float)
    if len(v) == 0:
        raise ValueError("no values to average")
    if len(v) == 1 or not np.isfinite(v).all():
        return Interval(float(v.mean()), math.nan)
    half = stats.t.ppf(0.975, len(v) - 1) * v.std(ddof=1) / math.sqrt(len(v))
    return Interval(float(v.mean()), float(half))


def log_ratio(ours: Sequence[float], control: Sequence[float]) -> Interval:
    """Interval of log(ours / control), paired: entry i of both has the same seed."""
    if len(ours) != len(control):
        raise ValueError(f"{len(ours)} values against {len(control)}: pairing needs the same seeds")
    with np.errstate(divide="ignore", invalid="ignore"):
        return t_interval(list(np.log(np.asarray(ours, float)) - np.log(np.asarray(control, float))))


def verdict(ratio: Interval) -> str:
    """ "worse" (interval above 0), "better" (below 0), "not worse" (upper end below log 1.01), else "undecided"."""
    if math.isinf(ratio.mean):  # a seed of one side diverged
        return "worse" if ratio.mean > 0 else "better"
    if math.isnan(ratio.half):
        return "undecided"
    if ratio.low > 0:
        return "worse"
    if ratio.high < 0:
        return "better"
    return "not worse" if ratio.high < NOT_WORSE else "undecided"


def log_ratio_at(l0: float, error: float, curve: Iterable[tuple[float, float]]) -> float:
    """log(error / the error of `curve` at this l0); curve has (l0, error) pairs, joined in logarithms. NaN further than 2 % outside it, and
    for an error that diverged."""
    pairs = _in_logarithms(curve)
    if len(pairs) < 2 or not _reaches(pairs, l0) or not math.isfinite(error):
        return math.nan
    return math.log(error) - float(np.interp(math.log(l0), [a for a, _ in pairs], [b for _, b in pairs]))


def bend_at(l0: float, curve: Iterable[tuple[float, float]]) -> float:
    """How far a smooth monotone curve through the same points is from their chord at this l0, in log error: what `log_ratio_at` may be
    wrong by. Infinite where there are two points alone."""
    pairs = _in_logarithms(curve)
    if len(pairs) < 3 or not _reaches(pairs, l0):
        return math.inf
    x, y = (np.array(values) for values in zip(*pairs, strict=True))
    at = float(np.clip(math.log(l0), x[0], x[-1]))
    return abs(float(PchipInterpolator(x, y)(at)) - float(np.interp(at, x, y)))


def _in_logarithms(curve: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """(log l0, log error), one error for each l0; without points that diverged or have no active latents."""
    found = {math.log(a): math.log(b) for a, b in curve if a > 0 and math.isfinite(a) and math.isfinite(b)}
    return sorted(found.items())


def _reaches(pairs: Sequence[tuple[float, float]], l0: float) -> bool:
    return l0 > 0 and pairs[0][0] - 0.02 <= math.log(l0) <= pairs[-1][0] + 0.02
