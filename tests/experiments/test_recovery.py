"""The recovery experiment from end to end, small."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from experiments import __main__ as command_line
from experiments import recovery
from experiments.files import read_results
from experiments.recovery_runs import GAIN, ROWS, Recovery, measure, start, task_from_record
from experiments.store import RecordStore
from paper_figures import __main__ as figures

SMALL = dataclasses.replace(recovery.SMOKE, n_samples=1_000, n_latents=40, resonance_n_latents=24, lengths=(60, 120))


@pytest.fixture(scope="module")
def results_file(tmp_path_factory):
    return recovery.main(SMALL, tmp_path_factory.mktemp("recovery"))


def test_tables_have_every_row_and_figures_are_drawn(results_file, capsys, tmp_path):
    results, config = read_results(results_file), SMALL
    assert [(r["row"], r["signed"]) for r in results["rows"]] == [
        *((row, False) for row in config.rows), *((row, True) for row in config.signed_rows),
    ]  # fmt: skip
    assert all(len(r["recovery"]["0.9"]) == len(config.seeds) for r in results["rows"])
    assert len(results["resonance"]) == 2 * len(config.ratios)
    for r in results["rows"]:
        if r["row"] == "GBA":
            assert [g["target"] for g in r["groups"][0]] == pytest.approx(ROWS["GBA"].method(lr=1).group_targets())
    assert command_line.main(["tables", str(results_file)]) == 0
    text = capsys.readouterr().out
    assert "98.4" in text  # the published number beside ours
    assert "both poles" in text
    for name in ("recovery", "resonance"):
        assert figures.main([name, "--results", str(results_file), "--out", str(tmp_path)]) == 0
        assert (tmp_path / f"{name}.png").stat().st_size > 10_000


def test_a_rerun_trains_nothing_and_every_row_is_tuned_alike(results_file, monkeypatch):
    def refuse(*_):
        raise AssertionError("trained again")

    monkeypatch.setattr("experiments.recovery.measure", refuse)
    before = read_results(results_file)["rows"]
    recovery.main(SMALL, results_file.parent)
    assert str(read_results(results_file)["rows"]) == str(before)  # as text: a row without matches has NaNs
    store = RecordStore(results_file.parent, "recovery-runs", task_from_record)
    tasks = [task_from_record(record) for record in store.records.values()]
    tuning = [task for task in tasks if task.role == "tuning"]
    for row in SMALL.rows:
        mine = [t for t in tuning if t.row == row and not t.signs]
        assert {t.lr for t in mine} == set(SMALL.grid)
        assert {t.steps for t in mine} == set(SMALL.lengths)
        assert {t.seed for t in mine} == {SMALL.tuning_seed}
    assert not {t.seed for t in tasks if t.role == "reported"} & {SMALL.tuning_seed}


def test_all_rows_start_from_the_same_directions_at_the_same_gain():
    task = Recovery("GBA", 1e-2, 10, 0, n_latents=64)
    directions = []
    for row in ROWS:
        sae = start(dataclasses.replace(task, row=row), 3)
        rows = sae.W_dec.detach()
        directions.append(torch.nn.functional.normalize(rows, dim=1))
        gained = (sae.W_enc.norm(dim=0) * sae.W_dec.norm(dim=1)).detach()
        torch.testing.assert_close(gained, torch.full((64,), GAIN))
    assert all(torch.allclose(d, directions[0]) for d in directions)
    assert not torch.equal(start(task, 4).W_enc, start(task, 3).W_enc)


def test_a_diverged_run_recovers_nothing():
    record = measure(Recovery("TopK, k = 20", 1e30, 20, 0, n_latents=32, n_samples=1_000))
    assert "diverged_at" in record
    assert record["recovery"]["0.9"] == 0.0


def test_one_diverged_seed_leaves_the_tables_whole(results_file, tmp_path, capsys):
    store = RecordStore(results_file.parent, "recovery-runs", task_from_record)
    for record in store.records.values():
        task = task_from_record(record)
        if (task.role == "reported" and task.seed == 1 and not task.target) or task.role == "consistency":
            for name in ("groups", "poles", "l0", "fvu", "one_to_one", "matched_frequency"):
                record.pop(name, None)
            record |= {"diverged_at": 3, "consistency": [float("nan")] * 3}
    experiment = recovery.Experiment(SMALL, store, 1, "cpu")
    tuned = experiment.tuned()
    results = {
        "rows": experiment.main_rows(tuned), "resonance": experiment.resonance(tuned["BA", False].lr),
        "consistency": experiment.consistency(tuned), "config": dataclasses.asdict(SMALL),
    }  # fmt: skip
    assert "diverged" in recovery.render(results)
    assert all(r["true_l0"] == 2 for r in results["rows"])


def test_a_target_takes_the_place_of_the_rows():
    tiny = Recovery("BA", 1e-2, 60, 0, n_latents=32, n_samples=1_000)
    with_target = measure(dataclasses.replace(tiny, target=0.3))
    assert with_target["groups"][0]["target"] == 0.3
    assert measure(tiny)["groups"][0]["target"] == 0.02
