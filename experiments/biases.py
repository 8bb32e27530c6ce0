"""The encoder's bias, its step size and its start, and how many latents do the coding: on validation data only.

TopK (or `--set activation=BatchTopK`), centred, 2,000 steps (the long budget of `mnist --preset centred` and `llm --preset centred`, the
best checkpoint), every setting at three step sizes of the weights. What it shows is where `SAE(init_bias=None)` and `PAMSGD(hold="auto")`
come from: where codes keep a quarter of d_in latents, an SAE of d_in latents has a lower error than one of several times as many, unless
the bias makes most of those rare, by larger steps or from the start. `--set k=...` makes codes denser or sparser.

  --data gpt2      9,000 tokens of the small GPT-2's layer 1, k = 32 of 1,536 latents
  --data minilm    9,000 tokens of MiniLM's layer 3, likewise
  --data digits    1,200 digits, k = 16 of 128 latents, d_in = 64
  --data mnist     2,750 images, k = 15 of 256 latents, fewer than d_in, so there is no start to choose
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import splinterp
from experiments.choices import Choice, concluded, data_parser, run_on, store_of
from experiments.opening import EVEN
from experiments.report import table, with_interval
from experiments.runs import DEFAULT, OPEN, Run

Options = tuple[tuple[str, Any], ...]
LATE: Options = (("hold", 0.5),)
METHODS: tuple[tuple[str, Options], ...] = (("SGD tied", ()), ("SGD untied", ()), (OPEN, ()), (DEFAULT, LATE))
STEPS: tuple[Options, ...] = ((), (("bias_lr", 4.0),), (("bias_lr", 16.0),))
STARTS: tuple[Options, ...] = ((("init_bias", -1.0),), (("init_bias", -2.0),))


@dataclass(frozen=True)
class Config(Choice):
    """What is run."""

    activation: str = "TopK"
    """TopK or BatchTopK; AbsTopK, for which there is no start to choose."""
    n_train: int = 2_750
    epochs: int = 91
    batch_size: int = 128
    methods: tuple[tuple[str, Options], ...] = METHODS
    lrs: tuple[float, ...] = (4e-3, 8e-3, 1.6e-2)
    settings: tuple[Options, ...] = STEPS
    """Of the bias."""
    sizes: tuple[int, ...] = ()
    """Smaller numbers of latents, at the default's bias."""
    seeds: tuple[int, ...] = (100, 101)
    pool: int = 0

    def run(self, method: str, lr: float, seed: int, options: Options = (), n_latents: int | None = None) -> Run:
        """One run, whose record has no test error."""
        even = () if method.startswith("SGD") else (EVEN,)  # as then, whatever the codes
        run = self.validation_run(
            method=method, activation=self.activation, n_train=self.n_train, epochs=self.epochs, lr=lr, seed=seed,
            batch_size=self.batch_size, pool=self.pool, options=(("b_pre", "fixed"), *options, *even),
        )  # fmt: skip
        return replace(run, n_latents=n_latents or self.n_latents)

    def rows(self) -> list[tuple[str, Options, Options, int]]:
        """Method, its options, setting of the bias, number of latents."""
        settings = self.settings
        if getattr(splinterp, self.activation).signed:
            settings = tuple(setting for setting in settings if "init_bias" not in dict(setting))
        return [
            *((method, own, setting, self.n_latents) for method, own in self.methods for setting in settings),
            *((method, own, (), size) for method, own in self.methods for size in self.sizes),
        ]


TOKENS = Config(k=32, n_latents=1_536, n_train=9_000, epochs=56, batch_size=256, settings=(*STEPS, *STARTS))
CONFIGS = {
    "mnist": Config(),
    "digits": Config(data="digits", k=16, n_latents=128, n_train=1_200, epochs=200, settings=((), STARTS[0]), sizes=(64,)),
    "minilm": replace(
        TOKENS,
        data="minilm-3",
        methods=tuple(row for row in METHODS if row[0] != "SGD untied"),
        sizes=(384,),
        settings=(*STEPS[:2], STARTS[0]),
    ),
    "gpt2": replace(TOKENS, data="small-gpt2-1", sizes=(128, 192, 256, 384, 768), pool=72_000),
}


def _said(options: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in options.items()) or "as it is"


def render(results: dict[str, Any], markdown: bool = False) -> str:
    """A line for each method and setting, a column for each step size; the lowest error of each line last."""
    lrs = list(dict.fromkeys(r["lr"] for r in results["biases"]))
    lines: dict[tuple[str, int, str], dict[float, dict[str, Any]]] = {}
    for r in results["biases"]:
        method = r["method"] + (f", {_said(r['options'])}" if r["options"] else "")
        lines.setdefault((method, r["n_latents"], _said(r["setting"])), {})[r["lr"]] = r
    rows = []
    for (method, n_latents, setting), found in lines.items():
        cells = []
        for lr in lrs:
            dead = found[lr]["frac_dead"]
            cells.append(f"{with_interval(found[lr]['val_best'])} ({100 * sum(dead) / len(dead):.0f})")
        best = min(sum(r["val_best"]) / len(r["val_best"]) for r in found.values())
        rows.append([method, f"{n_latents:,}", setting, *cells, f"{best:.4f}"])
    header = ["method", "latents", "bias", *(f"lr {lr:g} (dead, %)" for lr in lrs), "lowest"]
    return f"{results['config']['data']}: validation FVU\n\n{table(header, rows, markdown)}"


def main(config: Config, out: Path, data_dir: str | None = None, jobs: int = 1, device: str = "cpu") -> Path:
    """Run what is missing, write `biases-DATA.json`, print the table. Returns the results file."""
    store, source = store_of("biases", config.data, out, data_dir, pool=config.pool or None)
    config = replace(config, source=source.key)
    runs = {
        (row, lr): [config.run(row[0], lr, seed, (*row[1], *row[2]), row[3]) for seed in config.seeds]
        for row in config.rows() for lr in config.lrs
    }  # fmt: skip
    store.complete(
        [run for several in runs.values() for run in several], jobs=jobs, device=device, data_dir=data_dir, label="biases"
    )
    rows = []
    for ((method, own, setting, n_latents), lr), several in runs.items():
        records = [store.get(run) for run in several]
        rows.append({
            "method": method, "options": dict(own), "setting": dict(setting), "n_latents": n_latents, "lr": lr,
            "val_best": [r["val_best"] for r in records], "frac_dead": [r.get("frac_dead", 1.0) for r in records],
        })  # fmt: skip
    return concluded(store, "biases", config, {"biases": rows}, render)


def command(argv: list[str]) -> Path:
    """`python -m experiments biases --data mnist | minilm | gpt2`"""
    return run_on(main, CONFIGS, data_parser("biases", __doc__, CONFIGS).parse_args(argv))
