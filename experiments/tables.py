"""Print the tables of a results file, without running anything."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from experiments import (
    abstopk,
    adaptation,
    atoms,
    baselines,
    bench,
    biases,
    bridge,
    candidates,
    centring,
    dead,
    geometry,
    learning,
    lines,
    looks,
    opening,
    recovery,
    solves,
    variants,
)
from experiments.files import COMMITTED, read_results
from experiments.report import render, summary


def command(argv: list[str]) -> Path:
    """`python -m experiments tables FILE [--markdown] [--summary]`"""
    parser = argparse.ArgumentParser(prog="python -m experiments tables", description=__doc__)
    parser.add_argument("file", type=Path, help="a results file, or the name of a committed one (mnist-controlled)")
    parser.add_argument("--markdown", action="store_true")
    parser.add_argument("--summary", action="store_true", help="only the verdict of each cell of the main comparison")
    args = parser.parse_args(argv)
    path = args.file if args.file.exists() else COMMITTED / f"{args.file}.json"
    if not path.is_file():
        names = sorted(p.stem for p in COMMITTED.glob("*.json") if not p.stem.endswith("-runs"))
        parser.error(f"{args.file} is neither a file nor one of {', '.join(names)}")
    try:
        results = read_results(path)
    except (ValueError, OSError) as error:
        parser.error(f"{path} is no results file: {error}")
    if "records" in results:
        parser.error(f"{path.name} holds single runs: their tables are in {path.name.replace('-runs', '')}")
    if args.summary and "verdicts" not in results:
        parser.error(f"{path.name} has no verdicts to summarise: leave --summary out")
    print(_renderer(results, args.summary)(results, args.markdown))
    return path


def _renderer(results: dict[str, Any], short: bool) -> Callable[[dict[str, Any], bool], str]:
    """What prints a results file, by what is in it."""
    if "atoms_of" in results:
        return atoms.render
    if "slices" in results:
        return geometry.render
    if "prices" in results:
        return baselines.render
    if "remedies" in results:
        return dead.render
    if "models" in results:
        return bridge.render
    if "centres" in results:
        return centring.render
    if "biases" in results:
        return biases.render
    if "lines" in results:
        return lines.render
    if "looks" in results:
        return looks.render
    if "curves" in results:
        return learning.render
    if "candidates" in results:
        return candidates.render
    if "ways" in results:
        return opening.render
    if "schedules" in results:
        return solves.render
    if "variants" in results:
        return variants.render
    if "adapted" in results:
        return adaptation.render
    if "resonance" in results:
        return recovery.render
    if "signs" in results:
        return abstopk.render
    if "fits" in results or "tables" in results:
        return bench.render
    return summary if short else render
