"""Ensembles: what they are as one SAE, and that the joint solve is never worse on the samples it is of."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from splinterp import SAE, SGD, ReLU, TopK, fit
from splinterp.ensembles import Ensemble, bag, boost
from splinterp.metrics import evaluate
from tests.helpers import ACTIVATIONS, DECODERS, rng, samples

X = samples(300, dtype=torch.float64)


def member(seed, activation="TopK", decoder="free", x=X):
    sae = SAE(8, 12, ACTIVATIONS[activation], decoder, generator=rng(seed), dtype=torch.float64)
    with torch.no_grad():
        sae.b_dec.copy_(x.mean(0))
        sae.b_pre.copy_(x.mean(0))
    return sae.calibrate(x).eval()


def error(model, x=X):
    return float((x - model.run(x)[0]).square().sum())


@given(
    n=st.integers(1, 3), kind=st.sampled_from(["bagging", "boosting"]), seed=st.integers(0, 10**6),
    activation=st.sampled_from(list(ACTIVATIONS)), decoder=st.sampled_from(DECODERS), ridge=st.sampled_from([0.0, 1.0, "gcv"]),
)  # fmt: skip
def test_the_joint_solve_is_never_worse(n, kind, seed, activation, decoder, ridge):
    ensemble = Ensemble([member(seed + i, activation, decoder) for i in range(n)], kind)
    before = error(ensemble)
    codes = ensemble.encode(X)
    assert error(ensemble.solve(X, ridge)) <= before * (1 + 1e-9)
    assert torch.equal(ensemble.encode(X), codes)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_bagging_is_the_mean_and_boosting_the_sum(activation):
    saes = [member(i, activation) for i in range(3)]
    torch.testing.assert_close(Ensemble(saes).run(X)[0], sum(sae(X).x_hat for sae in saes) / 3)
    left, total = X, torch.zeros_like(X)
    for sae in saes:
        x_hat = sae(left).x_hat
        left, total = left - x_hat, total + x_hat
    torch.testing.assert_close(Ensemble(saes, "boosting").run(X)[0], total)


def test_one_member_is_itself():
    sae = member(0)
    for kind in ("bagging", "boosting"):
        found = Ensemble([sae], kind)
        torch.testing.assert_close(found.encode(X), sae.encode(X))
        assert evaluate(found, X).fvu == pytest.approx(evaluate(sae, X).fvu)
        assert found.kept == 3


def test_no_solve_is_below_the_exact_one():
    found = Ensemble([member(0), member(1)]).solve(X, 0.0)
    codes = torch.cat([found.encode(X), torch.ones(len(X), 1)], 1)
    best = torch.linalg.lstsq(codes, X, driver="gelsd").solution
    assert error(found) == pytest.approx(float((X - codes @ best).square().sum()), rel=1e-9)


def test_members_are_boosted_on_what_is_left_of_both_splits():
    seen = []

    def train(member_, left, left_val):
        seen.append((left, left_val))
        return member(member_)

    found = boost(train, X[:200], 2, X[200:])
    left = X - found.members[0](X).x_hat
    torch.testing.assert_close(seen[1][0], left[:200])
    torch.testing.assert_close(seen[1][1], left[200:])


def test_members_that_couple_samples_are_told_of():
    class Centred(ReLU):
        couples_samples = True

        def forward(self, pre_acts):
            return torch.relu(pre_acts - pre_acts.mean(0))

    assert not Ensemble([member(0), member(1, "BatchTopK")]).couples_samples
    assert Ensemble([member(0), SAE(8, 12, Centred())]).couples_samples


def test_trained_ensembles():
    x, x_val = samples(500), samples(300, seed=7)

    def train(seed, x=x, x_val=None):
        return fit(SAE(8, 16, TopK(2), "tied_residual", generator=rng(seed)), x, SGD(lr=1e-2), epochs=15, generator=seed).sae

    single = evaluate(train(0), x_val).fvu
    bagged, boosted = bag(train, 3), boost(train, x, 3)
    assert evaluate(bagged, x_val).fvu < single
    assert evaluate(boosted, x_val).fvu < single
    for ensemble in (bagged, boosted):
        assert evaluate(ensemble, x_val).l0 <= 6
        before = evaluate(ensemble, x_val).fvu
        assert evaluate(ensemble.solve(x), x_val).fvu < before
    assert not any(p.requires_grad for p in bagged.train().parameters())
    assert not bagged.members[0].training


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: Ensemble([]), ValueError, "at least one"),
        (lambda: Ensemble([member(0)], "voting"), ValueError, "voting"),
        (lambda: Ensemble([member(0), SAE(5, 12, ReLU())]), ValueError, "8, 5"),
        (lambda: bag(member, 0), ValueError, "n_members=0"),
        (lambda: Ensemble([torch.nn.Linear(2, 2)]), TypeError, "lacks"),
        (lambda: Ensemble([member(0)]).solve(X, math.nan), ValueError, "nan"),
    ],
)
def test_what_cannot_be_is_refused(make, error, words):
    with pytest.raises(error, match=words):
        make()
