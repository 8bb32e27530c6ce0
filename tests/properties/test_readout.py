"""The readout: its scores are those of the definition, it is never worse than what it was given, its solution that of the solve."""

from __future__ import annotations

import math
import sys

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from splinterp.decoder import DecoderStats, held_out_ridge, readout, solve_decoder, squared_error
from splinterp.decoder._cholesky import factored
from splinterp.decoder.readout import CAUTION, DEGREE, Readout
from splinterp.decoder.ridge import HeldOutSums
from tests.helpers import linear_problem, rng, stats_of

sizes = {"n": st.integers(2, 40), "m": st.integers(1, 9), "d": st.integers(1, 5), "seed": st.integers(0, 10**6)}


def error(z, x, W, b):
    return float((x - z @ W - b).square().sum() / len(x))


@given(**sizes, n_out=st.integers(1, 20), with_prior=st.booleans(), far=st.sampled_from([0.0, 1.0, 100.0]), dead=st.booleans())
def test_a_readout_is_never_worse_on_the_held_out_samples_and_scores_are_those_of_the_definition(
    n, m, d, seed, n_out, with_prior, far, dead
):
    z, x, Q = linear_problem(n, m, d, seed)
    z_out, x_out, _ = linear_problem(n_out, m, d, seed + 1)
    z_out = z_out + far
    if dead:
        z[:, 0] = 0
    g = rng(seed)
    W, b = torch.randn(m, d, generator=g, dtype=torch.float64), torch.randn(d, generator=g, dtype=torch.float64)
    stats, held_out = stats_of(z, x), stats_of(z_out, x_out)
    assert squared_error(held_out, W, b) == pytest.approx(error(z_out, x_out, W, b), rel=1e-9)
    found = readout(stats, held_out, W, b, Q if with_prior else None)
    assert found.unsolved == pytest.approx(error(z_out, x_out, W, b), rel=1e-9)
    assert found.score <= found.unsolved
    assert found.score == pytest.approx(
        error(z_out, x_out, found.W_dec, found.b_dec), rel=1e-6, abs=1e-9 * (1 + found.unsolved)
    )
    if math.isnan(found.ridge):
        assert torch.equal(found.W_dec, W)
        assert torch.equal(found.b_dec, b)


@given(**sizes, n_out=st.integers(2, 20), with_prior=st.booleans(), ridge=st.sampled_from([None, 0.03, 1.0, 30.0, math.inf]))
def test_neither_the_ridge_solution_nor_other_weights_are_better(n, m, d, seed, n_out, with_prior, ridge):
    z, x, Q = linear_problem(n, m, d, seed)
    z_out, x_out, _ = linear_problem(n_out, m, d, seed + 1)
    stats, held_out = stats_of(z, x), stats_of(z_out, x_out)
    far = torch.full((m, d), 1e3, dtype=torch.float64)
    found = readout(stats, held_out, far, far[0], Q if with_prior else None, ridge=ridge)
    assume(not math.isnan(found.ridge))
    if ridge is not None and math.isfinite(ridge):
        assert found.ridge == ridge
    sources = [stats.cross, found.ridge * Q] if with_prior else [stats.cross]
    F = torch.linalg.inv(stats.gram + found.ridge * torch.eye(m, dtype=torch.float64))
    basis = [found.ridge**j * torch.linalg.matrix_power(F, j + 1) @ source for source in sources for j in range(DEGREE)]
    assert len(found.weights) == len(basis)

    first = [basis[0], basis[DEGREE]] if with_prior else basis[:1]
    caution = CAUTION * float(HeldOutSums.of(stats, held_out).gram.diagonal().mean()) / n_out

    def at(weights):
        W = sum(weight * part for weight, part in zip(weights, basis, strict=True))
        moved = float((W - sum(first)).square().sum())
        return error(z_out, x_out, W, x.mean(0) - z.mean(0) @ W), caution * moved

    alone, penalty = at(found.weights)
    slack = 1e-5 * (alone + penalty) + 1e-9
    assert alone == pytest.approx(found.score, rel=1e-4, abs=1e-7)
    assert found.score <= error(z_out, x_out, *solve_decoder(stats, ridge=found.ridge, prior=Q if with_prior else None)) + slack
    for i in range(len(basis)):
        for step in (0.1, -0.1):
            assert alone + penalty <= sum(at([w + step * (i == j) for j, w in enumerate(found.weights)])) + slack


def test_many_columns_are_weighed_by_combinations_of_them_nearly_as_well():
    g = rng(0)
    z, z_out = (torch.randn(n, 30, generator=g, dtype=torch.float64).relu() for n in (40, 60))
    truth = torch.randn(30, 300, generator=g, dtype=torch.float64)
    x, x_out = (code @ truth + 3 * torch.randn(len(code), 300, generator=g, dtype=torch.float64) for code in (z, z_out))
    Q = truth + torch.randn(30, 300, generator=g, dtype=torch.float64)
    stats, held_out = stats_of(z, x), stats_of(z_out, x_out)
    found = readout(stats, held_out, Q, x.mean(0), Q)
    again = readout(stats, held_out, Q, x.mean(0), Q)
    assert torch.equal(found.W_dec, again.W_dec)
    whole = [
        error(z_out[:, :], x_out, part, x.mean(0) - z.mean(0) @ part)
        for part in (solve_decoder(stats, ridge=found.ridge, prior=Q).W_dec, Q)
    ]
    assert found.score < min(whole)
    assert found.score == pytest.approx(error(z_out, x_out, found.W_dec, found.b_dec))
    narrow = stats_of(z, x[:, :100]), stats_of(z_out, x_out[:, :100])  # few enough to be used whole
    parts = readout(*narrow, Q[:, :100], x[0, :100], Q[:, :100], ridge=found.ridge)
    combined = error(z_out, x_out[:, :100], found.W_dec[:, :100], found.b_dec[:100])
    assert parts.score <= combined <= 1.02 * parts.score


def test_a_readout_helps_where_training_samples_promise_more_than_they_keep():
    """Codes that fit their own samples' noise: what the samples say has to be shrunk, and so has the prior."""
    g = rng(1)
    z, z_out = (torch.randn(200, 20, generator=g, dtype=torch.float64).relu() for _ in range(2))
    truth = torch.randn(20, 10, generator=g, dtype=torch.float64)
    Q = 1.5 * truth + 0.3 * torch.randn(20, 10, generator=g, dtype=torch.float64)
    stats, held_out = stats_of(z, 1.5 * (z @ truth)), stats_of(z_out, z_out @ truth)
    found = readout(stats, held_out, Q, torch.zeros(10, dtype=torch.float64), Q)
    assert found.score < 0.5 * held_out_ridge(stats, held_out, Q).score


def test_latents_that_never_fire_on_the_held_out_samples_are_not_carried_off(monkeypatch):
    """Weights that only cancel on the held-out samples: seldom firing latents of the training samples keep the prior's rows, say."""
    g = rng(4)
    z, z_out = (torch.randn(n, 40, generator=g, dtype=torch.float64).relu() for n in (60, 12))
    z[:, :20] *= torch.rand(60, 20, generator=g) < 0.05
    z_out[:, :20] = 0
    truth = torch.randn(40, 6, generator=g, dtype=torch.float64)
    stats, held_out = (stats_of(code, code @ truth + torch.randn(len(code), 6, generator=g)) for code in (z, z_out))
    Q = truth + torch.randn(40, 6, generator=g, dtype=torch.float64)

    def unseen():
        found = readout(stats, held_out, 0 * Q, truth[0], Q, ridge=0.1)
        return float((found.W_dec - truth)[:20].square().sum())

    cautious = unseen()
    assert cautious < 2 * float((solve_decoder(stats, ridge=0.1, prior=Q).W_dec - truth)[:20].square().sum())
    monkeypatch.setattr(sys.modules[Readout.__module__], "CAUTION", 0.0)
    assert unseen() > 4 * cautious


@pytest.mark.parametrize("broken", [1, 3])
def test_where_the_ridge_is_lost_in_rounding_a_larger_one_is_taken(monkeypatch, broken):
    z, x, Q = linear_problem(40, 5, 3, 0)
    stats, seen = stats_of(z, x), []

    def failing(gram, strength):
        seen.append(strength)
        return None if len(seen) <= broken else factored(gram, strength)

    monkeypatch.setattr(sys.modules[Readout.__module__], "factored", failing)
    found = readout(stats, stats, torch.zeros(5, 3), x[0], Q, ridge=0.01)
    assert found.ridge == pytest.approx(0.01 * 10**broken)


def test_the_decoder_that_was_given_wins_where_it_is_best():
    z, _, Q = linear_problem(40, 5, 3, 0)
    z_out, _, _ = linear_problem(40, 5, 3, 1)
    truth = torch.randn(5, 3, generator=rng(2), dtype=torch.float64)
    noise = torch.randn(40, 3, generator=rng(3), dtype=torch.float64)
    found = readout(
        stats_of(z, z @ truth + noise), stats_of(z_out, z_out @ truth + 1), truth, torch.ones(3, dtype=torch.float64), Q
    )
    assert math.isnan(found.ridge)
    assert found.score == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("code", ["the mean", "zeros"])
def test_codes_that_do_not_move_on_the_held_out_samples_leave_a_finite_decoder(code):
    z, x, Q = linear_problem(40, 5, 3, 0)
    fixed = z.mean(0).expand(6, 5) if code == "the mean" else torch.zeros(6, 5, dtype=torch.float64)
    held_out = DecoderStats(5, 3).update(fixed, x[:6])
    found = readout(stats_of(z, x), held_out, Q, x.mean(0), Q)
    assert found.score <= found.unsolved
    assert torch.isfinite(found.W_dec).all()


def test_codes_that_do_not_move_on_the_training_samples_leave_the_decoder_as_it_is():
    z, x, Q = linear_problem(40, 5, 3, 0)
    found = readout(stats_of(torch.zeros_like(z), x), stats_of(z, x), Q, x.mean(0), Q)
    assert torch.equal(found.W_dec, Q)
    assert math.isnan(found.ridge)


def test_what_does_not_fit_is_refused():
    z, x, Q = linear_problem(20, 5, 3, 0)
    stats = stats_of(z, x)
    with pytest.raises(ValueError, match="the statistics are empty"):
        readout(DecoderStats(5, 3), stats, Q, x[0])
    with pytest.raises(ValueError, match="W_dec"):
        readout(stats, stats, Q[:4], x[0])
    with pytest.raises(ValueError, match="b_dec"):
        readout(stats, stats, Q, x[0, :2])
    with pytest.raises(ValueError, match="ridge=-1.0 must be at least 0"):
        readout(stats, stats, Q, x[0], ridge=-1.0)
