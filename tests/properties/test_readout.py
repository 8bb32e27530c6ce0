"""The readout: its scores are those of the definition, it is never worse than what it was given, its solution that of the solve."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from splinterp.decoder import DecoderStats, held_out_ridge, readout, solve_decoder, squared_error
from splinterp.decoder.readout import held_out_scale
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
    prior = Q if with_prior else None
    found = readout(stats, held_out, W, b, prior)
    assert found.unsolved == pytest.approx(error(z_out, x_out, W, b), rel=1e-9)
    assert found.score <= found.unsolved
    assert found.score == pytest.approx(
        error(z_out, x_out, found.W_dec, found.b_dec), rel=1e-6, abs=1e-9 * (1 + found.unsolved)
    )
    assert found.score <= held_out_ridge(stats, held_out, prior).score * (1 + 1e-9)
    if math.isnan(found.ridge):
        assert torch.equal(found.W_dec, W)
        assert torch.equal(found.b_dec, b)
    elif math.isfinite(found.ridge) and found.ridge > 1e-6:
        expected = solve_decoder(stats, ridge=found.ridge, prior=None if prior is None else found.scale * prior)
        torch.testing.assert_close(found.W_dec, expected.W_dec, rtol=1e-5, atol=1e-7)


@given(**sizes, n_out=st.integers(2, 20))
def test_the_scale_is_the_best_of_the_prior_alone(n, m, d, seed, n_out):
    z, x, Q = linear_problem(n, m, d, seed)
    z_out, x_out, _ = linear_problem(n_out, m, d, seed + 1)
    stats, held_out = stats_of(z, x), stats_of(z_out, x_out)
    scale = held_out_scale(stats, held_out, Q)

    def at(s):
        return error(z_out, x_out, s * Q, x.mean(0) - z.mean(0) @ (s * Q))

    assert at(scale) <= min(at(scale + 0.01), at(scale - 0.01), at(1.0)) * (1 + 1e-9)


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
def test_codes_that_do_not_move_on_the_held_out_samples_have_no_scale(code):
    z, x, Q = linear_problem(40, 5, 3, 0)
    fixed = z.mean(0).expand(6, 5) if code == "the mean" else torch.zeros(6, 5, dtype=torch.float64)
    held_out = DecoderStats(5, 3).update(fixed, x[:6])
    found = readout(stats_of(z, x), held_out, Q, x.mean(0), Q)
    assert found.score <= found.unsolved
    assert 0.1 <= found.scale <= 10


def test_what_does_not_fit_is_refused():
    z, x, Q = linear_problem(20, 5, 3, 0)
    stats = stats_of(z, x)
    with pytest.raises(ValueError, match="the statistics are empty"):
        readout(DecoderStats(5, 3), stats, Q, x[0])
    with pytest.raises(ValueError, match="W_dec"):
        readout(stats, stats, Q[:4], x[0])
    with pytest.raises(ValueError, match="b_dec"):
        readout(stats, stats, Q, x[0, :2])
