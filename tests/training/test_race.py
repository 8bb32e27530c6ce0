"""The race and readouts in training: their guarantees, their budget, what they leave alone."""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import pytest
import torch

from splinterp import PAMSGD, SAE, SGD, BatchTopK, BiasAdaptation, ReLU, TopK, fit
from splinterp.losses import AuxK, RowNormL1, SquaredError
from splinterp.metrics import evaluate
from splinterp.training import ProcessGroup, Race, Racing, Refresh, Resampling, start_at_mean
from splinterp.training.batches import Batches
from splinterp.training.race import OPEN, TIED
from splinterp.training.reading import readout_of
from tests.helpers import rng

N, D, M = 600, 16, 48
STEPS, LENGTH = 440, 1 / 11


def data(n=N, seed=0):
    atoms = torch.randn(40, D, generator=rng(7))
    g = rng(seed)
    return torch.relu(torch.randn(n, 40, generator=g) - 1.2) @ atoms + 0.3 * torch.randn(n, D, generator=g) + 2.0


def model(decoder="tied_residual", activation=None):
    return SAE(D, M, activation or TopK(4), decoder, generator=0)


def train(method, steps=STEPS, sae=None, **options):
    return fit(
        sae or model(),
        data(),
        method,
        steps=steps,
        **{"batch_size": 60, "generator": 0, "x_val": data(200, 1), "log_every": 10, **options},
    )


def race(winner, **options):
    margin = math.inf if winner == TIED else 0.0
    return PAMSGD(lr=4e-3, hold="race", racing=Racing(margin=margin, length=LENGTH), **options)


def parameters(result):
    return result.sae.state_dict()


@pytest.mark.parametrize("optimizer", ["adam", "sgd", "muon"])
def test_where_the_tied_arm_wins_the_run_is_tied_sgd_less_the_lost_steps_bit_for_bit(optimizer):
    raced = train(race(TIED, readout=True, optimizer=optimizer))
    assert raced.state.race.winner == TIED
    assert raced.history[-1]["step"] == STEPS
    assert raced.state.step == raced.state.total_steps == STEPS - raced.state.race.length == 400
    tied = train(SGD(lr=4e-3, optimizer=optimizer), steps=400, sae=model("tied"))
    assert torch.equal(raced.sae.W_enc, tied.sae.W_enc)
    assert torch.equal(raced.sae.b_enc, tied.sae.b_enc)


def test_hold_one_is_tied_sgd_until_its_readout():
    held = train(PAMSGD(lr=4e-3, hold=1.0, readout=True))
    tied = train(SGD(lr=4e-3), sae=model("tied"))
    assert torch.equal(held.sae.W_enc, tied.sae.W_enc)
    assert held.history[-1]["val_fvu"] <= tied.history[-1]["val_fvu"]
    assert not torch.equal(held.sae.W_dec, held.sae.W_enc.T)


def test_where_the_open_arm_wins_the_run_is_the_held_one_less_the_lost_steps_bit_for_bit(monkeypatch):
    judge = Race.judge

    def for_the_open_arm(self, scores):
        judge(self, scores)
        self.winner = OPEN
        return OPEN

    monkeypatch.setattr(Race, "judge", for_the_open_arm)
    raced = train(race(OPEN))
    assert raced.state.race.begin == 40  # the end of an epoch, where the held one is let in too
    held = train(PAMSGD(lr=4e-3, hold=0.1), steps=400)
    assert held.state.solves == raced.state.solves
    for name, value in held.sae.state_dict().items():
        assert torch.equal(value, raced.sae.state_dict()[name]), name


def test_from_the_start_the_open_arm_is_the_default_less_the_lost_steps_bit_for_bit(monkeypatch):
    monkeypatch.setattr(Race, "judge", lambda self, scores: OPEN)
    method = PAMSGD(lr=4e-3, hold="race", racing=Racing(begin=0.0, length=LENGTH), readout=False)
    raced, open_ = train(method), train(PAMSGD(lr=4e-3, hold=0.0, readout=False), steps=400)
    assert raced.state.step == 400
    for name, value in open_.sae.state_dict().items():
        assert torch.equal(value, raced.sae.state_dict()[name]), name


@pytest.mark.parametrize("margin", [0.0, 0.01, 0.5, math.inf])
def test_the_arm_of_the_lower_error_goes_on(margin):
    found = Race(1, 1, margin)
    for tied, opened, winner in (
        (1.0, 0.995, margin < 0.005),
        (1.0, 1.0, False),
        (1.0, 0.4, math.isfinite(margin)),
        (1.0, 1.1, False),
    ):
        assert found.judge({TIED: tied, OPEN: opened}) == (OPEN if winner else TIED)


def test_the_scores_are_those_of_both_arms_after_a_readout():
    raced = train(race(TIED))
    state = raced.state
    alone = model("tied_residual")
    method = PAMSGD(lr=4e-3, hold=1.0, readout=True)
    driven = method.init(alone, data(), total_steps=400, x_val=data(200, 1))
    order = torch.Generator().manual_seed(0)
    start_at_mean(alone, data())
    for _ in range(8):
        for x in Batches(data(), 60, torch.device("cpu"), torch.float32).shuffled(order):
            method.step(alone, driven, x)
    assert state.race.end == driven.step == 80
    assert method.read_out(alone, driven).score == pytest.approx(state.race.scores[TIED], rel=1e-6)
    assert state.race.scores[OPEN] != state.race.scores[TIED]


def test_the_arms_see_the_same_batches(monkeypatch):
    seen = {TIED: [], OPEN: []}
    step = PAMSGD.step_of_one

    def watched(self, sae, state, x):
        if state.race.runs_at(state.step):
            seen[TIED if state.held else OPEN].append((state.step, x.clone()))
        step(self, sae, state, x)

    monkeypatch.setattr(PAMSGD, "step_of_one", watched)
    result = train(race(TIED))
    assert len(seen[TIED]) == len(seen[OPEN]) == result.state.race.length
    for (one, x), (other, y) in zip(seen[TIED], seen[OPEN], strict=True):
        assert one == other
        assert torch.equal(x, y)


@pytest.mark.parametrize("share", [0.12, 0.14, 0.5])
@pytest.mark.parametrize("method", [race(TIED, readout=True), race(OPEN), race(OPEN, readout=True, optimizer="muon")])
def test_a_race_resumes_in_its_middle(method, share, tmp_path):
    options = {"log_every": 1, "batch_size": 60}
    whole = train(method, **options)
    path = tmp_path / "run.pt"

    def stop(row):
        if row["step"] >= share * STEPS:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        train(method, checkpoint=path, callback=stop, **options)
    again = train(method, checkpoint=path, resume=True, **options)
    for name, value in parameters(again).items():
        assert torch.equal(value, parameters(whole)[name]), name
    assert again.state.race == whole.state.race
    assert [r["val_fvu"] for r in again.history] == [r["val_fvu"] for r in whole.history]


def test_a_finished_run_that_raced_can_be_extended(tmp_path):
    path = tmp_path / "run.pt"
    first = train(race(TIED), checkpoint=path)
    longer = train(race(TIED), steps=540, checkpoint=path, resume=True)
    assert longer.history[-1]["step"] == 540
    assert longer.state.step == longer.state.total_steps == first.state.step + 100


@pytest.mark.parametrize("method", [PAMSGD(lr=4e-3), PAMSGD(lr=4e-3, hold=0.3), PAMSGD(lr=4e-3, hold=1.0), race(OPEN)])
@pytest.mark.parametrize("activation", [TopK(4), BatchTopK(4)])
def test_readouts_leave_the_training_alone_and_are_never_worse(method, activation):
    rows = {"log_every": 1, "steps": 290, "generator": 3}
    plain = train(dataclasses.replace(method, readout=False), sae=model(activation=activation), **rows)
    read = train(dataclasses.replace(method, readout=True), sae=model(activation=activation), **rows)
    assert torch.equal(plain.sae.W_enc, read.sae.W_enc)  # all the way to the last step
    for one, other in zip(plain.history[:-1], read.history[:-1], strict=True):
        assert other["loss"] == one["loss"]
        assert other["val_fvu"] <= one["val_fvu"] * (1 + 1e-5)
    assert any(other["val_fvu"] < 0.999 * one["val_fvu"] for one, other in zip(plain.history, read.history, strict=True))


def test_a_readout_goes_by_the_last_solves_ridge_and_leaves_the_end_with_one_that_lets_the_residual_move():
    result = train(PAMSGD(lr=4e-3), steps=60)
    state, sae, method = result.state, result.sae, PAMSGD(lr=4e-3)
    for before, after in ((5.0, 5.0), (None, None), (math.inf, None)):
        with torch.no_grad():
            sae.residual.zero_()
        state.ridge = before
        found = readout_of(method, sae, state)
        assert found.ridge == pytest.approx(15.0) if before == 5.0 else 0 < found.ridge < math.inf
        method._end_on_a_readout(sae, state)
        assert state.ridge == (after or found.ridge)
        assert sae.residual.abs().max() > 0


def test_a_callback_sees_the_sae_that_its_row_is_of_and_the_training_does_not_see_the_callback():
    sae, seen = model(), []

    def look(row):
        seen.append((row["val_fvu"], evaluate(sae, data(200, 1)).fvu, float(sae.residual.detach().abs().sum())))

    looked = train(PAMSGD(lr=4e-3, readout=True), steps=120, sae=sae, log_every=2, callback=look)
    assert [told for told, _, _ in seen] == pytest.approx([found for _, found, _ in seen], rel=1e-6)
    assert len(seen) == len(looked.history) == 6
    alone = train(PAMSGD(lr=4e-3, readout=True), steps=120, log_every=2)
    assert all(torch.equal(a, b) for a, b in zip(parameters(looked).values(), parameters(alone).values(), strict=True))


def test_keep_best_keeps_the_readout():
    found = train(PAMSGD(lr=2e-2, hold=1.0, readout=True), keep_best=True, log_every=1)
    lowest = min(row["val_fvu"] for row in found.history)
    assert evaluate(found.sae, data(200, 1)).fvu == pytest.approx(lowest, rel=1e-6)


def test_too_few_steps_to_race_take_the_rule_for_that():
    for otherwise in (0.0, 0.5):
        method = PAMSGD(lr=4e-3, hold="race", racing=Racing(otherwise=otherwise))
        found = train(method, steps=100)
        assert found.state.race.length == 0
        assert found.state.step == 100
        fixed = train(PAMSGD(lr=4e-3, hold=otherwise), steps=100)
        assert torch.equal(found.sae.W_enc, fixed.sae.W_enc)
        assert torch.equal(found.sae.W_dec, fixed.sae.W_dec)


def test_what_terms_keep_is_each_arms_own():
    method = race(TIED, terms=(SquaredError(), AuxK(dead_after=100)))
    raced = train(method)
    tied = train(PAMSGD(lr=4e-3, hold=1.0, terms=method.terms), steps=raced.state.step)
    assert torch.equal(raced.sae.W_enc, tied.sae.W_enc)


def test_refusals():
    for options, match in (
        ({"hold": "fork"}, "hold"),
        ({"hold": "race", "gradient": "encoder"}, "hold='race' acts only with gradient='both'"),
        ({"hold": "race", "resample": Resampling(every=10, dead_after=100)}, "no resample"),
        ({"hold": "race", "optimizer": lambda groups: torch.optim.Adam(groups)}, "needs an optimizer='adam'"),
        ({"hold": "race", "schedule": lambda optimizer: torch.optim.lr_scheduler.ConstantLR(optimizer)}, "a schedule by name"),
        ({"hold": "race", "when": Refresh()}, "not for a stream"),
        ({"readout": True, "ridge": 1.0}, "readout=True shrinks the solution"),
        ({"readout": True, "prox_dec": 1.0}, "readout=True shrinks the solution"),
    ):
        with pytest.raises(ValueError, match=match):
            PAMSGD(**options)
    for options in (
        {"begin": 1.0},
        {"begin": -0.1},
        {"length": 0.0},
        {"length": 1.0},
        {"margin": -0.1},
        {"otherwise": -1.0},
        {"otherwise": 2.0},
    ):
        with pytest.raises(ValueError, match=next(iter(options))):
            Racing(**options)
    with pytest.raises(ValueError, match="hold='race' holds a residual"):
        train(PAMSGD(hold="race"), sae=model("free"))
    with pytest.raises(ValueError, match="readout=True solves for a decoder of its own"):
        train(PAMSGD(readout=True), sae=model("tied"))
    with pytest.raises(ValueError, match="pass total_steps"):
        PAMSGD(hold="race").init(model(), data())


def test_whether_there_are_readouts_is_decided_by_what_there_is():
    def reads(method=None, sae=None, n_held_out=200, **options):
        x_val = data(n_held_out, 1) if n_held_out else None
        return (method or PAMSGD(**options)).init(sae or model(), data(), total_steps=STEPS, x_val=x_val).reads

    assert reads()
    assert not reads(n_held_out=199)
    assert not reads(n_held_out=0)
    assert not reads(readout=False)
    assert reads(readout=True, n_held_out=50)
    assert reads(sae=model("free"))
    assert not reads(sae=model("tied"))
    for options in ({"ridge": 1.0}, {"prox_dec": 1.0}, {"when": Refresh(), "ridge": 1.0}):
        assert not reads(**options), options
    assert not reads(sae=model(activation=ReLU()), terms=(SquaredError(), RowNormL1(weight=1e-3)))
    assert not reads(PAMSGD.published())
    assert not reads(PAMSGD.final_solve())
    assert reads(PAMSGD(gradient="tied"))


def test_bias_adaptation_reads_out_and_does_not_race():
    sae = SAE(D, M, TopK(4), "tied_residual", tie_scale=True, generator=0)
    adapted = train(BiasAdaptation(base=PAMSGD(lr=4e-3, readout=True), target_frequencies=0.1), sae=sae)
    assert adapted.state.base.read_last
    with pytest.raises(ValueError, match="base.hold='race' trains two SAEs"):
        BiasAdaptation(base=PAMSGD(hold="race"), target_frequencies=0.1)


def test_in_several_processes_there_is_no_readout_and_no_race():
    processes = ProcessGroup.__new__(ProcessGroup)
    state = PAMSGD().init(model(), data(), total_steps=STEPS, x_val=data(200, 1))
    assert state.reads
    state.join(processes)
    assert not state.reads
    for method, option in ((PAMSGD(hold="race"), "hold='race'"), (PAMSGD(readout=True), "readout=True")):
        state = method.init(model(), data(), total_steps=STEPS, x_val=data(200, 1))
        with pytest.raises(ValueError, match=f"{option} is for one process"):
            state.join(processes)


def test_readouts_at_rows_are_paid_for_unless_asked_for():
    def rows(readout):
        method = PAMSGD(lr=4e-3, hold=1.0, readout=readout)
        found = []
        read_out = PAMSGD.read_out

        def watched(self, sae, state):
            result = read_out(self, sae, state)
            found.append(result is not None)
            return result

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(PAMSGD, "read_out", watched)
            train(method, log_every=1)
        return found

    every, paid, never = rows(True), rows(None), rows(False)
    assert all(every[:-1])
    assert not any(never)
    assert 0 < sum(paid) < sum(every) / 2


@pytest.mark.parametrize("activation", [ReLU(), BatchTopK(4)])
def test_arms_and_updates_have_products_of_their_own_under_autocast(activation):
    raced = train(race(TIED, readout=False), sae=model(activation=activation), autocast=torch.bfloat16)
    tied = train(PAMSGD(lr=4e-3, hold=1.0, readout=False), sae=model(activation=activation), steps=400, autocast=torch.bfloat16)
    assert torch.equal(raced.sae.W_enc, tied.sae.W_enc)


def test_the_last_row_is_of_the_result_for_an_optimizer_of_two_modes():
    for readout in (None, True):
        method = PAMSGD(lr=1e-2, optimizer=ScheduleFree, schedule="constant", readout=readout)
        found = train(method)
        assert evaluate(found.sae, data(200, 1)).fvu == pytest.approx(found.history[-1]["val_fvu"], rel=1e-6)


class ScheduleFree(torch.optim.SGD):
    """Two sets of parameters: those that are evaluated are a running mean."""

    def __init__(self, params, lr):
        super().__init__(params, lr=lr)
        self.training = True

    def step(self, closure=None):
        super().step(closure)
        for p in (p for group in self.param_groups for p in group["params"]):
            kept = self.state[p]
            kept["mean"] = kept.get("mean", p.detach().clone()) * 0.9 + 0.1 * p.detach()

    def _switch(self, training):
        if training != self.training:
            self.training = training
            for p in (p for group in self.param_groups for p in group["params"]):
                if "mean" in self.state[p]:
                    p.data, self.state[p]["mean"] = self.state[p]["mean"].clone(), p.data.clone()

    def train(self):
        self._switch(True)

    def eval(self):
        self._switch(False)


def test_the_end_is_read_out_where_a_solve_fell_on_the_last_step_too():
    found = train(PAMSGD(lr=4e-3, decoder_every=20, readout=True))
    assert found.state.read_last
    after = readout_of(PAMSGD(readout=True), found.sae, found.state)
    assert after.score == pytest.approx(after.unsolved, rel=1e-6)


@pytest.mark.parametrize("method", [PAMSGD(lr=4e-3, readout=True), race(OPEN, readout=True)])
def test_how_often_rows_are_made_changes_nothing_in_the_result(method):
    results = [
        train(method, sae=SAE(D, 160, BatchTopK(4), "tied_residual", generator=0), log_every=every) for every in (1, 1_000)
    ]
    for name, value in results[0].sae.state_dict().items():
        assert torch.equal(value, results[1].sae.state_dict()[name]), name
    assert results[0].state.race == results[1].state.race


def test_a_readout_by_hand_moves_no_threshold():
    method, sae = PAMSGD(readout=True), model(activation=BatchTopK(4))
    state = method.init(sae, data(), total_steps=10, x_val=data(200, 1))
    method.step(sae, state, data()[:60])
    before = {name: value.clone() for name, value in sae.state_dict().items()}
    assert method.read_out(sae, state) is not None
    for name, value in sae.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0, equal_nan=True)


def test_what_a_step_returns_counts_only_as_a_number_of_steps():
    class Talkative(SGD):
        def step(self, sae, state, x):
            super().step(sae, state, x)
            return float(state.loss)

    found = train(Talkative(lr=4e-3), steps=20)
    assert found.state.step == found.history[-1]["step"] == 20


@pytest.mark.parametrize("changed", [{"begin": 0.3}, {"length": 0.2}, {"margin": 0.9}])
def test_every_setting_of_a_race_changes_the_run(changed):
    first = {"begin": 0.1, "length": LENGTH, "margin": 0.0}
    monkey = pytest.MonkeyPatch()
    with monkey.context() as patch:
        patch.setattr("splinterp.training.race_step.readout_of", lambda *_: SCORES.pop())
        found = []
        for settings in (first, {**first, **changed}):
            SCORES.extend([Score(1.0), Score(0.5)])  # the open arm is asked first, and half as bad
            found.append(train(PAMSGD(lr=4e-3, hold="race", racing=Racing(**settings), readout=False)))
    assert not torch.equal(found[0].sae.W_enc, found[1].sae.W_enc)


class Score(NamedTuple):
    score: float


SCORES = []
