"""When the residual of PAM-SGD should be let in, and what a readout and a race between both answers are worth.

Validation data only, as the defaults are chosen by it. Centred SAEs; each way at each step size, the best of them reported; SGD on a tied
and on a tied-residual decoder beside. "hold 1" is tied SGD with a readout; a race is decided in the run, and its losing arm's steps count.
Ridges are by held-out samples, but for one way by cross-validation.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from experiments.choices import Choice, concluded, data_parser, run_on, store_of
from experiments.report import table
from experiments.runs import Run
from experiments.store import RecordStore

Way = tuple[str, tuple[tuple[str, Any], ...]]
"""Method and options."""
EVEN = ("decoder_lr", 1.0)
"""The option that was the default under TopK when this, and what else imports it, was tried."""
WAYS: dict[str, Way] = {
    "SGD tied": ("SGD tied", ()),
    "SGD tied-residual": ("SGD tied-residual", ()),
    "hold 0.1, no readout": ("PAM-SGD", (("hold", 0.1), ("readout", False), EVEN)),
    "hold 0": ("PAM-SGD", (("hold", 0.0), EVEN)),
    "hold 0, ridge by GCV": ("PAM-SGD", (("hold", 0.0), ("ridge", "gcv"), EVEN)),
    "hold 0.1": ("PAM-SGD", (("hold", 0.1), EVEN)),
    "hold 1": ("PAM-SGD", (("hold", 1.0),)),
    "race": ("PAM-SGD", (("hold", "race"), EVEN)),
    "race from the start": ("PAM, race from the start", (EVEN,)),
    "race of a tenth": ("PAM, race of a tenth", (EVEN,)),
}


@dataclass(frozen=True)
class Config(Choice):
    """What is run."""

    batch_size: int = 128
    grid: tuple[float, ...] = (4e-3, 8e-3, 1.6e-2)
    sizes: tuple[int, ...] = (550, 2_750)
    activations: tuple[str, ...] = ("TopK", "AbsTopK")
    budgets: tuple[str, ...] = ("long",)
    early_epochs: int = 10
    long_steps: int = 2_000
    seeds: tuple[int, ...] = (100,)

    @property
    def ways(self) -> Mapping[str, Way]:
        """What is compared."""
        return WAYS

    @property
    def cells(self) -> list[tuple[str, str, int]]:
        """(budget, activation, samples)."""
        return [(budget, a, n) for budget in self.budgets for a in self.activations for n in self.sizes]

    def run(self, cell: tuple[str, str, int], way: str, lr: float, seed: int) -> Run:
        """One run, whose record has no test error."""
        budget, activation, n_train = cell
        method, options = self.ways[way]
        run = self.validation_run(
            method=method, activation=activation, n_train=n_train, epochs=self.early_epochs, lr=lr, seed=seed, batch_size=self.batch_size,
            options=(("b_pre", "fixed"), *options),
        )  # fmt: skip
        longer = math.ceil(self.long_steps / run.steps_per_epoch)
        return replace(run, epochs=max(run.epochs, longer)) if budget == "long" else run


MINILM = Config("minilm-3", k=32, n_latents=1_536, batch_size=256, grid=(4e-3,), sizes=(1_000, 9_000, 36_000), early_epochs=4)
CONFIGS = {"mnist": Config(), "minilm": MINILM}
METRIC = {"early": "val_last", "long": "val_best"}


def render(results: dict[str, Any], markdown: bool = False) -> str:
    """Error of each way in each cell at its best step size, and by how much it is above the best of the fixed ones."""
    ways = list(dict.fromkeys(r["way"] for r in results["ways"]))
    cells = list(dict.fromkeys(tuple(r["cell"]) for r in results["ways"]))
    errors, excess = [], []
    for cell in cells:
        here = {r["way"]: r for r in results["ways"] if tuple(r["cell"]) == cell}
        budget, activation, n = cell
        fixed = min(here[way]["val"] for way in ("hold 0", "hold 0.1", "hold 1"))
        errors.append([budget, activation, f"{n:,}", *(f"{here[w]['val']:.4f}" for w in ways)])
        excess.append(
            [
                budget,
                activation,
                f"{n:,}",
                *(f"{100 * math.log(here[w]['val'] / fixed):+.1f}" for w in ways),
                *(here[w]["winner"] for w in ways if w.startswith("race")),
            ]
        )
    header = ["budget", "activation", "N", *ways]
    return (
        f"{results['config']['data']}: validation FVU\n\n{table(header, errors, markdown, keys=3)}\n\nits log ratio to the best of hold 0, "
        f"0.1 and 1, in %\n\n{table([*header, *('won ' + w for w in ways if w.startswith('race'))], excess, markdown, keys=3)}"
    )


def tried(config: Config, store: RecordStore, label: str, **how: Any) -> list[dict[str, Any]]:
    """A row of every cell and way, at its best step size; carries out what is missing."""
    runs = {
        (cell, way, lr): [config.run(cell, way, lr, seed) for seed in config.seeds]
        for cell in config.cells for way in config.ways for lr in config.grid
    }  # fmt: skip
    store.complete([run for several in runs.values() for run in several], label=label, **how)
    rows = []
    for cell in config.cells:
        for way in config.ways:
            found = {}
            for lr in config.grid:
                records = [store.get(run) for run in runs[cell, way, lr]]
                found[lr] = sum(r[METRIC[cell[0]]] for r in records) / len(records), records
            lr = min(found, key=lambda lr: found[lr][0])
            winner = "/".join(str(r.get("winner") or "none") for r in found[lr][1]) if way.startswith("race") else ""
            by_lr = {f"{lr:g}": value for lr, (value, _) in found.items()}
            rows.append({"cell": list(cell), "way": way, "lr": lr, "val": found[lr][0], "by_lr": by_lr, "winner": winner})
    return rows


def main(config: Config, out: Path, data_dir: str | None = None, jobs: int = 1, device: str = "cpu") -> Path:
    """Run what is missing, write `opening-DATA.json`, print the tables. Returns the results file."""
    store, source = store_of("opening", config.data, out, data_dir)
    config = replace(config, source=source.key)
    rows = tried(config, store, "opening", jobs=jobs, device=device, data_dir=data_dir)
    return concluded(store, "opening", config, {"ways": rows}, render)


def command(argv: list[str]) -> Path:
    """`python -m experiments opening --data mnist | minilm`"""
    return run_on(main, CONFIGS, data_parser("opening", __doc__, CONFIGS).parse_args(argv))
