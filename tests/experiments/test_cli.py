"""The command line: errors before anything is read or trained, what is said, and what ends a command."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from experiments import __main__ as command_line
from experiments import digits, llm, mnist, report, runs
from experiments.errors import UsageError, guarded
from experiments.files import COMMITTED, ROOT
from experiments.options import OUT
from experiments.runs import Run
from experiments.store import RecordStore
from paper_figures import __main__ as figures

RUN = Run(data="digits", method="PAM", activation="TopK", k=3, n_latents=16, n_train=60, epochs=2, lr=1e-2, seed=1)
BUILT = ("digits", "mnist", "llm", "abstopk", "atoms", "baselines", "geometry", "recovery")


def refused(arguments, capsys):
    """The error that a command line is refused with."""
    try:
        status = command_line.main(arguments)
    except SystemExit as stop:
        status = stop.code
    assert status == 2
    return capsys.readouterr().err


@pytest.fixture(autouse=True)
def nothing_is_trained(monkeypatch):
    def train(*_, **__):
        raise AssertionError("something was trained")

    monkeypatch.setattr(runs, "train", train)


@pytest.mark.parametrize("name", BUILT)
def test_wrong_values_are_errors_of_the_command_line(name, tmp_path, capsys):
    (tmp_path / "file").touch()
    for out in (tmp_path / "file", tmp_path / "file" / "below", "/proc/nowhere"):
        assert f"cannot write to '{out}'" in refused([name, "--out", str(out)], capsys)
    assert "argument" in refused([name, "--device", "quantum"], capsys)
    if name != "atoms":
        for jobs in ("0", "-1", "two", "1.5"):
            assert "is not a whole number of at least 1" in refused([name, "--jobs", jobs], capsys)
    if name not in ("digits", "recovery"):
        assert "'/nonexistent' is not a folder" in refused([name, "--data-dir", "/nonexistent"], capsys)


@pytest.mark.parametrize("name", ["mnist", "atoms", "geometry", "baselines"])
def test_a_folder_without_the_images_is_told_first(name, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    said = refused([name, "--data-dir", str(tmp_path / "empty"), "--out", str(tmp_path / "out")], capsys)
    assert f"python -m experiments {name}: error: no train-images-idx3-ubyte" in said
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("name", ["llm", "abstopk"])
def test_a_folder_without_the_text_is_told_first(name, tmp_path, capsys):
    said = refused([name, "--data-dir", str(tmp_path), "--out", str(tmp_path / "out")], capsys)
    assert "valid.txt is missing" in said or "installed" in said
    assert "--text python-docs" in said or "installed" in said


def test_an_impossible_layer_is_told_first(tmp_path, capsys):
    pytest.importorskip("transformers", reason="needs transformers: pip install -e '.[llm]'")
    for arguments in (["abstopk", "--layers", "3", "77"], ["llm", "--layer", "77"]):
        said = refused([*arguments, "--text", "python-docs", "--out", str(tmp_path)], capsys)
        assert "layer=77 is not one of 0 to 6" in said or "not installed" in said


def test_parts_belong_to_a_preset(capsys):
    for arguments in (
        ["mnist", "--preset", "paper", "--parts", "relu"], ["mnist", "--parts", "mu_nu"], ["mnist", "--preset", "paper", "--parts", "k"],
        ["llm", "--preset", "paper", "--parts", "relu"], ["llm", "--preset", "paper", "--parts", "mu_nu"], ["llm", "--parts", "k"],
        ["mnist", "--parts", "sizes", "nothing"],
    ):  # fmt: skip
        said = refused(arguments, capsys)
        assert f"has no part {arguments[-1]}: its parts are sizes" in said


def test_a_text_that_is_too_short_is_told_before_it_is_read(tmp_path, capsys, monkeypatch):
    pytest.importorskip("transformers", reason="needs transformers: pip install -e '.[llm]'")
    monkeypatch.setattr("experiments.activations.extract_activations", None)
    monkeypatch.setenv("SPLINTERP_CACHE", str(tmp_path / "cache"))
    said = refused(["llm", "--preset", "controlled", "--text", "python-docs", "--out", str(tmp_path)], capsys)
    assert "training tokens, fewer than the 110,000 needed" in said or "not installed" in said


def test_the_quick_form_needs_no_other_text_than_pythons_own():
    assert llm.QUICK.pool == llm.QUICK_POOL < 78_000
    assert {round(share * llm.QUICK_POOL) for share in (*llm.QUICK.shares, *llm.QUICK.relu_shares)} == {1_000, 9_000}


def test_results_files_that_are_not_there(tmp_path, capsys):
    assert "neither a file nor one of abstopk, " in refused(["tables", "nothing"], capsys)
    (tmp_path / "broken.json").write_text('{"rows": [')
    assert "is no results file" in refused(["tables", str(tmp_path / "broken.json")], capsys)
    assert "their tables are in mnist-paper" in refused(["tables", "mnist-paper-runs"], capsys)
    assert "named twice" in refused(["tables", "mnist-centred", "mnist-centred", "--counts"], capsys)
    assert "has no verdicts to count: leave --counts out" in refused(["tables", "mnist-centred", "abstopk", "--counts"], capsys)
    with pytest.raises(SystemExit):
        figures.run(["sparsity", "--results", str(tmp_path / "none.json")])
    assert "neither a results file nor a folder" in capsys.readouterr().err
    assert figures.run(["sparsity", "--results", str(tmp_path / "broken.json"), "--out", str(tmp_path)]) == 2
    assert "is no results file" in capsys.readouterr().err


def test_default_folders_are_ignored_by_git():
    for folder in (OUT / "x.json", figures.OUT / "x.png"):
        path = folder.relative_to(ROOT)
        found = subprocess.run(["git", "check-ignore", str(path)], cwd=ROOT, capture_output=True, text=True)
        if "not a git repository" in found.stderr:
            pytest.skip("not a clone")
        assert found.returncode == 0, path
    assert mnist.arguments([]).out == OUT != COMMITTED


def test_ends_of_a_command_have_no_traceback(capsys):
    def stop(error):
        raise error

    assert guarded("name", lambda: stop(UsageError("too few"))) == 2
    assert capsys.readouterr().err == "name: error: too few\n"
    assert guarded("name", lambda: stop(KeyboardInterrupt("3 runs are kept"))) == 130
    assert "name: interrupted; 3 runs are kept" in capsys.readouterr().err
    assert guarded("name", lambda: stop(KeyboardInterrupt())) == 130
    assert "nothing was written" in capsys.readouterr().err
    with pytest.raises(ZeroDivisionError):
        guarded("name", lambda: 1 / 0)
    assert guarded("name", lambda: None) == 0


def test_an_interruption_keeps_what_is_finished(tmp_path):
    def train(run, data_dir, device):
        if run.seed == 3:
            raise KeyboardInterrupt
        return {"key": run.key, "run": dataclasses.asdict(run), "val_last": 0.5}

    todo = [dataclasses.replace(RUN, seed=s) for s in (1, 2, 3)]
    with pytest.raises(KeyboardInterrupt, match=r"2 runs made now are kept in .*x\.cells: the same command goes on"):
        RecordStore(tmp_path, "x").complete(todo, train=train)
    assert len(RecordStore(tmp_path, "x").records) == 2


def test_what_was_made_and_what_was_found_is_said(tmp_path, capsys):
    def train(run, data_dir, device):
        return {"key": run.key, "run": dataclasses.asdict(run), "val_last": 0.5}

    todo = [dataclasses.replace(RUN, seed=s) for s in (1, 2, 3)]
    store = RecordStore(tmp_path, "x")
    store.complete(todo[:2], train=train, label="sizes")
    assert "sizes: 2 of 2 runs to do" in capsys.readouterr().err
    store.merge({})
    store = RecordStore(tmp_path, "x")
    store.complete(todo, train=train, label="sizes")
    assert "sizes: 1 of 3 runs to do" in capsys.readouterr().err
    assert store.report() == f"1 of 3 runs made now, 2 found in {tmp_path / 'x.json'}"
    store.merge({})
    store = RecordStore(tmp_path, "x", prepare=lambda: 1 / 0)  # nothing to prepare for
    store.complete(todo, train=None)
    store.require(todo)
    assert store.report() == f"0 of 3 runs to do, all found in {tmp_path / 'x.json'}"


def test_records_of_other_options_are_kept_and_a_rerun_changes_no_byte(tmp_path, monkeypatch):
    def train(run, data_dir, device):
        return {"key": run.key, "run": dataclasses.asdict(run), "val_last": 0.5, "ridge": [float("inf")]}

    todo = [dataclasses.replace(RUN, seed=s, method=m) for s in (1, 2) for m in ("PAM", "SGD tied")]
    store = RecordStore(tmp_path, "x")
    store.complete(todo, train=train)
    path = store.merge({"k": 3})
    before = path.read_bytes()
    monkeypatch.setattr(sys, "argv", ["experiments", "mnist", "--parts", "relu"])  # another command
    RecordStore(tmp_path, "x").merge({"k": 3})
    assert path.read_bytes() == before
    monkeypatch.setattr(runs, "METHODS", {**runs.METHODS, "PAM": {**runs.METHODS["PAM"], "solve_gap": 7}})
    changed = RecordStore(tmp_path, "x")
    assert (len(changed.records), len(changed.passed_over)) == (2, 2)
    assert "2 of other options kept, not used" in changed.report()
    changed.complete(todo, train=train)
    changed.merge({"k": 3})
    monkeypatch.undo()
    assert len(RecordStore(tmp_path, "x").records) == 4  # those of the old default are still there


def test_tables_fit_their_width():
    header = ["method", "a heading of many words that is long", *(f"column {i}" for i in range(12)), "notes"]
    rows = [[f"method {j}", "0.123 ± 0.001", *("0.123 ± 0.001" for _ in range(12)), "note " * 60] for j in range(3)]
    text = report.table(header, rows, keys=1, width=80)
    assert max(map(len, text.splitlines())) <= 80
    assert text.count("0.123 ± 0.001") == 3 * 13
    assert text.count("note ") + text.count("note\n") == 3 * 60 - 1
    assert text.count("method 2") == len(text.split("\n\n"))  # keys are repeated
    assert all(f"column {i}" in text for i in range(12))
    markdown = report.table(header, rows, markdown=True)
    assert len(markdown.splitlines()) == 2 + 3
    narrow = report.table(["a", "b"], [[1, 2]], width=80)
    assert narrow.splitlines() == ["a  b", "-  -", "1  2"]
    assert report.table(["a", "b"], [], width=80).splitlines() == ["a  b", "-  -"]


@pytest.mark.parametrize("path", sorted(COMMITTED.glob("*.json")), ids=lambda path: path.stem)
def test_committed_tables_fit_a_page(path, capsys):
    if path.stem.endswith("-runs"):
        return
    assert command_line.main(["tables", str(path)]) == 0
    assert max(map(len, capsys.readouterr().out.splitlines())) <= report.DEFAULT_WIDTH


@pytest.mark.slow
def test_a_reader_that_has_enough_ends_the_command_quietly():
    command = [sys.executable, "-m", "experiments", "tables", "mnist-controlled"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()  # before the first line
        assert process.wait(timeout=120) == 141
        assert process.stderr.read() == ""


@pytest.mark.slow
@pytest.mark.parametrize("jobs", ["1", "2"])
def test_ctrl_c_says_that_the_command_goes_on(jobs, tmp_path):
    command = [sys.executable, "-m", "experiments", "digits", "--out", str(tmp_path), "--jobs", jobs]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    before = signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # a job in the background ignores it, and so would its children
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True)
    signal.signal(signal.SIGINT, before)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("digits-runs.cells/*.json")) and time.monotonic() < deadline:
        time.sleep(0.2)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the workers too
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in said
    assert "resource_tracker" not in said
    assert "runs made now are kept in" in said
    kept = len(list(tmp_path.glob("digits-runs.cells/*.json")))
    assert kept >= 1
    assert len(RecordStore(tmp_path, "digits-runs", source=mnist.source_of("digits")).records) == kept
    assert digits.CONFIG.data == "digits"
    assert torch.get_num_threads() >= 1


@pytest.mark.slow
def test_workers_end_with_a_command_that_is_killed(tmp_path):
    command = [sys.executable, "-m", "experiments", "digits", "--out", str(tmp_path), "--jobs", "2"]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"})

    def workers():
        found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True, check=False)
        return [int(pid) for pid in found.stdout.split()]

    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("digits-runs.cells/*.json")) and time.monotonic() < deadline:
        time.sleep(0.2)
    pids = workers()
    assert len(pids) >= 2
    process.kill()
    process.wait()
    while any(Path(f"/proc/{pid}").exists() for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]


def test_verdicts_are_counted_over_files(capsys):
    names = ["mnist-centred", "llm-small-gpt2-1-centred"]
    assert command_line.main(["tables", *names, "--counts", "--markdown"]) == 0
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in capsys.readouterr().out.splitlines()]
    rows = [dict(zip(lines[0], line, strict=True)) for line in lines[2:]]
    verdicts = [v for name in names for v in json.loads((COMMITTED / f"{name}.json").read_text())["verdicts"]]
    parts = [row for row in rows if row["file"] != "all"]
    assert {(row["file"], row["activation"]) for row in parts} == {(n, a) for n in names for a in ("TopK", "AbsTopK")}
    for column in ("better", "not worse", "undecided", "worse"):
        total = sum(v["verdict"] == column for v in verdicts)
        assert sum(int(row[column]) for row in parts) == int(rows[-1][column]) == total
    assert rows[-1]["cells"] == str(len(verdicts))
    worst = max(v["log_ratio"][0] for v in verdicts)
    assert rows[-1]["PAM against control"].endswith(f"{math.expm1(worst):+.1%}")
