"""Print the tables of a results file, without running anything."""

from __future__ import annotations

import argparse
from pathlib import Path

from experiments.options import RESULTS
from experiments.report import render, summary
from experiments.store import read_results


def command(argv: list[str]) -> Path:
    """`python -m experiments tables FILE [--markdown] [--summary]`"""
    parser = argparse.ArgumentParser(prog="python -m experiments tables", description=__doc__)
    parser.add_argument("file", type=Path, help="a results file, or the name of a committed one (mnist-controlled)")
    parser.add_argument("--markdown", action="store_true")
    parser.add_argument("--summary", action="store_true", help="only the verdict of each cell of the main comparison")
    args = parser.parse_args(argv)
    path = args.file if args.file.exists() else RESULTS / f"{args.file}.json"
    if not path.exists():
        parser.error(f"{args.file} is neither a file nor one of {', '.join(sorted(p.stem for p in RESULTS.glob('*.json')))}")
    print((summary if args.summary else render)(read_results(path), args.markdown))
    return path
