"""The step size of the encoder's bias: all methods, on validation data.

TopK, centred, 2,000 steps (the long budget of `mnist --preset centred` and `llm --preset centred`, the best checkpoint), at three step
sizes of the weights and three multiples of them for b_enc. What it shows is why PAM-SGD lost on the small GPT-2's layer 1: there is a
solution of much lower error, in which some latents are busy and the others rare, and the steps of the bias decide whether it is found.

  --data gpt2      9,000 tokens of the small GPT-2's layer 1, k = 32 of 1,536 latents
  --data minilm    9,000 tokens of MiniLM's layer 3, likewise
  --data mnist     2,750 images, k = 15 of 256 latents
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from experiments.choices import Choice, concluded, data_parser, run_on, store_of
from experiments.report import table, with_interval
from experiments.runs import DEFAULT, Run


@dataclass(frozen=True)
class Config(Choice):
    """What is run."""

    n_train: int = 2_750
    epochs: int = 91
    batch_size: int = 128
    methods: tuple[str, ...] = ("SGD tied", "SGD untied", DEFAULT)
    lrs: tuple[float, ...] = (4e-3, 8e-3, 1.6e-2)
    multiples: tuple[float, ...] = (1.0, 4.0, 16.0)
    seeds: tuple[int, ...] = (100, 101)
    pool: int = 0

    def run(self, method: str, lr: float, multiple: float, seed: int) -> Run:
        """One run, whose record has no test error."""
        return self.validation_run(
            method=method, activation="TopK", n_train=self.n_train, epochs=self.epochs, lr=lr, seed=seed, batch_size=self.batch_size,
            pool=self.pool, options=(("b_pre", "fixed"), *((("bias_lr", multiple),) if multiple != 1 else ())),
        )  # fmt: skip


CONFIGS = {
    "mnist": Config(),
    "minilm": Config("minilm-3", k=32, n_latents=1_536, n_train=9_000, epochs=56, batch_size=256),
    "gpt2": Config("small-gpt2-1", k=32, n_latents=1_536, n_train=9_000, epochs=56, batch_size=256, pool=72_000),
}


def render(results: dict[str, Any], markdown: bool = False) -> str:
    """A line for each method and multiple, a column for each step size; the lowest error of each method last."""
    lrs = list(dict.fromkeys(r["lr"] for r in results["biases"]))
    rows = []
    for method, multiple in dict.fromkeys((r["method"], r["multiple"]) for r in results["biases"]):
        found = {r["lr"]: r for r in results["biases"] if (r["method"], r["multiple"]) == (method, multiple)}
        cells = []
        for lr in lrs:
            dead = found[lr]["frac_dead"]
            cells.append(f"{with_interval(found[lr]['val_best'])} ({100 * sum(dead) / len(dead):.0f})")
        best = min(sum(r["val_best"]) / len(r["val_best"]) for r in found.values())
        rows.append([method, f"{multiple:g}", *cells, f"{best:.4f}"])
    header = ["method", "bias_lr", *(f"lr {lr:g} (dead, %)" for lr in lrs), "lowest"]
    return f"{results['config']['data']}: validation FVU\n\n{table(header, rows, markdown)}"


def main(config: Config, out: Path, data_dir: str | None = None, jobs: int = 1, device: str = "cpu") -> Path:
    """Run what is missing, write `biases-DATA.json`, print the table. Returns the results file."""
    store, source = store_of("biases", config.data, out, data_dir, pool=config.pool or None)
    config = replace(config, source=source.key)
    runs = {
        (method, multiple, lr): [config.run(method, lr, multiple, seed) for seed in config.seeds]
        for method in config.methods for multiple in config.multiples for lr in config.lrs
    }  # fmt: skip
    store.complete(
        [run for several in runs.values() for run in several], jobs=jobs, device=device, data_dir=data_dir, label="biases"
    )
    rows = []
    for (method, multiple, lr), several in runs.items():
        records = [store.get(run) for run in several]
        rows.append({
            "method": method, "multiple": multiple, "lr": lr, "val_best": [r["val_best"] for r in records],
            "frac_dead": [r.get("frac_dead", 1.0) for r in records],
        })  # fmt: skip
    return concluded(store, "biases", config, {"biases": rows}, render)


def command(argv: list[str]) -> Path:
    """`python -m experiments biases --data mnist | minilm | gpt2`"""
    return run_on(main, CONFIGS, data_parser("biases", __doc__, CONFIGS).parse_args(argv))
