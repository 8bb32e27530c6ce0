"""Remedies against dead latents, small."""

from __future__ import annotations

import dataclasses

import pytest

from experiments import __main__ as command_line
from experiments import dead, runs
from experiments.files import read_results
from experiments.sources import source_of
from experiments.store import RecordStore
from splinterp import BiasAdaptation
from splinterp.losses import AuxK

SMALL = dead.Config(
    data="digits", k=3, n_latents=24, settings=(("free", 100, 300), ("tied_residual", 100, 300)), batch_size=50, grid=(4e-3, 8e-3),
    seeds=(0, 1),
)  # fmt: skip


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return dead.main(SMALL, tmp_path_factory.mktemp("dead"))


@pytest.mark.slow
def test_every_setting_has_every_remedy(small, capsys, monkeypatch):
    results = read_results(small)
    assert [(r["decoder"], r["base"], r["remedy"]) for r in results["remedies"]] == [
        (decoder, base, remedy) for decoder in ("free", "tied_residual") for base in dead.BASES for remedy in runs.REMEDIES
    ]
    found = {(r["decoder"], r["base"], r["remedy"]): r["fvu"] for r in results["remedies"]}
    assert len({tuple(v) for v in found.values()}) == len(found)  # every remedy changes every run
    assert command_line.main(["tables", str(small)]) == 0
    assert "bias adaptation" in capsys.readouterr().out
    monkeypatch.setattr("experiments.runs.train", None)  # a rerun has nothing to do
    dead.main(SMALL, small.parent)
    assert "0 of 64 runs to do" in capsys.readouterr().out


def test_remedies_are_what_they_are_called():
    run = next(iter(SMALL.cells().values())).run("SGD, AuxK", 1e-3, 0)
    assert any(isinstance(term, AuxK) for term in runs.build(run, 64)[1].terms)
    adapted = runs.build(dataclasses.replace(run, method="PAM, bias adaptation"), 64)[1]
    assert isinstance(adapted, BiasAdaptation)
    assert adapted.group_targets() == [3 / 24]
    assert runs.build(dataclasses.replace(run, method="PAM, resampling"), 64)[1].resample.every == 100
    assert runs.build(run, 64)[0].decoder == "free"


@pytest.mark.slow
def test_step_sizes_are_tuned_alike(small):
    store = RecordStore(small.parent, "dead-digits-runs", source=source_of("digits"))
    tasks = [runs.run_from_record(record) for record in store.records.values()]
    for method in dead.METHODS:
        assert {t.lr for t in tasks if t.method == method and t.role == "tuning"} == set(SMALL.grid)
    assert not {t.seed for t in tasks if t.role == "reported"} & set(SMALL.tuning_seeds)


def test_a_text_is_for_the_language_model(capsys):
    with pytest.raises(SystemExit):
        dead.command(["--data", "mnist", "--text", "python-docs"])
    assert "is for --data minilm" in capsys.readouterr().err
