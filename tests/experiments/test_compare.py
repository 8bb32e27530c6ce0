from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from experiments.compare import Interval, log_ratio, log_ratio_at, t_interval, verdict


def test_t_interval_equals_scipy():
    values = [0.3, 0.35, 0.31, 0.4]
    found = t_interval(values)
    low, high = stats.t.interval(0.95, 3, loc=np.mean(values), scale=stats.sem(values))
    assert (found.low, found.high) == pytest.approx((low, high))
    assert math.isnan(t_interval([1.0]).half)
    with pytest.raises(ValueError, match="no values"):
        t_interval([])


def test_log_ratio_is_paired():
    control = np.array([0.2, 0.4, 0.8])
    found = log_ratio(list(0.9 * control), list(control))
    assert found.mean == pytest.approx(math.log(0.9))
    assert found.half == pytest.approx(0, abs=1e-12)
    with pytest.raises(ValueError, match="same seeds"):
        log_ratio([1.0], [1.0, 2.0])


@pytest.mark.parametrize(
    ("mean", "half", "expected"),
    [
        (0.02, 0.01, "worse"),
        (-0.02, 0.01, "better"),
        (0.0, 0.005, "not worse"),
        (-0.02, 0.025, "not worse"),
        (0.0, 0.02, "undecided"),
        (0.005, 0.006, "undecided"),
        (-0.5, math.nan, "undecided"),
        (math.inf, math.nan, "worse"),
        (-math.inf, math.nan, "better"),
        (math.nan, math.nan, "undecided"),
    ],
)
def test_verdicts(mean, half, expected):
    assert verdict(Interval(mean, half)) == expected


def test_errors_are_compared_on_a_curve():
    curve = [(4.0, 0.4), (16.0, 0.2)]
    assert log_ratio_at(4.0, 0.4, curve) == pytest.approx(0.0)
    assert log_ratio_at(8.0, 0.3, curve) == pytest.approx(math.log(0.3 / math.sqrt(0.08)))
    assert math.isnan(log_ratio_at(2.0, 0.3, curve))
    assert math.isnan(log_ratio_at(8.0, 0.3, curve[:1]))
    assert math.isnan(log_ratio_at(0.0, 0.3, curve))
