"""The bridge from k-means to local PCA in the plane, every cell exact."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from paper_figures.style import PAGE, bare
from splinterp.geometry import PowerDiagram
from splinterp.plotting import plot_cells

ROWS = (
    ("k-means", "published, hard, k = 1", "published, soft, k = 1", "TopK SAE, 40 latents, k = 1", "local PCA, power"),
    (
        "TopK SAE, 3 latents",
        "published, hard, k = 3",
        "published, soft, k = 3",
        "TopK SAE, 80 latents, k = 3",
        "local PCA, residual",
    ),
)


def bridge(results: dict[str, Any]) -> tuple[Figure, str]:
    """k-means, the published models and TopK SAEs, local PCA: cells, points and where they are sent."""
    figure, axes = plt.subplots(2, 5, figsize=(PAGE, 2.9))
    x = np.array(results["points"])
    for row, names in zip(axes, ROWS, strict=True):
        for ax, name in zip(row, names, strict=True):
            _panel(ax, name, results["models"][name], x, results["bounds"])
    config = results["config"]
    return figure, (
        f"From k-means through sparse autoencoders to local PCA, {config['n_points']} points of a line, a square and a diagonal (dots), "
        "each joined to its reconstruction (end of the thin line). Cells are exact: Voronoi cells of k-means, selections of the encoders "
        "(order-k power diagrams), cells of the power diagram; residual assignment has no cells, its flats are drawn. FVU over these "
        "points (one seed; `python -m experiments tables bridge` has five). k-means and local PCA have three regions; "
        '"published" are the study\'s softmax and equal-weight models, whose outputs are combinations of unit vectors; with hard weights '
        "their encoders do not train."
    )


def _panel(ax: Axes, name: str, model: dict[str, Any], x: np.ndarray, bounds: tuple[float, float, float, float]) -> None:
    if model["diagram"] is not None:
        diagram = PowerDiagram.from_scores(
            np.array(model["diagram"]["sites"]), np.array(model["diagram"]["biases"]), model["diagram"]["order"]
        )
        plot_cells(diagram.cells(bounds), ax, linewidth=0.25)
    x_hat = np.array(model["x_hat"])
    ax.plot(*np.stack([x, x_hat, np.full_like(x, np.nan)], axis=1).reshape(-1, 2).T, color="black", linewidth=0.35, zorder=3)
    ax.plot(*x.T, ".", color="black", markersize=1.6, zorder=4)
    flats = model["flats"]
    if flats is not None:
        for mean, direction in zip(flats["means"], flats.get("directions", flats["means"]), strict=True):
            if "directions" in flats:
                reach = 0.7 if model["diagram"] is not None else 5.0  # a flat of residual assignment has no cell to stay in
                along = np.array([-reach, reach])[:, None] * np.array(direction)
                ax.plot(*(np.array(mean) + along).T, color="#D55E00", linewidth=1.4, zorder=5)
            ax.plot(*mean, "o", color="#D55E00", markersize=3, zorder=5)
    title = name.replace("published, ", "published ").replace("TopK SAE, ", "TopK, ")
    fvu = f"{model['fvu']:.3f}" if model["fvu"] >= 5e-4 else "< 0.001"
    ax.set_title(f"{title}\nFVU {fvu}", fontsize=7)
    ax.set(xlim=bounds[:2], ylim=bounds[2:], aspect="equal")
    bare(ax, frame=True)
