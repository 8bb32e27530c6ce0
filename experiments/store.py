"""Records of runs on disk: written as each run ends, never run twice, merged into one small file."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any, Protocol

import torch
from tqdm.auto import tqdm

from experiments.errors import UsageError
from experiments.files import command_line, finite, provenance, restored, write_json
from experiments.runs import execute, run_from_record
from experiments.sources import Source


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
        """A hash of what the task means today (see `experiments.recipe`): a record of another recipe is not its record."""


class RecordStore:
    """The records of one experiment: `NAME.json` merged, and `NAME.cells/KEY.json` while it runs.

    Records made under other options of their method are passed over, so that a changed default is run again; they are kept.

    Args:
        folder, name: of the file.
        parse: the task that a record is of, or None if there is no such task any more.
        source: the data of all runs; None where they make their own.
        prepare: called once, before the first run is made.

    Raises:
        UsageError: the file holds runs on other data, or is no such file.
    """

    def __init__(
        self, folder: Path, name: str, parse: Callable[[dict[str, Any]], Task | None] = run_from_record,
        source: Source | None = None, prepare: Callable[[], object] | None = None,
    ) -> None:  # fmt: skip
        self.parse, self.source, self.prepare = parse, source, prepare
        self.path, self.cells = folder / f"{name}.json", folder / f"{name}.cells"
        self.records: dict[str, dict[str, Any]] = {}
        self.passed_over: list[dict[str, Any]] = []
        self.asked: set[str] = set()
        self.made = 0
        self._pool: ProcessPoolExecutor | None = None
        if self.path.exists():
            try:
                content = json.loads(self.path.read_text())
                merged = [{**r, "provenance": content["provenance"][r["provenance"]]} for r in restored(content["records"])]
            except (ValueError, LookupError, TypeError) as error:
                raise UsageError(f"{self.path} is not a file of records ({error}): move it away") from error
            self._check_source(content.get("data"), self.path)
            for record in merged:
                self._add(record)
        for path in sorted(self.cells.glob("*.json")):
            record = restored(json.loads(path.read_text()))
            self._check_source(record.pop("data", None), self.cells)
            self._add(record)

    def _check_source(self, found: dict[str, str] | None, path: Path) -> None:
        ours = self.source.describe() if self.source else None
        if (found or {}).get("key") != (ours or {}).get("key"):
            names = [data["name"] if data else "data that it does not name" for data in (found, ours)]
            differ = " (of other content)" if names[0] == names[1] else ""
            raise UsageError(f"{path} holds runs on {names[0]}, and these are on {names[1]}{differ}: pass another --out")

    def _add(self, record: dict[str, Any]) -> None:
        task = self.parse(record)
        if task is not None and record["recipe"] == task.recipe():
            self.records[record["key"]] = record
        else:
            self.passed_over.append(record)

    def get(self, run: Task) -> dict[str, Any]:
        """The record of a finished run."""
        return self.records[run.key]

    def complete(
        self, runs: Iterable[Task], *, jobs: int = 1, device: str = "cpu", data_dir: str | None = None,
        train: Callable[..., dict[str, Any]] = execute, label: str = "",
    ) -> None:  # fmt: skip
        """Carry out the runs that have no record yet, `jobs` at a time (each on one thread if more than 1); longest first."""
        wanted = {run.key: run for run in runs}
        self.asked |= wanted.keys()
        todo = sorted((run for key, run in wanted.items() if key not in self.records), key=lambda run: -run.cost)
        if not todo:
            return
        print(f"{label}: {len(todo):,} of {len(wanted):,} runs to do", file=sys.stderr)
        source = provenance(device)
        if self.prepare is not None:
            self.prepare()
            self.prepare = None
        try:
            with tqdm(total=len(todo), desc=label, unit="run", mininterval=5) as bar:
                if jobs == 1:
                    for run in todo:
                        self._keep(run, train(run, data_dir, device), source)
                        bar.update()
                else:
                    self._complete_in_parallel(
                        todo, jobs, lambda pool, run: pool.submit(train, run, data_dir, device), source, bar
                    )
        except KeyboardInterrupt:
            self._stop()
            raise KeyboardInterrupt(
                f"{self.made:,} runs made now are kept in {self.cells}: the same command goes on from there"
            ) from None

    def _complete_in_parallel(
        self, todo: list[Task], jobs: int, submit: Callable[[ProcessPoolExecutor, Task], Any], source: dict[str, Any], bar: Any
    ) -> None:
        if self._pool is None:
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(jobs, mp_context=context, initializer=_start_worker)
        pending = {submit(self._pool, run): run for run in todo}
        failures = []
        for future in as_completed(pending):
            if future.exception() is None:
                self._keep(pending[future], future.result(), source)
            else:  # the others are finished and kept first
                failures.append((pending[future], future.exception()))
            bar.update()
        if failures:
            raise RuntimeError(f"{len(failures)} runs failed, the first of them {failures[0][0]}") from failures[0][1]

    def _stop(self) -> None:
        """End the workers, whatever they are doing."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():
                process.terminate()
            self._pool.shutdown()  # quick now, and what the pool held is given back
            self._pool = None

    def report(self) -> str:
        """What was made now and what was found."""
        asked, made = len(self.asked), self.made
        if not made:
            said = f"0 of {asked:,} runs to do, all found in {self.path}"
        else:
            said = f"{made:,} of {asked:,} runs made now, {asked - made:,} found in {self.path}"
        return said + (f"; {len(self.passed_over):,} of other options kept, not used" if self.passed_over else "")

    def require(self, runs: Iterable[Task], label: str = "") -> None:
        """Raise MissingRunsError unless every run has a record."""
        runs = list(runs)
        missing = sum(run.key not in self.records for run in runs)
        if missing:
            raise MissingRunsError(f"{label}: {missing} runs have no record")
        self.asked |= {run.key for run in runs}

    def _keep(self, run: Task, record: dict[str, Any], source: dict[str, Any]) -> None:
        record |= {"provenance": source, "recipe": run.recipe()}
        data = {"data": self.source.describe()} if self.source else {}
        write_json(self.cells / f"{record['key']}.json", record | data)
        self._add(restored(finite(record)))
        self.made += 1

    def merge(self, config: dict[str, Any]) -> Path:
        """Write all records into the one results file, then drop the single ones. Returns its path."""
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None
        sources: list[dict[str, Any]] = []
        records = []
        for record in sorted([*self.records.values(), *self.passed_over], key=lambda r: (r["key"], r["recipe"])):
            if record["provenance"] not in sources:
                sources.append(record["provenance"])
            records.append({**record, "provenance": sources.index(record["provenance"])})
        content = {"config": config, **self._data(), "provenance": sources, "records": records}
        write_json(self.path, {"command": command_line(), **content}, ignoring=("command",))
        shutil.rmtree(self.cells, ignore_errors=True)
        return self.path

    def write_results(self, name: str, results: dict[str, Any]) -> Path:
        """Write the tables `results` as `NAME.json` beside the records. Returns its path."""
        path = self.path.with_name(f"{name}.json")
        sources = json.loads(self.path.read_text())["provenance"] if self.path.exists() else []
        content = {"runs": self.path.name, **self._data(), "provenance": sources, **results}
        write_json(path, {"command": command_line(), **content}, ignoring=("command",))
        return path

    def _data(self) -> dict[str, Any]:
        return {"data": self.source.describe()} if self.source else {}


def _start_worker() -> None:
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C reaches workers too: they end without a traceback each
    tqdm.set_lock(threading.RLock())  # tqdm's own is a semaphore of the system, which an ended worker would leave behind


def _end_with_parent(parent: int) -> None:
    """End this worker when the process that started it is gone, killed say: nobody would keep what it makes."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)
