"""The field's variants of SAEs, each by SGD and by PAM-SGD, against what they are in a limit, at equal l0 and equal n_latents.

Every variant is a composition of parts of the package, with the decoder W_enc.T plus a residual unless its row says otherwise. A
variant's step size is chosen for each optimizer by validation, at its middle knob, from the same trials at a seed that is not reported;
knobs (k, or the weight of a penalty) are given, and errors compared at equal l0, on the limit's curve of error against l0 (both in
logarithms). "Read out" is the same SAE with the decoder that held-out samples choose, which PAM-SGD by itself ends on unless the solve
sees a penalty on the decoder's rows; of an ensemble, its joint solve. AdaptiveK's probe is told how hard a sample is by what a TopK SAE of
a quarter of the latents, trained for a quarter of the steps, leaves of it.

  --data mnist    13,750 images, 256 latents
  --data minilm   36,000 tokens of MiniLM's layer 3, 1,536 latents
  --data tree     20,000 samples of 120 features in trees, 128 latents: absorption and recovery are known
"""

from __future__ import annotations

import math
import statistics
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from experiments.choices import data_parser, store_of
from experiments.compare import log_ratio_at, t_interval, verdict
from experiments.compositions import VARIANTS
from experiments.options import changed
from experiments.report import table, with_interval
from experiments.store import RecordStore
from experiments.texts import TEXTS, location
from experiments.variant_runs import MOD, OPTIMIZERS, TREE, VariantRun, execute_variant, run_of, tuning

ENTRIES: dict[str, tuple[str, str]] = {
    f"{optimizer}{', read out' if part == 'read' else ''}": (optimizer, part)
    for optimizer in OPTIMIZERS
    for part in ("test", "read")
}
"""(optimizer, part of its records)."""
COMPARED = tuple(entry for entry in ENTRIES if entry != "PAM-SGD")
"""With their limits: PAM-SGD by itself ends on a readout, or not, by what the loss is, so both have one here."""
TUNING_SEED = 100
TREE_NAME = "features in trees"


@dataclass(frozen=True)
class Config:
    """What is run."""

    data: str = "mnist"
    source: str = ""
    n_latents: int = 256
    n_train: int = 13_750
    steps: int = 2_000
    batch_size: int = 128
    knobs: tuple[tuple[str, tuple[float, ...]], ...] = ()
    """Of each list that a variant may name; the middle one is tuned at."""
    limit_k: tuple[float, ...] = (4, 8, 16, 32, 64)
    limit_l1: tuple[float, ...] = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
    variants: tuple[str, ...] = tuple(VARIANTS)
    grid: tuple[float, ...] = (2e-3, 4e-3, 8e-3, 1.6e-2)
    seeds: tuple[int, ...] = (0, 1, 2)
    mod: bool = True
    slope: float = 0.8
    """Minus that of log error against log l0, of ReLU with L1 on these data: where l0 moves with the step size, one is chosen by
    error x l0^slope."""

    def knobs_of(self, name: str) -> tuple[float, ...]:
        """The knobs of a variant; those of limits go further, so that their curves reach beyond the others."""
        knob = VARIANTS[name].knob
        if any(variant.limit == name for variant in VARIANTS.values()):
            return self.limit_k if knob == "k" else self.limit_l1
        return dict(self.knobs)[knob]

    def run(self, variant: str, optimizer: str, knob: float, lr: float, seed: int) -> VariantRun:
        """One reported run."""
        return VariantRun(
            self.data, variant, optimizer, float(knob), lr, seed, self.n_latents, self.n_train, self.steps, self.batch_size,
            source=self.source,
        )  # fmt: skip


def _lists(**knobs: tuple[float, ...]) -> tuple[tuple[str, tuple[float, ...]], ...]:
    return tuple(knobs.items())


CONFIGS = {
    "mnist": Config(
        limit_l1=(1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2),
        knobs=_lists(
            k=(8, 16, 32), tanh=(2e-3, 4e-3, 8e-3), p=(2e-3, 4e-3, 8e-3), gate=(2e-3, 4e-3, 8e-3), l0=(5e-4, 1e-3, 2e-3),
        ),
    ),
    "minilm": Config(
        data="minilm-3", n_latents=1_536, n_train=36_000, steps=2_115, batch_size=256, limit_k=(8, 16, 32, 64),
        limit_l1=(1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2), grid=(2e-3, 4e-3, 8e-3),
        knobs=_lists(
            k=(16, 32), tanh=(2e-3, 4e-3, 8e-3), p=(2e-3, 4e-3, 8e-3), gate=(2e-3, 4e-3, 8e-3), l0=(5e-4, 1e-3, 2e-3),
        ),
        slope=0.7,
    ),
    "tree": Config(
        data=TREE, n_latents=128, n_train=20_000, limit_k=(2, 4, 8, 16), limit_l1=(5e-3, 1e-2, 2e-2, 4e-2, 8e-2),
        knobs=_lists(
            k=(4, 8), tanh=(1e-2, 2e-2, 4e-2), p=(1e-2, 2e-2, 4e-2), gate=(1e-2, 2e-2, 4e-2), l0=(2e-3, 4e-3, 8e-3),
        ),
        slope=2.0,
    ),
}  # fmt: skip


def chosen_step_sizes(config: Config, store: RecordStore, **how: Any) -> dict[tuple[str, str], float]:
    """Of every variant and optimizer."""

    def trials(variant: str, optimizer: str) -> dict[float, VariantRun]:
        knobs = config.knobs_of(variant)
        middle = config.run(variant, optimizer, knobs[len(knobs) // 2], 0.0, 0)
        return {lr: tuning(middle, lr, TUNING_SEED) for lr in config.grid}

    asked = {(v, o): trials(v, o) for v in config.variants for o in OPTIMIZERS}
    store.complete((run for runs in asked.values() for run in runs.values()), label="step sizes", train=execute_variant, **how)

    def score(run: VariantRun) -> float:
        found = store.get(run)["val"]
        value = found["fvu"] * max(found["l0"], 1e-9) ** config.slope
        return value if math.isfinite(value) and found["l0"] > 0 else math.inf

    return {entry: min(runs, key=lambda lr: score(runs[lr])) for entry, runs in asked.items()}


def collect(config: Config, store: RecordStore, **how: Any) -> dict[str, Any]:
    """Carry out what is missing; returns the tables."""
    chosen = chosen_step_sizes(config, store, **how)
    reported = {
        (v, o, knob): [config.run(v, o, knob, chosen[v, o], seed) for seed in config.seeds]
        for v in config.variants for o in OPTIMIZERS for knob in config.knobs_of(v)
    }  # fmt: skip
    mods = {
        knob: [config.run(MOD, "exact", knob, 0.0, seed) for seed in config.seeds]
        for knob in (dict(config.knobs)["k"] if config.mod else ())
    }
    everything = [run for runs in (*reported.values(), *mods.values()) for run in runs]
    store.complete(everything, label="reported", train=execute_variant, **how)
    points = []
    for (variant, optimizer, knob), runs in reported.items():
        records = [store.get(run) for run in runs]
        for entry, part in ((entry, part) for entry, (of, part) in ENTRIES.items() if of == optimizer):
            points.append(_point(variant, entry, knob, chosen[variant, optimizer], records, part))
    points += [_point(MOD, "exact", knob, 0.0, [store.get(run) for run in runs], "test") for knob, runs in mods.items()]
    return {
        "variants": points, "against_limits": against_limits(points), "cuts": cuts(config, reported, store),
        "codes": codes(reported, store),
    }  # fmt: skip


def _point(variant: str, entry: str, knob: float, lr: float, records: list[dict[str, Any]], part: str) -> dict[str, Any]:
    names = [name for name in records[0][part] if all(name in r[part] for r in records)]
    return {
        "variant": variant, "entry": entry, "knob": knob, "lr": lr, **{name: [r[part][name] for r in records] for name in names},
        "seconds": [r.get("seconds", math.nan) for r in records],
    }  # fmt: skip


def against_limits(points: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each variant's error over that of its limit by the same optimizer, seed by seed, averaged over knobs."""
    rows = []
    for variant in dict.fromkeys(p["variant"] for p in points):
        if variant == MOD or VARIANTS[variant].limit == variant:
            continue
        limit = VARIANTS[variant].limit
        for entry in COMPARED:
            own = [p for p in points if (p["variant"], p["entry"]) == (variant, entry)]
            curves = [p for p in points if (p["variant"], p["entry"]) == (limit, entry)]
            if not own or not curves:
                continue
            rows.append(
                {
                    "variant": variant,
                    "family": VARIANTS[variant].family,
                    "limit": limit,
                    "entry": entry,
                    **_compared(own, curves),
                }
            )
    return rows


def _compared(own: list[dict[str, Any]], curves: list[dict[str, Any]]) -> dict[str, Any]:
    """The paired log ratio over the knobs at which every seed's l0 lies on its limit's curve."""
    n_seeds = len(own[0]["fvu"])
    if any(not math.isfinite(error) for p in own for error in p["fvu"]):
        return {"log_ratio": [math.nan, math.nan], "compared": 0, "of": len(own), "verdict": "diverged"}
    ratios = [
        [log_ratio_at(p["l0"][s], p["fvu"][s], ((c["l0"][s], c["fvu"][s]) for c in curves)) for s in range(n_seeds)] for p in own
    ]  # fmt: skip
    known = [row for row in ratios if not any(map(math.isnan, row))]
    if not known:
        return {"log_ratio": [math.nan, math.nan], "compared": 0, "of": len(own), "verdict": "no equal l0"}
    found = t_interval([sum(row[s] for row in known) / len(known) for s in range(n_seeds)])
    return {"log_ratio": list(found), "compared": len(known), "of": len(own), "verdict": verdict(found)}


def cuts(config: Config, reported: dict[Any, list[VariantRun]], store: RecordStore) -> list[dict[str, Any]]:
    """One SAE for many k: SAEs of the largest k, cut to fewer latents a sample, beside those that were trained for as many."""
    knobs = dict(config.knobs)["k"]
    largest, rows = max(knobs), []
    for optimizer in OPTIMIZERS:
        for share in (8, 4, 2, 1):
            k = max(1, int(largest) // share)
            row: dict[str, Any] = {"entry": optimizer, "k": k}
            dedicated = reported.get(("TopK", optimizer, k))
            row["dedicated"] = [store.get(run)["test"]["fvu"] for run in dedicated] if dedicated else None
            row["dedicated, read out"] = [store.get(run)["read"]["fvu"] for run in dedicated] if dedicated else None
            for variant in ("TopK", "HierarchicalTopK"):
                runs = reported.get((variant, optimizer, largest))
                found = [store.get(run).get("cuts", {}).get(str(k)) for run in runs] if runs else [None]
                for i, name in enumerate((f"{variant}, cut", f"{variant}, cut and read out")):
                    row[name] = None if None in found else [pair[i] for pair in found if pair is not None]
            rows.append(row)
    return rows


def codes(reported: dict[Any, list[VariantRun]], store: RecordStore) -> list[dict[str, Any]]:
    """Better codes for the same decoders."""
    rows = []
    for (variant, optimizer, knob), runs in reported.items():
        found = [store.get(run).get("codes") for run in runs]
        if variant == "TopK" and None not in found:
            rows.append(
                {"entry": optimizer, "k": knob, **{name: [f[name] for f in found if f is not None] for name in found[0] or ()}}
            )
    return rows


def render(results: dict[str, Any], markdown: bool = False) -> str:
    """Four tables: against limits, every point, one SAE cut to fewer latents, other codes."""
    parts = [
        results["data"]["name"] if "data" in results else TREE_NAME,
        f"error against the limit's at equal l0\n\n{_limits_table(results['against_limits'], markdown)}",
        _points_table(results["variants"], markdown),
    ]
    for name, title in {
        "cuts": "one SAE for several k: test FVU", "codes": "TopK, other codes for its decoder: FVU of 2,000 test samples",
    }.items():  # fmt: skip
        if results[name]:
            parts.append(f"{title}\n\n{_errors_table(results[name], markdown)}")
    return "\n\n".join(parts)


def _limits_table(rows: list[dict[str, Any]], markdown: bool) -> str:
    header = ["family", "variant", "limit", "optimizer", "error, %", "±", "compared", "verdict"]
    return table(
        header,
        [
            [
                r["family"],
                r["variant"],
                r["limit"],
                r["entry"],
                *_change(r["log_ratio"]),
                f"{r['compared']} of {r['of']}",
                r["verdict"],
            ]
            for r in rows
        ],
        markdown,
        keys=4,
    )


def _points_table(points: list[dict[str, Any]], markdown: bool) -> str:
    digits = {"l0": 1, "fvu": 4, "frac_dead": 3, "mean_max_cosine": 2, "absorption": 3, "recovery": 3}
    shown = [name for name in digits if any(name in p for p in points)]
    rows = [
        [
            p["variant"], p["entry"], f"{p['knob']:g}", f"{p['lr']:g}" if p["lr"] else "",
            *(with_interval(p[name], digits[name]) if name in p else "" for name in shown), f"{statistics.median(p['seconds']):.1f}",
        ]
        for p in points
    ]  # fmt: skip
    return table(["variant", "optimizer", "knob", "step size", *shown, "seconds"], rows, markdown, keys=3)


def _errors_table(rows: list[dict[str, Any]], markdown: bool) -> str:
    names = [name for name in rows[0] if name not in ("entry", "k")]
    cells = [[r["entry"], f"{r['k']:g}", *("" if r[n] is None else with_interval(r[n], 4) for n in names)] for r in rows]
    return table(["optimizer", "k", *names], cells, markdown, keys=2)


def _change(log_ratio: list[float]) -> tuple[str, str]:
    mean, half = log_ratio
    return (f"{100 * math.expm1(mean):+.1f}", f"{100 * half:.1f}") if math.isfinite(mean) else ("", "")


def main(config: Config, out: Path, data_dir: str | None = None, jobs: int = 1, device: str = "cpu") -> Path:
    """Run what is missing, write `variants-DATA.json` and `variants-DATA-runs.json` into `out`, print the tables."""
    if config.data == TREE:
        store, described = RecordStore(out, f"variants-{TREE}-runs", parse=run_of), {"name": TREE_NAME}
    else:
        store, source = store_of("variants", config.data, out, data_dir, parse=run_of)
        config, described = replace(config, source=source.key), source.describe()
    print(f"data: {described['name']}", file=sys.stderr)
    results = collect(config, store, jobs=jobs, device=device, data_dir=data_dir)
    store.merge(asdict(config))
    path = store.write_results(f"variants-{config.data}", {"config": asdict(config), **results})
    print(f"{render({'data': described, **results})}\n\n{store.report()}\nwritten: {path}")
    return path


def command(argv: list[str]) -> Path:
    """`python -m experiments variants --data mnist | minilm | tree`"""
    parser = data_parser("variants", __doc__, CONFIGS)
    parser.add_argument("--text", choices=TEXTS, help="what MiniLM reads (default: as --data-dir says)")
    parser.add_argument("--only", nargs="+", choices=VARIANTS, metavar="VARIANT", help="some of the variants, and their limits")
    args = parser.parse_args(argv)
    if args.text and args.data != "minilm":
        parser.error(f"--text {args.text} is for --data minilm, not {args.data}")
    config = changed(CONFIGS[args.data], args)
    if args.only:
        wanted = {*args.only, *(VARIANTS[name].limit for name in args.only)}
        config = replace(config, variants=tuple(name for name in VARIANTS if name in wanted), mod=False)
    data_dir = location(args.text, args.data_dir) if args.data == "minilm" else args.data_dir
    return main(config, args.out, data_dir, args.jobs, args.device)
