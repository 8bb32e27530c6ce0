"""Penalties beside L1: powers that fall, silent scores, norms of codes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from splinterp import SAE, SGD, JumpReLU, ReLU, TopK, fit
from splinterp.losses import L1, Forward, NormMatch, PAnneal, PreActs, SquaredError
from splinterp.metrics import evaluate
from tests.helpers import rng, samples
from tests.losses.cases import make, value_and_gradients

X = samples(40, dtype=torch.float64)


def test_the_power_falls_in_equal_stages():
    term = PAnneal(power=0.2, begin=10, until=20, stages=4)
    powers = [term.power_at(step) for step in range(25)]
    assert powers[:10] == [1.0] * 10
    assert powers[10] == pytest.approx(0.8)
    assert sorted(set(powers), reverse=True) == pytest.approx([1.0, 0.8, 0.6, 0.4, 0.2])
    assert [powers.index(p) for p in sorted(set(powers), reverse=True)] == [0, 10, 13, 15, 18]
    assert powers[20:] == pytest.approx([term.power] * 5)


def test_before_it_begins_it_is_l1():
    sae, term = make("ReLU"), PAnneal(begin=5, until=9)
    ours, theirs = value_and_gradients(term, sae, X), value_and_gradients(L1(), sae, X)
    torch.testing.assert_close(ours[0], theirs[0])
    for name in theirs[1]:
        torch.testing.assert_close(ours[1][name], theirs[1][name])


@given(power=st.floats(0.05, 0.95), stages=st.integers(1, 5), seed=st.integers(0, 100))
def test_the_penalty_does_not_jump_where_the_power_falls(power, stages, seed):
    sae = make("ReLU")
    out = Forward(sae, samples(20, seed=seed, dtype=torch.float64))
    term = PAnneal(power=power, begin=2, until=12, stages=stages)
    state, values = term.init(sae), []
    for _ in range(14):
        values.append(float(term(out, state).detach()))
        term.after(out, state)
    assert values == pytest.approx([values[0]] * 14, rel=1e-6)
    assert float(state["scale"]) != 1.0


def test_row_norms_make_powers_a_matter_of_the_map():
    sae, term = make("ReLU"), PAnneal(power=0.5, begin=0, until=1, stages=1, row_norms=True)
    before = value_and_gradients(term, sae, X)[0]
    plain = value_and_gradients(PAnneal(power=0.5, begin=0, until=1, stages=1), sae, X)[0]
    with torch.no_grad():
        for p in (sae.W_enc, sae.b_enc):
            p.mul_(3.0)
        sae.W_dec.div_(3.0)
    torch.testing.assert_close(value_and_gradients(term, sae, X)[0], before)
    assert value_and_gradients(PAnneal(power=0.5, begin=0, until=1, stages=1), sae, X)[0] > 1.5 * plain


@pytest.mark.parametrize("activation", ["ReLU", "JumpReLU"])
def test_gradients_of_powers_are_finite_where_nothing_fires(activation):
    sae, term = make(activation), PAnneal(power=0.3, begin=0, until=1, stages=1)
    with torch.no_grad():
        sae.b_enc[::2] -= 100.0
    _, gradients = value_and_gradients(term, sae, X)
    assert all(torch.isfinite(gradient).all() for gradient in gradients.values())
    assert gradients["W_enc"][:, ::2].abs().max() == 0
    assert gradients["W_enc"][:, 1::2].abs().max() > 0


def test_small_codes_are_pulled_harder_than_by_l1():
    x, share = samples(300), []
    for term in (L1(weight=0.03), PAnneal(weight=0.03, power=0.3, begin=50, until=100)):
        sae = SAE(8, 32, ReLU(), generator=rng(1))
        fit(sae, x, SGD(lr=1e-2, terms=(SquaredError(), term)), epochs=40, batch_size=32, generator=0)
        share.append(evaluate(sae, x).l0)
    assert share[1] < 0.9 * share[0]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"power": 1.0}, "use L1"),
        ({"power": 0.0}, "between 0 and 1"),
        ({"begin": -1}, "begin=-1"),
        ({"until": 3}, "until=3"),
        ({"stages": 0}, "stages=0"),
    ],
)
def test_powers_out_of_range_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        PAnneal(**{"begin": 3, "until": 9, **options})


@pytest.mark.parametrize("term", [PAnneal(begin=0, until=1), PreActs()])
def test_a_fixed_number_of_latents_takes_no_penalty(term):
    with pytest.raises(ValueError, match="fixes it by k"):
        SGD(terms=(SquaredError(), term)).init(SAE(8, 12, TopK(2)), X.float())


@pytest.mark.parametrize(("activation", "theta"), [(ReLU(), 0.0), (JumpReLU(threshold=0.4), 0.4)])
def test_silent_scores_pull_towards_firing(activation, theta):
    sae = SAE(8, 12, activation, generator=rng(1), dtype=torch.float64)
    value, gradients = value_and_gradients(PreActs(), sae, X)
    below = torch.relu(theta - sae.pre_acts(X))
    torch.testing.assert_close(value, (below * sae.W_dec.norm(dim=1)).sum(1).mean().detach())
    assert (gradients["b_enc"] <= 0).all()
    assert (gradients["b_enc"] < 0).any()
    if theta:
        assert (gradients["activation.log_threshold"] >= 0).all()


@pytest.mark.parametrize("activation", ["ReLU", "TopK", "AbsTopK"])
def test_norms_match_by_definition_and_at_silence(activation):
    sae = make(activation)
    value, _ = value_and_gradients(NormMatch(), sae, X)
    sizes = (sae.encode(X) * sae.W_dec.norm(dim=1)).norm(dim=1)
    expected = (sizes - (X - sae.b_dec).norm(dim=1)).square().mean() / 8
    torch.testing.assert_close(value, expected.detach())
    with torch.no_grad():
        sae.W_enc.zero_()
        sae.b_enc.fill_(0.0)
    _, gradients = value_and_gradients(NormMatch(), sae, X)
    assert all(torch.isfinite(gradient).all() for gradient in gradients.values())
