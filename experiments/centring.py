"""Whether the encoder should see samples less their mean: not, less a fixed mean, or less a centre that is trained from there.

Validation data only, as the default is chosen by it. SGD tied, SGD tied-residual and PAM-SGD, all at one step size, on MNIST (13,750
images, TopK, k = 15 of 256 latents, 19 epochs) or on MiniLM's layer 3 (9,000 tokens, k = 32 of 1,536, 29 epochs). Then 128 exponential
features, 5 a sample, in 64 dimensions, moved off the origin along a random direction by so many root mean squares of their norm.
"""

from __future__ import annotations

import itertools
import warnings
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from experiments.choices import Choice, data_parser, run_on, store_of
from experiments.report import table, with_interval
from experiments.runs import AS_THEN, Run
from splinterp import PAMSGD, SAE, TopK, fit
from splinterp.data import SparseFeatures

CENTRES: dict[str, Any] = {"none": False, "fixed": "fixed", "trained": True}


@dataclass(frozen=True)
class Config(Choice):
    """What is run."""

    n_train: int = 13_750
    epochs: int = 19
    batch_size: int = 128
    lr: float = 4e-3
    methods: tuple[str, ...] = ("SGD tied", "SGD tied-residual", "PAM")
    seeds: tuple[int, ...] = (0, 1, 2)
    offsets: tuple[float, ...] = (0.0, 1.0, 3.0, 10.0, 30.0)
    n_samples: int = 4_000

    def run(self, method: str, centre: str, seed: int) -> Run:
        """One run, whose record has no test error."""
        return self.validation_run(
            method=method, activation="TopK", n_train=self.n_train, epochs=self.epochs, lr=self.lr, seed=seed, batch_size=self.batch_size,
            options=(("b_pre", CENTRES[centre]),),
        )  # fmt: skip


MINILM = Config("minilm-3", k=32, n_latents=1_536, n_train=9_000, epochs=29)
CONFIGS = {"mnist": Config(), "minilm": MINILM}


def offset(config: Config, size: float, centre: str, seed: int) -> dict[str, float]:
    """Validation FVU and share of dead latents of PAM-SGD on features that are moved off the origin."""
    g = torch.Generator().manual_seed(seed)
    x = SparseFeatures(128, 64, 5, values="exponential", generator=g).sample(config.n_samples, g).x
    x = (x - x.mean(0)) / x.std()
    direction = torch.nn.functional.normalize(torch.randn(64, generator=g), dim=0)
    x = x + size * float(x.square().sum(1).mean().sqrt()) * direction
    sae = SAE(64, 256, TopK(8), "tied_residual", b_pre=CENTRES[centre], init_bias=0.0, generator=seed)
    n = len(x) * 7 // 8
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what is measured here
        row = fit(sae, x[:n], PAMSGD(**AS_THEN), epochs=15, x_val=x[n:], generator=seed).history[-1]
    return {"val_fvu": row["val_fvu"], "frac_dead": row["frac_dead"]}


def render(results: dict[str, Any], markdown: bool = False) -> str:
    """Errors by method and centre, and by offset and centre."""
    lines = [[r["method"], r["centre"], with_interval(r["val_fvu"]), with_interval([100 * v for v in r["frac_dead"]], 1)]
             for r in results["centres"]]  # fmt: skip
    first = table(["method", "centre", "validation FVU", "dead, %"], lines, markdown)
    lines = [[f"{r['offset']:g}", r["centre"], with_interval(r["val_fvu"]), with_interval([100 * v for v in r["frac_dead"]], 1)]
             for r in results["offsets"]]  # fmt: skip
    second = table(["offset", "centre", "validation FVU", "dead, %"], lines, markdown)
    return f"{results['config']['data']}\n\n{first}\n\nfeatures moved off the origin, PAM-SGD\n\n{second}"


def main(config: Config, out: Path, data_dir: str | None = None, jobs: int = 1, device: str = "cpu") -> Path:
    """Run what is missing, write `centring-DATA.json`, print the tables. Returns the results file."""
    store, source = store_of("centring", config.data, out, data_dir)
    config = replace(config, source=source.key)
    cells = {pair: [config.run(*pair, seed) for seed in config.seeds] for pair in itertools.product(config.methods, CENTRES)}
    store.complete(
        [run for runs in cells.values() for run in runs], jobs=jobs, device=device, data_dir=data_dir, label="centring"
    )
    centres = []
    for (method, centre), runs in cells.items():
        records = [store.get(run) for run in runs]
        errors = {"val_fvu": [r["val_last"] for r in records], "frac_dead": [r["frac_dead"] for r in records]}
        centres.append({"method": method, "centre": centre, **errors})
    offsets = []
    for size, centre in itertools.product(config.offsets, CENTRES):
        found = [offset(config, size, centre, seed) for seed in config.seeds]
        offsets.append({"offset": size, "centre": centre, **{key: [f[key] for f in found] for key in found[0]}})
    store.merge(asdict(config))
    path = store.write_results(f"centring-{config.data}", {"centres": centres, "offsets": offsets, "config": asdict(config)})
    print(f"{render({'centres': centres, 'offsets': offsets, 'config': asdict(config)})}\n\n{store.report()}\nwritten: {path}")
    return path


def command(argv: list[str]) -> Path:
    """`python -m experiments centring --data mnist | minilm-3`"""
    return run_on(main, CONFIGS, data_parser("centring", __doc__, CONFIGS).parse_args(argv))
