"""When PAM-SGD should solve for the decoder, and from how many samples.

Validation data only, as the default is chosen by it. A tied-residual SAE, centred, at one step size: on MNIST (k = 15 of 256 latents) or
on MiniLM's layer 3 (k = 32 of 1,536), for 2,000 steps or a few epochs. Solves at every epoch's end but at least 50 steps apart, from
all samples (the default until solves were spaced by what they cost); by what they cost, from half of the samples in turn (the
default) or from all; at the end alone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from experiments.choices import Choice, concluded, data_parser, run_on, store_of
from experiments.report import table, with_interval
from experiments.runs import Run
from splinterp.training.when import NEVER

SCHEDULES: dict[str, tuple[tuple[str, Any], ...]] = {
    "every epoch, all samples": (),
    "by cost, halves": (("solve_gap", None),),
    "by cost, all samples": (("solve_gap", None), ("solve_parts", 1)),
    "at the end": (("solve_gap", NEVER),),
}


@dataclass(frozen=True)
class Config(Choice):
    """What is run."""

    batch_size: int = 128
    lr: float = 4e-3
    cells: tuple[tuple[int, str, int], ...] = (
        (2_750, "TopK", 91), (2_750, "AbsTopK", 91), (13_750, "TopK", 19), (13_750, "AbsTopK", 19), (2_750, "TopK", 10),
        (55_000, "TopK", 10),
    )  # fmt: skip
    """Samples, activation, epochs."""
    seeds: tuple[int, ...] = (0, 1)

    def run(self, cell: tuple[int, str, int], schedule: str, seed: int) -> Run:
        """One run, whose record has no test error."""
        n_train, activation, epochs = cell
        return self.validation_run(
            method="PAM", activation=activation, n_train=n_train, epochs=epochs, lr=self.lr, seed=seed, batch_size=self.batch_size,
            options=(("b_pre", "fixed"), *SCHEDULES[schedule]),
        )  # fmt: skip


MINILM = Config(
    "minilm-3", k=32, n_latents=1_536, batch_size=256,
    cells=((9_000, "TopK", 56), (9_000, "AbsTopK", 56), (36_000, "TopK", 15), (36_000, "AbsTopK", 15), (9_000, "TopK", 4)),
)  # fmt: skip
CONFIGS = {"mnist": Config(), "minilm": MINILM}


def render(results: dict[str, Any], markdown: bool = False) -> str:
    """Errors by cell and schedule, and against the first schedule."""
    rows = []
    for r in results["schedules"]:
        first = next(s for s in results["schedules"] if s["cell"] == r["cell"])
        change = [100 * (a / b - 1) for a, b in zip(r["val_best"], first["val_best"], strict=True)]
        n, activation, epochs = r["cell"]
        rows.append([
            f"{n:,}", activation, epochs, r["schedule"], with_interval(r["val_last"]), with_interval(r["val_best"]),
            "" if r is first else with_interval(change, 1), f"{sum(r['seconds']) / len(r['seconds']):.1f}",
        ])  # fmt: skip
    header = ["N", "activation", "epochs", "solves", "validation FVU at the end", "best", "best, change in %", "seconds"]
    return f"{results['config']['data']}\n\n{table(header, rows, markdown)}"


def main(config: Config, out: Path, data_dir: str | None = None, jobs: int = 1, device: str = "cpu") -> Path:
    """Run what is missing, write `solves-DATA.json`, print the table. Returns the results file."""
    store, source = store_of("solves", config.data, out, data_dir)
    config = replace(config, source=source.key)
    runs = {
        (cell, schedule): [config.run(cell, schedule, seed) for seed in config.seeds]
        for cell in config.cells for schedule in SCHEDULES
    }  # fmt: skip
    store.complete(
        [run for several in runs.values() for run in several], jobs=jobs, device=device, data_dir=data_dir, label="solves"
    )
    rows = []
    for (cell, schedule), several in runs.items():
        records = [store.get(run) for run in several]
        found = {key: [r[key] for r in records] for key in ("val_last", "val_best", "seconds")}
        rows.append({"cell": list(cell), "schedule": schedule, **found})
    return concluded(store, "solves", config, {"schedules": rows}, render)


def command(argv: list[str]) -> Path:
    """`python -m experiments solves --data mnist | minilm`"""
    return run_on(main, CONFIGS, data_parser("solves", __doc__, CONFIGS).parse_args(argv))
