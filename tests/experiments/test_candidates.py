"""Muon, noise and fewer latents beside the methods as they are, from end to end, small."""

from __future__ import annotations

import json

import pytest

from experiments import candidates, tables
from experiments.candidates import EVEN, EXTRAS, FEWER, METHODS, OPEN, Config
from experiments.errors import UsageError
from experiments.runs import DEFAULT, build
from splinterp.encoders import InputNoise, Linear
from splinterp.protocol import as_model

SMALL = Config(
    "digits", k=3, n_latents=16, batch_size=16, grid=(4e-3, 8e-3), sizes=(100,), activations=("TopK",), long_steps=40
)
CELL = ("long", "TopK", 100)


def test_every_extra_is_what_its_name_says():
    for method in METHODS:
        extras = [extra for extra in EXTRAS if f"{method}; {extra}" in SMALL.ways]
        built = {extra: build(SMALL.run(CELL, f"{method}; {extra}", 4e-3, 0), 64) for extra in extras}
        for extra, (sae, made) in built.items():
            usual = 0.6 if method == DEFAULT and made.optimizer == "adam" else 1.0  # at 0.004
            asked = float(extra.split()[1]) if "decoder_lr" in extra else usual
            assert made.decoder_rate(as_model(sae)) == pytest.approx(asked)
        assert ("decoder_lr 0.3" in extras) == (method != "SGD tied")
        assert {extra for extra, (_, made) in built.items() if made.optimizer == "muon"} == {"Muon", "Muon and noise 0.2"}
        noises = {extra: getattr(sae.encoder, "scale", 0.0) for extra, (sae, _) in built.items()}
        assert noises == {extra: {"noise 0.5": 0.5}.get(extra, 0.2) if "noise" in extra else 0.0 for extra in extras}
        assert all(isinstance(sae.encoder, InputNoise | Linear) for sae, _ in built.values())
        assert {extra: sae.n_latents for extra, (sae, _) in built.items()} == {e: 8 if e == FEWER else 16 for e in extras}


def test_changes_are_counted_from_the_first_extra():
    assert set(Config("digits", extras=(EVEN, "decoder_lr 0.3")).ways) == {
        "SGD tied; decoder_lr 1", *(f"{method}; decoder_lr {f}" for method in METHODS[1:] for f in (1, 0.3))
    }  # fmt: skip


def test_tables_and_records(tmp_path, monkeypatch):
    path = candidates.main(SMALL, tmp_path)
    results = json.loads(path.read_text())
    errors = {r["way"]: r["val"] for r in results["candidates"]}
    assert errors[f"{DEFAULT}; decoder_lr 0.3"] == errors[f"{DEFAULT}; as it is"]  # which is its default at 0.008
    assert len(set(errors.values())) == len(SMALL.ways) - 1  # every other option changes the result
    records = json.loads((tmp_path / "candidates-digits-runs.json").read_text())["records"]
    assert len(records) == 2 * len(SMALL.ways)
    assert not any("test_last" in r for r in records)  # a choice reads validation data alone
    printed = tables._renderer(results, short=False)(results, False)
    assert all(word in printed for word in ("noise 0.5", "Muon", "PAM-SGD"))
    monkeypatch.setattr("experiments.runs.train", lambda *_, **__: pytest.fail("trained again"))
    before = path.read_bytes()
    candidates.main(SMALL, tmp_path)
    assert path.read_bytes() == before


def test_dense_codes_start_as_by_default_and_hold_as_told():
    dense = Config("digits", k=16, n_latents=96, extras=("as it is", OPEN))
    assert set(dense.ways) == {*(f"{method}; as it is" for method in METHODS), f"{DEFAULT}; {OPEN}"}
    for way, hold in ((f"{DEFAULT}; as it is", 0.5), (f"{DEFAULT}; {OPEN}", 0.0)):
        sae, method = build(dense.run(CELL, way, 4e-3, 0), 64)
        assert bool((sae.b_enc[64:] == -1).all())
        assert method.hold == hold


def test_extras_are_asked_for_by_name():
    for extras in (("as it is", "Muno"), ("Muon", "as it is"), ()):
        with pytest.raises(UsageError, match="name 'as it is' or 'decoder_lr 1' first, then some of Muon, noise"):
            Config("digits", extras=extras)


def test_choices_at_an_end_of_the_grid_are_marked():
    assert candidates._step_size({"lr": 4e-3, "by_lr": {"0.004": 0.1, "0.008": 0.2, "0.016": 0.3}}) == "0.004*"
    assert candidates._step_size({"lr": 8e-3, "by_lr": {"0.004": 0.3, "0.008": 0.2, "0.016": 0.3}}) == "0.008"
