"""Feature recovery: which training methods find the features that synthetic data was made of, after arXiv 2506.14002.

The published check: n = 128 Gaussian features in d = 42, half of the samples made of 3 and half of 20 of them; recovery rate = share of
the features that some decoder row matches with a cosine above tau. Every row takes its step size from the same grid at the
shorter length and then the better of two lengths, both by the mean best cosine with the truth at one seed that is not
reported. All rows start from the same unit directions at the same small output gain, and see the same samples. k, the L1 weights and the
target frequencies are what the rows differ in. GBA's range (2 % to 0.1 %), its gamma (0.1) and the gain (0.05, for all rows) were
found by trying, by recovery on this same model at one other seed; TopK and L1 had no such search beyond the rows shown.

Then: data whose features have random signs (TopK, AbsTopK, GBA); the resonance of a single group's target frequency with the
features' own, for d above and below sqrt(n); the likeness of dictionaries from three starts on the same samples.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from experiments.options import add_common_options, changed
from experiments.recovery_runs import ROWS, THRESHOLDS, Recovery, measure, task_from_record
from experiments.report import table, with_interval
from experiments.store import RecordStore

PUBLISHED: dict[str, tuple[float, float]] = {
    "TopK, k = 20": (1.0, 0.984),
    "TopK, k = 30": (0.984, 0.242),
    "TopK, k = 50": (0.945, 0.234),
    "GBA": (1.0, 1.0),
    "GBA, too frequent: 50 % to 10 %": (0.383, 0.039),
    "GBA, too rare: 0.1 % to 0.01 %": (0.383, 0.039),
}
"""Recovery at tau 0.8 and 0.9. Which wrong frequencies were published is not known: both of ours stand beside the same numbers."""
SIGNED = ("TopK, k = 20", "AbsTopK, k = 20", "GBA")
CONSISTENT = ("TopK, k = 20", "TopK, k = 50", "TopK, k = 20, PAM", "ReLU, L1 3e-3", "BA", "GBA", "GBA, PAM")


@dataclass(frozen=True)
class Config:
    """What is run."""

    n_features: int = 128
    d_in: int = 42
    sparsity: tuple[int, ...] = (3, 20)
    n_samples: int = 40_000
    n_latents: int = 2_048
    grid: tuple[float, ...] = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 9e-2, 2.7e-1)
    lengths: tuple[int, int] = (3_000, 6_000)
    """Gradient steps."""
    rows: tuple[str, ...] = tuple(name for name in ROWS if name != "AbsTopK, k = 20")
    signed_rows: tuple[str, ...] = SIGNED
    consistent_rows: tuple[str, ...] = CONSISTENT
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    tuning_seed: int = 100
    resonance_n_features: int = 512
    resonance_sparsity: int = 3
    resonance_dims: tuple[int, int] = (64, 20)
    """Above and below the square root of the number of features."""
    resonance_n_latents: int = 2_048
    ratios: tuple[float, ...] = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0, 2.0, 4.0, 8.0, 16.0)
    """Target frequency over feature frequency."""
    resonance_seeds: tuple[int, ...] = (0, 1, 2)

    def task(self, row: str, signs: bool = False) -> Recovery:
        """The row's task on the published model, without step size, length and seed."""
        return Recovery(
            row, 0.0, 0, 0, n_features=self.n_features, d_in=self.d_in, sparsity=self.sparsity, signs=signs,
            n_samples=self.n_samples, n_latents=self.n_latents,
        )  # fmt: skip

    def resonance_task(self, d_in: int, ratio: float, lr: float, seed: int) -> Recovery:
        """BA on features of one frequency, with a multiple of it as the target."""
        frequency = self.resonance_sparsity / self.resonance_n_features
        return Recovery(
            "BA", lr, self.lengths[0], seed, n_features=self.resonance_n_features, d_in=d_in, sparsity=(self.resonance_sparsity,),
            n_samples=self.n_samples, n_latents=self.resonance_n_latents, target=ratio * frequency,
        )  # fmt: skip


class Experiment:
    """Runs what is missing and makes the tables of it."""

    def __init__(self, config: Config, store: RecordStore, jobs: int, device: str) -> None:
        self.config, self.store, self.jobs, self.device = config, store, jobs, device

    def complete(self, tasks: Iterable[Recovery], label: str) -> None:
        self.store.complete(tasks, jobs=self.jobs, device=self.device, train=measure, label=label)

    def tuned(self) -> dict[tuple[str, bool], Recovery]:
        """Each row's task with the step size and the length of highest mean best cosine at the tuning seed."""
        c = self.config
        names = [(row, False) for row in c.rows] + [(row, True) for row in c.signed_rows]
        bases = {name: replace(c.task(*name), seed=c.tuning_seed, steps=c.lengths[0], role="tuning") for name in names}
        trials = {name: [replace(base, lr=lr) for lr in c.grid] for name, base in bases.items()}
        self.complete([task for tasks in trials.values() for task in tasks], "step sizes")
        chosen = {name: self._best(tasks) for name, tasks in trials.items()}
        longer = {name: [task, replace(task, steps=c.lengths[1])] for name, task in chosen.items()}
        self.complete([task for tasks in longer.values() for task in tasks], "lengths")
        return {name: self._best(tasks) for name, tasks in longer.items()}

    def _best(self, tasks: list[Recovery]) -> Recovery:
        return max(tasks, key=lambda task: self.store.get(task)["mean_cosine"])

    def main_rows(self, tuned: dict[tuple[str, bool], Recovery]) -> list[dict[str, Any]]:
        """The published table and the signed one."""
        c = self.config
        runs = {name: [replace(task, seed=seed, role="reported") for seed in c.seeds] for name, task in tuned.items()}
        self.complete([task for tasks in runs.values() for task in tasks], "recovery")
        rows = []
        for (row, signed), tasks in runs.items():
            records = [self.store.get(task) for task in tasks]
            about = {"row": row, "signed": signed, "lr": tasks[0].lr, "steps": tasks[0].steps}
            about["recovery"] = {str(t): [r["recovery"][str(t)] for r in records] for t in THRESHOLDS}
            names = ("mean_cosine", "one_to_one", "fvu", "l0", "frac_dead", "median_frequency", "matched_frequency", "seconds")
            about |= {name: [r.get(name, math.nan) for r in records] for name in names}
            about["true_l0"] = sum(tasks[0].sparsity) / len(tasks[0].sparsity)
            about["edge"] = tasks[0].lr in (min(c.grid), max(c.grid))
            for name in ("groups", "poles"):
                found = [r[name] for r in records if name in r]  # a diverged run has none
                if found:
                    about[name] = found
            rows.append(about)
        return rows

    def resonance(self, lr: float) -> list[dict[str, Any]]:
        """Recovery against target frequency over feature frequency."""
        c = self.config
        points = [(d, ratio) for d in c.resonance_dims for ratio in c.ratios]
        runs = {point: [c.resonance_task(*point, lr, seed) for seed in c.resonance_seeds] for point in points}
        self.complete([task for tasks in runs.values() for task in tasks], "resonance")
        rows = []
        for (d_in, ratio), tasks in runs.items():
            records = [self.store.get(task) for task in tasks]
            rows.append({
                "d_in": d_in, "ratio": ratio, "target": tasks[0].target, "recovery": [r["recovery"]["0.9"] for r in records],
                "mean_cosine": [r["mean_cosine"] for r in records], "l0": [r.get("l0", math.nan) for r in records],
                "reached": [r.get("median_frequency", math.nan) for r in records],
            })  # fmt: skip
        return rows

    def consistency(self, tuned: dict[tuple[str, bool], Recovery]) -> list[dict[str, Any]]:
        """Likeness of dictionaries from three starts."""
        c = self.config
        tasks = {row: replace(tuned[row, False], seed=c.seeds[0], role="consistency") for row in c.consistent_rows}
        self.complete(tasks.values(), "consistency")
        names = ("consistency", "untrained", "live")
        return [{"row": row, **{name: self.store.get(task)[name] for name in names}} for row, task in tasks.items()]


def render(results: dict[str, Any], markdown: bool = False) -> str:
    """All tables."""
    header = [
        "method",
        "step size, steps",
        "tau 0.8",
        "tau 0.9",
        "published",
        "one to one",
        "l0",
        "FVU",
        "dead",
        "frequency of matches",
    ]
    parts = []
    for signed, title in (
        (False, "features in non-negative combinations"),
        (True, "features of random signs, either sign counted"),
    ):
        lines = []
        for r in (r for r in results["rows"] if r["signed"] is signed):
            published = PUBLISHED.get(r["row"]) if not signed else None
            lines.append([
                r["row"], f"{r['lr']:g}{'*' if r['edge'] else ''}, {r['steps']:,}", _share(r["recovery"]["0.8"]),
                _share(r["recovery"]["0.9"]), "" if published is None else f"{100 * published[0]:.1f}, {100 * published[1]:.1f}",
                _share(r["one_to_one"]), with_interval(r["l0"], 1), with_interval(r["fvu"]), with_interval(r["frac_dead"], 2),
                _mean(r["matched_frequency"]),
            ])  # fmt: skip
        parts.append(f"{title}: recovery in %\n\n{table(header, lines, markdown)}")
    parts.append("* the lowest or highest step size tried")
    parts.append(f"frequencies: target and median reached (matched features)\n\n{_group_lines(results, markdown)}")
    parts.append(f"both poles of random signs\n\n{_pole_lines(results, markdown)}")
    lines = [[str(r["d_in"]), f"{r['ratio']:g}", f"{r['target']:.4f}", _mean(r["reached"]), _share(r["recovery"]),
              with_interval(r["l0"], 1)] for r in results["resonance"]]  # fmt: skip
    parts.append("resonance\n\n" + table(["d", "target / f", "target", "reached", "tau 0.9", "l0"], lines, markdown))
    lines = [[r["row"], with_interval(r["consistency"]), with_interval(r["untrained"]), f"{sum(r['live']) / len(r['live']):.0f}"]
             for r in results["consistency"]]  # fmt: skip
    parts.append("likeness of dictionaries from three starts (mean best cosine of live latents)\n\n"
                 + table(["method", "trained", "untrained", "live latents"], lines, markdown))  # fmt: skip
    return "\n\n".join(parts)


def _share(values: list[float]) -> str:
    return with_interval([100 * v for v in values], 1)


def _mean(values: list[float]) -> str:
    values = [v for v in values if not math.isnan(v)]
    return f"{sum(values) / len(values):.4f}" if values else ""


def _group_lines(results: dict[str, Any], markdown: bool) -> str:
    lines = []
    for r in (r for r in results["rows"] if "groups" in r and not r["signed"]):
        groups = [
            f"{per[0]['target']:.2g}: {_mean([g['reached'] for g in per])} ({sum(g['matched'] for g in per) / len(per):.0f})"
            for per in zip(*r["groups"], strict=True)
        ]
        lines.append([r["row"], ", ".join(groups)])
    return table(["method", "groups"], lines, markdown)


def _pole_lines(results: dict[str, Any], markdown: bool) -> str:
    lines = []
    for r in (r for r in results["rows"] if "poles" in r):
        poles = r["poles"]
        lines.append([
            r["row"], _share([p["both_poles"] for p in poles]), _share([p["twins"] for p in poles]),
            with_interval([p["minority"]["q50"] for p in poles]), with_interval([p["minority_weighted"]["q50"] for p in poles]),
        ])  # fmt: skip
    return table(["method", "features with a latent at each pole, %", "live latents with a twin, %", "median minority share",
                  "by magnitude"], lines, markdown)  # fmt: skip


def main(config: Config, out: Path, jobs: int = 1, device: str = "cpu", name: str = "recovery") -> Path:
    """Run what is missing, write `NAME.json` and `NAME-runs.json`, print the tables. Returns the results file."""
    store = RecordStore(out, f"{name}-runs", task_from_record)
    experiment = Experiment(config, store, jobs, device)
    tuned = experiment.tuned()
    rows = experiment.main_rows(tuned)
    resonance = experiment.resonance(tuned["BA", False].lr)
    consistency = experiment.consistency(tuned)
    store.merge(asdict(config))
    results = {"rows": rows, "resonance": resonance, "consistency": consistency, "config": asdict(config)}
    path = store.write_results(name, results)
    print(f"{render(results)}\n\n{store.report()}\nwritten: {path}")
    return path


SMOKE = Config(
    n_features=16, d_in=12, sparsity=(2,), n_samples=2_000, n_latents=48, grid=(1e-2, 3e-2), lengths=(160, 320), seeds=(0, 1),
    resonance_n_features=16, resonance_dims=(8, 3), resonance_n_latents=32, ratios=(0.5, 1.0, 2.0), resonance_seeds=(0,),
    rows=("TopK, k = 20", "BA", "GBA"), signed_rows=("TopK, k = 20", "AbsTopK, k = 20"), consistent_rows=("GBA",),
)  # fmt: skip


def command(argv: list[str]) -> Path:
    """`python -m experiments recovery [--smoke]`"""
    parser = argparse.ArgumentParser(
        prog="python -m experiments recovery", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add_common_options(parser)
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, to see that it runs; writes recovery-smoke.json")
    args = parser.parse_args(argv)
    config, name = (SMOKE, "recovery-smoke") if args.smoke else (Config(), "recovery")
    return main(changed(config, args), args.out, args.jobs, args.device, name)
