"""Latents that die, and what is done about it: none, AuxK, resampling, bias adaptation; by SGD and PAM-SGD.

Every remedy has the step size that validation data choose for it, from the same trials at one seed that is not reported; the
remedies are as they come (AuxK and resampling: dead after 10,000 samples, resampled every 100 steps of the first half; bias adaptation:
every latent's target is k / n_latents, gamma 0.1). A latent is dead if it fires on no
test sample.

  --data mnist   TopK, k = 15 of 256 latents, tied-residual decoder, 550 and 13,750 images, at least 2,000 steps
  --data minilm  TopK, k = 32 of 3,072 latents (8 times the width), layer 3 of MiniLM, 36,000 tokens, 4 epochs; free and tied-residual
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from experiments.choices import Choice, data_parser, run_on, store_of
from experiments.report import table, with_interval
from experiments.runs import REMEDIES, Run
from experiments.store import RecordStore
from experiments.texts import TEXTS
from experiments.tuning import Cell, choose_step_sizes

BASES = ("SGD", "PAM")
METHODS = tuple(f"{base}, {remedy}" for base in BASES for remedy in REMEDIES)


@dataclass(frozen=True)
class Config(Choice):
    """What is run."""

    batch_size: int = 128
    settings: tuple[tuple[str, int, int], ...] = (("tied_residual", 550, 400), ("tied_residual", 13_750, 19))
    """(decoder, training samples, epochs)."""
    grid: tuple[float, ...] = (4e-3, 8e-3, 1.6e-2)
    seeds: tuple[int, ...] = (0, 1, 2)
    tuning_seeds: tuple[int, ...] = (100,)

    def cells(self) -> dict[tuple[str, int], Cell]:
        """One for each setting, with all methods and remedies."""
        return {
            (decoder, n_train): Cell(
                Run(
                    data=self.data, source=self.source, method="", activation="TopK", k=self.k, n_latents=self.n_latents,
                    n_train=n_train, epochs=epochs, lr=0.0, seed=0, batch_size=self.batch_size, options=(("decoder", decoder),),
                ),
                "val_last", METHODS, self.grid, extend=False,
            )
            for decoder, n_train, epochs in self.settings
        }  # fmt: skip


CONFIGS = {
    "mnist": Config(),
    "minilm": Config(
        data="minilm-3", k=32, n_latents=3_072, batch_size=256, grid=(1e-3, 2e-3, 4e-3),
        settings=(("free", 36_000, 4), ("tied_residual", 36_000, 4)),
    ),
}  # fmt: skip


def collect(config: Config, store: RecordStore, **how: Any) -> list[dict[str, Any]]:
    """Carry out what is missing; returns the rows of the table."""
    cells = config.cells()

    def complete(label: str, runs: Iterable[Run]) -> None:
        store.complete(runs, label=label, **how)

    chosen = choose_step_sizes(cells.values(), config.tuning_seeds, lambda runs: complete("step sizes", runs), store.get)
    complete(
        "reported", [cell.run(m, chosen[cell][m], seed) for cell in cells.values() for m in METHODS for seed in config.seeds]
    )
    rows = []
    for (decoder, n_train), cell in cells.items():
        for method in METHODS:
            records = [store.get(cell.run(method, chosen[cell][method], seed)) for seed in config.seeds]
            base, remedy = method.split(", ")
            rows.append({
                "decoder": decoder, "n_train": n_train, "base": base, "remedy": remedy, "lr": chosen[cell][method],
                "edge": chosen[cell][method] in (min(config.grid), max(config.grid)),
                **{name: [r["test_last"][name] for r in records] for name in ("fvu", "frac_dead")},
                "train_fvu": [r.get("train_last", float("inf")) for r in records],
                "seconds": [r.get("seconds", float("nan")) for r in records],
            })  # fmt: skip
    return rows


def render(results: dict[str, Any], markdown: bool = False) -> str:
    """One row for each setting, method and remedy."""
    header = ["decoder", "samples", "method", "remedy", "step size", "dead, %", "test FVU", "training FVU", "seconds"]
    lines = [
        [
            r["decoder"], f"{r['n_train']:,}", r["base"], r["remedy"], f"{r['lr']:g}{'*' if r['edge'] else ''}",
            with_interval([100 * v for v in r["frac_dead"]], 1), with_interval(r["fvu"]), with_interval(r["train_fvu"]),
            f"{sum(r['seconds']) / len(r['seconds']):.0f}",
        ]
        for r in results["remedies"]
    ]  # fmt: skip
    return f"{results['data']['name']}\n\n{table(header, lines, markdown, keys=4)}\n\n* the lowest or highest step size tried"


def main(config: Config, out: Path, data_dir: str | None = None, jobs: int = 1, device: str = "cpu") -> Path:
    """Run what is missing, write `dead-DATA.json` and `dead-DATA-runs.json` into `out`, print the table."""
    store, source = store_of("dead", config.data, out, data_dir)
    config = replace(config, source=source.key)
    print(f"data: {source.name}", file=sys.stderr)
    rows = collect(config, store, jobs=jobs, device=device, data_dir=data_dir)
    store.merge(asdict(config))
    path = store.write_results(f"dead-{config.data}", {"config": asdict(config), "remedies": rows})
    print(f"{render({'data': source.describe(), 'remedies': rows})}\n\n{store.report()}\nwritten: {path}")
    return path


def command(argv: list[str]) -> Path:
    """`python -m experiments dead --data mnist | minilm`"""
    parser = data_parser("dead", __doc__, CONFIGS)
    parser.add_argument("--text", choices=TEXTS, help="what MiniLM reads (default: as --data-dir says)")
    args = parser.parse_args(argv)
    if args.text and args.data != "minilm":
        parser.error(f"--text {args.text} is for --data minilm, not {args.data}")
    return run_on(main, CONFIGS, args, args.text)
