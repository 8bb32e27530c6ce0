"""Results files: how they are written and read, and what they say of where they come from."""

from __future__ import annotations

import json
import math
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy
import scipy
import sklearn
import torch

import splinterp
from splinterp._atomic import replace_file

ROOT = Path(__file__).resolve().parent.parent
COMMITTED = ROOT / "experiments" / "results"
"""Where the results that the README and the figures rest on are kept."""
FOLDERS = ("--data-dir", "--results")
"""Options whose value is a folder of one machine: recorded as FOLDER."""
OF_THE_MACHINE = ("--out", "--jobs")
"""Options that change no number: not recorded."""


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


def command_line(argv: list[str] | None = None) -> str:
    """The command that is running, as anyone can run it: folders as FOLDER, without what changes no number."""
    words = list(sys.argv[1:] if argv is None else argv)
    kept: list[str] = []
    while words:
        name, equals, value = words.pop(0).partition("=")
        takes_value = name in FOLDERS + OF_THE_MACHINE
        if takes_value and not equals and words:
            value = words.pop(0)
        if name in OF_THE_MACHINE:
            continue
        if name in FOLDERS:
            kept += [name, "FOLDER"]
        elif name == "--model" and not equals and words and Path(words[0]).exists():
            kept += [name, "FOLDER"]
            words.pop(0)
        else:
            kept.append(f"{name}={value}" if equals else name)
    return " ".join(["python -m experiments", *kept])


def write_json(path: Path, content: Any, ignoring: tuple[str, ...] = ()) -> None:
    """Write a results file: infinities as strings, floats to 7 digits, under a temporary name first.

    A file that differs in nothing but the entries `ignoring` is left as it is.
    """
    if ignoring and path.exists():
        earlier = json.loads(path.read_text())
        if _text({**content, **{name: earlier[name] for name in ignoring if name in earlier}}) == path.read_text():
            return
    replace_file(path, lambda temporary: temporary.write_text(_text(content)))


def _text(content: Any) -> str:
    return json.dumps(finite(content), separators=(",", ":"), allow_nan=False) + "\n"


def finite(value: Any) -> Any:
    """JSON has no infinity: floats outside it are kept as strings, and rounded to 7 digits otherwise."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.7g}") if math.isfinite(value) else repr(value)
    return value


def restored(value: Any) -> Any:
    """The inverse of `finite`, as far as it goes."""
    if isinstance(value, dict):
        return {key: restored(item) for key, item in value.items()}
    if isinstance(value, list):
        return [restored(item) for item in value]
    return float(value) if value in ("inf", "-inf", "nan") else value


def read_results(path: Path) -> dict[str, Any]:
    """A results file, with its infinities restored."""
    return restored(json.loads(path.read_text()))
