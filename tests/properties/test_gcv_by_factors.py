"""The ridge by Cholesky factors: scores and slopes are those of the definition, and the choice is a minimum of it."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from splinterp.decoder import gcv_ridge, solve_decoder
from splinterp.decoder._factored import GCVCurve, HeldOutCurve
from splinterp.decoder._search import GAIN
from tests.helpers import linear_problem, stats_of
from tests.properties.test_gcv import explicit_score

sizes = {"m": st.integers(2, 12), "d": st.integers(1, 5), "seed": st.integers(0, 10**6), "extra": st.integers(3, 40)}


@given(**sizes, power=st.floats(-3, 2), with_prior=st.booleans(), inflation=st.sampled_from([1.0, 1.4]))
def test_score_and_slope_are_those_of_the_definition(m, d, seed, extra, power, with_prior, inflation):
    z, x, Q = linear_problem(m + extra, m, d, seed)
    stats = stats_of(z, x)
    prior = Q if with_prior else None
    curve = GCVCurve(stats, prior, inflation)
    ridge = curve.mean * 10**power
    Qn = Q.numpy() if with_prior else np.zeros((m, d))

    def score(at):
        return explicit_score(z.numpy(), x.numpy(), at, Qn, inflation=inflation)[0]

    hat = explicit_score(z.numpy(), x.numpy(), ridge, Qn)[1] - 1
    assume(m + extra - 1 - inflation * hat > 0.1)
    point = curve.look(ridge)
    assert curve.looked[ridge] == pytest.approx(score(ridge), rel=1e-8)
    assert curve.df[ridge] == pytest.approx(1 + hat, rel=1e-9)
    assert curve.at_infinity() == pytest.approx(score(math.inf), rel=1e-9)
    h = 1e-4
    slope = (math.log(score(ridge * math.exp(h))) - math.log(score(ridge * math.exp(-h)))) / (2 * h)
    assert point.slope == pytest.approx(slope, abs=1e-5 + 1e-4 * abs(slope))
    if curve.falls_to_infinity():
        far = 1e7 * curve.mean
        assert score(far) >= score(math.inf) * (1 - 1e-9)


@given(**sizes, with_prior=st.booleans(), start=st.sampled_from([None, 1e-5, 1.0, 1e5, math.inf]))
def test_choice_is_a_local_minimum_of_the_definition(m, d, seed, extra, with_prior, start):
    z, x, Q = linear_problem(m + extra, m, d, seed)
    stats = stats_of(z, x)
    found = gcv_ridge(stats, Q if with_prior else None, search="factors", around=start)
    Qn = Q.numpy() if with_prior else np.zeros((m, d))

    def score(at):
        return explicit_score(z.numpy(), x.numpy(), at, Qn)[0]

    assert found.score == min(score for _, score in found.path)
    mean = float(stats.gram.diagonal().sum()) / m
    if stats._spectrum is not None or math.isinf(found.ridge) or not 1e-5 * mean < found.ridge < 1e3 * mean:
        return
    assert found.score == pytest.approx(score(found.ridge), rel=1e-7)
    around = [score(found.ridge * 10**power) for power in np.linspace(-0.5, 0.5, 21)]
    # the full-rank system leaves no doubt; an end of the window may lie in another valley
    assert found.score <= min(around) * (1 + 10 * GAIN) or min(around) in (around[0], around[-1])


@given(**sizes, power=st.floats(-3, 2))
def test_held_out_score_and_slope_are_those_of_the_solution(m, d, seed, extra, power):
    z, x, Q = linear_problem(m + extra, m, d, seed)
    z_out, x_out, _ = linear_problem(15, m, d, seed + 1)
    stats, held_out = stats_of(z, x), stats_of(z_out, x_out)

    def score(at):
        W, b = solve_decoder(stats_of(z, x), ridge=at, prior=Q)
        return float((x_out - z_out @ W - b).square().sum() / 15)

    step_z, step_x = held_out.mean_acts - stats.mean_acts, held_out.mean_x - stats.mean_x
    gram = held_out.gram.addr(step_z, step_z, alpha=15)
    cross = held_out.cross.addr(step_z, step_x, alpha=15)
    curve = HeldOutCurve(stats, Q, gram, gram @ Q - cross, 15 * score(math.inf), 15)
    ridge = curve.mean * 10**power
    point = curve.look(ridge)
    assert curve.looked[ridge] == pytest.approx(score(ridge), rel=1e-7)
    h = 1e-4
    slope = (math.log(score(ridge * math.exp(h))) - math.log(score(ridge * math.exp(-h)))) / (2 * h)
    assert point.slope == pytest.approx(slope, abs=1e-5 + 1e-3 * abs(slope))
