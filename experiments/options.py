"""Command-line options that several experiments have, and their errors."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch

from experiments.files import ROOT

OUT = ROOT / "results"
"""Where results go by default; git ignores it. To renew committed ones: --out experiments/results."""
MNIST_HELP = "folder with the four MNIST files (default: $SPLINTERP_DATA, else download)"
TEXT_HELP = "folder with wikitext2/ (default: $SPLINTERP_DATA; without both: Python's documentation)"


def device_name(name: str) -> str:
    """The name of a device that is there."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise argparse.ArgumentTypeError(f"device {name!r} is not available: {error}") from error
    return name


def count(text: str) -> int:
    """A whole number from 1 on."""
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return number


def existing_folder(text: str) -> str:
    """A folder that is there."""
    if not Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} is not a folder")
    return text


def writable_folder(text: str) -> Path:
    """A folder that files can be written to, made if it is not there."""
    folder = Path(text)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        raise argparse.ArgumentTypeError(f"cannot write to {text!r}: {error.strerror or error}") from error


def add_out(parser: argparse.ArgumentParser) -> None:
    """Add --out."""
    parser.add_argument(
        "--out", type=writable_folder, default=str(OUT),
        help="folder of results files (default: results, which git ignores; committed ones are in experiments/results)",
    )  # fmt: skip


def add_device(parser: argparse.ArgumentParser) -> None:
    """Add --device."""
    parser.add_argument("--device", type=device_name, default="cpu", help="cpu, cuda, cuda:1, or auto (default: cpu)")


def add_data_dir(parser: argparse.ArgumentParser, what: str) -> None:
    """Add --data-dir, whose help is `what`."""
    parser.add_argument("--data-dir", type=existing_folder, help=what)


def add_common_options(parser: argparse.ArgumentParser) -> None:
    """Add --out, --jobs and --device."""
    add_out(parser)
    parser.add_argument("--jobs", type=count, default=1, help="runs at a time; more than one: each on one thread (default: 1)")
    add_device(parser)
