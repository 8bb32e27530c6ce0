"""From k-means through sparse autoencoders to local PCA, in the plane, after SplInterp's study.

A horizontal line, a square and a diagonal, 100 points. Above: with three regions each, k-means, a TopK SAE of three latents (k =
1), local PCA on that SAE's own regions (its bound) and on k-means', power and residual regions. Below: the published study's
models, "hard" (the k unit decoder rows of largest scores, equally weighted) and "soft" (softmax weights at temperature 0.3,
over all latents for k = 1, over the k largest for k = 3), 40 and 80 latents, beside the TopK SAEs of this package of as many
latents. Every model is fitted to the same points; the error is over those points.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from experiments.files import command_line, provenance, write_json
from experiments.options import add_out
from experiments.report import table, with_interval
from experiments.runs import AS_THEN
from splinterp import PAMSGD, SAE, TopK, fit
from splinterp.baselines import KMeansAutoencoder, LocalPCAAutoencoder, local_pca_bound
from splinterp.geometry import PowerDiagram, regions_of
from splinterp.metrics import fvu

BOUNDS = (-2.0, 2.2, -1.6, 1.6)


@dataclass(frozen=True)
class Config:
    """Sizes and lengths; those of the published models are the scripts'."""

    n_points: int = 100
    n_regions: int = 3
    published: tuple[tuple[str, int, int, int, float], ...] = (
        ("hard", 1, 40, 5_000, 3e-3),
        ("soft", 1, 40, 5_000, 3e-3),
        ("hard", 3, 80, 7_500, 8e-3),
        ("soft", 3, 80, 7_500, 8e-3),
    )
    """(weights, k, latents, steps, step size)."""
    temperature: float = 0.3
    lr: float = 3e-2
    epochs: int = 1_500
    """Of the TopK SAEs: one batch of all points an epoch, PAM-SGD."""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Of the points, the starts and the training."""


def points(n: int, seed: int) -> torch.Tensor:
    """40 % a horizontal line, 30 % a square, the rest a diagonal, with the study's noise: (n, 2)."""
    g = torch.Generator().manual_seed(seed)
    n_line, n_square = round(0.4 * n), round(0.3 * n)
    n_diagonal = n - n_line - n_square
    along = torch.linspace(-1.5, 0.0, n_line)
    line = torch.stack([along, torch.full_like(along, -0.8)], dim=1) + 0.1 * torch.randn(n_line, 2, generator=g)
    square = torch.tensor([-0.4, 0.4]) + 0.8 * torch.rand(n_square, 2, generator=g)
    t = torch.linspace(0.0, 1.0, n_diagonal)
    diagonal = torch.stack([0.8 + t, t - 0.5], dim=1) + 0.15 * torch.randn(n_diagonal, 2, generator=g)
    return torch.cat([line, square, diagonal])


def published(
    x: torch.Tensor, weights: str, k: int, n_latents: int, steps: int, lr: float, temperature: float, seed: int
) -> tuple[PowerDiagram, torch.Tensor]:
    """(selections, reconstructions) of the study's model: unit encoder columns and decoder rows, no decoder bias, Adam on all.

    With "hard" weights no gradient reaches the encoder, which stays where it starts; for k = 3 that is near data points.
    """
    g = torch.Generator().manual_seed(seed)
    W_enc = torch.randn(n_latents, 2, generator=g)
    if k > 1:
        chosen = torch.randint(0, len(x), (n_latents,), generator=g)
        W_enc = x[chosen] + 0.1 * torch.randn(n_latents, 2, generator=g)
    parameters = [W_enc, torch.randn(n_latents, generator=g), torch.randn(n_latents, 2, generator=g)]
    W_enc, bias, W_dec = (p.requires_grad_() for p in parameters)

    def forward() -> tuple[torch.Tensor, torch.Tensor]:
        scores = x @ torch.nn.functional.normalize(W_enc, dim=1).T + bias
        top = scores.topk(k, dim=1)
        if weights == "hard":
            code = torch.zeros_like(scores).scatter(1, top.indices, 1.0 / k)
        elif k == 1:
            code = torch.softmax(scores / temperature, dim=1)
        else:
            code = torch.zeros_like(scores).scatter(1, top.indices, torch.softmax(top.values / temperature, dim=1))
        return scores, code @ torch.nn.functional.normalize(W_dec, dim=1)

    optimizer = torch.optim.Adam([W_enc, bias, W_dec], lr=lr)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = (forward()[1] - x).square().mean()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        unit = torch.nn.functional.normalize(W_enc, dim=1)
        return PowerDiagram.from_scores(unit, bias.detach(), k), forward()[1]


def trained_sae(x: torch.Tensor, n_latents: int, k: int, config: Config, seed: int) -> SAE:
    """A TopK SAE with a tied-residual decoder, trained by PAM-SGD."""
    sae = SAE(
        2, n_latents, TopK(k), decoder="tied_residual", b_pre=True, init_bias=0.0, generator=torch.Generator().manual_seed(seed)
    )
    method = PAMSGD(lr=config.lr, **AS_THEN)
    fit(
        sae,
        x,
        method,
        epochs=config.epochs,
        batch_size=len(x),
        log_every=config.epochs,
        generator=torch.Generator().manual_seed(seed),
    )
    return sae.eval()


def diagram_record(diagram: PowerDiagram) -> dict[str, Any]:
    """What a figure needs to draw the cells."""
    return {"sites": diagram.sites.tolist(), "biases": diagram.biases.tolist(), "order": diagram.order}


def models(x: torch.Tensor, config: Config, seed: int) -> dict[str, dict[str, Any]]:
    """FVU, regions in use and what to draw of every model, by its name."""
    array, found = x.double().numpy(), {}
    n = config.n_regions

    def keep(name: str, x_hat: Any, diagram: PowerDiagram | None, flats: Any = None, **more: Any) -> None:
        found[name] = {
            "fvu": fvu(x.double(), torch.as_tensor(x_hat).double()), "diagram": diagram_record(diagram) if diagram is not None else None,
            "flats": flats, "x_hat": torch.as_tensor(x_hat).tolist(), **more,
        }  # fmt: skip

    means = KMeansAutoencoder(n, n_init=10, random_state=seed).fit(array)
    keep("k-means", means.reconstruct(array), means.power_diagram(), {"means": means.means_.tolist()})
    sae = trained_sae(x, n, 1, config, seed)
    labels = regions_of(sae, x, margins=False).labels
    keep(f"TopK SAE, {n} latents", sae(x).x_hat.detach(), PowerDiagram.from_sae(sae), n_used=int(labels.max()) + 1)
    bound = local_pca_bound(x, labels, 1)
    found["its bound: local PCA on its regions"] = {"fvu": bound.total / float((x - x.mean(0)).double().square().sum())}
    for assign in ("centroid", "power", "residual"):
        local = LocalPCAAutoencoder(n, 1, assign, n_init=10, random_state=seed).fit(array)
        flats = {"means": local.means_.tolist(), "directions": local.components_[:, 0].tolist()}
        keep(f"local PCA, {assign}", local.reconstruct(array), None if assign == "residual" else local.power_diagram(), flats)
    for weights, k, n_latents, steps, lr in config.published:
        diagram, x_hat = published(x, weights, k, n_latents, steps, lr, config.temperature, seed)
        keep(f"published, {weights}, k = {k}", x_hat, diagram)
        if weights == "soft":
            sae = trained_sae(x, n_latents, k, config, seed)
            keep(f"TopK SAE, {n_latents} latents, k = {k}", sae(x).x_hat.detach(), PowerDiagram.from_sae(sae))
    return found


def render(results: dict[str, Any], markdown: bool = False) -> str:
    """FVU of every model over the seeds."""
    return table(["model", "FVU"], [[name, with_interval(values)] for name, values in results["fvu"].items()], markdown)


def main(config: Config, out: Path, seeds: Sequence[int]) -> Path:
    """Fit everything for every seed, write `bridge.json`, print the table; the first seed's models are kept to be drawn."""
    runs = []
    for seed in tqdm(seeds, desc="bridge", unit="seed"):
        x = points(config.n_points, seed)
        runs.append((x, models(x, config, seed)))
    errors = {name: [run[name]["fvu"] for _, run in runs] for name in runs[0][1]}
    results = {"fvu": errors, "points": runs[0][0].tolist(), "models": runs[0][1], "bounds": BOUNDS, "config": asdict(config)}
    path = out / "bridge.json"
    about = {"command": command_line(), "provenance": [provenance("cpu")]}
    write_json(path, {**about, **results}, ignoring=("command", "provenance"))
    print(f"{render(results)}\n\nwritten: {path}")
    return path


def command(argv: list[str]) -> Path:
    """`python -m experiments bridge`"""
    parser = argparse.ArgumentParser(
        prog="python -m experiments bridge", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add_out(parser)
    args = parser.parse_args(argv)
    config = Config()
    return main(config, args.out, config.seeds)
