"""Penalties on codes times row norms: folding, their quadratics, their solves."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from splinterp import PAMSGD, fit
from splinterp.decoder import DecoderStats, optimality_residual, solve_decoder
from splinterp.losses import Forward, RowNormL1, SquaredError, Tanh
from splinterp.training import StreamingPAMSGD, solver
from tests.helpers import rng, samples
from tests.losses.cases import make

X = samples(200, dtype=torch.float64)
PENALTIES = (RowNormL1(weight=0.3), Tanh(weight=0.2, steepness=2.0))
BY_NAME = {"ids": lambda term: term.name}


@pytest.mark.parametrize("term", PENALTIES, **BY_NAME)
@given(factors=st.lists(st.floats(1e-2, 1e2), min_size=32, max_size=32))
def test_folding_changes_nothing(term, factors):
    """w_i / c_i and z_i c_i: the same function, the same penalty."""
    sae, c = make("ReLU"), torch.tensor(factors, dtype=torch.float64)
    before, x_hat = term(Forward(sae, X[:20]), {}), sae(X[:20]).x_hat
    with torch.no_grad():
        sae.W_enc *= c
        sae.b_enc *= c
        sae.W_dec /= c[:, None]
    torch.testing.assert_close(sae(X[:20]).x_hat, x_hat)
    torch.testing.assert_close(term(Forward(sae, X[:20]), {}), before)


def test_values():
    sae = make("ReLU")
    sizes = sae.encode(X).detach() * sae.W_dec.detach().norm(dim=1)
    torch.testing.assert_close(RowNormL1()(Forward(sae, X), {}).detach(), sizes.sum(1).mean())
    torch.testing.assert_close(Tanh(steepness=3.0)(Forward(sae, X), {}).detach(), torch.tanh(3 * sizes).sum(1).mean())


@pytest.mark.parametrize("activation", ["ReLU", "TopK"])
@pytest.mark.parametrize("term", PENALTIES, **BY_NAME)
def test_the_quadratic_touches_from_above(term, activation):
    """N d_in times the penalty, less that quadratic, is largest at the current rows."""
    sae = make(activation)
    n, d = X.shape
    with torch.no_grad():
        strengths = term.row_ridge(sae, term.row_totals(Forward(sae, X)), n)
        rows = sae.W_dec.clone()

        def gap():
            return float(n * d * term(Forward(sae, X), {}) - (strengths * sae.W_dec.square().sum(1)).sum())

        here = gap()
        for seed in range(20):
            sae.W_dec.copy_(rows + 10 ** (-seed / 5) * torch.randn(rows.shape, generator=rng(seed), dtype=torch.float64))
            assert gap() <= here + 1e-9 * abs(here)


def objective(term, sae, ridge, prior):
    """Sums over samples: squared errors, ridge and penalty."""
    with torch.no_grad():
        squares = (X - sae(X).x_hat).square().sum() + ridge * (sae.W_dec - prior).square().sum()
        return float(squares + X.numel() * term.weight * term(Forward(sae, X), {}))


@pytest.mark.parametrize("decoder", ["free", "tied_residual"])
@pytest.mark.parametrize("ridge", [0.0, 3.0])
@pytest.mark.parametrize("term", PENALTIES, **BY_NAME)
def test_no_step_of_the_solve_raises_the_objective(term, ridge, decoder, monkeypatch):
    values = []
    for steps in range(1, 9):
        monkeypatch.setattr(solver, "ROW_STEPS", steps)
        sae = make("ReLU", decoder, m=12)
        prior = sae.W_enc.detach().T.clone() if decoder == "tied_residual" else torch.zeros(12, 8, dtype=torch.float64)
        method = PAMSGD(terms=(SquaredError(), term), ridge=ridge)
        state = method.init(sae, X)
        if not values:
            values.append(objective(term, sae, ridge, prior))
        method.decoder_step(sae, state, X.split(64))
        assert state.residual < 1e-8
        values.append(objective(term, sae, ridge, prior))
    assert all(value <= values[0] for value in values)
    if isinstance(term, RowNormL1):  # a tangent of tanh lies above it, so that only the tangents' sum falls at every step
        assert all(b <= a * (1 + 1e-12) for a, b in itertools.pairwise(values))
    plain = make("ReLU", decoder, m=12)
    method = PAMSGD(ridge=ridge)
    method.decoder_step(plain, method.init(plain, X), [X])
    assert values[5] < objective(term, plain, ridge, prior)


def test_many_steps_reach_the_minimum(monkeypatch):
    """The gradient of the penalised loss is then 0."""
    monkeypatch.setattr(solver, "ROW_STEPS", 3000)
    sae, term = make("ReLU", m=6), RowNormL1(weight=0.02)
    method = PAMSGD(terms=(SquaredError(), term), ridge=0.0)
    method.decoder_step(sae, method.init(sae, X), [X])
    method.loss(sae, X).backward()
    assert sae.W_dec.norm(dim=1).min() > 1e-3
    assert sae.W_dec.grad.abs().max() < 1e-6
    assert sae.b_dec.grad.abs().max() < 1e-12


def test_held_out_samples_and_streams():
    x, x_val = samples(200), samples(100, seed=4)
    terms = (SquaredError(), RowNormL1(weight=1e-2))
    for method in (PAMSGD(terms=terms, ridge="held_out"), StreamingPAMSGD(terms=terms, refresh_every=3)):
        result = fit(make("ReLU", dtype=torch.float32), x, method, epochs=2, x_val=x_val, generator=0)
        assert result.history[-1]["val_fvu"] < 1
    total = result.state.totals["RowNormL1"]
    assert total.shape == (32,)
    assert total.max() > 0


def test_a_stream_resumes_to_the_same_bits(tmp_path):
    """Its totals fade with its statistics, and are saved with them."""
    method = StreamingPAMSGD(terms=(SquaredError(), RowNormL1(weight=1e-2)), refresh_every=3)
    options = {"epochs": 4, "batch_size": 50, "generator": 0}

    def stop(row):
        if row["epoch"] == 3:
            raise KeyboardInterrupt

    x, path = samples(200), tmp_path / "run.pt"
    whole = fit(make("ReLU", dtype=torch.float32), x, method, **options)
    with pytest.raises(KeyboardInterrupt):
        fit(make("ReLU", dtype=torch.float32), x, method, checkpoint=path, callback=stop, **options)
    resumed = fit(make("ReLU", dtype=torch.float32), x, method, checkpoint=path, resume=True, **options)
    assert torch.equal(whole.sae.W_dec, resumed.sae.W_dec)
    assert torch.equal(whole.state.totals["RowNormL1"], resumed.state.totals["RowNormL1"])
    torch.testing.assert_close(whole.state.totals["RowNormL1"], whole.state.stats.mean_acts * whole.state.stats.n_samples)


def test_totals_are_sums_over_all_samples():
    sae, term = make("ReLU"), RowNormL1(weight=0.1)
    method = PAMSGD(terms=(SquaredError(), term), ridge=1.0)
    state = method.init(sae, X)
    for _ in range(2):  # a solve starts them anew
        method.decoder_step(sae, state, X.split(32))
        torch.testing.assert_close(state.totals["RowNormL1"], sae.encode(X).sum(0).detach())


@pytest.mark.parametrize("ridge", [0.0, 0.7])
@pytest.mark.parametrize("bias_ridge", [0.0, 5.0])
def test_row_ridge_is_augmented_least_squares(ridge, bias_ridge):
    g = rng(3)
    z, x = torch.rand(50, 6, generator=g, dtype=torch.float64), torch.randn(50, 4, generator=g, dtype=torch.float64)
    z[:, 5] = 0  # dead
    pulls = torch.tensor([0.0, 1.0, 1e7, 1e-3, 0.0, 0.0], dtype=torch.float64)
    prior, stats = torch.randn(6, 4, generator=g, dtype=torch.float64), DecoderStats(6, 4).update(z, x)
    solution = solve_decoder(stats, ridge=ridge, bias_ridge=bias_ridge, prior=prior, row_ridge=pulls)
    W, b = solution
    rows = np.block([
        [z.numpy(), np.ones((50, 1))],
        [np.sqrt(ridge) * np.eye(6), np.zeros((6, 1))],
        [np.diag(np.sqrt(pulls.numpy())), np.zeros((6, 1))],
        [np.zeros((1, 6)), np.sqrt(bias_ridge) * np.ones((1, 1))],
    ])  # fmt: skip
    right = np.concatenate([x.numpy(), np.sqrt(ridge) * prior.numpy(), np.zeros((7, 4))])
    expected = np.linalg.lstsq(rows, right, rcond=1e-12)[0]
    np.testing.assert_allclose(W.numpy(), expected[:-1], rtol=1e-9, atol=1e-11)
    np.testing.assert_allclose(b.numpy(), expected[-1], rtol=1e-9, atol=1e-11)
    if not bias_ridge:
        residual = optimality_residual(stats, solution, ridge=ridge, prior=prior, row_ridge=pulls)
        assert residual < 1e-12
    with pytest.raises(ValueError, match="a ridge for each latent must be finite"):
        solve_decoder(stats, ridge=1.0, row_ridge=torch.full((6,), torch.inf))


def test_rows_pulled_to_0_stay_finite():
    sae, term = make("ReLU", m=12), RowNormL1(weight=50.0)
    method = PAMSGD(terms=(SquaredError(), term), ridge=0.0)
    state = method.init(sae, X)
    for _ in range(4):
        method.decoder_step(sae, state, [X])
        assert torch.isfinite(sae.W_dec).all()
    assert sae.W_dec.norm(dim=1).max() < 1e-3
    torch.testing.assert_close(sae.b_dec.detach(), X.mean(0), rtol=1e-3, atol=1e-3)
