"""Recovery of known features: every method beside the published numbers, and the resonance of target and feature frequency."""

from __future__ import annotations

import math
from typing import Any

from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from experiments.compare import t_interval
from experiments.recovery import PUBLISHED
from paper_figures.style import PAGE, legend_below

RECOVERED, ACTIVE, OTHER = "#D55E00", "#0072B2", "#009E73"


def recovery(results: dict[str, Any]) -> tuple[Figure, str]:
    """Share of the features found at cosine 0.9, and active latents a sample, of every method."""
    rows = [row for row in results["rows"] if not row["signed"]]
    config = results["config"]
    figure, (left, right) = plt.subplots(1, 2, figsize=(PAGE, 0.19 * len(rows) + 0.8), sharey=True, width_ratios=(3, 1))
    for y, row in enumerate(rows):
        for threshold, marker, color in (("0.9", "o", RECOVERED), ("0.95", "D", OTHER)):
            interval = t_interval([100 * v for v in row["recovery"][threshold]])
            name = f"cosine above {threshold}" if y == 0 else None
            left.errorbar(
                interval.mean, y, xerr=_half(interval.half), fmt=marker, color=color, markersize=3.5, linewidth=1, label=name
            )
        if row["row"] in PUBLISHED:
            left.plot(100 * PUBLISHED[row["row"]][1], y, "x", color="black", markersize=4.5, zorder=5)
        active = t_interval(row["l0"])
        right.errorbar(active.mean, y, xerr=_half(active.half), fmt="s", color=ACTIVE, markersize=3.5, linewidth=1)
    left.plot([], [], "x", color="black", label="published, above 0.9")
    right.axvline(rows[0]["true_l0"], color="black", linewidth=0.8, linestyle="--", label=r"$\ell_0$ of the truth")
    left.set(yticks=range(len(rows)), yticklabels=[row["row"] for row in rows], xlim=(-3, 103), xlabel="features recovered, %")
    left.invert_yaxis()
    right.set(xscale="log", xlabel=r"$\ell_0$ on held-out samples")
    legend_below(figure, 4)
    return figure, (
        f"Recovery of {config['n_features']} Gaussian features in {config['d_in']} dimensions, half of the samples made of "
        f"{config['sparsity'][0]} and half of {config['sparsity'][-1]} of them, by SAEs of {config['n_latents']:,} latents: mean and 95 % "
        "interval over "
        f"{len(config['seeds'])} seeds (each its own features, samples and start). Step size and length were chosen for each row at a "
        "further seed. Crosses are published values (arXiv 2506.14002); which wrong frequencies those were is not known. "
        "Right: active latents a sample, dashed the truth's."
    )


def resonance(results: dict[str, Any]) -> tuple[Figure, str]:
    """Recovery and active latents against the target frequency, above and below the square root of the number of features."""
    config = results["config"]
    n, s = config["resonance_n_features"], config["resonance_sparsity"]
    figure, axes = plt.subplots(1, 2, figsize=(PAGE, 2.3))
    styles = {0: {"color": RECOVERED, "marker": "o", "linestyle": "-"}, 1: {"color": ACTIVE, "marker": "s", "linestyle": "--"}}
    for index, d_in in enumerate(config["resonance_dims"]):
        rows = [row for row in results["resonance"] if row["d_in"] == d_in]
        sign = ">" if d_in > math.sqrt(n) else "<"
        for ax, values in zip(axes, ([[100 * v for v in r["recovery"]] for r in rows], [r["l0"] for r in rows]), strict=True):
            intervals = [t_interval(v) for v in values]
            ax.errorbar(
                [r["ratio"] for r in rows], [i.mean for i in intervals], yerr=[_half(i.half) for i in intervals], capsize=2,
                label=rf"$d = {d_in} {sign} \sqrt{{n}}$", **styles[index],
            )  # fmt: skip
    axes[0].set(ylabel="features recovered, %\n(cosine above 0.9)", ylim=(-3, 103))
    axes[1].set(ylabel=r"$\ell_0$ on held-out samples", yscale="log")
    axes[1].axhline(s, color="black", linewidth=0.8, linestyle=":", label=r"$\ell_0$ of the truth")
    for ax in axes:
        ax.set(xscale="log", xlabel="target frequency over feature frequency")
        ax.set_xscale("log", base=2)
        ax.axvline(1, color="black", linewidth=0.8, linestyle="--")
    legend_below(figure, 3)
    return figure, (
        f"Resonance: recovery of {n} Gaussian features, {s} in every sample (each with frequency f = {s}/{n}), by bias "
        "adaptation of one "
        f"group of {config['resonance_n_latents']:,} latents, against the target frequency of all latents; two dimensions, above and "
        "below the "
        f"square root of n. Mean and 95 % interval over {len(config['resonance_seeds'])} seeds; the same step size everywhere."
    )


def _half(half: float) -> float:
    return 0.0 if math.isnan(half) else half
