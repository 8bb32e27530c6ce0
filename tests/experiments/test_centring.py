"""The choice of the encoder's centre from end to end, small."""

from __future__ import annotations

import json

import pytest

from experiments import centring, tables
from experiments.centring import CENTRES, Config
from experiments.runs import build

SMALL = Config("digits", k=3, n_latents=16, n_train=60, epochs=2, seeds=(0, 1), offsets=(0.0, 30.0), n_samples=160)


def test_tables_and_records(tmp_path, monkeypatch):
    path = centring.main(SMALL, tmp_path)
    results = json.loads(path.read_text())
    assert {(r["method"], r["centre"]) for r in results["centres"]} == {(m, c) for m in SMALL.methods for c in CENTRES}
    dead = {(r["offset"], r["centre"]): sum(r["frac_dead"]) for r in results["offsets"]}
    assert dead[30.0, "none"] > dead[30.0, "fixed"]
    records = json.loads((tmp_path / "centring-digits-runs.json").read_text())["records"]
    assert len(records) == 18
    assert not any("test_last" in r for r in records)  # a choice reads validation data alone
    text = tables._renderer(results, short=False)(results, False)
    assert all(word in text for word in ("digits", "validation FVU", "off the origin", *SMALL.methods))
    monkeypatch.setattr("experiments.runs.train", lambda *_, **__: pytest.fail("trained again"))
    before = path.read_bytes()
    centring.main(SMALL, tmp_path)
    assert path.read_bytes() == before


def test_each_centre_is_what_it_says():
    kinds = {}
    for name in CENTRES:
        sae, _ = build(SMALL.run("PAM", name, 0), 64)
        kinds[name] = (sae.b_pre is None, "b_pre" in dict(sae.named_parameters()))
    assert kinds == {"none": (True, False), "fixed": (False, False), "trained": (False, True)}
