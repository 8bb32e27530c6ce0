"""Records of runs on disk: written as each run ends, never run twice, merged into one small file."""

from __future__ import annotations

import json
import math
import multiprocessing
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any, Protocol

import numpy
import scipy
import sklearn
import torch
from tqdm.auto import tqdm

import splinterp
from experiments.runs import execute, run_from_record
from splinterp._atomic import replace_file

ROOT = Path(__file__).resolve().parent.parent


def provenance(device: str) -> dict[str, Any]:
    """Where and with what a record was made."""
    try:
        revision = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        revision = "unknown"
    accelerator = torch.cuda.get_device_name() if device.startswith("cuda") else None
    return {
        "git": revision, "splinterp": splinterp.__version__, "python": platform.python_version(), "torch": torch.__version__,
        "numpy": numpy.__version__, "scipy": scipy.__version__, "scikit-learn": sklearn.__version__,
        "host": platform.node(), "machine": platform.machine(),
        "device": accelerator or device,
    }  # fmt: skip


def write_json(path: Path, content: Any) -> None:
    """Write a results file: infinities as strings, floats to 7 digits, under a temporary name first."""
    text = json.dumps(_finite(content), separators=(",", ":"), allow_nan=False)
    replace_file(path, lambda temporary: temporary.write_text(text + "\n"))


def _finite(value: Any) -> Any:
    """JSON has no infinity: floats outside it are kept as strings, and rounded to 7 digits otherwise."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.7g}") if math.isfinite(value) else repr(value)
    return value


def _restored(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _restored(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_restored(item) for item in value]
    return float(value) if value in ("inf", "-inf", "nan") else value


def command_line() -> str:
    """The command that is running."""
    return "python -m experiments " + " ".join(sys.argv[1:])


class MissingRunsError(LookupError):
    """Runs that a table needs have not been made."""


class Task(Protocol):
    """One piece of work whose result is kept; equal tasks have equal keys."""

    @property
    def key(self) -> str:
        """Names the record."""

    @property
    def cost(self) -> float:
        """Grows with the time it takes: longest first."""

    def recipe(self) -> str:
        """A hash of what the task means today: a record of another recipe is not its record."""


class RecordStore:
    """The records of one experiment: `NAME.json` merged, and `NAME.cells/KEY.json` while it runs.

    Records made under other defaults of their method are passed over, so that a changed default is run again.
    """

    def __init__(self, folder: Path, name: str, parse: Callable[[dict[str, Any]], Task | None] = run_from_record) -> None:
        self.parse = parse
        self.path, self.cells = folder / f"{name}.json", folder / f"{name}.cells"
        self.records: dict[str, dict[str, Any]] = {}
        self._pool: ProcessPoolExecutor | None = None
        if self.path.exists():
            content = json.loads(self.path.read_text())
            for record in _restored(content["records"]):
                self._add({**record, "provenance": content["provenance"][record["provenance"]]})
        for path in sorted(self.cells.glob("*.json")):
            self._add(_restored(json.loads(path.read_text())))

    def _add(self, record: dict[str, Any]) -> None:
        task = self.parse(record)
        if task is not None and record["recipe"] == task.recipe():
            self.records[record["key"]] = record

    def get(self, run: Task) -> dict[str, Any]:
        """The record of a finished run."""
        return self.records[run.key]

    def complete(
        self, runs: Iterable[Task], *, jobs: int = 1, device: str = "cpu", data_dir: str | None = None,
        train: Callable[..., dict[str, Any]] = execute, label: str = "",
    ) -> None:  # fmt: skip
        """Carry out the runs that have no record yet, `jobs` at a time (each on one thread if more than 1); longest first."""
        missing = {run.key: run for run in runs if run.key not in self.records}
        todo = sorted(missing.values(), key=lambda run: -run.cost)
        if not todo:
            return
        source = provenance(device)
        bar = tqdm(total=len(todo), desc=label, unit="run", mininterval=5)
        if jobs == 1:
            for run in todo:
                self._keep(run, train(run, data_dir, device), source)
                bar.update()
        else:
            if self._pool is None:
                context = multiprocessing.get_context("spawn")
                self._pool = ProcessPoolExecutor(jobs, mp_context=context, initializer=torch.set_num_threads, initargs=(1,))
            pending = {self._pool.submit(train, run, data_dir, device): run for run in todo}
            failures = []
            for future in as_completed(pending):
                if future.exception() is None:
                    self._keep(pending[future], future.result(), source)
                else:  # the others are finished and kept first
                    failures.append((pending[future], future.exception()))
                bar.update()
            if failures:
                raise RuntimeError(f"{len(failures)} runs failed, the first of them {failures[0][0]}") from failures[0][1]
        bar.close()

    def require(self, runs: Iterable[Task], label: str = "") -> None:
        """Raise MissingRunsError unless every run has a record."""
        missing = sum(run.key not in self.records for run in runs)
        if missing:
            raise MissingRunsError(f"{label}: {missing} runs have no record")

    def _keep(self, run: Task, record: dict[str, Any], source: dict[str, Any]) -> None:
        record |= {"provenance": source, "recipe": run.recipe()}
        write_json(self.cells / f"{record['key']}.json", record)
        self._add(_restored(_finite(record)))

    def merge(self, config: dict[str, Any]) -> Path:
        """Write all records into the one results file, then drop the single ones. Returns its path."""
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None
        sources: list[dict[str, Any]] = []
        records = []
        for key in sorted(self.records):
            record = dict(self.records[key])
            if record["provenance"] not in sources:
                sources.append(record["provenance"])
            records.append({**record, "provenance": sources.index(record["provenance"])})
        content = {"command": command_line(), "config": config, "provenance": sources, "records": records}
        write_json(self.path, content)
        shutil.rmtree(self.cells, ignore_errors=True)
        return self.path

    def write_results(self, name: str, results: dict[str, Any]) -> Path:
        """Write the tables `results` as `NAME.json` beside the records. Returns its path."""
        path = self.path.with_name(f"{name}.json")
        sources = json.loads(self.path.read_text())["provenance"] if self.path.exists() else []
        write_json(path, {"command": command_line(), "runs": self.path.name, "provenance": sources, **results})
        return path


def read_results(path: Path) -> dict[str, Any]:
    """A results file, with its infinities restored."""
    return _restored(json.loads(path.read_text()))
