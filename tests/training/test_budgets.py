"""Budgets in steps, rows between epochs, stores for validation, and finished runs that go on."""

from __future__ import annotations

import math

import pytest
import torch

from splinterp import PAMSGD, SAE, SGD, BiasAdaptation, TopK, fit
from splinterp.data import ActivationStore
from splinterp.data.store_writer import StoreWriter
from splinterp.metrics import evaluate
from splinterp.training import AtEnd
from tests.helpers import make_sae, rng, samples

METHODS = [SGD(lr=1e-2), PAMSGD(lr=1e-2, solve_gap=1)]


def same(a, b):
    return all(torch.equal(p, q) for p, q in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def stored(x, folder):
    writer = StoreWriter(folder, x.shape[1], "float32", {"made": "here"})
    writer.append(x, torch.zeros(len(x), 3, dtype=torch.int64))
    writer.finish()
    return ActivationStore(folder)


@pytest.mark.parametrize("method", METHODS)
def test_a_budget_of_whole_epochs_is_that_many_epochs(method):
    one, other = make_sae(), make_sae()
    by_epochs = fit(one, samples(), method, epochs=3, batch_size=50, generator=0)
    by_steps = fit(other, samples(), method, steps=12, batch_size=50, generator=0)
    assert same(one, other)
    assert [r["step"] for r in by_steps.history] == [r["step"] for r in by_epochs.history] == [4, 8, 12]


@pytest.mark.parametrize("method", METHODS)
def test_a_budget_may_end_within_an_epoch(method):
    seen = []

    class Spy(type(method)):
        def step(self, sae, state, x):
            seen.append(len(x))
            super().step(sae, state, x)

    result = fit(make_sae(), samples(), Spy(lr=1e-2), steps=10, batch_size=64, generator=0)
    assert seen == [64, 64, 64, 8, 64, 64, 64, 8, 64, 64]
    assert [(r["epoch"], r["step"]) for r in result.history] == [(1, 4), (2, 8), (3, 10)]
    assert result.state.step == result.state.total_steps == 10
    if isinstance(method, PAMSGD):
        assert result.state.since_solve == 0  # the end is a solve
    few = fit(make_sae(), samples(), method, steps=1, batch_size=64, generator=0)
    assert [r["step"] for r in few.history] == [1]


@pytest.mark.parametrize("method", METHODS)
def test_rows_between_epochs_change_nothing_else(method):
    plain, watched = make_sae("BatchTopK"), make_sae("BatchTopK")
    fit(plain, samples(), method, epochs=3, batch_size=32, generator=0)
    result = fit(watched, samples(), method, epochs=3, batch_size=32, generator=0, log_every_steps=5)
    assert [r["step"] for r in result.history] == [5, 10, 15, 20, 21]
    assert [r["epoch"] for r in result.history] == [1, 2, 3, 3, 3]
    assert same(plain, watched)
    assert all(math.isfinite(r["train_fvu"]) for r in result.history)
    every = fit(make_sae(), samples(), method, epochs=2, batch_size=50, generator=0, log_every_steps=4)
    assert [r["step"] for r in every.history] == [4, 8]  # an epoch's end is one row, after its solve


def test_budgets_are_checked():
    x = samples()
    with pytest.raises(ValueError, match="epochs=2 and steps=3 are two budgets"):
        fit(make_sae(), x, SGD(), epochs=2, steps=3)
    for options in ({"steps": 0}, {"log_every_steps": 0}, {"epochs": 0}):
        with pytest.raises(ValueError, match="must be at least 1"):
            fit(make_sae(), x, SGD(), **options)
    with pytest.raises(ValueError, match="log_every=2 changes nothing beside log_every_steps=3"):
        fit(make_sae(), x, SGD(), log_every=2, log_every_steps=3)


@pytest.mark.parametrize("method", [SGD(lr=1e-2), PAMSGD(lr=1e-2, ridge="held_out")])
def test_a_store_for_validation_is_its_tensor(method, tmp_path):
    x, x_val = samples(), samples(70, seed=9)
    store = stored(x_val, tmp_path / "val")
    results = [
        fit(make_sae(), x, method, epochs=3, batch_size=50, generator=0, x_val=held_out, keep_best=True)
        for held_out in (x_val, store)
    ]
    assert same(results[0].sae, results[1].sae)
    for one, other in zip(results[0].history, results[1].history, strict=True):
        assert one["val_fvu"] == pytest.approx(other["val_fvu"], rel=1e-6)
    assert evaluate(results[0].sae, store).fvu == pytest.approx(evaluate(results[0].sae, x_val).fvu, rel=1e-6)
    with pytest.raises(ValueError, match="8 are expected"):
        fit(make_sae(), x, method, x_val=stored(torch.randn(20, 5), tmp_path / "narrow"))


@pytest.mark.parametrize(
    "method",
    [SGD(lr=1e-2, schedule="constant"), PAMSGD(lr=1e-2, schedule="constant", solve_gap=1), PAMSGD(lr=1e-2, when=AtEnd())],
)
@pytest.mark.parametrize("longer", [{"epochs": 6}, {"steps": 22}])
def test_a_finished_run_goes_on(method, longer, tmp_path):
    path = tmp_path / "state.pt"
    options = {"batch_size": 50, "generator": 0, "checkpoint": path}
    first = fit(make_sae(), samples(), method, epochs=3, **options)
    extended = fit(make_sae(), samples(), method, **longer, **options, resume=True)
    total = 24 if "epochs" in longer else 22
    assert extended.history[-1]["step"] == extended.state.step == total
    assert [r["step"] for r in extended.history[:3]] == [r["step"] for r in first.history]
    if method.schedule == "constant":  # nothing depends on the length, so it is the longer run
        whole = fit(make_sae(), samples(), method, **longer, batch_size=50, generator=0)
        assert same(extended.sae, whole.sae)
    again = fit(make_sae(), samples(), method, **longer, **options, resume=True)  # finished: nothing to do
    assert same(again.sae, extended.sae)


def test_an_unfinished_run_is_finished_before_it_is_extended(tmp_path):
    path = tmp_path / "state.pt"

    class StopError(Exception):
        pass

    def stop(row):
        if row["epoch"] == 2:
            raise StopError

    options = {"batch_size": 50, "generator": 0, "checkpoint": path}
    with pytest.raises(StopError):
        fit(make_sae(), samples(), SGD(), epochs=4, callback=stop, **options)
    with pytest.raises(
        ValueError, match=r"unfinished run of 16 steps \(at 4\), this one has 32: finish it first, with epochs=4"
    ):
        fit(make_sae(), samples(), SGD(), epochs=8, resume=True, **options)
    fit(make_sae(), samples(), SGD(), epochs=4, resume=True, **options)
    with pytest.raises(ValueError, match="has trained 16 steps already, more than the 8 asked for"):
        fit(make_sae(), samples(), SGD(), epochs=2, resume=True, **options)


def test_without_a_generator_a_resumed_run_goes_on_in_its_own_order(tmp_path):
    path = tmp_path / "state.pt"

    class StopError(Exception):
        pass

    def stop(row):
        if row["epoch"] == 3:
            raise StopError

    torch.manual_seed(5)
    whole = fit(make_sae(), samples(), SGD(), epochs=4, batch_size=50)
    torch.manual_seed(5)
    with pytest.raises(StopError):
        fit(make_sae(), samples(), SGD(), epochs=4, batch_size=50, checkpoint=path, callback=stop)
    torch.manual_seed(77)
    assert same(fit(make_sae(), samples(), SGD(), epochs=4, batch_size=50, checkpoint=path, resume=True).sae, whole.sae)


def test_the_global_seed_decides_the_data_order():
    found = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        found.append(fit(make_sae(), samples(), SGD(), epochs=2, batch_size=50).sae)
    assert same(found[0], found[1])
    assert not same(found[0], found[2])
    by_int = [fit(make_sae(), samples(), SGD(), epochs=2, batch_size=50, generator=g).sae for g in (3, rng(3))]
    assert same(*by_int)


def test_an_extended_run_of_a_method_around_another_goes_on_under_the_new_length(tmp_path):
    def run(epochs, **options):
        sae = SAE(8, 20, TopK(3), "tied_residual", tie_scale=True, generator=0)
        x = torch.randn(200, 8, generator=torch.Generator().manual_seed(0))
        method = BiasAdaptation(base=PAMSGD(lr=1e-2), target_frequencies=0.2)
        return fit(sae, x, method, epochs=epochs, batch_size=50, generator=0, checkpoint=tmp_path / "run.pt", **options)

    first = run(3)
    assert first.state.base.total_steps == 12
    weights = first.sae.W_enc.detach().clone()
    longer = run(6, resume=True)
    assert longer.state.base.total_steps == 24
    assert not torch.equal(longer.sae.W_enc, weights)
