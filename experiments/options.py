"""Command-line options that several experiments have, and their errors."""

from __future__ import annotations

import argparse
import dataclasses
import re
import tempfile
from pathlib import Path
from typing import Any, TypeVar

import torch

from experiments.errors import UsageError
from experiments.files import ROOT

C = TypeVar("C")

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
    """Add --out, --set, --jobs and --device."""
    add_out(parser)
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="NAME=VALUE",
        help="other settings than the experiment's own, k=64 grid=0.004,0.008 say; results go into a folder of that name in --out",
    )  # fmt: skip
    parser.add_argument("--jobs", type=count, default=1, help="runs at a time; more than one: each on one thread (default: 1)")
    add_device(parser)


GIVEN_ELSEWHERE = ("data", "source", "parts", "model", "layers", "causal")
"""Settings that have options of their own, or follow from them."""


def changed(config: C, args: argparse.Namespace) -> C:
    """`config` with what --set says, and `args.out` the folder in --out that is named by it.

    Raises UsageError: an unknown setting, or a value of the wrong kind.
    """
    if not args.set:
        return config
    known = {
        field.name: getattr(config, field.name) for field in dataclasses.fields(config)  # type: ignore[arg-type]
        if field.name not in GIVEN_ELSEWHERE and _kind(getattr(config, field.name)) is not None
    }  # fmt: skip
    values: dict[str, Any] = {}
    for given in args.set:
        name, equals, text = given.partition("=")
        if name not in known:
            raise UsageError(
                f"--set {given}: {name!r} is no setting of this experiment that can be given here: {', '.join(known)}"
            )
        if not equals or name in values:
            raise UsageError(f"--set {given}: give each setting once, as {name}=VALUE")
        values[name] = _read(given, text, known[name])
    args.out = writable_folder(str(Path(args.out) / re.sub(r"[^\w .,=+-]", "_", " ".join(args.set))))
    return dataclasses.replace(config, **values)  # type: ignore[type-var]


def _kind(value: Any) -> type | None:
    """What a value is read as, or its elements; None for what has no form on a command line."""
    if isinstance(value, tuple) and value and len({type(item) for item in value}) == 1:
        value = value[0]
    return type(value) if isinstance(value, bool | int | float | str) else None


def _read(given: str, text: str, before: Any) -> Any:
    several, kind = isinstance(before, tuple), _kind(before)
    assert kind is not None
    items = text.split(",") if several else [text]
    try:
        read = [{"true": True, "false": False}[item.lower()] if kind is bool else kind(item) for item in items]
    except (ValueError, KeyError):
        kinds = {bool: "true or false", int: "whole numbers", float: "numbers", str: "names"}
        raise UsageError(
            f"--set {given}: {text!r} is not {'a list, with commas, of ' if several else ''}{kinds[kind]}"
        ) from None
    return tuple(read) if several else read[0]
