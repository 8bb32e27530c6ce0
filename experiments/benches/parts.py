"""Parts of a long bench, kept as they are measured: one that was interrupted goes on where it ended."""

from __future__ import annotations

import hashlib
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from experiments.files import ROOT, provenance, read_results, write_json


def code() -> str:
    """A hash of the package's code and the benches'."""
    found = hashlib.sha256()
    for path in sorted((*(ROOT / "splinterp").rglob("*.py"), *Path(__file__).parent.glob("*.py"))):
        found.update(path.read_bytes())
    return found.hexdigest()[:16]


class Parts:
    """Results of parts by name, in a folder of their own. One that other code, or another kind of machine, has measured is measured
    again."""

    def __init__(self, folder: Path, device: str, quick: bool) -> None:
        self.folder = folder
        here = {name: value for name, value in provenance(device).items() if name != "git"}  # a commit may change words alone
        self.about = {**here, "code": code(), "capability": torch.backends.cpu.get_cpu_capability(), "quick": quick}

    def __call__(self, name: str, work: Callable[..., Any], *arguments: Any) -> Any:
        """What work(*arguments) has given, now or before."""
        path = self.folder / f"{name}.json"
        if path.exists():
            kept = read_results(path)
            if kept["about"] == self.about:
                print(f"{name}: measured before", file=sys.stderr)
                return kept["found"]
        found = work(*arguments)
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(path, {"about": self.about, "found": found})
        return found

    def clear(self) -> None:
        """Forget them: they are in the results now."""
        shutil.rmtree(self.folder, ignore_errors=True)
