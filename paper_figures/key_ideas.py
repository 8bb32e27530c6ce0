"""The ideas in one picture: an SAE is a piecewise affine map, PAM-SGD alternates its two blocks, and what that gives."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from paper_figures.curves import data_name, draw, log_axes
from paper_figures.style import PAGE, bare, legend_below
from splinterp import SAE, TopK
from splinterp.geometry import Plane, slice_cells
from splinterp.plotting import plot_slice

BOUNDS = (-1.0, 1.0, -1.0, 1.0)


def key_ideas(results: dict[str, Any]) -> tuple[Figure, str]:
    """Regions and affine pieces of a small TopK SAE; the alternation; sample efficiency."""
    figure, axes = plt.subplots(1, 3, figsize=(PAGE, 2.7), width_ratios=(1, 1.05, 1.15))
    n_regions = _pieces(axes[0])
    _alternation(axes[1])
    rows = [row for row in results["rows"] if (row["part"], row["activation"], row["budget"]) == ("sizes", "AbsTopK", "long")]
    for method in dict.fromkeys(row["method"] for row in rows):
        points = sorted((row for row in rows if row["method"] == method), key=lambda row: row["n_train"])
        draw(axes[2], [p["n_train"] for p in points], points, method)
    log_axes(axes[2], sorted({row["n_train"] for row in rows}))
    axes[2].tick_params(axis="x", rotation=30)
    axes[2].set(xlabel="training images", ylabel="test FVU (lower is better)", title="sample efficiency (AbsTopK)")
    legend_below(figure, 5)
    return figure, (
        f"Key ideas. Left: a TopK SAE of 9 latents, k = 2, in the plane cuts it into {n_regions} regions (exact); on each it is one affine "
        "map, drawn as what it does to a small square about a point of the region. Middle: PAM-SGD moves the encoder, and with it "
        "the regions, by stochastic gradients, and solves for the decoder, which is a linear regression on the code, exactly. Right: "
        f"test FVU on {data_name(results)} against training images, checkpoint of lowest validation FVU; mean and 95 % interval "
        "over seeds. PAM-SGD and the best control differ by a few percent at most."
    )


def _pieces(ax: Axes) -> int:
    """Regions of a random SAE, and where each region's map sends a square."""
    g = torch.Generator().manual_seed(4)
    sae = SAE(2, 9, TopK(2), "tied", init_bias=0.0, generator=g, dtype=torch.float64)
    angles = torch.arange(9, dtype=torch.float64) * (2 * torch.pi / 9) + 0.3 * torch.rand(9, generator=g, dtype=torch.float64)
    sae.W_enc.data.copy_(torch.stack([angles.cos(), angles.sin()]) * 0.8)
    sae.b_enc.data.copy_(0.25 * torch.rand(9, generator=g, dtype=torch.float64) - 0.2)
    cells = slice_cells(sae, Plane(np.zeros(2), np.eye(2)), BOUNDS)
    plot_slice(cells, ax, linewidth=0.4)
    square = 0.07 * np.array([[-1, -1], [1, -1], [1, 1], [-1, 1], [-1, -1]])
    for cell in cells:
        centre = cell.polygon.mean(axis=0)
        if np.ptp(cell.polygon, axis=0).min() < 0.25:
            continue
        with torch.no_grad():
            image = sae(torch.from_numpy(centre + 1e-3 * square)).x_hat.numpy()
        middle = image[:4].mean(axis=0)
        image = middle + (image - middle) * 1e3  # the affine piece, from inside the region
        ax.plot(*(centre + square).T, color="black", linewidth=0.5, linestyle=":")
        ax.plot(*image.T, color="#D55E00", linewidth=1.0)
        ax.annotate("", middle, centre, arrowprops={"arrowstyle": "->", "linewidth": 0.6, "shrinkA": 0, "shrinkB": 0})
    ax.set(xticks=[], yticks=[], title="an SAE is piecewise affine")
    ax.grid(False)
    return len(cells)


def _alternation(ax: Axes) -> None:
    """Two boxes and what passes between them."""
    ax.set(xlim=(0, 1), ylim=(0, 1), title="PAM-SGD alternates two blocks")
    bare(ax, frame=False)
    box = {"boxstyle": "round,pad=0.45", "edgecolor": "black", "linewidth": 0.8}
    encoder = "encoder: regions and codes\n" + r"$z = \rho(x\,W_{\mathrm{enc}} + b)$" + "\nstochastic gradients"
    normal_equations = r"$(Z^\top Z + \lambda I)\,W = Z^\top X + \lambda W_{\mathrm{enc}}^\top$"
    decoder = f"decoder: least squares on z\n{normal_equations}\nexact, one pass; $\\lambda$ by GCV"
    for y, text, colour in ((0.80, encoder, "#FDBF6F"), (0.22, decoder, "#A6CEE3")):
        ax.text(0.5, y, text, ha="center", va="center", fontsize=7, bbox={**box, "facecolor": colour})
    arrow = {"arrowstyle": "-|>", "linewidth": 1.1, "color": "black", "connectionstyle": "arc3,rad=-0.35"}
    ax.annotate("", (0.78, 0.36), (0.78, 0.65), arrowprops=arrow)
    ax.annotate("", (0.22, 0.65), (0.22, 0.36), arrowprops=arrow)
    ax.text(0.93, 0.505, "codes", ha="center", va="center", fontsize=6.5)
    ax.text(0.07, 0.505, "pull,\nweights", ha="center", va="center", fontsize=6.5)
