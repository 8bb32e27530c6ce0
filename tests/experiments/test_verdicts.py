"""Verdicts along a penalty: the control that validation prefers, on its curve, seed by seed."""

from __future__ import annotations

import math

import pytest

from experiments.grid import CONTROLS
from experiments.verdicts import matched


def row(method, strength, l0, fvu, val=None, part="relu"):
    """A row of two seeds; errors on validation samples are the test's unless given."""
    points = [(l0, fvu), (1.1 * l0, 1.2 * fvu)]
    return {
        "part": part, "n_train": 500, "method": method, "options": {"l1": strength},
        "by_seed": {"test": points, "val": points if val is None else [(l0, val), (1.1 * l0, 1.2 * val)]},
    }  # fmt: skip


def curve(method, factor, val=None):
    """Error is factor / sqrt(l0), which is straight in logarithms."""
    return [
        row(method, 1 / l0, l0, factor / math.sqrt(l0), None if val is None else val / math.sqrt(l0))
        for l0 in (4.0, 16.0, 64.0)
    ]


def test_the_control_that_validation_prefers_is_compared_at_equal_l0():
    rows = [*curve(CONTROLS[0], 1.0, val=1.1), *curve(CONTROLS[1], 1.2, val=0.9), row("PAM", 0.1, 10.0, 0.9 / math.sqrt(10.0))]
    (found,) = matched(rows)
    assert found["control"] == CONTROLS[1]
    # the second seed's points are 1.2 times as high and its curve is shifted in l0 alike
    assert found["log_ratio"][0] == pytest.approx(math.log(0.9 / 1.2))
    assert found["verdict"] == "better"
    (found,) = matched([*rows[:-1], row("PAM", 0.1, 10.0, 1.3 / math.sqrt(10.0))])
    assert found["verdict"] == "worse"


def test_controls_that_do_not_reach_the_l0_take_no_part():
    rows = [*curve(CONTROLS[0], 0.5), *curve(CONTROLS[1], 1.2), row(CONTROLS[1], 0.001, 200.0, 1.2 / math.sqrt(200.0))]
    (found,) = matched([*rows, row("PAM", 0.1, 150.0, 1 / math.sqrt(150.0))])
    assert found["control"] == CONTROLS[1]
    (found,) = matched([*rows, row("PAM", 0.1, 1.0, 1.0)])
    assert found["control"] is None
    assert found["verdict"] == "no equal l0"
    assert math.isnan(found["log_ratio"][0])
    (found,) = matched([*rows, row("PAM", 0.1, math.nan, math.inf)])
    assert found["verdict"] == "worse"
    (found,) = matched([*rows, row("PAM", 0.1, 0.0, 1.0)])
    assert found["verdict"] == "no active latents"
    lost = row(CONTROLS[0], 9.0, math.nan, math.inf)  # a run that diverged is no point of a curve
    (found,) = matched([*curve(CONTROLS[0], 1.0), lost, row("PAM", 0.1, 10.0, 0.9 / math.sqrt(10.0))])
    assert found["verdict"] == "better"


def test_parts_and_sizes_are_kept_apart():
    other = [{**r, "part": "jumprelu"} for r in curve(CONTROLS[0], 0.1)]
    smaller = [{**r, "n_train": 50} for r in curve(CONTROLS[0], 0.1)]
    (found,) = matched([*curve(CONTROLS[0], 1.0), *other, *smaller, row("PAM", 0.1, 10.0, 0.9 / math.sqrt(10.0))])
    assert found["log_ratio"][0] == pytest.approx(math.log(0.9))
    assert matched([{**row("PAM", 0.1, 1.0, 1.0), "part": "sizes"}]) == []


def test_what_a_curve_may_bend_is_no_verdict():
    bent = [row(CONTROLS[0], 1 / l0, l0, fvu) for l0, fvu in ((4.0, 0.5), (16.0, 0.2), (64.0, 0.18))]
    (found,) = matched([*bent, row("PAM", 0.1, 30.0, 0.19)])
    chord = math.log(0.19) - math.log(0.2) - math.log(0.18 / 0.2) * math.log(30 / 16) / math.log(4)
    assert found["log_ratio"][0] == pytest.approx(chord)
    assert found["log_ratio"][1] > 0.003
    assert found["verdict"] == "undecided"
    (found,) = matched([*bent, row("PAM", 0.1, 16.0, 0.19)])  # at a point of it
    assert found["verdict"] == "better"
    (found,) = matched([*bent[:2], row("PAM", 0.1, 9.0, 0.1)])  # two points say nothing about bends
    assert found["verdict"] == "undecided"
