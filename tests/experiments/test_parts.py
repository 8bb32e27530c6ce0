"""Parts of a bench: measured once, again where code or machine have changed, none lost by an interruption."""

from __future__ import annotations

import pytest

from experiments import bench
from experiments.benches import fit, parts
from experiments.benches.parts import Parts
from experiments.files import read_results


@pytest.fixture
def at(monkeypatch):
    def place(code="0123", **changed):
        monkeypatch.setattr(parts, "provenance", lambda device: {"git": "0123456789ab", "device": "cpu", **changed})
        monkeypatch.setattr(parts, "code", lambda: code)

    place()
    return place


def counted(calls, value):
    calls.append(value)
    return {"value": value, "more": [value, float("inf")]}


def test_a_part_is_measured_once_by_the_same_code_on_the_same_machine(tmp_path, at):
    calls = []
    first = Parts(tmp_path / "cells", "cpu", False)("one", counted, calls, 1.5)
    again = Parts(tmp_path / "cells", "cpu", False)("one", counted, calls, 2.5)
    assert first == again == {"value": 1.5, "more": [1.5, float("inf")]}
    assert calls == [1.5]
    assert Parts(tmp_path / "cells", "cpu", False)("two", counted, calls, 2.5)["value"] == 2.5


@pytest.mark.parametrize("changed", [{"code": "4567"}, {"device": "other"}, {"git": "ba9876543210"}])
def test_other_code_or_another_machine_measures_again_and_another_commit_of_the_same_code_does_not(tmp_path, at, changed):
    calls = []
    Parts(tmp_path / "cells", "cpu", False)("one", counted, calls, 1.0)
    at(**changed)
    found = Parts(tmp_path / "cells", "cpu", False)("one", counted, calls, 2.0)["value"]
    assert found == (1.0 if "git" in changed else 2.0)


def test_the_code_is_that_of_the_package_and_the_benches(tmp_path, monkeypatch):
    (tmp_path / "splinterp" / "deep").mkdir(parents=True)
    monkeypatch.setattr(parts, "ROOT", tmp_path)
    file = tmp_path / "splinterp" / "deep" / "one.py"
    found = [parts.code()]
    for text in ("a = 1", "a = 2"):
        file.write_text(text)
        found.append(parts.code())
    assert len(set(found)) == 3


def test_a_check_is_not_taken_for_a_measurement(tmp_path, at):
    calls = []
    Parts(tmp_path / "cells", "cpu", True)("one", counted, calls, 1.0)
    assert Parts(tmp_path / "cells", "cpu", False)("one", counted, calls, 2.0)["value"] == 2.0


def test_an_interrupted_bench_goes_on_where_it_ended(tmp_path, at, monkeypatch, capsys):
    done = []

    def with_threads(threads, work, case, repeats):
        done.append((threads, work.__name__))
        if len(done) == 3:
            raise KeyboardInterrupt
        if work is fit._fits:
            return {name: {"seconds": 1.0, "solves": 0.1, "fvu": 0.2} for name in fit.METHODS}
        return {"floor of a solve: a factor, two triangular solves": 1.0, "coding": 2.0}

    monkeypatch.setattr(fit, "_with_threads", with_threads)
    command = ["fit", "--quick", "--out", str(tmp_path)]
    with pytest.raises(KeyboardInterrupt):
        bench.command(command)
    results = read_results(bench.command(command))
    assert done == [(1, "_fits"), (1, "_parts"), (2, "_fits"), (2, "_fits"), (2, "_parts")]
    assert [len(table["rows"]) for table in results["tables"]] == [4, 4]
    assert "measured before" in capsys.readouterr().err
    assert not (tmp_path / "bench-fit.cells").exists()
