"""Regions on the way from one test image of MNIST to another, exactly, of SAEs trained by SGD and PAM-SGD.

TopK, AbsTopK and ReLU, centred; step sizes as the second comparison chose them for 13,750 images and 2,052 steps (TopK, AbsTopK), ReLU
at an L1 penalty of 0.002. Every SAE is looked at along the same segments, half of them between images of one digit, half between two.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from experiments.choices import Choice, concluded, store_of
from experiments.options import MNIST_HELP, add_common_options, add_data_dir, changed
from experiments.report import table, with_interval
from experiments.runs import DEFAULT, Run, build, digit_labels, split, train
from experiments.store import RecordStore
from splinterp.geometry import SegmentRegions, segments_regions
from splinterp.metrics import evaluate

METHODS = ("SGD tied", "SGD tied-residual", DEFAULT)
L1 = 2e-3
POINTS = 201
"""Of the drawn segment's errors."""


@dataclass(frozen=True)
class Config(Choice):
    """What is trained, and along how many segments it is looked at."""

    n_train: int = 13_750
    epochs: int = 19
    trained: tuple[tuple[str, str, float], ...] = (
        ("TopK", METHODS[0], 1.6e-2), ("TopK", METHODS[1], 8e-3), ("TopK", METHODS[2], 8e-3),
        ("AbsTopK", METHODS[0], 8e-3), ("AbsTopK", METHODS[1], 4e-3), ("AbsTopK", METHODS[2], 4e-3),
        ("ReLU", METHODS[0], 4e-3), ("ReLU", METHODS[1], 4e-3), ("ReLU", METHODS[2], 4e-3),
    )  # fmt: skip
    """(activation, method, step size)."""
    seeds: tuple[int, ...] = (0, 1, 2)
    pairs: int = 200
    """Segments of each kind."""

    def runs(self) -> list[Run]:
        """One run for each row and seed."""
        return [
            Run(
                data=self.data, source=self.source, method=method, activation=activation, k=self.k, n_latents=self.n_latents,
                n_train=self.n_train, epochs=self.epochs, lr=lr, seed=seed, role="lines",
                options=(("b_pre", "fixed"), *((("l1", L1),) if activation == "ReLU" else ())),
            )
            for activation, method, lr in self.trained for seed in self.seeds
        ]  # fmt: skip


def segments(labels: torch.Tensor, n: int) -> dict[str, torch.Tensor]:
    """(n, 2) positions of test images, at random: of one digit, and of two. The first pair of two digits is drawn."""
    g = torch.Generator().manual_seed(0)
    found: dict[str, list[list[int]]] = {"one digit": [], "two digits": []}
    while min(map(len, found.values())) < n:
        i, j = torch.randint(len(labels), (2,), generator=g).tolist()
        kind = "one digit" if labels[i] == labels[j] else "two digits"
        if i != j and len(found[kind]) < n:
            found[kind].append([i, j])
    return {kind: torch.tensor(pairs) for kind, pairs in found.items()}


def measure(config: Config, run: Run, data_dir: str | None = None, device: str = "cpu") -> dict[str, Any]:
    """Train one SAE and walk along the segments on the CPU."""
    data = split(run, data_dir, device)
    sae, method = build(run, data.x.shape[1], device)
    train(run, data, sae, method)
    sae, x_test = sae.eval().cpu(), data.x_test.cpu()
    quality = evaluate(sae, x_test)
    record: dict[str, Any] = {"key": run.key, "run": asdict(run), "test_fvu": quality.fvu, "l0": quality.l0, "kinds": {}}
    for kind, pairs in segments(digit_labels(run.data, data_dir), config.pairs).items():
        a, b = x_test[pairs[:, 0]], x_test[pairs[:, 1]]
        found = segments_regions(sae, a, b)
        distance = (b - a).double().norm(dim=1).numpy()
        crossings = np.array([len(segment) - 1 for segment in found])
        inside, jumps = np.array([segment.lengths() for segment in found]).T
        record["kinds"][kind] = {
            "crossings": float(crossings.mean()), "per_unit": float((crossings / distance).mean()),
            "inside": float((inside / distance).mean()), "jumps": float((jumps / distance).mean()),
        }  # fmt: skip
        if kind == "two digits" and run.seed == config.seeds[0]:
            record["drawn"] = drawn(found[0])
    return record


def drawn(segment: SegmentRegions) -> dict[str, Any]:
    """What a figure needs of a segment: its crossings, and the squared error along it, on both sides of each."""
    at, error = [], []
    for piece in segment.pieces():
        t = np.linspace(piece.start, piece.stop, max(2, round((piece.stop - piece.start) * POINTS)))
        share = ((t - piece.start) / (piece.stop - piece.start))[:, None]
        x = (1 - t[:, None]) * segment.a + t[:, None] * segment.b
        x_hat = (1 - share) * piece.ends[0] + share * piece.ends[1]
        at.append(t)
        error.append(((x_hat - x) ** 2).sum(axis=1))
    return {
        "crossings": segment.bounds[1:-1].tolist(),
        "at": np.concatenate(at).tolist(),
        "error": np.concatenate(error).tolist(),
    }


def summary(config: Config, store: RecordStore) -> list[dict[str, Any]]:
    """A row for each trained kind, with the values of all seeds."""
    rows = []
    runs = iter(config.runs())
    for activation, method, lr in config.trained:
        records = [store.get(next(runs)) for _ in config.seeds]
        kinds = {
            kind: {name: [record["kinds"][kind][name] for record in records] for name in values}
            for kind, values in records[0]["kinds"].items()
        }
        rows.append({
            "activation": activation, "method": method, "lr": lr, "fvu": [record["test_fvu"] for record in records],
            "l0": [record["l0"] for record in records], "kinds": kinds, "drawn": records[0]["drawn"],
        })  # fmt: skip
    return rows


def render(results: dict[str, Any], markdown: bool = False) -> str:
    """Crossings on the way between two test images, and how long the path of the reconstruction is, in units of the images' distance."""
    header = ["activation", "SAE", "test FVU", "l0", "crossings, one digit", "two digits", "a unit of distance", "path inside regions",
              "jumps between"]  # fmt: skip
    rows = []
    for row in results["lines"]:
        one, two = row["kinds"]["one digit"], row["kinds"]["two digits"]
        rows.append([
            row["activation"], row["method"], with_interval(row["fvu"]), with_interval(row["l0"], 1), with_interval(one["crossings"], 1),
            with_interval(two["crossings"], 1), with_interval(two["per_unit"]), with_interval(two["inside"]), with_interval(two["jumps"]),
        ])  # fmt: skip
    return table(header, rows, markdown, keys=2)


def command(argv: list[str]) -> Path:
    """`python -m experiments lines ...`"""
    parser = argparse.ArgumentParser(
        prog="python -m experiments lines", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add_data_dir(parser, MNIST_HELP)
    add_common_options(parser)
    args = parser.parse_args(argv)
    return main(changed(Config(), args), args)


def main(config: Config, args: argparse.Namespace) -> Path:
    """Train what is missing, write `lines-DATA.json` and `lines-DATA-runs.json` into `args.out`, print the table."""
    data_dir = getattr(args, "data_dir", None)
    store, source = store_of("lines", config.data, Path(args.out), data_dir)
    config = replace(config, source=source.key)
    how = {"jobs": args.jobs, "device": args.device, "data_dir": data_dir}
    store.complete(config.runs(), train=partial(measure, config), label="lines", **how)
    return concluded(store, "lines", config, {"lines": summary(config, store)}, render)
