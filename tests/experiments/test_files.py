"""Results files: what they say of the command, and that an unchanged one keeps its bytes."""

from __future__ import annotations

import json
import math

from experiments.files import COMMITTED, command_line, read_results, write_json


def test_the_recorded_command_is_anyones(tmp_path):
    given = ["llm", "--preset", "paper", "--data-dir", "/home/me/data", "--jobs", "2", "--out=here", "--layer", "3"]
    assert command_line(given) == "python -m experiments llm --preset paper --data-dir FOLDER --layer 3"
    assert command_line(["mnist", "--data-dir=/home/me"]) == "python -m experiments mnist --data-dir FOLDER"
    assert command_line(["llm", "--model", str(tmp_path)]) == "python -m experiments llm --model FOLDER"
    assert command_line(["llm", "--model=google/gemma-2-2b"]) == "python -m experiments llm --model=google/gemma-2-2b"


def test_committed_results_name_no_folder_and_no_jobs():
    for path in COMMITTED.glob("*.json"):
        command = json.loads(path.read_text())["command"]
        assert command.startswith("python -m experiments "), path
        assert "/" not in command, path
        assert "--jobs" not in command, path


def test_a_file_that_differs_in_its_command_alone_is_left(tmp_path):
    path = tmp_path / "x.json"
    write_json(path, {"command": "first", "rows": [1.0, math.inf]}, ignoring=("command",))
    before = path.read_bytes()
    write_json(path, {"command": "second", "rows": [1.0 + 1e-12, math.inf]}, ignoring=("command",))
    assert path.read_bytes() == before
    write_json(path, {"command": "third", "rows": [2.0, math.inf]}, ignoring=("command",))
    assert read_results(path) == {"command": "third", "rows": [2.0, math.inf]}
