"""What names a record: a new option renames nothing, a changed default does, and every committed record is found."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest
import torch

from experiments import abstopk, adaptation, baselines, recovery_runs, runs, variant_runs
from experiments.baseline_fits import Fit
from experiments.files import COMMITTED, finite, restored
from experiments.recipe import NEUTRAL, digest, essence, options_of
from experiments.runs import METHODS, Run, run_from_record
from experiments.store import RecordStore
from splinterp import PAMSGD, SAE, SGD, BiasAdaptation, JumpReLU, TopK
from splinterp.losses import SquaredError
from splinterp.training import Racing, Refresh, Resampling
from splinterp.training.shorthands import SOLVER_SHORTHANDS, WHEN_SHORTHANDS

RUN = Run(data="digits", method="PAM", activation="TopK", k=3, n_latents=16, n_train=60, epochs=2, lr=1e-2, seed=1)
PARSERS = {
    "abstopk": abstopk.run_from_record,
    "adaptation": adaptation.run_from_record,
    "baselines": baselines.parse,
    "variants": variant_runs.run_of,
    "recovery": recovery_runs.task_from_record,
}


class Told:
    """A source that is what a results file says."""

    def __init__(self, data):
        self.data = data

    def describe(self):
        return self.data


def parser_of(name):
    return next((parse for start, parse in PARSERS.items() if name.startswith(start)), run_from_record)


def found_in(path):
    """(records found, records held) of a committed file."""
    content = json.loads(path.read_text())
    source = Told(content["data"]) if "data" in content else None
    store = RecordStore(path.parent, path.stem, parser_of(path.stem), source)
    return len(store.records), len(content["records"]), store


@pytest.mark.parametrize("path", sorted(COMMITTED.glob("*-runs.json")), ids=lambda path: path.stem)
def test_every_committed_record_is_found(path):
    found, held, store = found_in(path)
    assert found == held > 0
    assert not store.passed_over
    for record in list(store.records.values())[:50]:
        assert store.parse(record).key == record["key"]


def with_option(made, name="tempo", default=1.5):
    """The class with one option more, as a new version of it would have."""
    options = {"kw_only": True, "frozen": True}
    return dataclasses.make_dataclass(
        made.__name__, [(name, float, dataclasses.field(default=default))], bases=(made,), **options
    )


def test_a_new_option_renames_no_record(monkeypatch):
    newer = with_option(PAMSGD), with_option(SGD)
    by_name = {"PAMSGD": newer[0], "SGD": newer[1]}

    def renewed(row):
        method = row["method"]
        if isinstance(method, type):
            return {**row, "method": by_name[method.__name__]}
        if not hasattr(by_name["PAMSGD"], method.__name__):  # around a base
            return row
        return {**row, "method": getattr(by_name["PAMSGD"], method.__name__)}

    monkeypatch.setattr(runs, "METHODS", {name: renewed(row) for name, row in METHODS.items()})
    assert hasattr(runs.build(RUN, 64)[1], "tempo")
    for name in ("mnist-controlled-runs", "llm-minilm-3-runs", "mnist-paper-runs"):
        found, held, _ = found_in(COMMITTED / f"{name}.json")
        assert found == held
    monkeypatch.setattr(runs, "METHODS", {**METHODS, "PAM": {**METHODS["PAM"], "method": newer[0], "tempo": 2.0}})
    assert RUN.recipe() != dataclasses.replace(RUN, method="PAM, held").recipe()
    found, held, store = found_in(COMMITTED / "mnist-controlled-runs.json")
    assert 0 < found < held == found + len(store.passed_over)


def test_a_new_field_of_a_run_renames_no_record():
    newer = dataclasses.make_dataclass("Run", [("weight", float, dataclasses.field(default=1.0))], bases=(Run,), frozen=True)
    fields = {f.name: getattr(RUN, f.name) for f in dataclasses.fields(RUN)}
    assert newer(**fields).key == RUN.key
    assert newer(**fields, weight=2.0).key != RUN.key


def test_a_changed_default_renames_the_runs_of_the_new_one():
    changed = with_option(PAMSGD, "hold", 0.1)
    assert digest(changed()) != digest(PAMSGD())
    assert digest(changed(hold="auto")) == digest(PAMSGD())
    assert digest(changed()) == digest(PAMSGD(hold=0.1))


@pytest.mark.parametrize("made", NEUTRAL, ids=lambda made: made.__name__)
def test_every_option_has_its_neutral_value_listed(made):
    """An option that is not listed would rename nothing when its default is changed later: list it in NEUTRAL."""
    if made is SAE:
        assert set(NEUTRAL[SAE]) >= set(runs.SAE_OPTIONS)
    else:
        fields = {f.name for f in dataclasses.fields(made)}
        shorthands = {"ridge", "gcv_inflation", *SOLVER_SHORTHANDS, *WHEN_SHORTHANDS}
        assert set(NEUTRAL[made]) == (fields - {"solver", "when"} | shorthands if made is PAMSGD else fields)


@pytest.mark.parametrize("name", NEUTRAL[PAMSGD])
def test_every_option_of_pam_changes_the_recipe(name):
    other = {
        "lr": 1e-3, "optimizer": "sgd", "betas": (0.8, 0.9), "schedule": "constant", "clip": 1.0, "weight_decay": 0.1, "decay_biases": True,
        "l1": 0.1, "l0": 0.1, "gradient": "encoder", "hold": 0.2, "encoder_updates": 2, "prox_enc": 1.0, "prox_dec": 1.0, "bias_prox": 1.0,
        "ridge": 3.0, "gcv_inflation": 1.4, "bias_ridge": 1.0, "bias": "separate", "solve_gap": 1, "decoder_every": 3, "solve_first": True,
        "solve_parts": 3, "scale": "fit", "stats_dtype": torch.float32, "warmup": 0.1, "decay": 0.2, "penalty_warmup": 0.1,
        "terms": (SquaredError(weight=2.0),), "resample": Resampling(every=10, dead_after=100), "k_start": 30, "k_share": 0.2,
        "readout": True, "racing": Racing(length=0.2), "bias_lr": 2.0, "decoder_lr": 0.3,
    }[name]  # fmt: skip
    needed = {
        "decay_biases": {"weight_decay": 0.1}, "decay": {"schedule": "constant"}, "penalty_warmup": {"l1": 0.1}, "k_share": {"k_start": 30},
    }  # fmt: skip
    options = needed.get(name, {})
    if name in ("bias_prox", "bias_ridge", "bias"):
        options = {"ridge": 0.0}
    assert digest(PAMSGD(**options, **{name: other})) != digest(PAMSGD(**options))


def test_a_stream_has_a_recipe_of_its_own():
    assert len({digest(method) for method in (PAMSGD(), PAMSGD(when=Refresh()), PAMSGD(when=Refresh(keep=0.1)))}) == 3


def test_essence_is_of_values_not_of_how_they_are_written():
    assert essence(1) == essence(1.0) == essence(restored(finite(1.0)))
    assert essence(3 / 512 / 16) == essence(restored(finite(3 / 512 / 16)))  # records keep 7 digits
    assert essence(math.inf) == "inf"
    assert essence((1, 2)) == essence([1, 2])
    assert essence(True) is True
    assert options_of(SAE, {"decoder": "free"}) == {"made": "SAE"}
    assert essence(JumpReLU()) == {"made": "JumpReLU"}
    assert essence(TopK(3)) != essence(TopK(4))
    assert digest(torch.arange(5)) == digest(torch.arange(5)) != digest(torch.arange(5).flip(0))
    assert digest(torch.linspace(0, 1, 5)) != digest(torch.linspace(0, 1, 5).double())
    assert digest(BiasAdaptation(base=SGD(lr=1e-3))) != digest(BiasAdaptation(base=SGD(lr=2e-3)))
    assert digest(Fit("digits", "ICA", 1, 8, 100, 0).estimator()) != digest(Fit("digits", "ICA", 1, 4, 100, 0).estimator())
    with pytest.raises(TypeError, match="object cannot name a record"):
        essence({"x": object()})
