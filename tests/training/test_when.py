"""When PAM-SGD solves by default, and from which samples."""

from __future__ import annotations

import itertools

import pytest
import torch

from splinterp import PAMSGD, SAE, BiasAdaptation, TopK, fit
from splinterp.data import ActivationStore, StoreWriter
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
    result = fit(sae, x, PAMSGD(**{"lr": 0.01, "hold": 0.0, **options}), steps=steps, batch_size=batch_size, generator=0)
    return x, sae, result


def test_solves_are_paid_for_by_the_steps_between_them(solves):
    """160 samples and 12 latents: half of the samples and a few factors cost eight epochs of a tenth each, 80 steps."""
    x, _, _ = run(160, 900)
    steps = [step for step, _ in solves]
    assert steps == [*range(80, 880, 80), 900]  # so near the end there is none before the last
    cost = 80 + 3 * (12**2 / (6 * 8) + 12)
    assert all(cost <= PRICE * 16 * (b - a) for a, b in itertools.pairwise(steps[:-1]))
    half = [x.view(-1, 10, 8)[start::2].flatten(0, 1) for start in (0, 1)]
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
    run(16, 120, solve_gap=20, solve_parts=9)  # fewer than two rows each
    assert {len(rows) for _, rows in solves} == {16}


@pytest.mark.parametrize(("n", "batch_size"), [(1_001, 1_000), (1_002, 1_000), (700, 512), (999, 333), (65, 64)])
def test_parts_are_of_nearly_equal_size_however_the_batches_fall(solves, n, batch_size):
    x, _, _ = run(n, 300, batch_size=batch_size)
    assert len(solves) > 2
    for _, rows in solves[:-1]:
        assert abs(len(rows) - n / 2) <= max(1, n / 16)
    assert len(torch.unique(torch.cat([rows for _, rows in solves[:2]]), dim=0)) == n
    assert torch.equal(solves[-1][1], x)


@pytest.mark.parametrize("options", [{"ridge": 3.0}, {"prox_dec": 2.0}])
def test_strengths_that_are_given_multiply_sums_over_all_samples(solves, options):
    run(160, 240, **options)
    assert len(solves) > 1
    assert {len(rows) for _, rows in solves} == {160}
    with pytest.raises(ValueError, match="solve_parts=2 takes a ridge that is chosen"):
        run(160, 240, solve_parts=2, **options)


def test_a_store_is_read_in_the_same_parts(solves, tmp_path):
    x = samples(160)
    writer = StoreWriter(tmp_path, 8)
    for shard in x.split(50):
        writer.append(shard, torch.zeros(len(shard), 3, dtype=torch.int64))
    writer.finish()
    sae = SAE(8, 12, TopK(3), "tied_residual", generator=rng())
    fit(sae, ActivationStore(tmp_path), PAMSGD(lr=0.01, hold=0.0), steps=240, batch_size=16, generator=0)
    from_store = list(solves)
    solves.clear()
    run(160, 240)
    assert [step for step, _ in from_store] == [step for step, _ in solves]
    for (_, ours), (_, theirs) in zip(from_store, solves, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(("n", "lower"), [(400, True), (300, False)])
def test_products_are_float32_where_the_rows_of_the_solve_are_enough(monkeypatch, n, lower):
    found = []
    original = PAMSGD.solve
    monkeypatch.setattr(
        PAMSGD, "solve", lambda self, sae, state, stats: (found.append(stats), original(self, sae, state, stats))
    )
    x = samples(n)
    sae = SAE(8, 90, TopK(3), "tied_residual", generator=rng())
    state = PAMSGD().init(sae, x)
    PAMSGD().decoder_step(sae, state, Batches(x, 32, x.device, x.dtype).part(0, 2))
    PAMSGD().decoder_step(sae, state, list(x[:100].split(32)))
    assert [stats.products == torch.float32 for stats in found] == [lower, False]


def test_held_residuals_and_bias_adaptation_solve_by_the_same_schedule(solves):
    run(160, 400, hold=0.3)
    assert [step for step, _ in solves] == [120, 200, 280, 360, 400]
    assert len(solves[0][1]) == 160  # the first solve after the hold decides whether the residual comes in
    solves.clear()
    x = samples(160)
    sae = SAE(8, 12, TopK(3), "tied_residual", tie_scale=True, generator=rng())
    fit(sae, x, BiasAdaptation(base=PAMSGD(lr=0.01, hold=0.0)), steps=400, batch_size=16, generator=0)
    assert [len(rows) for _, rows in solves] == [*[80] * (len(solves) - 1), 160]
    assert len(solves) > 2


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
        fit(sae, x, PAMSGD(lr=0.01, hold=0.0), steps=240, batch_size=16, generator=0, checkpoint=path, callback=stop)
    again = SAE(8, 12, TopK(3), "tied_residual", generator=rng())
    resumed = fit(again, x, PAMSGD(lr=0.01, hold=0.0), steps=240, batch_size=16, generator=0, checkpoint=path, resume=True)
    assert resumed.state.solves == result.state.solves > 2
    for ours, theirs in zip(again.parameters(), straight.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_parts_of_batches_are_all_of_them_once():
    x = samples(70)
    batches = Batches(x, 16, x.device, x.dtype)
    parts = [batches.part(index, 3) for index in range(3)]
    assert sum(part.n_rows for part in parts) == 70
    found = [list(part) for part in parts]
    assert [sum(map(len, blocks)) for blocks in found] == [part.n_rows for part in parts]
    mixed = [found[i % 3][i // 3] for i in range(sum(map(len, found)))]
    assert torch.equal(torch.cat(mixed), x)
