"""Learning curves: error against steps and against seconds, SGD's controls beside PAM-SGD.

The long budget of the second comparison (`mnist --preset centred`, `llm --preset centred`), TopK, each method at the step size that was
chosen for it there, whose results file must be in the folder of results or committed. Validation and training samples only: nothing is
chosen by these curves. A row of PAM-SGD that has a readout is of the decoder that it would have if training stopped there, as its last one
is. Seconds are of training alone, solves and readouts included; run with --jobs 1 on a quiet machine to compare them.

  --data mnist    2,750 and 13,750 images, 256 latents
  --data minilm   9,000 and 36,000 tokens of MiniLM's layer 4, 1,536 latents
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from experiments.choices import Choice, concluded, data_parser, run_on, store_of
from experiments.errors import UsageError
from experiments.files import COMMITTED, read_results
from experiments.grid import CONTROLS, IN_EVERY_CELL
from experiments.report import table, with_interval
from experiments.runs import DEFAULT, SLOWER, Run, build, split
from splinterp import DivergenceError, fit

METHODS = (*CONTROLS, SLOWER, DEFAULT)
POINTS = 25
"""Rows of a curve, about."""


@dataclass(frozen=True)
class Config(Choice):
    """What is run."""

    results: str = "mnist-centred"
    """The comparison that chose the step sizes."""
    activation: str = "TopK"
    sizes: tuple[int, ...] = (2_750, 13_750)
    seeds: tuple[int, ...] = (10, 11, 12)

    def run(self, chosen: dict[str, Any], seed: int) -> Run:
        """One run at what a row of the comparison has."""
        return self.validation_run(
            method=chosen["method"], activation=self.activation, n_train=chosen["n_train"], epochs=chosen["epochs"], lr=chosen["lr"],
            seed=seed, batch_size=256 if self.data.startswith("minilm") else 128, options=(("b_pre", "fixed"),),
        )  # fmt: skip


CONFIGS = {
    "mnist": Config(),
    "minilm": Config("minilm-4", k=32, n_latents=1_536, results="llm-minilm-4-centred", sizes=(9_000, 36_000)),
}


def chosen_rows(config: Config, out: Path) -> dict[tuple[int, str], dict[str, Any]]:
    """The rows of the comparison that say the step size and the epochs of each size and method. Raises UsageError: there are none."""
    path = next((p for p in (out / f"{config.results}.json", COMMITTED / f"{config.results}.json") if p.exists()), None)
    if path is None:
        raise UsageError(f"{config.results}.json is neither in {out} nor committed: run that comparison first")
    rows = {
        (row["n_train"], row["method"]): row
        for row in read_results(path)["rows"]
        if row["part"] in IN_EVERY_CELL and row["budget"] == "long" and row["activation"] == config.activation
    }
    missing = [key for key in ((n, m) for n in config.sizes for m in METHODS) if key not in rows]
    if missing:
        n, method = missing[0]
        raise UsageError(
            f"{path} has no long run of {method} on {n:,} samples: make its parts sizes and sgd-decoder_lr-0.3 first"
        )
    return rows


def execute_curve(run: Run, data_dir: str | None = None, device: str = "cpu") -> dict[str, Any]:
    """Train with a history. A diverged run has none."""
    data = split(run, data_dir, device)
    sae, method = build(run, data.x.shape[1], device)
    record: dict[str, Any] = {"key": run.key, "run": asdict(run), "history": []}
    steps = run.epochs * run.steps_per_epoch
    try:
        history = fit(
            sae, data.x, method, epochs=run.epochs, batch_size=run.batch_size, x_val=data.x_val, train_eval_samples=2_000,
            log_every_steps=max(1, steps // POINTS), generator=torch.Generator().manual_seed(20_000 + run.seed),
        ).history  # fmt: skip
    except DivergenceError as error:
        return {**record, "diverged_at": error.step}
    names = ("step", "seconds", "train_fvu", "val_fvu", "frac_dead")
    record["history"] = [[round(float(row[name]), 6) for name in names] for row in history]
    return record


def curves(config: Config, runs: dict[tuple[int, str], list[Run]], store: Any) -> list[dict[str, Any]]:
    """The mean history of each size and method over seeds, with each seed's validation error; rows are matched by their order."""
    found = []
    for (n_train, method), several in runs.items():
        histories = [np.array(store.get(run)["history"]) for run in several if store.get(run)["history"]]
        if not histories:
            continue
        length = min(map(len, histories))
        stacked = np.stack([h[:length] for h in histories])
        mean = stacked.mean(0)
        found.append({
            "n_train": n_train, "method": method, "step": mean[:, 0].tolist(), "seconds": mean[:, 1].tolist(),
            "train_fvu": mean[:, 2].tolist(), "val_fvu": stacked[:, :, 3].T.tolist(), "frac_dead": mean[:, 4].tolist(),
        })  # fmt: skip
    return found


def render(results: dict[str, Any], markdown: bool = False) -> str:
    """The error at the end and its seconds, and where each method reaches the last error of the control that ends lowest."""
    rows = []
    for c in results["curves"]:
        controls = [o for o in results["curves"] if o["n_train"] == c["n_train"] and o["method"] != DEFAULT]
        goal = min(float(np.mean(o["val_fvu"][-1])) for o in controls)
        reached = [i for i, several in enumerate(c["val_fvu"]) if np.mean(several) <= goal]
        first = (f"{c['step'][reached[0]]:,.0f}", f"{c['seconds'][reached[0]]:.1f}") if reached else ("never", "never")
        rows.append([f"{c['n_train']:,}", c["method"], with_interval(c["val_fvu"][-1]), f"{c['seconds'][-1]:.1f}", *first])
    header = [
        "samples",
        "method",
        "validation FVU at the end",
        "seconds",
        "steps to the best control's error",
        "seconds to it",
    ]
    return f"{results['config']['data']}\n\n{table(header, rows, markdown)}"


def main(config: Config, out: Path, data_dir: str | None = None, jobs: int = 1, device: str = "cpu") -> Path:
    """Run what is missing, write `learning-DATA.json`, print the table. Returns the results file."""
    store, source = store_of("learning", config.data, out, data_dir)
    config = replace(config, source=source.key)
    chosen = chosen_rows(config, out)
    runs = {(n, m): [config.run(chosen[n, m], seed) for seed in config.seeds] for n in config.sizes for m in METHODS}
    # seed by seed, so that methods take turns on the machine
    in_turn = [several[i] for i in range(len(config.seeds)) for several in runs.values()]
    store.complete(in_turn, jobs=jobs, device=device, data_dir=data_dir, label="learning curves", train=execute_curve)
    return concluded(store, "learning", config, {"curves": curves(config, runs, store)}, render)


def command(argv: list[str]) -> Path:
    """`python -m experiments learning --data mnist | minilm`"""
    return run_on(main, CONFIGS, data_parser("learning", __doc__, CONFIGS).parse_args(argv))
