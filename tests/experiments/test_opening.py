"""When the residual is let in, compared from end to end, small."""

from __future__ import annotations

import json

import pytest

from experiments import opening, tables
from experiments.opening import WAYS, Config

SMALL = Config(
    "digits",
    k=3,
    n_latents=16,
    batch_size=16,
    grid=(4e-3, 8e-3),
    sizes=(100,),
    activations=("TopK",),
    budgets=("early", "long"),
    early_epochs=3,
    long_steps=700,
)


def test_tables_and_records(tmp_path, monkeypatch):
    path = opening.main(SMALL, tmp_path)
    results = json.loads(path.read_text())
    assert [r["way"] for r in results["ways"]] == [*WAYS, *WAYS]  # both budgets
    assert len({r["val"] for r in results["ways"]}) > len(WAYS)
    assert {r["winner"] for r in results["ways"] if r["way"] == "race"} & {"open", "tied"}
    records = json.loads((tmp_path / "opening-digits-runs.json").read_text())["records"]
    assert len(records) == 2 * 2 * len(WAYS)
    assert not any("test_last" in r for r in records)  # a choice reads validation data alone
    printed = tables._renderer(results, short=False)(results, False)
    assert all(word in printed for word in ("hold 0.1", "won race"))
    monkeypatch.setattr("experiments.runs.train", lambda *_, **__: pytest.fail("trained again"))
    before = path.read_bytes()
    opening.main(SMALL, tmp_path)
    assert path.read_bytes() == before
