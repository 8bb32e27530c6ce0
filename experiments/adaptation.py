"""Where bias adaptation at its defaults recovers features: ten synthetic models, fixed before anything was run on them.

The defaults (scales that start where they fit best, 10 % to 0.1 %, gamma 0.3 every 25 steps, step size 0.03) were chosen on the first
five, at seed 0; the other five, and all other seeds, are reported. Beside the defaults: each of them put back to what it was before
(the paper's, where it says), a tied-residual decoder, PAM-SGD as the base, a ReLU; and TopK, told the true mean number of active
features, with a tied-residual decoder by SGD at the same step size. Then a map: the defaults on one model of each five, by the number
of latents and of steps.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from experiments.options import add_common_options, changed
from experiments.recipe import digest, options_of
from experiments.report import table, with_interval
from experiments.runs import AS_THEN
from experiments.store import RecordStore
from splinterp import PAMSGD, SAE, SGD, BiasAdaptation, DivergenceError, JumpReLU, ReLU, TopK, fit
from splinterp.data import SparseFeatures
from splinterp.metrics import evaluate, match_features

FAMILY: dict[str, dict[str, Any]] = {
    "60 in 30, 3 or 8": {"n_features": 60, "d_in": 30, "sparsity": [3, 8]},
    "100 in 40, 3 or 12, exponential": {"n_features": 100, "d_in": 40, "sparsity": [3, 12], "values": "exponential"},
    "128 in 42, 3 or 20": {"n_features": 128, "d_in": 42, "sparsity": [3, 20]},
    "200 in 64, 4, uniform": {"n_features": 200, "d_in": 64, "sparsity": [4], "values": "uniform"},
    "48 in 32, 2 or 6, frequencies 10 : 1": {"n_features": 48, "d_in": 32, "sparsity": [2, 6], "ratio": 10.0},
    "100 in 40, 3 or 12": {"n_features": 100, "d_in": 40, "sparsity": [3, 12]},
    "80 in 24, 2, uniform": {"n_features": 80, "d_in": 24, "sparsity": [2], "values": "uniform"},
    "256 in 64, 4 or 16": {"n_features": 256, "d_in": 64, "sparsity": [4, 16]},
    "120 in 48, 5, exponential, noise 0.05": {
        "n_features": 120, "d_in": 48, "sparsity": [5], "values": "exponential", "noise": 0.05,
    },
    "64 in 64 orthogonal, 3 or 9, uniform": {
        "n_features": 64, "d_in": 64, "sparsity": [3, 9], "values": "uniform", "features": "orthogonal",
    },
}  # fmt: skip
"""Gaussian features and binary values where nothing else is said; the first five are those of tuning."""
TUNING = tuple(FAMILY)[:5]
LR = 3e-2


@dataclass(frozen=True)
class Row:
    """An SAE and a method; `topk` is told k."""

    method: Callable[[], Any]
    decoder: str = "tied"
    activation: Callable[..., Any] = JumpReLU


TOPK = "TopK at the true number, tied-residual"
ROWS: dict[str, Row] = {
    "defaults": Row(BiasAdaptation),
    "scales from 1": Row(lambda: BiasAdaptation(gain=1.0)),
    "50 % to 0.1 %": Row(lambda: BiasAdaptation(highest=0.5)),
    "2 % to 0.1 %": Row(lambda: BiasAdaptation(highest=0.02)),
    "gamma 0.01": Row(lambda: BiasAdaptation(gamma_up=0.01, gamma_down=0.01)),
    "every 50 steps": Row(lambda: BiasAdaptation(every=50)),
    "step size 0.003": Row(lambda: BiasAdaptation(lr=3e-3)),
    "all of these": Row(lambda: BiasAdaptation(lr=3e-3, highest=0.5, gamma_up=0.01, gamma_down=0.01, every=50, gain=1.0)),
    "quantile rule": Row(lambda: BiasAdaptation(rule="quantile", quantile_samples=4096)),
    "ReLU": Row(BiasAdaptation, activation=ReLU),
    "tied-residual": Row(BiasAdaptation, "tied_residual"),
    "tied-residual, PAM-SGD": Row(lambda: BiasAdaptation(base=PAMSGD(lr=LR, **AS_THEN)), "tied_residual"),
    "free": Row(BiasAdaptation, "free"),
    TOPK: Row(lambda: SGD(lr=LR), "tied_residual", TopK),
}


@dataclass(frozen=True)
class Fitted:
    """One run; equal runs have equal keys."""

    model: str
    """Of FAMILY."""
    row: str
    """Of ROWS."""
    seed: int
    n_latents: int = 512
    steps: int = 1_440
    n_samples: int = 12_000
    batch_size: int = 512

    @property
    def key(self) -> str:
        """A hash of all fields that differ from their defaults."""
        return digest(self)

    @property
    def cost(self) -> float:
        """Grows with the steps and the width."""
        return self.steps * self.n_latents * FAMILY[self.model]["d_in"] * (2.0 if "PAM" in self.row else 1.0)

    def sae(self, generator: torch.Generator) -> SAE:
        """The SAE at its start."""
        about, row = FAMILY[self.model], ROWS[self.row]
        k = (max(1, round(sum(about["sparsity"]) / len(about["sparsity"]))),) if row.activation is TopK else ()
        return SAE(
            about["d_in"], self.n_latents, row.activation(*k), row.decoder, tie_scale=row.decoder != "free", b_pre=False, init_bias=0.0,
            generator=generator,
        )  # fmt: skip

    def recipe(self) -> str:
        """A hash of what the model and the row mean today."""
        row = ROWS[self.row]
        return digest([options_of(SparseFeatures, FAMILY[self.model]), row.activation.__name__, row.decoder, row.method()], 12)


def run_from_record(record: dict[str, Any]) -> Fitted | None:
    """The run that a record is of; None if its model or row is not there any more."""
    run = Fitted(**record["run"])
    return run if run.model in FAMILY and run.row in ROWS else None


def measure(run: Fitted, data_dir: str | None = None, device: str = "cpu") -> dict[str, Any]:
    """Train and compare with the truth. A diverged run is a result: it recovers nothing."""
    g = torch.Generator().manual_seed(100 + run.seed)
    model = SparseFeatures(**FAMILY[run.model], generator=g)
    x = model.sample(run.n_samples, g).x
    sae = run.sae(g).to(device)
    record: dict[str, Any] = {"key": run.key, "run": asdict(run)}
    try:
        fit(
            sae,
            x.to(device),
            ROWS[run.row].method(),
            steps=run.steps,
            batch_size=run.batch_size,
            generator=run.seed,
            log_every=10**6,
        )
    except DivergenceError as error:
        return record | {"diverged_at": error.step, "recovery": {"0.8": 0.0, "0.9": 0.0}}
    match, found = match_features(sae.W_dec.detach().cpu(), model.features), evaluate(sae, x[:4_000].to(device))
    recovery = {str(t): match.recovery(t) for t in (0.8, 0.9)}
    return record | {"recovery": recovery, "fvu": found.fvu, "l0": found.l0, "frac_dead": found.frac_dead}


@dataclass(frozen=True)
class Config:
    """What is run."""

    seeds: tuple[int, ...] = (1, 2)
    """Not 0, at which the defaults were chosen."""
    rows: tuple[str, ...] = tuple(ROWS)
    models: tuple[str, ...] = tuple(FAMILY)
    map_models: tuple[str, ...] = ("128 in 42, 3 or 20", "100 in 40, 3 or 12")
    widths: tuple[int, ...] = (128, 512, 2_048)
    lengths: tuple[int, ...] = (480, 1_440, 4_320)
    steps: int = 1_440
    """Of the rows."""
    n_samples: int = 12_000


def cells(config: Config) -> tuple[list[Fitted], list[Fitted]]:
    """The runs of the table, and of the map."""
    c = config
    sizes: dict[str, Any] = {"n_samples": c.n_samples, "steps": c.steps}
    rows = [Fitted(model, row, seed, **sizes) for model in c.models for row in c.rows for seed in c.seeds]
    base = [Fitted(model, "defaults", seed, n_samples=c.n_samples) for model in c.map_models for seed in c.seeds]
    return rows, [replace(run, n_latents=m, steps=steps) for run in base for m in c.widths for steps in c.lengths]


def render(results: dict[str, Any], markdown: bool = False) -> str:
    """Recovery by method and model, and the map."""
    models, rows = results["config"]["models"], results["config"]["rows"]

    def share(values: list[float]) -> str:
        return with_interval([100 * v for v in values], 0)

    found = {(r["model"], r["row"]): r["recovery"] for r in results["adapted"]}
    parts = []
    for tau in ("0.8", "0.9"):
        means, lines = {}, []
        for row in rows:
            for name in ("tuning", "reported"):
                values = [v for model in models if (model in TUNING) == (name == "tuning") for v in found[model, row][tau]]
                means[row, name] = f"{100 * sum(values) / len(values):.1f}" if values else ""
            lines.append([row, means[row, "tuning"], means[row, "reported"]])
        parts.append(f"features recovered at cosine {tau}, %, mean over models and seeds\n\n"
                     + table(["method", "models of tuning", "others"], lines, markdown))  # fmt: skip
    shown = [row for row in ("defaults", "scales from 1", "all of these", "tied-residual", TOPK) if row in rows]
    lines = [[model, *(share(found[model, row]["0.9"]) for row in shown)] for model in models]
    parts.append("features recovered at cosine 0.9, %\n\n" + table(["model", *shown], lines, markdown))
    lines = [[r["model"], f"{r['n_latents']:,}", f"{r['steps']:,}", share(r["recovery"]["0.8"]), share(r["recovery"]["0.9"])]
             for r in results["map"]]  # fmt: skip
    parts.append("the defaults by latents and steps\n\n" + table(["model", "latents", "steps", "0.8", "0.9"], lines, markdown))
    return "\n\n".join(parts)


def main(config: Config, out: Path, jobs: int = 1, device: str = "cpu", name: str = "adaptation") -> Path:
    """Run what is missing, write `NAME.json` and `NAME-runs.json`, print the tables. Returns the results file."""
    store = RecordStore(out, f"{name}-runs", run_from_record)
    rows, points = cells(config)
    store.complete([*rows, *points], jobs=jobs, device=device, train=measure, label="adaptation")

    def gathered(runs: list[Fitted]) -> list[dict[str, Any]]:
        groups: dict[Fitted, list[dict[str, Any]]] = {}
        for run in runs:
            groups.setdefault(replace(run, seed=0), []).append(store.get(run))
        return [
            {**asdict(run), "recovery": {t: [r["recovery"][t] for r in records] for t in ("0.8", "0.9")},
             **{name: [r[name] for r in records if name in r] for name in ("fvu", "l0", "frac_dead")}}
            for run, records in groups.items()
        ]  # fmt: skip

    store.merge(asdict(config))
    results = {"adapted": gathered(rows), "map": gathered(points), "config": asdict(config)}
    path = store.write_results(name, results)
    print(f"{render(results)}\n\n{store.report()}\nwritten: {path}")
    return path


SMOKE = Config(seeds=(1,), rows=("defaults", "all of these"), models=("60 in 30, 3 or 8", "80 in 24, 2, uniform"),
               map_models=("60 in 30, 3 or 8",), widths=(64,), lengths=(20,), steps=30, n_samples=600)  # fmt: skip


def command(argv: list[str]) -> Path:
    """`python -m experiments adaptation [--smoke]`"""
    parser = argparse.ArgumentParser(
        prog="python -m experiments adaptation", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add_common_options(parser)
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, to see that it runs; writes adaptation-smoke.json")
    args = parser.parse_args(argv)
    config, name = (SMOKE, "adaptation-smoke") if args.smoke else (Config(), "adaptation")
    return main(changed(config, args), args.out, args.jobs, args.device, name)
