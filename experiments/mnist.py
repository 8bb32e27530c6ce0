"""Sample efficiency on MNIST: standard SGD against PAM-SGD.

`--preset controlled` follows the fixed rules of a fair comparison: one PAM entry, four SGD controls with the same
optimizer, schedule, initial encoder, data order and number of gradient steps, a step size for each method and cell
chosen on validation data from the same number of trials, two budgets, several seeds, a verdict for each cell.
`--preset paper` is the published comparison with its quirks named (see experiments/paper.py).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from experiments.grid import Comparison, Config
from experiments.options import add_common_options
from experiments.paper import PaperConfig, run_paper
from experiments.report import render
from experiments.runs import Run
from experiments.store import RecordStore, read_results

PARTS = ("sizes", "causes", "relu", "variants", "ridge")


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Command line of `python -m experiments mnist`."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments mnist", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--preset", choices=("controlled", "paper"), default="controlled")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="parts of the controlled preset")
    parser.add_argument("--data-dir", help="folder with the four MNIST files (default: $SPLINTERP_DATA, else download)")
    add_common_options(parser)
    return parser.parse_args(argv)


def run_preset(config: Config | PaperConfig, store: RecordStore, parts: Iterable[str], **how: Any) -> dict[str, Any]:
    """Carry out what is missing; returns the content of the results file: config, rows and (controlled) verdicts."""

    def complete(runs: Iterable[Run], label: str) -> None:
        store.complete(runs, label=label, **how)

    if isinstance(config, PaperConfig):
        return {"config": asdict(config), "rows": run_paper(config, store, complete)}
    comparison = Comparison(config, store, complete)
    for part in parts:
        getattr(comparison, part)()
    return {"config": asdict(config), "rows": comparison.rows, "verdicts": comparison.verdicts()}


def main(config: Config | PaperConfig, args: argparse.Namespace, name: str) -> Path:
    """Run, write `NAME.json` (tables) and `NAME-runs.json` (every run) into `args.out`, print the tables."""
    store = RecordStore(Path(args.out), f"{name}-runs")
    parts = getattr(args, "parts", PARTS)
    how = {"jobs": args.jobs, "device": args.device, "data_dir": getattr(args, "data_dir", None)}
    results = run_preset(config, store, parts, **how)
    store.merge(results["config"])
    results["rows"] = _kept_rows(Path(args.out) / f"{name}.json", results) + results["rows"]
    path = store.write_results(name, results)
    print(render(results))
    print(f"\nwritten: {path}")
    return path


def _kept_rows(path: Path, results: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows of the parts that were not asked for this time, from a results file of the same configuration."""
    if not path.exists():
        return []
    before = read_results(path)
    if json.loads(json.dumps(before["config"])) != json.loads(json.dumps(results["config"])):
        return []
    made = {row["part"] for row in results["rows"]}
    if "verdicts" in results and "sizes" not in made:
        results["verdicts"] = before["verdicts"]
    return [row for row in before["rows"] if row["part"] not in made]


def command(argv: list[str]) -> Path:
    """`python -m experiments mnist ...`"""
    args = arguments(argv)
    config = Config() if args.preset == "controlled" else PaperConfig()
    return main(config, args, f"mnist-{args.preset}")
