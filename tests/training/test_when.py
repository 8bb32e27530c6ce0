"""When PAM-SGD solves by default, and from which samples."""

from __future__ import annotations

import itertools

import pytest
import torch

from splinterp import PAMSGD, SAE, TopK, fit
from splinterp.training import EveryEpoch
from splinterp.training.batches import Batches
from splinterp.training.when import GAP, LEAST_SOLVES, PRICE, ROWS
from tests.helpers import rng, samples


@pytest.fixture
def solves(monkeypatch):
    """(step, samples) of every solve."""
    found = []
    original = PAMSGD.decoder_step

    def noted(self, sae, state, batches):
        batches = list(batches)
        found.append((state.step, torch.cat(batches)))
        return original(self, sae, state, batches)

    monkeypatch.setattr(PAMSGD, "decoder_step", noted)
    return found


def run(n, steps, m=12, batch_size=16, **options):
    x = samples(n)
    sae = SAE(8, m, TopK(3), "tied_residual", generator=rng())
    result = fit(sae, x, PAMSGD(lr=0.01, **options), steps=steps, batch_size=batch_size, generator=0)
    return x, sae, result


def test_solves_are_paid_for_by_the_steps_between_them(solves):
    """160 samples and 12 latents: half of the samples and a few factors cost eight epochs of a tenth each, 80 steps."""
    x, _, _ = run(160, 900)
    steps = [step for step, _ in solves]
    assert steps == [*range(80, 880, 80), 900]  # so near the end there is none before the last
    cost = 80 + 3 * (12**2 / (6 * 8) + 12)
    assert all(cost <= PRICE * 16 * (b - a) for a, b in itertools.pairwise(steps[:-1]))
    half = [x.view(-1, 16, 8)[start::2].flatten(0, 1) for start in (0, 1)]
    for turn, (_, rows) in enumerate(solves[:-1]):
        assert torch.equal(rows, half[turn % 2])
    assert torch.equal(solves[-1][1], x)


def test_short_runs_have_some_solves_all_the_same(solves):
    run(640, 240)  # an epoch is 40 steps, and a solve costs over five of them
    assert [step for step, _ in solves] == [80, 160, 240]
    assert LEAST_SOLVES == 3
    solves.clear()
    run(160, 2 * GAP)
    assert [step for step, _ in solves] == [50, 100]
    solves.clear()
    run(160, GAP + 20)  # the last solve is near, so none before it
    assert [step for step, _ in solves] == [GAP + 20]


def test_few_samples_are_all_used(solves):
    n = 2 * ROWS * 12
    run(n - 8, 120, batch_size=8)
    assert {len(rows) for _, rows in solves} == {n - 8}
    solves.clear()
    run(n, 120, batch_size=8)
    assert {len(rows) for _, rows in solves[:-1]} == {n // 2}


@pytest.mark.parametrize("options", [{"solve_gap": 60}, {"solve_parts": 1}, {"when": EveryEpoch(parts=1)}])
def test_a_gap_of_ones_own_and_one_part_take_all_samples(solves, options):
    run(160, 240, **options)
    assert len(solves) > 2
    assert {len(rows) for _, rows in solves} == {160}


def test_parts_of_ones_own(solves):
    run(160, 240, solve_gap=20, solve_parts=5)
    assert [step for step, _ in solves] == list(range(20, 241, 20))
    firsts = [rows[0] for _, rows in solves[:5]]
    assert len({tuple(row.tolist()) for row in firsts}) == 5
    assert {len(rows) for _, rows in solves[:-1]} == {32}
    solves.clear()
    run(16, 120, solve_gap=20, solve_parts=5)  # one batch has no parts
    assert {len(rows) for _, rows in solves} == {16}


def test_a_decoder_that_moves_by_solves_alone_is_solved_for_from_all_samples(solves):
    run(160, 40, gradient="encoder")
    assert [(step, len(rows)) for step, rows in solves] == [(step, 160) for step in range(10, 41, 10)]


@pytest.mark.parametrize("options", [{"parts": 2, "first": True}, {"gap": 9, "first": True}])
def test_what_does_not_act_is_refused(options):
    with pytest.raises(ValueError, match="changes nothing with solve_first=True"):
        EveryEpoch(**options)
    with pytest.raises(ValueError, match="solve_parts=2 changes nothing beside decoder_every=3"):
        PAMSGD(decoder_every=3, solve_parts=2)
    with pytest.raises(ValueError, match="solve_parts"):
        EveryEpoch(parts=0)


def test_a_resumed_run_takes_the_same_parts(tmp_path):
    _, straight, result = run(160, 240)
    x = samples(160)
    path = tmp_path / "run.pt"
    sae = SAE(8, 12, TopK(3), "tied_residual", generator=rng())

    class StoppedError(Exception):
        pass

    def stop(row):
        if row["epoch"] == 9:
            raise StoppedError

    with pytest.raises(StoppedError):
        fit(sae, x, PAMSGD(lr=0.01), steps=240, batch_size=16, generator=0, checkpoint=path, callback=stop)
    again = SAE(8, 12, TopK(3), "tied_residual", generator=rng())
    resumed = fit(again, x, PAMSGD(lr=0.01), steps=240, batch_size=16, generator=0, checkpoint=path, resume=True)
    assert resumed.state.solves == result.state.solves > 2
    for ours, theirs in zip(again.parameters(), straight.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_parts_of_batches_are_all_of_them_once():
    x = samples(70)
    batches = Batches(x, 16, x.device, x.dtype)
    parts = [list(batches.part(index, 3)) for index in range(3)]
    assert [len(part) for part in parts] == [2, 2, 1]
    mixed = [parts[i % 3][i // 3] for i in range(5)]
    assert torch.equal(torch.cat(mixed), x)
