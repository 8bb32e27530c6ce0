"""What SAEs trained on MNIST look like: dictionary atoms, and test images beside their reconstructions.

TopK and AbsTopK by SGD (tied and untied) and PAM-SGD, at the step sizes of the geometry experiment, first seed. Atoms are the decoder
rows of the latents that are active most often; images are the first test image of each digit.
"""

from __future__ import annotations

import argparse
import base64
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from experiments.files import command_line, write_json
from experiments.files import provenance as made_by
from experiments.geometry import Config
from experiments.options import MNIST_HELP, add_data_dir, add_device, add_out
from experiments.report import table
from experiments.runs import build, digit_labels, split, train
from experiments.sources import Source, source_of
from splinterp.metrics import evaluate

N_ATOMS = 24


def pack(images: torch.Tensor, low: float, high: float) -> str:
    """Images (n, pixels) as bytes in base64; `low` becomes 0 and `high` 255."""
    scaled = ((images.detach() - low) / (high - low) * 255).round().clamp(0, 255)
    return base64.b64encode(scaled.to(torch.uint8).numpy().tobytes()).decode()


def unpack(text: str, width: int) -> np.ndarray:
    """The inverse of `pack`, as numbers 0 to 255, shape (n, width)."""
    return np.frombuffer(base64.b64decode(text), dtype=np.uint8).reshape(-1, width)


def measure(config: Config, data_dir: str | None = None, device: str = "cpu") -> dict[str, Any]:
    """Train and keep what the figure shows."""
    models: list[dict[str, Any]] = []
    originals = ""
    shown_runs = [run for run in config.runs() if run.seed == config.seeds[0] and run.activation != "ReLU"]
    for run in tqdm(shown_runs, desc="atoms", unit="SAE"):
        data = split(run, data_dir, device)
        sae, method = build(run, data.x.shape[1], device)
        train(run, data, sae, method)
        sae, x_test = sae.eval().cpu(), data.x_test.cpu()
        labels = digit_labels(run.data, data_dir)
        shown = x_test[[int((labels == digit).nonzero()[0]) for digit in range(10)]]
        low, high = float(x_test.min()), float(x_test.max())
        found = evaluate(sae, x_test)
        atoms = sae.W_dec.detach()[found.frequencies.argsort(descending=True)[:N_ATOMS]]
        reach = atoms.abs().amax(dim=1, keepdim=True)
        with torch.no_grad():
            errors = (sae(shown).x_hat - shown).square().mean(1)
            models.append({
                "activation": run.activation, "method": run.method, "test_fvu": found.fvu, "atoms": pack(atoms / reach, -1.0, 1.0),
                "reconstructions": pack(sae(shown).x_hat, low, high), "errors": errors.tolist(),
            })  # fmt: skip
        originals = pack(shown, low, high)
    return {"images": originals, "atoms_of": models, "width": len(unpack(originals, 1)) // 10, "config": asdict(config)}


def render(results: dict[str, Any], markdown: bool = False) -> str:
    """Test FVU of each SAE, and the mean squared error of the ten images shown."""
    rows = [[m["activation"], m["method"], f"{m['test_fvu']:.3f}", f"{np.mean(m['errors']):.3f}"] for m in results["atoms_of"]]
    return table(["activation", "method", "test FVU", "MSE of the ten images"], rows, markdown)


def command(argv: list[str]) -> Path:
    """`python -m experiments atoms`"""
    parser = argparse.ArgumentParser(prog="python -m experiments atoms", description=__doc__)
    add_data_dir(parser, MNIST_HELP)
    add_out(parser)
    add_device(parser)
    args = parser.parse_args(argv)
    config = Config()
    source = source_of(config.data, args.data_dir)
    results = measure(replace(config, source=source.key), args.data_dir, args.device)
    return shown(results, Path(args.out) / "atoms-mnist.json", source, args.device, render)


def shown(results: dict[str, Any], path: Path, source: Source, device: str, render: Callable[..., str]) -> Path:
    """Write results that hold no runs, with what they are of, and print their table. Returns the path."""
    about = {"provenance": made_by(device), "command": command_line(), "data": source.describe()}
    write_json(path, {**about, **results}, ignoring=("provenance", "command"))
    print(f"{render(results)}\n\nwritten: {path}")
    return path
