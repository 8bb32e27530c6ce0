"""Held-out samples that `fit` sets aside for methods that choose by some, where it is given none."""

from __future__ import annotations

import pytest
import torch

from splinterp import PAMSGD, SAE, SGD, BiasAdaptation, TopK, fit
from splinterp.training.inspection import set_aside
from tests.helpers import rng
from tests.training.test_budgets import stored

METHODS = {
    "ridge": PAMSGD(ridge="held_out"),
    "race": PAMSGD(hold="race"),
    "readout": PAMSGD(readout=True),
    "base": BiasAdaptation(base=PAMSGD(ridge="held_out"), target_frequencies=0.2, gain=1),
}


def samples(n=400):
    return torch.randn(n, 6, generator=rng(0)) @ torch.randn(6, 6, generator=rng(1))


@pytest.mark.parametrize("name", METHODS)
def test_a_method_that_chooses_by_held_out_samples_gets_some_and_does_not_train_on_them(name):
    x, seen = samples(), []
    sae = SAE(6, 12, TopK(2), "tied_residual", generator=0)
    method = METHODS[name]
    with pytest.warns(UserWarning, match="50 of the 400 samples are set aside for that; pass x_val"):
        result = fit(sae, x, method, epochs=2, generator=0, callback=seen.append)
    assert len(result.state.data) == 350
    assert len(result.state.held_out) == 50
    rows = torch.cat([result.state.data, result.state.held_out])
    assert torch.equal(rows.sort(0).values, x.sort(0).values)
    assert all(row["val_fvu"] == row["val_fvu"] for row in seen)


def test_the_same_ones_in_every_call_and_a_twentieth_of_many():
    x = samples(3_000)
    with pytest.warns(UserWarning, match="150 of the 3,000"):
        first, held_out = set_aside(x, "method")
    with pytest.warns(UserWarning, match="150 of"):
        second, again = set_aside(x, "method")
    assert torch.equal(first, second)
    assert torch.equal(held_out, again)
    assert held_out.std(0).mean() > 0.8 * x.std(0).mean()  # drawn from all of them
    with pytest.warns(UserWarning, match="5,000 of the 200,000"):
        set_aside(torch.zeros(200_000, 1), "method")


def test_others_lose_none_and_given_ones_are_taken():
    x = samples()
    for method, x_val in ((SGD(), None), (PAMSGD(), None), (PAMSGD(readout=True), x[:60])):
        result = fit(SAE(6, 12, TopK(2), "tied_residual", generator=0), x, method, epochs=1, x_val=x_val)
        assert len(result.state.data) == 400


def test_too_few_and_stores_are_refused(tmp_path):
    sae = SAE(6, 12, TopK(2), "tied_residual", generator=0)
    with pytest.raises(ValueError, match="of 199 samples there are too few to set 50 aside: pass x_val"):
        fit(sae, samples(199), PAMSGD(readout=True), epochs=1)
    with pytest.raises(ValueError, match="not set aside of a store: pass x_val"):
        fit(sae, stored(samples(), tmp_path), PAMSGD(readout=True), epochs=1)


def test_a_run_that_set_some_aside_resumes(tmp_path):
    def run(**options):
        with pytest.warns(UserWarning, match="set aside"):
            return fit(
                SAE(6, 12, TopK(2), "tied_residual", generator=0), samples(), PAMSGD(readout=True), generator=0, **options
            )

    whole = run(epochs=4)
    run(epochs=2, checkpoint=tmp_path / "run.pt")
    longer = run(epochs=4, checkpoint=tmp_path / "run.pt", resume=True)
    assert longer.history[-1]["step"] == whole.history[-1]["step"]
    assert torch.equal(longer.state.held_out, whole.state.held_out)
