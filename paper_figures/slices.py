"""Slices of trained SAEs, exact, and how their regions fill up."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.collections import PolyCollection
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from experiments.geometry import FLAT, flat_sae
from paper_figures.style import METHOD_STYLES, PAGE, bare, label, legend_below, short
from splinterp.geometry import Cells, slice_cells
from splinterp.plotting import plot_cells, plot_slice


def _cells(cut: dict[str, Any]) -> Cells:
    return slice_cells(flat_sae(cut["sites"], cut["biases"], cut["activation"]), FLAT, tuple(cut["bounds"]))


def _grid(cuts: list[dict[str, Any]]) -> tuple[list[str], list[str], dict[tuple[str, str], dict[str, Any]]]:
    by_name = {(cut["activation"]["name"], cut["method"]): cut for cut in cuts}
    return list(dict.fromkeys(a for a, _ in by_name)), list(dict.fromkeys(m for _, m in by_name)), by_name


def _frame(ax: Any, cut: dict[str, Any], scale: bool) -> None:
    """Three digits as dots; both axes are distances, so one scale bar serves, in the first panel."""
    corners = np.array(cut["corners"])
    ax.plot(*corners.T, "o", color="black", markerfacecolor="white", markersize=3.5, zorder=4)
    bare(ax, frame=True)
    if not scale:
        return
    xmin, xmax, ymin, _ = cut["bounds"]
    left, low = xmin + 0.06 * (xmax - xmin), ymin + 0.06 * (xmax - xmin)
    ax.plot([left, left + 10], [low, low], color="black", linewidth=2, solid_capstyle="butt", zorder=4)
    box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 0.8}
    ax.text(left + 5, low + 0.02 * (xmax - xmin), "10", ha="center", va="bottom", fontsize=7, bbox=box, zorder=4)


def slices(results: dict[str, Any]) -> tuple[Figure, str]:
    """Every trained kind in the same plane, regions coloured by support."""
    activations, methods, by_name = _grid(results["slices"])
    figure, axes = plt.subplots(len(activations), len(methods), figsize=(PAGE, PAGE * len(activations) / len(methods) + 0.1))
    for row, activation in zip(axes, activations, strict=True):
        for ax, method in zip(row, methods, strict=True):
            cut = by_name[activation, method]
            cells = _cells(cut)
            plot_slice(cells, ax, linewidth=0.35 if len(cells) < 2_000 else 0.0)
            _frame(ax, cut, scale=ax is axes.flat[0])
            ax.set_title(f"{activation}, {short(method)}: {len(cells):,} regions", fontsize=7)
    config = results["config"]
    return figure, (
        f"Linear regions of SAEs trained on {results['data']['name']} ({config['n_latents']} latents, k = {config['k']}, "
        f"{config['n_train']:,} images), "
        "cut by the plane through three test images (circles); every polygon is exact. Neighbours differ in colour, regions of "
        "one support share one; edges are left out where there are thousands. Distances are in standardised pixels (bar: 10). ReLU SAEs "
        "have more active latents (see the table of region statistics), and are cut by every latent's line."
    )


def slice_errors(results: dict[str, Any]) -> tuple[Figure, str]:
    """TopK and AbsTopK slices coloured by the error of the affine pieces."""
    cuts = [cut for cut in results["slices"] if cut["errors"] is not None and cut["activation"]["name"] != "ReLU"]
    activations, methods, by_name = _grid(cuts)
    figure, axes = plt.subplots(len(activations), len(methods), figsize=(PAGE, PAGE * len(activations) / len(methods) + 0.1))
    values = np.concatenate([cut["errors"] for cut in cuts])
    norm = LogNorm(*np.quantile(values, [0.005, 0.995]))
    drawn: list[PolyCollection] = []
    for row, activation in zip(axes, activations, strict=True):
        for ax, method in zip(row, methods, strict=True):
            cut = by_name[activation, method]
            drawn.append(plot_cells(_cells(cut), ax, values=cut["errors"], norm=norm, cmap="cividis", linewidth=0.1))
            _frame(ax, cut, scale=ax is axes.flat[0])
            ax.set_title(f"{activation}, {label(method)}")
    figure.colorbar(drawn[0], ax=axes, shrink=0.6, label=r"mean $|\hat x - x|^2$ over the region")
    return figure, (
        "The slices of TopK and AbsTopK coloured by the mean squared error of each region's affine piece over the region "
        "(standardised pixels squared, summed over 784 of them; the same scale everywhere). Circles: the three test images "
        "that span the plane. Errors are least near the middle of the digits and grow outwards."
    )


def region_growth(results: dict[str, Any]) -> tuple[Figure, str]:
    """The share of a slice's regions that random points find, by the number of points."""
    activations, methods, by_name = _grid(results["slices"])
    figure, axes = plt.subplots(1, len(activations), figsize=(PAGE, 2.4), sharey=True)
    for ax, activation in zip(axes, activations, strict=True):
        for method in methods:
            cut = by_name[activation, method]
            points, found = np.array(cut["found"]).T
            ax.semilogx(points, found / cut["n_cells"], label=label(method), **{**METHOD_STYLES[method], "markersize": 3})
        ax.set(title=activation, xlabel="random points in the window", ylim=(0, 1.03))
    axes[0].set_ylabel("share of the regions found")
    legend_below(figure, len(methods))
    counts = "; ".join(f"{a} " + ", ".join(f"{by_name[a, m]['n_cells']:,} ({label(m)})" for m in methods) for a in activations)
    return figure, (
        "How many of the regions of a slice uniform random points find, as a share of the exact number: sampling misses the "
        f"small ones. Exact numbers: {counts}. First seed."
    )
