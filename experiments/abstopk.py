"""One latent for two poles: TopK, AbsTopK and JumpReLU SAEs of the same number of active latents on a language model's activations.

JumpReLU gets its sparsity by bias adaptation: every latent's threshold is the exact quantile that lets it fire on k / n_latents of
the training tokens. Step sizes are chosen on validation tokens at one further seed. Reported on test tokens: FVU and l0; how
often a latent fires with its rarer sign (minority share), plain and by magnitude, beside the untrained SAE; the share of live
latents with an anti-parallel twin; the likeness of the dictionaries of different seeds.
"""

from __future__ import annotations

import argparse
import itertools
import math
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from experiments.activations import Tokens, tokens
from experiments.files import read_results
from experiments.options import add_common_options, changed
from experiments.recipe import digest
from experiments.report import table, with_interval
from experiments.sources import source_of
from experiments.store import RecordStore
from experiments.texts import CONTEXT, PYTHON, SMALL_GPT2, add_text_options, language_model, location, texts_for
from splinterp import SAE, SGD, AbsTopK, BiasAdaptation, DivergenceError, JumpReLU, TopK, fit
from splinterp.activations import Activation
from splinterp.data import pack_tokens
from splinterp.language.interventions import measure_loss
from splinterp.metrics import anti_parallel_share, bipolarity, evaluate, mean_max_cosine

N_SEQUENCES = 64
"""Test sequences that cross-entropies are taken over."""
ACTIVATIONS = ("TopK", "AbsTopK", "JumpReLU")


@dataclass(frozen=True)
class Config:
    """What is run."""

    model: str = "minilm"
    causal: bool = False
    """The model predicts the next token: the cross-entropy under the SAE's reconstruction is measured too."""
    layers: tuple[int, ...] = (3,)
    source: str = ""
    """The key of the data's `experiments.sources.Source`."""
    activations: tuple[str, ...] = ACTIVATIONS
    k: int = 32
    n_latents: int = 1_536
    n_train: int = 36_000
    epochs: int = 5
    grid: tuple[float, ...] = (1e-3, 2e-3, 4e-3, 8e-3)
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    tuning_seed: int = 100


@dataclass(frozen=True)
class Run:
    """One task. A reported one trains at every seed, because likeness needs all dictionaries at once."""

    activation: str
    layer: int
    lr: float
    seeds: tuple[int, ...]
    config: Config

    @property
    def key(self) -> str:
        """A hash of all that the run depends on: not of the other layers, activations and step sizes of its experiment."""
        c = self.config
        size = [c.k, c.n_latents, c.n_train, c.epochs]
        return digest([self.activation, self.layer, self.lr, self.seeds, c.model, c.source, c.causal, size])

    @property
    def cost(self) -> float:
        """Grows with the number of seeds."""
        return float(len(self.seeds))

    def recipe(self) -> str:
        """A hash of what the run means today: its options that are not neutral."""
        return digest([self.sae_activation(), self.method()], 12)

    def sae_activation(self) -> Activation:
        """The activation of the SAE."""
        return {"TopK": TopK(self.config.k), "AbsTopK": AbsTopK(self.config.k), "JumpReLU": JumpReLU(0.1)}[self.activation]

    def method(self) -> SGD | BiasAdaptation:
        """Plain SGD; JumpReLU's thresholds by quantiles."""
        base = SGD(lr=self.lr)
        if self.activation != "JumpReLU":
            return base
        target = self.config.k / self.config.n_latents
        return BiasAdaptation(base=base, target_frequencies=target, rule="quantile", quantile_samples=8_192, every=50, gain=1.0)

    def start(self, seed: int, d_in: int, device: str) -> SAE:
        """The untrained SAE of a seed."""
        g = torch.Generator().manual_seed(10_000 + seed)
        return SAE(
            d_in, self.config.n_latents, self.sae_activation(), "tied_residual", b_pre=True, init_bias=0.0, generator=g, device=device
        )  # fmt: skip


def run_from_record(record: dict[str, Any]) -> Run:
    """The run that a record is of."""
    fields = dict(record["run"])
    config: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.pop("config").items()}
    return Run(**{**fields, "seeds": tuple(fields["seeds"]), "config": Config(**config)})


def measure(run: Run, data_dir: str | None = None, device: str = "cpu") -> dict[str, Any]:
    """Train at every seed and measure. A diverged seed is a result: its errors are infinite."""
    data = tokens(run.config.model, run.layer, run.config.n_train, data_dir, run.config.source or None)
    record: dict[str, Any] = {"key": run.key, "run": asdict(run), "val_fvu": [], "test": []}
    dictionaries = []
    for seed in run.seeds:
        sae = run.start(seed, data.x.shape[1], device)
        g = torch.Generator().manual_seed(20_000 + seed)
        try:
            result = fit(sae, data.x.to(device), run.method(), epochs=run.config.epochs, batch_size=256, x_val=data.x_val,
                         log_every=run.config.epochs, train_eval_samples=5_000, generator=g)  # fmt: skip
        except DivergenceError:
            record["val_fvu"].append(math.inf)
            record["test"].append(None)
            continue
        record["val_fvu"].append(result.history[-1]["val_fvu"])
        found = evaluate(sae, data.x_test)
        live = found.frequencies > 0
        rows = sae.W_dec.detach().cpu()
        dictionaries.append(rows[live])
        signs = bipolarity(sae, data.x_test)
        record["test"].append({
            "fvu": found.fvu, "l0": found.l0, "frac_dead": found.frac_dead, "twins": anti_parallel_share(rows, live),
            "minority": signs.summary(), "minority_weighted": signs.summary(weighted=True),
            "seconds": round(result.history[-1]["seconds"], 2),
            "loss": _loss(run, sae, data, data_dir) if run.config.causal and len(run.seeds) > 1 else None,
        })  # fmt: skip
    untrained = run.start(run.seeds[0], data.x.shape[1], device)
    with torch.no_grad():
        for center in (untrained.b_pre, untrained.b_dec):
            assert center is not None
            center.copy_(data.x.mean(0))
    record["untrained_minority"] = bipolarity(untrained, data.x_test).summary()
    record["likeness"] = [
        [
            (mean_max_cosine(a, b, signed) + mean_max_cosine(b, a, signed)) / 2
            for a, b in itertools.combinations(dictionaries, 2)
        ]
        for signed in (True, False)
    ]
    return record


def _loss(run: Run, sae: SAE, data: Tokens, data_dir: str | None) -> dict[str, float]:
    """Cross-entropies on the first test sequences; the mean ablation is of the training tokens."""
    model = language_model(run.config.model, causal=True)
    sequences = pack_tokens(model.tokenizer, texts_for(run.config.model, data_dir).test, CONTEXT).take(0, N_SEQUENCES)
    mean = data.standardizer.inverse(data.x.mean(0, keepdim=True))[0]
    found = measure_loss(model, sae, sequences, run.layer, standardizer=data.standardizer, mean=mean)
    recovered = {f"recovered_{ablation}": found.loss_recovered(ablation) for ablation in ("zero", "mean")}
    return {**found._asdict(), **recovered}


def render(results: dict[str, Any], markdown: bool = False) -> str:
    """One row for each layer and activation."""
    header = [
        "layer", "activation", "step size", "test FVU", "l0", "dead", "minority share: median", "above 0.10", "above 0.25",
        "by magnitude: above 0.10", "untrained median", "twins, %", "likeness of seeds", "up to sign", "loss recovered: zero, mean",
    ]  # fmt: skip
    lines = []
    for r in results["signs"]:
        tests = [t for t in r["test"] if t is not None]

        def over(name: str, key: str, tests: list[Any] = tests) -> str:
            return with_interval([t[name][key] for t in tests])

        lines.append([
            str(r["layer"]), r["activation"], f"{r['lr']:g}", with_interval([t["fvu"] for t in tests]),
            with_interval([t["l0"] for t in tests], 1), with_interval([t["frac_dead"] for t in tests], 2), over("minority", "q50"),
            over("minority", "above_10"), over("minority", "above_25"), over("minority_weighted", "above_10"),
            f"{r['untrained_minority']['q50']:.3f}", with_interval([100 * t["twins"] for t in tests], 1),
            *(f"{sum(v) / len(v):.3f}" if v else "" for v in r["likeness"]), ", ".join(_recovered(tests)),
        ])  # fmt: skip
    whole = f"{results['data']['name']}\n\n{table(header, lines, markdown, keys=2)}"
    return "\n\n".join([whole, *_bounds(results)])


def _bounds(results: dict[str, Any]) -> list[str]:
    """What the loss recovered lies between, for each layer of a causal model."""
    found = {}
    for r in results["signs"]:
        losses = [t["loss"] for t in r["test"] if t is not None and t["loss"] is not None]
        if losses:
            found[r["layer"]] = losses[0]
    return [
        f"layer {layer}: cross-entropy {loss['clean']:.3f} nats a token; with zeros in the activation's place {loss['zero']:.3f}, with "
        f"its mean {loss['mean']:.3f}"
        for layer, loss in found.items()
    ]


def _recovered(tests: list[dict[str, Any]]) -> list[str]:
    if not tests or tests[0]["loss"] is None:
        return []
    return [with_interval([t["loss"][f"recovered_{ablation}"] for t in tests]) for ablation in ("zero", "mean")]


def main(
    config: Config, out: Path, jobs: int = 1, device: str = "cpu", data_dir: str | None = None, name: str = "abstopk"
) -> Path:
    """Run what is missing, write `NAME.json`, print the table. Returns the results file."""
    sources = [source_of(f"{config.model}-{layer}", data_dir) for layer in config.layers]
    config = replace(config, source=sources[0].key)
    print(f"data: {sources[0].name}", file=sys.stderr)

    def prepare() -> None:  # extracted once, before several processes want it
        for layer in config.layers:
            tokens(config.model, layer, config.n_train, data_dir, config.source)

    store = RecordStore(out, f"{name}-runs", run_from_record, sources[0], prepare)
    cells = [(layer, activation) for layer in config.layers for activation in config.activations]

    def complete(runs: list[Run], label: str) -> None:
        store.complete(runs, jobs=jobs, device=device, data_dir=data_dir, train=measure, label=label)

    trials = {cell: [Run(cell[1], cell[0], lr, (config.tuning_seed,), config) for lr in config.grid] for cell in cells}
    complete([run for runs in trials.values() for run in runs], "step sizes")
    best = {cell: min(runs, key=lambda run: store.get(run)["val_fvu"][0]) for cell, runs in trials.items()}
    reported = {cell: replace(run, seeds=config.seeds) for cell, run in best.items()}
    complete(list(reported.values()), "reported")
    names = ("test", "likeness", "untrained_minority")
    rows = [
        {"layer": run.layer, "activation": run.activation, "lr": run.lr, **{n: store.get(run)[n] for n in names}}
        for run in reported.values()
    ]
    store.merge(asdict(config))
    path = store.write_results(name, {"signs": rows, "config": asdict(config)})
    print(f"{render(read_results(path))}\n\n{store.report()}\nwritten: {path}")
    return path


def command(argv: list[str]) -> Path:
    """`python -m experiments abstopk [--layers 1 3 5]`"""
    parser = argparse.ArgumentParser(
        prog="python -m experiments abstopk", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add_common_options(parser)
    add_text_options(parser)
    parser.add_argument("--model", default=Config.model, help="minilm, small-gpt2, a folder, or a hub name")
    parser.add_argument("--causal", action="store_true", help="the model predicts tokens: measure the loss recovered too")
    parser.add_argument("--layers", type=int, nargs="+", metavar="LAYER", default=list(Config.layers), help="default: 3")
    args = parser.parse_args(argv)
    causal = args.causal or args.model == SMALL_GPT2
    config = changed(Config(model=args.model, causal=causal, layers=tuple(dict.fromkeys(args.layers))), args)
    where = PYTHON if args.model == SMALL_GPT2 else location(args.text, args.data_dir)
    name = "abstopk" if args.model == Config.model else f"abstopk-{args.model.replace('/', '--')}"
    return main(config, args.out, args.jobs, args.device, where, name)
