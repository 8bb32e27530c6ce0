"""Command-line options that every experiment has."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

RESULTS = Path(__file__).resolve().parent / "results"


def device_name(name: str) -> str:
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise argparse.ArgumentTypeError(f"device {name!r} is not available: {error}") from error
    return name


def add_common_options(parser: argparse.ArgumentParser) -> None:
    """Add --out, --jobs and --device."""
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of results files (default: experiments/results)")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time; more than one: each on one thread (default: 1)")
    parser.add_argument("--device", type=device_name, default="cpu", help="cpu, cuda, cuda:1, or auto (default: cpu)")
