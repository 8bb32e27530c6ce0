"""Runs and their records: what a run is, that it repeats, that nothing is run twice, that nothing is lost."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest
import torch

from experiments import runs
from experiments.files import read_results
from experiments.runs import METHODS, Run, build, execute, pool_size
from experiments.store import RecordStore
from splinterp import PAMSGD, SGD
from splinterp.data import load_digits

RUN = Run(data="digits", method="PAM", activation="TopK", k=3, n_latents=16, n_train=60, epochs=2, lr=1e-2, seed=1)


def test_key_depends_on_every_field():
    changed = {
        "data": "mnist", "method": "SGD tied", "activation": "AbsTopK", "k": 4, "n_latents": 17, "n_train": 61, "epochs": 3, "lr": 2e-2,
        "seed": 2, "role": "tuning", "batch_size": 64, "normalise": "published", "options": (("l1", 0.1),),
        "source": "0123", "pool": 100,
    }  # fmt: skip
    assert set(changed) == {f.name for f in dataclasses.fields(Run)}
    keys = {RUN.key} | {dataclasses.replace(RUN, **{name: value}).key for name, value in changed.items()}
    assert len(keys) == len(changed) + 1
    assert dataclasses.replace(RUN).key == RUN.key


@pytest.mark.parametrize("method", METHODS)
def test_every_method_runs_and_repeats(method):
    run = dataclasses.replace(RUN, method=method, epochs=500 if "resampling" in method else RUN.epochs)
    first, second = execute(run), execute(run)
    for record in (first, second):
        record.pop("seconds")
    assert json.dumps(first) == json.dumps(second)  # NaN: no ridge before the first solve
    assert 0 < first["test_last"]["fvu"] < 2
    assert first["val_best"] <= first["val_last"]


@pytest.mark.parametrize("method", ["PAM-SGD", "SGD tied"])
def test_the_best_row_is_measured_with_the_decoder_that_made_it_best(method, monkeypatch):
    options = () if method.startswith("SGD") else (("readout", True),)
    run = dataclasses.replace(RUN, method=method, n_latents=64, epochs=60, lr=3e-2, options=options)
    data = runs.split(run)
    monkeypatch.setattr(
        runs, "split", lambda *_: data._replace(x_test=data.x_val)
    )  # so that the two errors are of the same samples
    record = execute(run)
    assert record["best_step"] < record["steps"]
    assert record["test_best"]["fvu"] == pytest.approx(record["val_best"], rel=1e-6)
    assert record["test_last"]["fvu"] == pytest.approx(record["val_last"], rel=1e-6)


def test_all_methods_start_from_the_same_encoder_and_defaults():
    built = {name: build(dataclasses.replace(RUN, method=name), 64) for name in METHODS}
    reference = built["PAM"][0].W_enc
    assert all(torch.equal(sae.W_enc, reference) for sae, _ in built.values())
    assert built["PAM"][1] == PAMSGD(lr=1e-2, solve_gap=50, hold=0.0, decoder_lr=1.0, readout=False, ridge="gcv")
    sae, default = built["PAM-SGD"]
    assert dataclasses.replace(default, decoder_lr=None) == PAMSGD(lr=1e-2, hold=0.0)
    assert (default.hold, default.decoder_lr) == PAMSGD(lr=1e-2).opening(sae.activation, 64)
    for name in ("SGD tied", "SGD untied", "SGD untied from W_enc^T", "SGD tied-residual"):
        assert built[name][1] == SGD(lr=1e-2)
    assert {sae.decoder for name, (sae, _) in built.items() if name.startswith("SGD")} == {"free", "tied", "tied_residual"}


def test_paper_strengths_are_converted():
    run = dataclasses.replace(RUN, method="PAM published", options=(("mu", 1e-3), ("nu", 1e-4)))
    method = build(run, 64)[1]
    assert method.prox_enc == pytest.approx(1e-3 * 60 * 64)
    assert method.prox_dec == pytest.approx(1e-4 * 60 * 64)


def test_tuning_runs_do_not_read_the_test_split(monkeypatch):
    measured = []
    monkeypatch.setattr(runs, "_measure", lambda sae, x: measured.append(len(x)) or {"fvu": 1.0})
    record = execute(dataclasses.replace(RUN, role="tuning"))
    assert not measured
    assert "test_last" not in record
    execute(RUN)
    assert measured == [360, 360]


def test_validation_and_training_images_are_disjoint():
    pool, validation, test = runs._images("digits", None)
    assert len(pool) == pool_size("digits")
    everything = load_digits()
    assert len(pool) + len(validation) == len(everything.x_train)
    both = sorted(map(tuple, torch.cat([pool, validation]).tolist()))
    assert both == sorted(map(tuple, everything.x_train.tolist()))  # each image once
    assert torch.equal(test, everything.x_test)


def test_a_diverged_run_is_a_record():
    record = execute(dataclasses.replace(RUN, method="SGD untied", lr=1e30, options=(("optimizer", "sgd"),)))
    assert record["val_last"] == math.inf
    assert record["test_best"]["fvu"] == math.inf


def test_store_runs_once_survives_a_kill_and_merges(tmp_path):
    calls = []

    def train(run, data_dir, device):
        calls.append(run.seed)
        if run.seed == 3 and calls.count(3) == 1:
            raise InterruptedError
        (tmp_path / "x.cells").mkdir(exist_ok=True)
        (tmp_path / "x.cells" / ".left.json.tmp").touch()  # of a killed writer
        return {"key": run.key, "run": dataclasses.asdict(run), "val_last": math.inf if run.seed == 2 else 0.1234567891}

    todo = [dataclasses.replace(RUN, seed=s) for s in (1, 2, 3)]
    with pytest.raises(InterruptedError):
        RecordStore(tmp_path, "x").complete(todo, train=train)
    store = RecordStore(tmp_path, "x")
    assert len(store.records) == 2
    store.complete([*todo, todo[0]], train=train)
    with pytest.raises(KeyError):
        store.get(dataclasses.replace(RUN, seed=9))
    assert calls == [1, 2, 3, 3]
    path = store.merge({"setting": 1})
    assert not (tmp_path / "x.cells").exists()
    content = json.loads(path.read_text())
    assert len(content["records"]) == 3
    assert {"git", "splinterp", "python", "torch", "host", "device"} <= set(content["provenance"][0])
    again = RecordStore(tmp_path, "x")
    again.complete(todo, train=train)
    assert len(calls) == 4
    assert again.get(todo[1])["val_last"] == math.inf
    assert again.get(todo[0])["val_last"] == pytest.approx(0.1234567891, rel=1e-6)
    results = again.write_results("table", {"rows": [{"fvu": [math.inf, 1.0]}]})
    assert read_results(results)["rows"][0]["fvu"] == [math.inf, 1.0]


def test_records_of_other_defaults_are_run_again(tmp_path, monkeypatch):
    store = RecordStore(tmp_path, "x")
    others = dataclasses.replace(RUN, method="SGD tied")
    store.complete([RUN, others])
    store.merge({})
    assert len(RecordStore(tmp_path, "x").records) == 2
    monkeypatch.setitem(METHODS, "PAM", {**METHODS["PAM"], "solve_gap": 7})
    assert list(RecordStore(tmp_path, "x").records) == [others.key]


@pytest.mark.slow
def test_parallel_runs_equal_serial_ones(tmp_path):
    todo = [dataclasses.replace(RUN, seed=s) for s in (1, 2)]
    serial, parallel = RecordStore(tmp_path, "a"), RecordStore(tmp_path, "b")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        serial.complete(todo)
    finally:
        torch.set_num_threads(threads)
    parallel.complete(todo, jobs=2)
    parallel.merge({})
    for run in todo:
        assert serial.get(run)["test_last"] == parallel.get(run)["test_last"]
