"""SAEs beside k-means, local PCA, PCA, ICA and NMF: error against parameters and active numbers, and the price an SAE pays.

Every model is fitted to the same images of a seed and read on the test images. SAEs train for at least 2,000 steps, by SGD and
PAM-SGD in the same tied-residual parametrisation (ReLU: SGD tied), at a step size chosen for each setting and method on
validation images (one tuning seed). The price of an SAE (its error less that of the best piecewise affine map on its own
partition) is taken on its training images.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from experiments.baseline_fits import Fit, measure_fit
from experiments.options import MNIST_HELP, add_common_options, add_data_dir, changed
from experiments.report import table, with_interval
from experiments.runs import Run, build, execute, run_from_record, split, train
from experiments.sources import source_of
from experiments.store import RecordStore, Task
from experiments.tuning import Cell, choose_step_sizes
from splinterp.baselines import interpretability_price
from splinterp.metrics import evaluate
from splinterp.training.when import NEVER

VARIANTS: tuple[tuple[str, tuple[tuple[str, Any], ...]], ...] = (
    ("ridge 1,000", (("ridge", 1000.0),)),
    ("solved once, at the end", (("solve_gap", NEVER),)),
)
"""Of PAM-SGD at the first priced setting, where its defaults lose; both were tried on validation images first."""
PRICE_COLUMNS = ("activation", "method", "variant", "n_latents", "k", "l1", "lr", "l0", "train_fvu")
SAE_METHODS = {"TopK": ("SGD tied-residual", "PAM"), "AbsTopK": ("SGD tied-residual", "PAM"), "ReLU": ("SGD tied", "PAM")}


@dataclass(frozen=True)
class Config:
    """What is fitted."""

    data: str = "mnist"
    source: str = ""
    """The key of the data's `experiments.sources.Source`."""
    d_in: int = 784
    n_train: int = 13_750
    epochs: int = 19
    settings: tuple[tuple[int, int], ...] = ((256, 1), (256, 2), (256, 4), (256, 8), (256, 15), (256, 32), (64, 3))
    """(n_latents, k) of TopK and AbsTopK."""
    priced: tuple[tuple[int, int], ...] = ((256, 1), (256, 2), (64, 3))
    """Settings with the matched baselines beside the price."""
    l1: tuple[float, ...] = (1e-3, 3e-3, 1e-2)
    grid: tuple[float, ...] = (2e-3, 4e-3, 8e-3)
    seeds: tuple[int, ...] = (0, 1, 2)
    tuning_seed: int = 100
    ranks: tuple[int, ...] = (1, 2, 4, 8, 15, 32, 64)
    """Of PCA and NMF; ICA takes those from 8 on."""
    regions: tuple[int, ...] = (16, 64, 256, 512)
    """Of k-means."""
    local: tuple[tuple[int, int], ...] = ((16, 1), (64, 1), (256, 1), (64, 3), (16, 8), (16, 15), (64, 15))
    """(regions, rank) of local PCA."""


MNIST = Config()
DIGITS = Config(
    data="digits", d_in=64, n_train=1_200, epochs=200, settings=((64, 1), (64, 2), (64, 5), (16, 3)), priced=((64, 1), (64, 2), (16, 3)),
    ranks=(1, 2, 4, 8, 16), regions=(8, 32, 64), local=((8, 1), (32, 1), (8, 3), (8, 5)), grid=(4e-3, 8e-3, 1.6e-2),
)  # fmt: skip


def measure(task: Task, data_dir: str | None = None, device: str = "cpu") -> dict[str, Any]:
    """Fit one model and read it; SAEs of the role "priced" also pay their price."""
    if isinstance(task, Fit):
        return measure_fit(task, data_dir)
    assert isinstance(task, Run)
    if task.role == "tuning":
        return execute(task, data_dir, device)
    data = split(task, data_dir, device)
    sae, method = build(task, data.x.shape[1], device)
    result = train(task, data, sae, method)
    sae, x = sae.eval().cpu(), data.x.cpu()
    price = interpretability_price(sae, x)
    test, training = evaluate(sae, data.x_test.cpu()), evaluate(sae, x)
    covered = price.counts >= 10 * (price.ranks + 1)
    return {
        "key": task.key, "run": asdict(task), "test_fvu": test.fvu, "train_fvu": training.fvu, "l0": test.l0,
        "frac_dead": training.frac_dead, "seconds": round(result.history[-1]["seconds"], 3),
        "price": {
            "error": price.error / price.variance, "bound": price.bound / price.variance, "price": price.price / price.variance,
            "share_covered": price.share_covered, "covered_error": price.covered_error / price.variance,
            "covered_bound": price.covered_bound / price.variance, "held_out": price.held_out_error / price.variance,
            "n_regions": len(price.counts), "n_covered": int(covered.sum()),
        },
    }  # fmt: skip


def parse(record: dict[str, Any]) -> Task | None:
    """The task that a record is of."""
    return Fit(**record["fit"]) if "fit" in record else run_from_record(record)


def sae_cells(config: Config) -> list[tuple[Cell, dict[str, Any]]]:
    """The settings of SAEs, with what their rows say of them."""
    cells: list[tuple[Cell, dict[str, Any]]] = []

    def add(activation: str, n_latents: int, k: int, methods: tuple[str, ...], l1: float = 0.0, variant: str | None = None,
            options: tuple[tuple[str, Any], ...] = ()) -> None:  # fmt: skip
        options = (("l1", l1),) if l1 else options
        base = Run(data=config.data, source=config.source, method="", activation=activation, k=k, n_latents=n_latents,
                   n_train=config.n_train, epochs=config.epochs, lr=0.0, seed=0, role="priced", options=options)  # fmt: skip
        about = {"activation": activation, "n_latents": n_latents, "k": None if l1 else k, "l1": l1, "variant": variant}
        cells.append((Cell(base, "val_objective" if l1 else "val_last", methods, config.grid), about))

    for activation in ("TopK", "AbsTopK"):
        for n_latents, k in config.settings:
            add(activation, n_latents, k, SAE_METHODS[activation])
        for variant, options in VARIANTS:
            add(activation, *config.priced[0], ("PAM",), variant=variant, options=options)
    for l1 in config.l1:
        add("ReLU", max(config.settings)[0], 1, SAE_METHODS["ReLU"], l1=l1)
    return cells


def sae_parameters(n_latents: int, d_in: int, decoder: str) -> int:
    """Numbers that an SAE is made of: weights, tied or not, and both biases."""
    return n_latents * d_in * (1 if decoder == "tied" else 2) + n_latents + d_in


def matched(config: Config, n_latents: int, k: int) -> Iterator[tuple[str, str, int, int]]:
    """(what is matched, model, regions, rank) of the baselines beside an SAE of tied-residual size.

    Same parameters: k-means and local PCA of rank k with as many regions as they buy. Same active numbers too: local PCA of
    rank 2k - 1, a region's number and 2k - 1 coordinates for k indices and k values.
    """
    budget = sae_parameters(n_latents, config.d_in, "tied_residual")
    yield "parameters", "k-means", budget // config.d_in, 0
    yield "parameters", "local PCA centroid", budget // (config.d_in * (1 + k)), k
    yield "parameters", "local PCA power", budget // (config.d_in * (2 + k) + 1), k  # its sites are not its means
    yield "parameters", "local PCA residual", budget // (config.d_in * (1 + k)), k
    yield "parameters and active numbers", "local PCA residual", budget // (config.d_in * 2 * k), 2 * k - 1


def fits(config: Config) -> list[tuple[str, int, int]]:
    """(model, regions, rank) of every baseline, matched ones included."""
    found = [(model, 1, rank) for model in ("PCA", "ICA", "NMF") for rank in config.ranks if model != "ICA" or rank >= 8]
    found += [("k-means", n, 0) for n in config.regions]
    found += [(f"local PCA {assign}", n, r) for assign in ("centroid", "residual") for n, r in config.local]
    found += [(model, n, r) for setting in config.priced for _, model, n, r in matched(config, *setting)]
    return list(dict.fromkeys(found))


def collect(config: Config, store: RecordStore, **how: Any) -> dict[str, Any]:
    """Carry out what is missing; returns rows of models and rows of prices."""

    def fit_of(model: str, n: int, rank: int, seed: int) -> Fit:
        return Fit(config.data, model, n, rank, config.n_train, seed, config.source)

    store.complete(
        [fit_of(*one, seed) for one in fits(config) for seed in config.seeds],
        train=measure,
        label=f"{config.data}: baselines",
        **how,
    )
    cells = sae_cells(config)
    chosen = choose_step_sizes(
        [cell for cell, _ in cells], (config.tuning_seed,),
        lambda runs: store.complete(runs, train=measure, label=f"{config.data}: step sizes", **how), store.get,
    )  # fmt: skip
    final = [cell.run(m, chosen[cell][m], seed, "priced") for cell, _ in cells for m in cell.methods for seed in config.seeds]
    store.complete(final, train=measure, label=f"{config.data}: SAEs", **how)
    rows: list[dict[str, Any]] = []
    for model, n, rank in fits(config):
        records = [store.get(fit_of(model, n, rank, seed)) for seed in config.seeds]
        parameters, active = fit_of(model, n, rank, 0).size
        rows.append({"model": model, "n_regions": n, "rank": rank, "parameters": parameters, "active": active,
                     **{name: [r[name] for r in records] for name in ("train_fvu", "test_fvu")}})  # fmt: skip
    prices = []
    for cell, about in cells:
        for method in cell.methods:
            records = [store.get(cell.run(method, chosen[cell][method], seed, "priced")) for seed in config.seeds]
            decoder = "tied" if method == "SGD tied" else "tied_residual"
            l0 = float(np.mean([r["l0"] for r in records]))
            row = {
                "model": _title(f"{about['activation']} SAE", method, about["variant"]), **about, "method": method,
                "lr": chosen[cell][method],
                "parameters": sae_parameters(about["n_latents"], config.d_in, decoder),
                "active": 2 * (about["k"] or l0), "l0": l0,
                **{name: [r[name] for r in records] for name in ("train_fvu", "test_fvu", "frac_dead")},
            }  # fmt: skip
            rows.append(row)
            names = list(records[0]["price"])
            prices.append({**{name: row[name] for name in PRICE_COLUMNS},
                           **{name: [r["price"][name] for r in records] for name in names}})  # fmt: skip
    beside = [
        {"n_latents": n_latents, "k": k, "matched": what, "model": model, "n_regions": n, "rank": rank,
         **{name: [store.get(fit_of(model, n, rank, seed))[name] for seed in config.seeds] for name in ("train_fvu", "test_fvu")}}
        for n_latents, k in config.priced for what, model, n, rank in matched(config, n_latents, k)
    ]  # fmt: skip
    return {"rows": rows, "prices": prices, "beside": beside}


def render(results: dict[str, Any], markdown: bool = False) -> str:
    """Three tables: models, prices, and the matched baselines beside the priced SAEs."""
    models = [
        [row["model"], f"{row.get('n_regions') or row.get('n_latents')}", _setting(row), f"{row['parameters']:,}", f"{row['active']:.0f}",
         with_interval(row["train_fvu"]), with_interval(row["test_fvu"])]
        for row in sorted(results["rows"], key=lambda row: (row["model"], row["parameters"], row["active"]))
    ]  # fmt: skip
    header = ["model", "regions or latents", "rank, k or l1", "parameters", "active numbers", "train FVU", "test FVU"]
    prices = []
    for p in results["prices"]:
        share = np.array(p["share_covered"])
        apart = [f"{np.mean(np.array(p[name]) / np.array(p['covered_error'])):.0%}" if share.min() > 0 else ""
                 for name in ("covered_bound", "held_out")]  # fmt: skip
        errors = [with_interval(p[name]) for name in ("error", "bound", "price")]
        seen = [f"{share.mean():.1%}", f"{np.mean(p['n_regions']):,.0f}"]
        prices.append(
            [
                _title(p["activation"], p["method"], p["variant"]),
                p["n_latents"],
                _setting(p),
                *errors,
                *seen,
                *apart,
            ]
        )
    price_header = ["SAE", "latents", "k or l1", "train FVU", "bound", "price", "covered", "regions", "bound / error, covered",
                    "held out / error, covered"]  # fmt: skip
    beside = [[b["n_latents"], b["k"], b["matched"], b["model"], b["n_regions"], b["rank"], with_interval(b["train_fvu"]),
               with_interval(b["test_fvu"])] for b in results["beside"]]  # fmt: skip
    beside_header = ["latents", "k", "same", "model", "regions", "rank", "train FVU", "test FVU"]
    titles = ("Models", "Prices of SAEs on their training images", "Beside the priced SAEs")
    bodies = (
        table(header, models, markdown, keys=3),
        table(price_header, prices, markdown, keys=3),
        table(beside_header, beside, markdown, keys=5),
    )
    return "\n\n".join(f"{title}\n\n{body}" for title, body in zip(titles, bodies, strict=True))


def _title(activation: str, method: str, variant: str | None) -> str:
    return ", ".join(part for part in (activation, method, variant) if part)


def _setting(row: dict[str, Any]) -> str:
    if row.get("l1"):
        return f"l1 {row['l1']:g}"
    return str(row.get("k") if row.get("k") is not None else row.get("rank"))


def main(config: Config, args: argparse.Namespace) -> Path:
    """Fit what is missing, write `baselines-DATA.json` and `baselines-DATA-runs.json` into `args.out`, print the tables."""
    data_dir = getattr(args, "data_dir", None)
    source = source_of(config.data, data_dir)
    config = replace(config, source=source.key)
    store = RecordStore(Path(args.out), f"baselines-{config.data}-runs", parse, source)
    results = collect(config, store, jobs=args.jobs, device=args.device, data_dir=data_dir)
    store.merge(asdict(config))
    path = store.write_results(f"baselines-{config.data}", {"config": asdict(config), **results})
    print(f"{render(results)}\n\n{store.report()}\nwritten: {path}")
    return path


def command(argv: list[str]) -> Path:
    """`python -m experiments baselines ...`"""
    parser = argparse.ArgumentParser(
        prog="python -m experiments baselines", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", choices=("digits", "mnist"), default="mnist")
    add_data_dir(parser, MNIST_HELP)
    add_common_options(parser)
    args = parser.parse_args(argv)
    return main(changed(MNIST if args.data == "mnist" else DIGITS, args), args)
