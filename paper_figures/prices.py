"""What an SAE pays for its interpretability, and SAEs beside other autoencoders."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.compare import t_interval
from paper_figures.style import PAGE, label, legend_below

BESIDE_STYLES: dict[str, dict[str, Any]] = {
    "k-means": {"color": "#000000", "linestyle": ":"},
    "local PCA centroid": {"color": "#0072B2", "linestyle": "--"},
    "local PCA power": {"color": "#CC79A7", "linestyle": "-."},
    "local PCA residual": {"color": "#009E73", "linestyle": "-"},
}
READABLE = 0.5
"""The least share of the images in well-filled regions at which a price can be read."""
FAMILIES: dict[str, dict[str, Any]] = {
    "k-means": {"color": "#000000", "marker": "x", "linestyle": ":"},
    "local PCA centroid": {"color": "#0072B2", "marker": "s", "linestyle": "none"},
    "local PCA residual": {"color": "#009E73", "marker": "D", "linestyle": "none"},
    "PCA": {"color": "#999999", "marker": "v", "linestyle": "--"},
    "ICA": {"color": "#666666", "marker": "+", "linestyle": "none"},
    "NMF": {"color": "#E69F00", "marker": "^", "linestyle": "--"},
    "TopK SAE, PAM": {"color": "#D55E00", "marker": "o", "linestyle": "-"},
    "TopK SAE, SGD tied-residual": {"color": "#F0A070", "marker": "o", "linestyle": "--", "markerfacecolor": "none"},
    "AbsTopK SAE, PAM": {"color": "#7A3EB1", "marker": "P", "linestyle": "-"},
    "AbsTopK SAE, SGD tied-residual": {"color": "#B79AD8", "marker": "P", "linestyle": "--", "markerfacecolor": "none"},
    "ReLU SAE, PAM": {"color": "#56B4E9", "marker": "*", "linestyle": "-"},
    "ReLU SAE, SGD tied": {"color": "#56B4E9", "marker": "*", "linestyle": "--", "markerfacecolor": "none"},
}


def price(results: dict[str, Any]) -> tuple[Figure, str]:
    """Bars: an SAE's training error as its bound and its price; lines: baselines of as many parameters."""
    settings = [tuple(setting) for setting in results["config"]["priced"]]
    figure, axes = plt.subplots(1, len(settings), figsize=(PAGE, 3.2), sharey=True)
    for ax, (n_latents, k) in zip(axes, settings, strict=True):
        bars = [p for p in results["prices"] if (p["n_latents"], p["k"], p["variant"]) == (n_latents, k, None)]
        for position, p in enumerate(bars):
            error, bound = t_interval(p["error"]), t_interval(p["bound"])
            colour = "#D55E00" if p["method"] == "PAM" else "#56B4E9"
            ax.bar(position, bound.mean, color="#BBBBBB", width=0.7, label="bound: local PCA on the SAE's regions")
            readable = np.mean(p["share_covered"]) >= READABLE
            ax.bar(position, error.mean - bound.mean, bottom=bound.mean, color=colour if readable else "white", width=0.7, yerr=error.half,
                   error_kw={"elinewidth": 0.8, "capsize": 2}, hatch=None if readable else "////", edgecolor=colour, linewidth=0.5,
                   label=f"price, {label(p['method'])}" if readable else f"no price, {label(p['method'])}")  # fmt: skip
            ax.text(position, 0.01, f"{np.mean(p['share_covered']):.0%}", ha="center", va="bottom", fontsize=6)
        for b in results["beside"]:
            if (b["n_latents"], b["k"], b["matched"]) == (n_latents, k, "parameters"):
                ax.axhline(
                    np.mean(b["train_fvu"]), linewidth=1.0, label=f"{b['model']}, same parameters", **BESIDE_STYLES[b["model"]]
                )
        names = [f"{p['activation']}\n{'PAM' if p['method'] == 'PAM' else 'SGD'}" for p in bars]
        ax.set_xticks(range(len(bars)), names, fontsize=7)
        ax.set_title(f"{n_latents} latents, k = {k}")
        ax.grid(axis="x", visible=False)
    axes[0].set_ylabel("training FVU")
    legend_below(figure, 3)
    config = results["config"]
    return figure, (
        f"The price of interpretability on {results['data']['name']}, "
        f"{config['n_train']:,} training images, mean over {len(config['seeds'])} seeds (bars: 95 % interval of the SAE's error). Each "
        "SAE's error is at least that of local PCA of the same ranks on the SAE's own regions (grey); the rest is the price. "
        "Percentages: share of the images in regions of at least 10 (k + 1) images; where it is small, most of the bound is 0 because "
        "images are nearly alone, and the difference is no price (hatched). Lines: autoencoders with as many parameters on the same images."
    )


def baselines(results: dict[str, Any]) -> tuple[Figure, str]:
    """Test error against parameters and against active numbers a sample, by family."""
    figure, axes = plt.subplots(1, 2, figsize=(PAGE, 3.4), sharey=True)
    widest = max(n for n, _ in results["config"]["settings"])
    saes = [family for family in FAMILIES if "SAE" in family]
    beside = dict(zip(saes, np.geomspace(0.62, 1.6, len(saes)), strict=True))
    for family, style in FAMILIES.items():
        rows = [row for row in results["rows"] if row["model"] == family]
        for ax, quantity in zip(axes, ("parameters", "active"), strict=True):
            shift = beside.get(family, 1.0) if quantity == "parameters" else 1.0
            for alone in (False, True):  # smaller dictionaries stand apart from the line of the widest
                chosen = [row for row in rows if (row.get("n_latents", widest) < widest) == alone]
                ordered = sorted(chosen, key=lambda row: (row[quantity], np.mean(row["test_fvu"])))
                means = [t_interval(row["test_fvu"]) for row in ordered]
                unjoined = (
                    alone or (quantity == "parameters" and "SAE" in family) or (quantity == "active" and family == "k-means")
                )
                drawn = {**style, "linestyle": "none"} if unjoined else style
                ax.errorbar([shift * row[quantity] for row in ordered], [m.mean for m in means], [m.half for m in means],
                            label=None if alone else family.replace("PAM", "PAM-SGD"), markersize=4, linewidth=0.9, elinewidth=0.5,
                            **drawn)  # fmt: skip
    _number_of_latents(axes[0], [row for row in results["rows"] if row["model"] == "TopK SAE, PAM" and row["n_latents"] == widest],
                       beside)  # fmt: skip
    axes[0].set(xscale="log", yscale="log", xlabel="parameters", ylabel="test FVU")
    axes[1].set(xscale="log", xlabel="active numbers a sample (indices and values)")
    legend_below(figure, 4)
    config = results["config"]
    return figure, (
        f"Test FVU of autoencoders fitted to {config['n_train']:,} images of {results['data']['name']} (mean and 95 % interval over "
        f"{len(config['seeds'])} seeds), against their parameters and against the numbers a sample's code consists of: k indices and "
        "k values for an SAE (2 l0 for ReLU), a region's number and its coordinates for k-means and local PCA, coordinates for PCA, "
        "ICA and NMF. ICA spans the same subspace as PCA and has its error. SAEs whose points are not joined are smaller dictionaries. "
        "In (a) the families of SAEs stand side by side about their numbers of parameters; k is that of TopK and AbsTopK at this height."
    )


def _number_of_latents(ax: Axes, rows: list[dict[str, Any]], beside: dict[str, float]) -> None:
    """k at the right of the SAEs that have it."""
    at = max(beside.values()) * rows[0]["parameters"] * 1.12
    for row in rows:
        ax.text(at, np.mean(row["test_fvu"]), f"k = {row['k']}", fontsize=7, va="center")
