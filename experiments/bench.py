"""Measure speed and memory, as ratios within one run: `python -m experiments bench NAME`.

extract   extraction of activations against the model's own forward passes
fit       whole calls of fit: PAM-SGD against SGD, and one solve in parts
geometry  exact cells of power diagrams
memory    training on a store larger than the memory allowed
readout   what a readout is worth, by the family of decoders and the number of held-out samples
ridge     the ridge chosen by factors against the full search, on problems of real codes
scale     dictionaries whose Gram matrix is never formed, in one process
segments  the regions along straight lines
solids    exact cells of power diagrams in space
solve     the exact decoder solve against the published stacked least squares
train     a training step of a TopK SAE against plain PyTorch and the floor
"""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path
from typing import Any

import torch

from experiments.benches.parts import Parts
from experiments.files import command_line, provenance, write_json
from experiments.options import add_device, add_out
from experiments.report import table

NAMES = (
    "extract", "fit", "geometry", "memory", "processes", "readout", "ridge", "scale", "segments", "solids", "solve", "train",
)  # fmt: skip
IN_PARTS = ("fit",)
"""Those that take half an hour or more."""


def render(results: dict[str, Any], markdown: bool = False) -> str:
    """The tables of any bench."""
    if "tables" not in results:
        from experiments.benches import geometry

        return geometry.render(results, markdown)
    return "\n\n".join(f"{t['title']}\n\n{table(t['header'], t['rows'], markdown)}" for t in results["tables"])


def command(argv: list[str]) -> Path:
    """`python -m experiments bench NAME`"""
    parser = argparse.ArgumentParser(
        prog="python -m experiments bench", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("name", choices=NAMES)
    add_out(parser)
    add_device(parser)
    parser.add_argument("--quick", action="store_true", help="small sizes only: a check that it runs, not a measurement")
    args = parser.parse_args(argv)
    name = f"bench-{args.name}" if args.device == "cpu" else f"bench-{args.name}-{args.device}"
    path, parts = Path(args.out) / f"{name}.json", Parts(Path(args.out) / f"{name}.cells", args.device, args.quick)
    run = importlib.import_module(f"experiments.benches.{args.name}").run
    results = run(args.quick, args.device, *([parts] if args.name in IN_PARTS else []))
    about = {"command": command_line(), "provenance": provenance(args.device), "threads": torch.get_num_threads()}
    write_json(path, {**about, **results})
    parts.clear()
    print(f"{render(results)}\n\nwritten: {path}")
    return path
