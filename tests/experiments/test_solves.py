"""When PAM-SGD solves, compared from end to end, small."""

from __future__ import annotations

import json

import pytest

from experiments import solves, tables
from experiments.runs import build
from experiments.solves import SCHEDULES, Config
from splinterp import PAMSGD

SMALL = Config("digits", k=3, n_latents=16, batch_size=16, cells=((160, "TopK", 12),), seeds=(0, 1))


def test_table_and_records(tmp_path, monkeypatch):
    path = solves.main(SMALL, tmp_path)
    results = json.loads(path.read_text())
    assert [r["schedule"] for r in results["schedules"]] == list(SCHEDULES)
    assert len({tuple(r["val_last"]) for r in results["schedules"]}) > 1
    records = json.loads((tmp_path / "solves-digits-runs.json").read_text())["records"]
    assert len(records) == 8
    assert not any("test_last" in r for r in records)  # a choice reads validation data alone
    assert all(word in tables._renderer(results, short=False)(results, False) for word in SCHEDULES)
    monkeypatch.setattr("experiments.runs.train", lambda *_, **__: pytest.fail("trained again"))
    before = path.read_bytes()
    solves.main(SMALL, tmp_path)
    assert path.read_bytes() == before


def test_one_of_the_schedules_is_the_default():
    methods = {name: build(SMALL.run(SMALL.cells[0], name, 0), 64)[1] for name in SCHEDULES}
    assert methods["by cost, halves"] == PAMSGD(lr=SMALL.lr, hold=0.0, decoder_lr=1.0, readout=False, ridge="gcv")
    assert methods["every epoch, all samples"] == PAMSGD(
        lr=SMALL.lr, solve_gap=50, hold=0.0, decoder_lr=1.0, readout=False, ridge="gcv"
    )
    assert len(set(methods.values())) == len(SCHEDULES)
