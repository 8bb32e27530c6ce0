"""Print the tables of results files, without running anything."""

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
from experiments.report import counts, render, summary


def command(argv: list[str]) -> Path:
    """`python -m experiments tables FILE... [--markdown] [--summary | --counts]`"""
    parser = argparse.ArgumentParser(prog="python -m experiments tables", description=__doc__)
    parser.add_argument("files", nargs="+", help="results files, or names of committed ones (mnist-controlled)")
    parser.add_argument("--markdown", action="store_true")
    short = parser.add_mutually_exclusive_group()
    short.add_argument("--summary", action="store_true", help="only the verdict of each cell of the main comparison")
    short.add_argument("--counts", action="store_true", help="how often each verdict was reached, in all of the files together")
    args = parser.parse_args(argv)
    found = [_read(parser, name) for name in args.files]
    verb = "summarise" if args.summary else "count" if args.counts else ""
    for path, results in found if verb else ():
        if not results.get("verdicts"):
            parser.error(f"{path.name} has no verdicts to {verb}: leave --{'summary' if args.summary else 'counts'} out")
    if args.counts:
        if len({path.resolve() for path, _ in found}) < len(found):
            parser.error("a file is named twice, whose cells would count twice: leave one out")
        print(
            counts(
                {name.removesuffix(".json"): results for name, (_, results) in zip(args.files, found, strict=True)},
                args.markdown,
            )
        )
    else:
        print("\n\n".join(_renderer(results, args.summary)(results, args.markdown) for _, results in found))
    return found[-1][0]


def _read(parser: argparse.ArgumentParser, name: str) -> tuple[Path, dict[str, Any]]:
    """A results file by its path or the name of a committed one; where there is none, the parser says so and ends."""
    path = Path(name) if Path(name).exists() else COMMITTED / f"{name}.json"
    if not path.is_file():
        names = sorted(p.stem for p in COMMITTED.glob("*.json") if not p.stem.endswith("-runs"))
        parser.error(f"{name} is neither a file nor one of {', '.join(names)}")
    try:
        results = read_results(path)
    except (ValueError, OSError) as error:
        parser.error(f"{path} is no results file: {error}")
    if "records" in results:
        parser.error(f"{path.name} holds single runs: their tables are in {path.name.replace('-runs', '')}")
    return path, results


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
