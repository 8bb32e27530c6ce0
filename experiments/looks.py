"""What training does to an SAE on MNIST, to look at: reconstructions as they come, codes of single images, encoder beside decoder.

TopK, centred; SGD on the three decoders and PAM-SGD, at the step sizes that the second comparison chose for 13,750 images and 2,052 steps,
first seed, on the same images.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from experiments.atoms import pack, shown
from experiments.choices import Choice
from experiments.options import MNIST_HELP, add_data_dir, add_device, add_out
from experiments.report import table
from experiments.runs import DEFAULT, Run, build, digit_labels, split
from experiments.sources import source_of
from splinterp import SAE, fit
from splinterp.metrics import evaluate

STEPS = (0, 18, 36, 108, 324, 1_080, 2_052)
"""At which reconstructions are kept; the first is of the SAE before training."""
FILTERS = 12
DIGITS = (2, 5, 8)
"""Whose first test images are shown."""


@dataclass(frozen=True)
class Config(Choice):
    """What is trained."""

    n_train: int = 13_750
    steps: tuple[int, ...] = STEPS
    trained: tuple[tuple[str, float], ...] = (
        ("SGD tied", 1.6e-2), ("SGD untied", 8e-3), ("SGD tied-residual", 8e-3), (DEFAULT, 8e-3),
    )  # fmt: skip
    """(method, step size)."""
    seed: int = 0

    def run(self, method: str, lr: float) -> Run:
        """One run."""
        return Run(
            data=self.data, source=self.source, method=method, activation="TopK", k=self.k, n_latents=self.n_latents, n_train=self.n_train,
            epochs=1, lr=lr, seed=self.seed, role="looks", options=(("b_pre", "fixed"),),
        )  # fmt: skip


def measure(config: Config, data_dir: str | None = None, device: str = "cpu") -> dict[str, Any]:
    """Train and keep what the figures show."""
    models, originals = [], ""
    for method, lr in tqdm(config.trained, desc="looks", unit="SAE"):
        run = config.run(method, lr)
        data = split(run, data_dir, device)
        labels = digit_labels(run.data, data_dir)
        images = data.x_test[[int((labels == digit).nonzero()[0]) for digit in DIGITS]]
        low, high = float(data.x_test.min()), float(data.x_test.max())
        originals = pack(images.cpu(), low, high)
        sae, how = build(run, data.x.shape[1], device)
        looked = _Looked(sae, images, config.steps, low, high)
        looked({"step": 0})
        fit(
            sae, data.x, how, steps=config.steps[-1], batch_size=run.batch_size, x_val=data.x_val, log_every_steps=_every(config.steps),
            callback=looked, generator=torch.Generator().manual_seed(20_000 + run.seed),
        )  # fmt: skip
        sae = sae.eval().cpu()
        found = evaluate(sae, data.x_test.cpu())
        busiest = found.frequencies.argsort(descending=True)[:FILTERS]
        W_enc, W_dec = sae.W_enc.detach().T[busiest], sae.W_dec.detach()[busiest]
        with torch.no_grad():
            codes = sae.encode(images.cpu())
        models.append({
            "method": method, "test_fvu": found.fvu, "progress": looked.progress, "errors": looked.errors, "codes": codes.tolist(),
            "encoder": pack(W_enc / W_enc.abs().amax(dim=1, keepdim=True), -1.0, 1.0),
            "decoder": pack(W_dec / W_dec.abs().amax(dim=1, keepdim=True), -1.0, 1.0), "encoder_norms": W_enc.norm(dim=1).tolist(),
            "decoder_norms": W_dec.norm(dim=1).tolist(), "cosines": torch.cosine_similarity(W_enc, W_dec).tolist(),
            "frequencies": found.frequencies[busiest].tolist(),
        })  # fmt: skip
    return {"looks": models, "images": originals, "width": sae.d_in, "config": asdict(config)}


class _Looked:
    """Callback that keeps what the SAE makes of some images at some steps."""

    def __init__(self, sae: SAE, shown: torch.Tensor, steps: tuple[int, ...], low: float, high: float) -> None:
        self.sae, self.shown, self.steps, self.reach = sae, shown, steps, (low, high)
        self.progress: list[str] = []
        self.errors: list[list[float]] = []

    def __call__(self, row: dict[str, float]) -> None:
        if row["step"] in self.steps:
            with torch.no_grad():
                x_hat = self.sae(self.shown).x_hat
            self.progress.append(pack(x_hat.cpu(), *self.reach))
            self.errors.append((x_hat - self.shown).square().mean(1).tolist())


def _every(steps: tuple[int, ...]) -> int:
    """The largest spacing of rows that has them all."""
    return int(torch.gcd(torch.tensor(steps[1:]), torch.tensor(steps[1])).min())


def render(results: dict[str, Any], markdown: bool = False) -> str:
    """The mean squared error of the images shown, by step; how alike encoder and decoder are."""
    steps = results["config"]["steps"]
    rows = [
        [
            m["method"], *(f"{sum(e) / len(e):.3f}" for e in m["errors"]), f"{m['test_fvu']:.3f}",
            f"{sum(m['cosines']) / len(m['cosines']):.2f}",
        ]
        for m in results["looks"]
    ]  # fmt: skip
    return table(["method", *(f"step {step:,}" for step in steps), "test FVU", "cosine of encoder and decoder"], rows, markdown)


def command(argv: list[str]) -> Path:
    """`python -m experiments looks`"""
    parser = argparse.ArgumentParser(prog="python -m experiments looks", description=__doc__)
    add_data_dir(parser, MNIST_HELP)
    add_out(parser)
    add_device(parser)
    args = parser.parse_args(argv)
    return main(Config(), Path(args.out), args.data_dir, args.device)


def main(config: Config, out: Path, data_dir: str | None = None, device: str = "cpu") -> Path:
    """Train, write `looks-DATA.json`, print the table. Returns its path."""
    source = source_of(config.data, data_dir)
    results = measure(replace(config, source=source.key), data_dir, device)
    return shown(results, out / f"looks-{config.data}.json", source, device, render)
