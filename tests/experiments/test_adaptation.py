"""The family of bias adaptation's defaults from end to end, small."""

from __future__ import annotations

import dataclasses
import json

import pytest

from experiments import adaptation, tables
from experiments.adaptation import FAMILY, ROWS, SMOKE, TUNING, Fitted, measure, run_from_record
from splinterp import BiasAdaptation
from splinterp.data import SparseFeatures


@pytest.fixture(scope="module")
def results_file(tmp_path_factory):
    return adaptation.main(SMOKE, tmp_path_factory.mktemp("adaptation"), name="adaptation-smoke")


def test_tables_and_records(results_file, monkeypatch):
    results = json.loads(results_file.read_text())
    assert {(r["model"], r["row"]) for r in results["adapted"]} == {(m, row) for m in SMOKE.models for row in SMOKE.rows}
    text = tables._renderer(results, short=False)(results, False)
    assert all(word in text for word in ("cosine 0.9", "models of tuning", *SMOKE.rows, *SMOKE.models, "by latents and steps"))
    monkeypatch.setattr("experiments.adaptation.measure", lambda *_, **__: pytest.fail("run again"))
    adaptation.main(SMOKE, results_file.parent, name="adaptation-smoke")


def test_the_family_is_ten_models_and_half_of_them_are_of_tuning():
    assert len(FAMILY) == 10
    assert len(TUNING) == 5
    for about in FAMILY.values():
        SparseFeatures(**about)


def test_rows_say_what_differs_from_the_defaults():
    default = BiasAdaptation()
    assert ROWS["defaults"].method() == default
    for name, options in {
        "scales from 1": {"gain": 1.0},
        "50 % to 0.1 %": {"highest": 0.5},
        "every 50 steps": {"every": 50},
        "all of these": {"lr": 3e-3, "highest": 0.5, "gamma_up": 0.01, "gamma_down": 0.01, "every": 50, "gain": 1.0},
    }.items():
        assert ROWS[name].method() == dataclasses.replace(default, **options)
    run = Fitted("100 in 40, 3 or 12", adaptation.TOPK, 0)
    assert run.sae(None).activation.k == 8
    assert run_from_record({"run": dataclasses.asdict(run)}) == run
    assert run_from_record({"run": {**dataclasses.asdict(run), "row": "gone"}}) is None


def test_a_diverged_run_is_a_record(monkeypatch):
    monkeypatch.setitem(ROWS, "defaults", adaptation.Row(lambda: BiasAdaptation(lr=1e30)))
    record = measure(Fitted(TUNING[0], "defaults", 0, n_latents=16, steps=20, n_samples=200))
    assert record["recovery"] == {"0.8": 0.0, "0.9": 0.0}
    assert record["diverged_at"] >= 0
