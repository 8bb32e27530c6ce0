"""The terms of a gated SAE: their formulas, what their gradients reach, the solve that sees one of them."""

from __future__ import annotations

import pytest
import torch

from splinterp import PAMSGD, SAE, SGD, ReLU, fit
from splinterp.encoders import Gated
from splinterp.losses import GateError, GateL1, GateReconstruction, SquaredError
from splinterp.metrics import evaluate
from tests.encoders.cases import make
from tests.helpers import DECODERS, rng, samples
from tests.losses.cases import value_and_gradients

X = samples(60, dtype=torch.float64)


@pytest.mark.parametrize("decoder", DECODERS)
def test_values_are_the_formulas(decoder):
    sae = make("Gated", decoder)
    gate = torch.relu((X - sae.b_pre) @ sae.W_enc + sae.b_enc)
    error = (X - gate @ sae.W_dec - sae.b_dec).square().mean()
    torch.testing.assert_close(value_and_gradients(GateL1(), sae, X)[0], gate.sum(1).mean().detach())
    norms = sae.W_dec.norm(dim=1)
    torch.testing.assert_close(value_and_gradients(GateL1(row_norms=True), sae, X)[0], (gate * norms).sum(1).mean().detach())
    for term in (GateError(), GateReconstruction()):
        torch.testing.assert_close(value_and_gradients(term, sae, X)[0], error.detach())


@pytest.mark.parametrize("decoder", ["free", "tied_residual"])
def test_the_penalty_cannot_be_escaped_by_the_rows_norms(decoder):
    moved = value_and_gradients(GateL1(row_norms=True), make("Gated", decoder), X)[1]
    assert {name for name, gradient in moved.items() if gradient.abs().max() > 0} == {"W_enc", "b_enc"}
    sae = SAE(8, 24, ReLU(), decoder, encoder=Gated(), generator=0)
    terms = (SquaredError(), GateError(), GateL1(weight=0.1, row_norms=True))
    before = float(sae.W_dec.detach().norm(dim=1).mean())
    fit(sae, X.float(), SGD(lr=1e-2, terms=terms), epochs=200, batch_size=30, generator=0)
    assert float(sae.W_dec.detach().norm(dim=1).mean()) > before / 3


@pytest.mark.parametrize(("decoder", "moved"), [("free", {"W_enc", "b_enc"}), ("tied_residual", {"W_enc", "b_enc"})])
def test_the_held_error_moves_the_gate_alone(decoder, moved):
    _, gradients = value_and_gradients(GateError(), make("Gated", decoder), X)
    assert {name for name, gradient in gradients.items() if gradient.abs().max() > 0} == moved
    _, gradients = value_and_gradients(GateReconstruction(), make("Gated", "free"), X)
    assert {name for name, gradient in gradients.items() if gradient.abs().max() > 0} == {"W_enc", "b_enc", "W_dec", "b_dec"}


def test_equal_biases_make_the_gates_error_the_main_one():
    sae = make("Gated")
    with torch.no_grad():
        sae.r_mag.zero_()
        sae.b_mag.copy_(sae.b_enc)
    torch.testing.assert_close(value_and_gradients(GateError(), sae, X)[0], value_and_gradients(SquaredError(), sae, X)[0])


def test_no_gradient_of_the_squared_error_reaches_the_gates_bias_otherwise():
    _, gradients = value_and_gradients(SquaredError(), make("Gated"), X)
    sae = make("Gated")
    pre = (X - sae.b_pre) @ sae.W_enc + sae.b_enc
    fires, magnitude = (pre > 0).detach(), sae.r_mag.exp() * (pre - sae.b_enc) + sae.b_mag
    loss = (X - (fires * torch.relu(magnitude)) @ sae.W_dec - sae.b_dec).square().mean()
    expected = torch.autograd.grad(loss, [sae.b_enc, sae.b_mag, sae.r_mag])
    assert expected[0].abs().max() < 1e-15
    for name, value in zip(("b_enc", "b_mag", "r_mag"), expected, strict=True):
        torch.testing.assert_close(gradients[name], value)


@pytest.mark.parametrize("term", [GateL1(), GateError(), GateReconstruction()])
def test_a_model_without_a_gate_is_refused(term):
    with pytest.raises(TypeError, match="encoder=Gated"):
        SGD(terms=(SquaredError(), term)).init(SAE(8, 12, ReLU()), X.float())


@pytest.mark.parametrize("method", [SGD, PAMSGD])
def test_a_larger_penalty_makes_fewer_fire(method):
    l0s = []
    for weight in (1e-3, 1e-1):
        sae = SAE(8, 32, ReLU(), "tied_residual", encoder=Gated(), generator=rng(1))
        fit(sae, X.float(), method(lr=1e-2, terms=(SquaredError(), GateError(), GateL1(weight=weight))), epochs=40, batch_size=16,
            x_val=samples(40, seed=3), generator=0)  # fmt: skip
        l0s.append(evaluate(sae, X.float()).l0)
    assert l0s[1] < 0.8 * l0s[0]


def test_the_solve_sees_the_error_of_the_gate_where_the_decoder_learns_from_it():
    """Both codes stacked, against least squares."""
    sae = make("Gated")
    method = PAMSGD(terms=(SquaredError(), GateReconstruction(weight=0.5)), ridge=0.0)
    state = method.init(sae, X)
    with torch.no_grad():
        z, gate = sae.encode(X), torch.relu(sae.pre_acts(X))
    method.decoder_step(sae, state, X.split(20))
    rows = torch.cat([torch.cat([z, torch.ones(60, 1)], 1), 0.5**0.5 * torch.cat([gate, torch.ones(60, 1)], 1)]).double()
    solution = torch.linalg.lstsq(rows, torch.cat([X, 0.5**0.5 * X])).solution
    torch.testing.assert_close(sae.W_dec.detach(), solution[:-1], atol=1e-8, rtol=1e-8)
    torch.testing.assert_close(sae.b_dec.detach(), solution[-1], atol=1e-8, rtol=1e-8)
