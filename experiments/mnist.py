"""Sample efficiency on MNIST: standard SGD against PAM-SGD.

`--preset controlled` follows the fixed rules of a fair comparison: one PAM entry, four SGD controls with the same
optimizer, schedule, initial encoder, data order and number of gradient steps, a step size for each method and cell
chosen on validation data from the same number of trials, two budgets, several seeds, a verdict for each cell.
`--preset centred` does so with centred SAEs, PAM-SGD at the defaults of today, and seeds that no choice has seen.
`--preset paper` is the published comparison with its quirks named (see experiments/paper.py).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from experiments.grid import ALL_CONTROLS, APART, CONTROLS, SECOND, Comparison, Config
from experiments.options import MNIST_HELP, add_common_options, add_data_dir, changed
from experiments.paper import PaperConfig, paper_parts, run_paper
from experiments.report import render
from experiments.runs import DEFAULT, HOLDS, OPEN, SLOWER, STEPS, Run
from experiments.sources import source_of
from experiments.store import MissingRunsError, RecordStore
from experiments.verdicts import against_longer, contests, matched, verdicts

CENTRED = Config(
    ours=DEFAULT, options=(("b_pre", "fixed"),), parts=(*SECOND, "relu", "jumprelu"), full_from=2.0, seeds=(10, 11, 12, 13),
    tuning_seeds=(110,), shares=(0.01, 0.05, 0.25), relu_shares=(0.25,), part_seeds=(10, 11, 12),
    relu_methods=(*CONTROLS, SLOWER, DEFAULT, OPEN),
)  # fmt: skip
CONFIGS: dict[str, Config | PaperConfig] = {"controlled": Config(), "centred": CENTRED, "paper": PaperConfig()}


def parts_of(config: Config | PaperConfig) -> tuple[str, ...]:
    """The parts of a preset, in the order in which they are carried out."""
    return config.parts if isinstance(config, Config) else paper_parts(config)


def add_parts(parser: argparse.ArgumentParser) -> None:
    """Add --parts, of any preset."""
    parser.add_argument("--parts", nargs="+", metavar="PART", help="some parts of the preset (default: all)")


def check_parts(parser: argparse.ArgumentParser, args: argparse.Namespace, known: Iterable[str]) -> None:
    """An error of the command line unless the preset has the parts asked for."""
    known = tuple(known)
    unknown = sorted(set(args.parts or ()) - set(known))
    if unknown:
        parser.error(f"--preset {args.preset} has no part {', '.join(unknown)}: its parts are {', '.join(known)}")


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Command line of `python -m experiments mnist`."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments mnist", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--preset", choices=CONFIGS, default="controlled")
    add_parts(parser)
    add_data_dir(parser, MNIST_HELP)
    add_common_options(parser)
    args = parser.parse_args(argv)
    check_parts(parser, args, parts_of(CONFIGS[args.preset]))
    return args


def run_preset(config: Config | PaperConfig, store: RecordStore, parts: Iterable[str], **how: Any) -> dict[str, Any]:
    """Carry out what is missing of `parts`; returns the results file's content: config, rows and (controlled) verdicts.

    Other parts are in it too, where their runs have been made before: those of the main table cell by cell.
    """
    asked = [part for part in parts_of(config) if part in set(parts)]
    rows: list[dict[str, Any]] = []
    for part in parts_of(config):
        wanted = part in asked
        if wanted:
            print(f"part {asked.index(part) + 1} of {len(asked)}: {part}", file=sys.stderr)

        def complete(runs: Iterable[Run], label: str, part: str = part) -> None:
            store.complete(runs, label=label if label.startswith(part) else f"{part}: {label}", **how)

        try:
            rows += _carry_out(config, part, store, complete if wanted else store.require, whole=wanted)
        except MissingRunsError:
            continue
    results: dict[str, Any] = {"config": asdict(config), "rows": rows}
    if isinstance(config, Config):
        apart = [method for part, method in APART.items() if part in config.parts and method not in ALL_CONTROLS]
        results |= {"verdicts": verdicts(rows, config.ours), "apart": {m: verdicts(rows, m) for m in apart}}
        results["matched"] = matched(rows, (config.ours, OPEN), ALL_CONTROLS)
        if set(SECOND) <= set(config.parts):
            results["contests"] = {
                "the best of hold 0, 0.1 and 1 against the best control": contests(rows, tuple(HOLDS), ALL_CONTROLS),
                "the default against the best of hold 0, 0.1 and 1": contests(rows, (config.ours,), tuple(HOLDS)),
                "the default against the best control, which has a quarter more steps": against_longer(rows, config.ours),
                "the better of decoder_lr 1 and 0.3 against the best control": contests(rows, tuple(STEPS), ALL_CONTROLS),
                "the default against the better of decoder_lr 1 and 0.3": contests(rows, (config.ours,), tuple(STEPS)),
                "the default against the best of the first four controls": contests(rows, (config.ours,), CONTROLS),
            }
    return results


def _carry_out(config: Config | PaperConfig, part: str, store: RecordStore, complete: Any, whole: bool) -> list[dict[str, Any]]:
    if isinstance(config, PaperConfig):
        return run_paper(config, part, store, complete)
    comparison = Comparison(config, store, complete, whole)
    comparison.carry_out(part)
    return comparison.rows


def main(
    config: Config | PaperConfig, args: argparse.Namespace, name: str, prepare: Callable[[], object] | None = None
) -> Path:
    """Run, write `NAME.json` (tables) and `NAME-runs.json` (every run) into `args.out`, print the tables.

    `prepare` is called before the first run, if there is one to make.
    """
    data_dir = getattr(args, "data_dir", None)
    source = source_of(config.data, data_dir)
    config = replace(config, source=source.key)
    print(f"data: {source.name}", file=sys.stderr)
    store = RecordStore(Path(args.out), f"{name}-runs", source=source, prepare=prepare)
    results = run_preset(config, store, args.parts or parts_of(config), jobs=args.jobs, device=args.device, data_dir=data_dir)
    store.merge(results["config"])
    path = store.write_results(name, results)
    print(render(results))
    print(f"\n{store.report()}\nwritten: {path}")
    return path


def command(argv: list[str]) -> Path:
    """`python -m experiments mnist ...`"""
    args = arguments(argv)
    return main(changed(CONFIGS[args.preset], args), args, f"mnist-{args.preset}")
