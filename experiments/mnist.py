"""Sample efficiency on MNIST: standard SGD against PAM-SGD.

`--preset controlled` follows the fixed rules of a fair comparison: one PAM entry, four SGD controls with the same
optimizer, schedule, initial encoder, data order and number of gradient steps, a step size for each method and cell
chosen on validation data from the same number of trials, two budgets, several seeds, a verdict for each cell.
`--preset paper` is the published comparison with its quirks named (see experiments/paper.py).
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from experiments.grid import APART, IN_EVERY_CELL, Comparison, Config, verdicts
from experiments.options import add_common_options
from experiments.paper import PaperConfig, run_paper
from experiments.report import render
from experiments.runs import Run
from experiments.store import MissingRunsError, RecordStore

PARTS = (*IN_EVERY_CELL, "causes", "relu", "variants", "ridge")


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
    """Carry out what is missing of `parts`; returns the results file's content: config, rows and (controlled) verdicts.

    Other parts are in it too, where all their runs have been made before.
    """

    def complete(runs: Iterable[Run], label: str) -> None:
        store.complete(runs, label=label, **how)

    if isinstance(config, PaperConfig):
        return {"config": asdict(config), "rows": run_paper(config, store, complete)}
    rows = []
    for part in PARTS:
        comparison = Comparison(config, store, complete if part in parts else store.require)
        try:
            comparison.carry_out(part)
        except MissingRunsError:
            continue
        rows += comparison.rows
    return {
        "config": asdict(config),
        "rows": rows,
        "verdicts": verdicts(rows),
        "apart": {m: verdicts(rows, m) for m in APART.values()},
    }


def main(config: Config | PaperConfig, args: argparse.Namespace, name: str) -> Path:
    """Run, write `NAME.json` (tables) and `NAME-runs.json` (every run) into `args.out`, print the tables."""
    store = RecordStore(Path(args.out), f"{name}-runs")
    parts = getattr(args, "parts", PARTS)
    how = {"jobs": args.jobs, "device": args.device, "data_dir": getattr(args, "data_dir", None)}
    results = run_preset(config, store, parts, **how)
    store.merge(results["config"])
    path = store.write_results(name, results)
    print(render(results))
    print(f"\nwritten: {path}")
    return path


def command(argv: list[str]) -> Path:
    """`python -m experiments mnist ...`"""
    args = arguments(argv)
    config = Config() if args.preset == "controlled" else PaperConfig()
    return main(config, args, f"mnist-{args.preset}")
