"""The regions of SAEs trained on MNIST: how many the data visit, how far their facets are, exact slices.

SGD (tied and untied) and PAM-SGD, with TopK, AbsTopK and ReLU, at the step sizes that the controlled comparison chose for
13,750 images and 2,052 steps; ReLU at the L1 penalty of its sweep whose l0 is nearest to 60. Every SAE is looked at on
the same images and cut by the same plane, through the first test images of three different digits.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from experiments.choices import Choice, concluded, store_of
from experiments.options import MNIST_HELP, add_common_options, add_data_dir, changed
from experiments.report import table, with_interval
from experiments.runs import Run, build, digit_labels, split, train
from experiments.store import RecordStore
from splinterp import SAE
from splinterp.activations import activation_from_config
from splinterp.geometry import (
    Plane,
    PowerDiagram,
    count_cells,
    growth,
    plane_through,
    region_statistics,
    regions_of,
    slice_cells,
)
from splinterp.metrics import evaluate
from splinterp.plotting import cell_errors

FLAT = Plane(np.zeros(2), np.eye(2))
DRAWN_ERRORS = 4_000
"""Slices of up to this many cells keep the error of each cell."""


@dataclass(frozen=True)
class Config(Choice):
    """What is trained and how finely it is looked at."""

    n_train: int = 13_750
    epochs: int = 19
    trained: tuple[tuple[str, str, float, float], ...] = (
        ("TopK", "SGD tied", 4e-3, 0.0),
        ("TopK", "SGD untied", 2e-3, 0.0),
        ("TopK", "PAM", 4e-3, 0.0),
        ("AbsTopK", "SGD tied", 8e-3, 0.0),
        ("AbsTopK", "SGD untied", 4e-3, 0.0),
        ("AbsTopK", "PAM", 4e-3, 0.0),
        ("ReLU", "SGD tied", 4e-3, 1e-3),
        ("ReLU", "SGD untied", 1e-3, 1e-3),
        ("ReLU", "PAM", 2e-3, 3e-3),
    )
    """(activation, method, step size, L1 penalty)."""
    seeds: tuple[int, ...] = (0, 1, 2)
    margin: float = 0.3
    """The window is wider than the three images by this share of their extent on each side."""
    slice_samples: int = 2**17
    """Points drawn uniformly in the window, to see how many of its cells they find."""

    def runs(self) -> list[Run]:
        """One run for each row and seed."""
        return [
            Run(
                data=self.data, source=self.source, method=method, activation=activation, k=self.k, n_latents=self.n_latents,
                n_train=self.n_train, epochs=self.epochs, lr=lr, seed=seed, role="geometry", options=(("l1", l1),) if l1 else (),
            )
            for activation, method, lr, l1 in self.trained for seed in self.seeds
        ]  # fmt: skip


def measure(config: Config, run: Run, data_dir: str | None = None, device: str = "cpu") -> dict[str, Any]:
    """Train one SAE and look at its regions on the CPU."""
    data = split(run, data_dir, device)
    sae, method = build(run, data.x.shape[1], device)
    train(run, data, sae, method)
    sae, x_test = sae.eval().cpu(), data.x_test.cpu()
    quality = evaluate(sae, x_test)
    statistics = region_statistics(sae, x_test)
    plane, corners = three_digits(x_test, digit_labels(run.data, data_dir))
    cut = look_at_slice(config, sae, plane, corners)
    if run.seed != config.seeds[0]:
        cut = {name: value for name, value in cut.items() if name not in ("sites", "biases", "errors")}
    return {
        "key": run.key, "run": asdict(run), "test_fvu": quality.fvu, "l0": quality.l0, "frac_dead": quality.frac_dead,
        "statistics": {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in asdict(statistics).items()},
        "mean_norm": float(x_test.norm(dim=1).mean()), "slice": cut,
    }  # fmt: skip


def three_digits(x: torch.Tensor, labels: torch.Tensor) -> tuple[Plane, torch.Tensor]:
    """The plane through the first images of the first three different labels, and those images."""
    first: dict[int, int] = {}
    for position, label in enumerate(labels.tolist()):
        first.setdefault(label, position)
    chosen = x[sorted(first.values())[:3]]
    return plane_through(*chosen), chosen


def look_at_slice(config: Config, sae: SAE, plane: Plane, corners: torch.Tensor) -> dict[str, Any]:
    """Cells in the window around the three images, how many of them random points find, and what a figure needs."""
    bounds = plane.window(corners, config.margin)
    flat = in_plane(sae, plane)
    cells = slice_cells(flat, FLAT, bounds)
    rng = np.random.default_rng(0)
    y = rng.uniform(bounds[::2], bounds[1::2], size=(config.slice_samples, 2))
    found = regions_of(flat, y, margins=False)
    result = {
        "bounds": list(bounds), "corners": plane.coordinates(corners).tolist(), "n_cells": len(cells),
        "n_supports": len({tuple(cell.sites.tolist()) for cell in cells}), "n_hidden": len(cells.hidden),
        "found": growth(found.signed_labels()).tolist(), "activation": sae.activation.config(),
        "sites": flat.W_enc.T.tolist(), "biases": flat.b_enc.tolist(),
        "errors": cell_errors(cells, sae, plane).tolist() if len(cells) <= DRAWN_ERRORS else None,
    }  # fmt: skip
    if sae.activation.config()["name"] == "TopK":
        result["plane_selections"] = count_cells(PowerDiagram.from_sae(flat))
    return result


def in_plane(sae: SAE, plane: Plane) -> SAE:
    """The SAE on R^2 whose scores are those of `sae` on the plane, to 7 digits: what a results file keeps of it."""
    encoder = PowerDiagram.from_scores(sae.W_enc.T, sae.b_enc).restrict(plane.origin, plane.basis)
    return flat_sae(encoder.sites.tolist(), encoder.biases.tolist(), sae.activation.config())


def flat_sae(sites: Sequence[Sequence[float]], biases: Sequence[float], activation: dict[str, Any]) -> SAE:
    """An SAE on R^2 from its scores (in float64, rounded to the 7 digits of a results file)."""
    sae = SAE(2, len(biases), activation_from_config(activation), dtype=torch.float64, generator=0)
    with torch.no_grad():
        sae.W_enc.copy_(torch.tensor([[float(f"{value:.7g}") for value in site] for site in sites], dtype=torch.float64).T)
        sae.b_enc.copy_(torch.tensor([float(f"{value:.7g}") for value in biases], dtype=torch.float64))
    return sae


def summary(config: Config, store: RecordStore) -> dict[str, Any]:
    """Rows (one for each trained kind) with the values of all seeds, and the slices of the first."""
    rows, slices = [], []
    runs = iter(config.runs())
    for activation, method, lr, l1 in config.trained:
        records = [store.get(next(runs)) for _ in config.seeds]
        statistics = [record["statistics"] for record in records]
        cuts = [record["slice"] for record in records]
        n = statistics[0]["n_samples"]
        rows.append({
            "activation": activation, "method": method, "lr": lr, "l1": l1, "n_samples": n,
            "fvu": [record["test_fvu"] for record in records], "l0": [record["l0"] for record in records],
            "frac_dead": [record["frac_dead"] for record in records],
            "regions": [s["n_regions"] for s in statistics], "alone": [s["unseen"] for s in statistics],
            "entropy": [s["entropy"] for s in statistics], "largest": [s["largest"] for s in statistics],
            "margin": [s["margins"][2] for s in statistics], "margin_low": [s["margins"][0] for s in statistics],
            "margin_high": [s["margins"][4] for s in statistics], "mean_norm": [record["mean_norm"] for record in records],
            "growth": statistics[0]["growth"], "slice_cells": [c["n_cells"] for c in cuts],
            "slice_found": [c["found"][-1][1] for c in cuts], "slice_samples": cuts[0]["found"][-1][0],
            "plane_selections": [c["plane_selections"] for c in cuts if "plane_selections" in c],
        })  # fmt: skip
        slices.append({"activation": activation, "method": method, **cuts[0]})
    return {"rows": rows, "slices": slices}


def render(results: dict[str, Any], markdown: bool = False) -> str:
    """The table of region statistics.

    "alone": share of test images alone in their region; "entropy / max": of the images over regions, against log n; "margin":
    median distance to the nearest facet, in standardised pixels; "slice cells": exact count in the window; "whole plane":
    TopK selections in the whole plane, by the counting formula.
    """
    header = ["activation", "SAE", "test FVU", "l0", "regions of test images", "alone", "entropy / max", "margin", "slice cells",
              "found by points", "whole plane"]  # fmt: skip
    rows = []
    for row in results["rows"]:
        top = math.log(row["n_samples"])
        rows.append([
            row["activation"], row["method"], with_interval(row["fvu"]), with_interval(row["l0"], 1),
            f"{np.mean(row['regions']):,.0f} of {row['n_samples']:,}", f"{np.mean(row['alone']):.1%}",
            f"{np.mean(row['entropy']) / top:.3f}", with_interval(row["margin"]), f"{np.mean(row['slice_cells']):,.0f}",
            f"{np.mean(row['slice_found']) / np.mean(row['slice_cells']):.0%}",
            f"{np.mean(row['plane_selections']):,.0f}" if row["plane_selections"] else "",
        ])  # fmt: skip
    return table(header, rows, markdown, keys=2)


def command(argv: list[str]) -> Path:
    """`python -m experiments geometry ...`"""
    parser = argparse.ArgumentParser(
        prog="python -m experiments geometry", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add_data_dir(parser, MNIST_HELP)
    add_common_options(parser)
    args = parser.parse_args(argv)
    return main(changed(Config(), args), args)


def main(config: Config, args: argparse.Namespace) -> Path:
    """Train what is missing, write `geometry-DATA.json` and `geometry-DATA-runs.json` into `args.out`, print the table."""
    data_dir = getattr(args, "data_dir", None)
    store, source = store_of("geometry", config.data, Path(args.out), data_dir)
    config = replace(config, source=source.key)
    how = {"jobs": args.jobs, "device": args.device, "data_dir": data_dir}
    store.complete(config.runs(), train=partial(measure, config), label="geometry", **how)
    return concluded(store, "geometry", config, summary(config, store), render)
