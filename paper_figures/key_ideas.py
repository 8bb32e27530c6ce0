"""The ideas in one picture: an SAE is a piecewise affine map, PAM-SGD alternates its two blocks, and what that gives."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from paper_figures.curves import data_name, log_x
from paper_figures.style import PAGE, bare, in_order
from paper_figures.verdicts import ACTIVATION_STYLES, how_many, percent_of
from splinterp import SAE, TopK
from splinterp.geometry import Plane, slice_cells
from splinterp.plotting import plot_slice

BOUNDS = (-1.0, 1.0, -1.0, 1.0)


def key_ideas(results: dict[str, Any]) -> tuple[Figure, str]:
    """Regions and affine pieces of a small TopK SAE; the alternation; what it gains at every size of the data."""
    figure, axes = plt.subplots(1, 3, figsize=(PAGE, 2.35), width_ratios=(1, 1.15, 1.15))
    n_regions = _pieces(axes[0])
    _alternation(axes[1])
    _gains(axes[2], results)
    return figure, (
        f"Key ideas. (a) A TopK SAE of 9 latents, k = 2, in the plane cuts it into {n_regions} regions (exact); on each it is one affine "
        "map, drawn as what it does to a small square (dotted) about a point of the region (solid). (b) PAM-SGD moves the encoder, and "
        "with it the regions, by stochastic gradients, and solves for the decoder, which is a linear regression on the code, exactly. "
        f"(c) Test FVU on {data_name(results)} of PAM-SGD at its defaults against the best of {how_many(results)} SGD controls at equal "
        "start and steps, checkpoint of lowest validation FVU: paired ratio, mean and 95 % interval over seeds."
    )


def _gains(ax: Axes, results: dict[str, Any]) -> None:
    """Ratio of PAM-SGD's error to the best control's, long training, by number of images."""
    verdicts = [v for v in results["verdicts"] if v["budget"] == "long"]
    sizes = sorted({v["n_train"] for v in verdicts})
    for n, activation in enumerate(in_order(v["activation"] for v in verdicts)):
        chosen = sorted((v for v in verdicts if v["activation"] == activation), key=lambda v: v["n_train"])
        means, halves = zip(*(v["log_ratio"] for v in chosen), strict=True)
        places = [v["n_train"] * (0.94, 1.06)[n % 2] for v in chosen]  # beside each other
        ax.errorbar(
            places, means, halves, label=activation, **ACTIVATION_STYLES[activation], markersize=4.5, elinewidth=0.9, capsize=2
        )
    ax.axhline(0, color="black", linewidth=0.9)
    log_x(ax, sizes)
    ax.set(yticks=[math.log1p(percent / 100) for percent in range(-12, 1, 3)])
    ax.yaxis.set_major_formatter(percent_of)
    ax.set(
        xlabel="training images",
        ylabel="FVU against the best control",
        title="error at equal samples and steps",
        ylim=(None, max(0.015, 0.005 + max(v["log_ratio"][0] + v["log_ratio"][1] for v in verdicts))),
    )
    ax.legend(loc="lower right")


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
        ax.fill(*image.T, facecolor="white", edgecolor="black", linewidth=0.9)
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
    decoder = f"decoder: least squares on z\n{normal_equations}\nexact, one pass; $\\lambda$ by held-out data"
    for y, text, colour in ((0.82, encoder, "#FDBF6F"), (0.18, decoder, "#A6CEE3")):
        ax.text(0.5, y, text, ha="center", va="center", fontsize=7, bbox={**box, "facecolor": colour})
    arrow = {"arrowstyle": "-|>", "linewidth": 1.1, "color": "black", "connectionstyle": "arc3,rad=-0.35"}
    ax.annotate("", (0.78, 0.37), (0.78, 0.64), arrowprops=arrow)
    ax.annotate("", (0.22, 0.64), (0.22, 0.37), arrowprops=arrow)
    ax.text(0.93, 0.505, "codes", ha="center", va="center", fontsize=6.5)
    ax.text(0.07, 0.505, "decoder\nweights", ha="center", va="center", fontsize=6.5)
