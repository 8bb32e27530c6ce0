"""PAM-SGD and its variants against the best control, cell by cell."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from experiments.grid import FINAL, HELD, OURS
from experiments.report import unit
from experiments.runs import HOLDS, STEPS
from paper_figures.curves import data_name
from paper_figures.style import METHOD_STYLES, ORDER, PAGE, in_order, label, legend_below

LIMIT = 0.15
"""Of the axis, in log ratio; what lies outside is an arrow at the edge, with its number."""
NOT_WORSE = math.log(1.01)
"""Where an interval must end for "not worse"."""
VARIANTS = {
    FINAL: "tied SGD, then one exact solve, its ridge by held-out samples",
    HELD: "the residual stays at 0 for the first tenth of the steps, and cross-validation decides when it comes in",
    **{name: f"the residual stays at 0 for a share {hold:g} of the steps" for name, hold in HOLDS.items()},
    **{name: f"the residual's step size is {factor:g} of the others'" for name, factor in STEPS.items()},
}
ACTIVATION_STYLES: dict[str, dict[str, Any]] = {
    "TopK": {"color": "#D55E00", "marker": "o"},
    "AbsTopK": {"color": "#0072B2", "marker": "D"},
}


def draw_ratio(
    axes: Axes, y: float, ratio: Sequence[float], limit: float, style: dict[str, Any], name: str, markersize: float = 3.5,
    hollow: bool = False,
) -> None:  # fmt: skip
    """A log ratio (mean, half-width of its interval) at the height y; what lies beyond the limit is an arrow and its percentage."""
    mean, half = ratio
    if abs(mean) > limit:
        right = mean > 0
        axes.plot([math.copysign(limit, mean)], [y], marker=">" if right else "<", color=style["color"], markersize=4)
        axes.annotate(percent_of(mean), (math.copysign(limit, mean), y), xytext=(-5 if right else 5, 0), textcoords="offset points",
                      ha="right" if right else "left", va="center", fontsize=7, color=style["color"])  # fmt: skip
        return
    low, high = max(mean - half, -limit), min(mean + half, limit)
    axes.errorbar([mean], [y], xerr=[[mean - low], [high - mean]], capsize=1.5, elinewidth=0.7, markersize=markersize,
                  linestyle="none", label=name, color=style["color"], marker=style["marker"],
                  markerfacecolor="white" if hollow else style["color"])  # fmt: skip


def percent_of(ratio: float, _: object = None) -> str:
    """A log ratio as axes and arrows show it."""
    return f"{100 * math.expm1(ratio):+.0f} %" if ratio else "0"


def ratio_axes(axes: Axes, names: list[str], limit: float, percents: tuple[int, ...], least: float | None = None) -> None:
    """A line for each name, and log ratios from `least` (default: -limit) to the limit as percentages."""
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(names)), names)
    low = -limit if least is None else least
    axes.set(ylim=(len(names) - 0.5, -0.5), xlim=(1.03 * low, 1.03 * limit))
    axes.set_xticks([math.log1p(p / 100) for p in percents if low <= math.log1p(p / 100) <= limit])
    axes.xaxis.set_major_formatter(FuncFormatter(percent_of))


def _spread(ratios: Sequence[Sequence[float]]) -> tuple[float, float]:
    """The axis that the ratios need, zero and the line of "not worse" within."""
    inside = [(mean - half, mean + half) for mean, half in ratios if abs(mean) <= LIMIT and math.isfinite(half)]
    low = min([-0.02, *(a for a, _ in inside)]) - 0.01
    high = max([0.02, *(b for _, b in inside)]) + 0.01
    if any(mean < -LIMIT for mean, _ in ratios):
        low = -LIMIT
    if any(mean > LIMIT for mean, _ in ratios):
        high = LIMIT
    return max(low, -LIMIT), min(high, LIMIT)


def _drawn(results: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Verdicts by method: the default's, and those of its variants in cells where they are not the default."""
    default = {(v["activation"], v["budget"], v["n_train"]): v["log_ratio"] for v in results["verdicts"]}
    variants = {
        method: [v for v in found if v["log_ratio"] != default[v["activation"], v["budget"], v["n_train"]]]
        for method, found in results["apart"].items()
    }
    ours = results["config"].get("ours", OURS)
    return {ours: results["verdicts"], **{method: found for method, found in variants.items() if found}}


def verdicts(results: dict[str, Any]) -> tuple[Figure, str]:
    """Paired log ratio of test FVU to the best control's, with its interval; a panel for each activation, a line for each cell."""
    methods = _drawn(results)
    activations = in_order(v["activation"] for v in results["verdicts"])
    cells = sorted({(v["budget"], v["n_train"]) for v in results["verdicts"]})
    seeds = {len(row["seeds"]) for row in results["rows"] if row["part"] == "sizes"}
    few = {
        (row["budget"], row["n_train"]) for row in results["rows"] if row["part"] == "sizes" and len(row["seeds"]) < max(seeds)
    }
    apart = min(0.24, 0.84 / len(methods))  # of two methods in a cell, which has a height of 1
    size = (PAGE, 0.9 + max(0.34, 0.13 * len(methods)) * len(cells))
    low, high = _spread([v["log_ratio"] for found in methods.values() for v in found])
    figure, grid = plt.subplots(1, len(activations), figsize=size, squeeze=False, sharex=True, sharey=True)
    for axes, activation in zip(grid[0], activations, strict=True):
        axes.axvline(NOT_WORSE, color="black", linewidth=0.6, linestyle=":")
        for j, (method, found) in enumerate(methods.items()):
            for v in found:
                if v["activation"] == activation:
                    cell = v["budget"], v["n_train"]
                    y = cells.index(cell) + apart * (j - (len(methods) - 1) / 2)
                    draw_ratio(axes, y, v["log_ratio"], LIMIT, METHOD_STYLES[method], label(method), hollow=cell in few)
        names = [f"{budget}, {n:,}{' *' if (budget, n) in few else ''}" for budget, n in cells]
        percents = (-12, -8, -4, 0, 4, 8, 12) if high - low > 0.15 else (-10, -8, -6, -4, -2, 0, 2, 4, 6, 8, 10)
        ratio_axes(axes, names, high, percents, low)
        axes.set(title=activation, xlabel="test FVU against the best control (left is better)")
    grid[0][0].set_ylabel(f"budget, training {unit(results)}")
    legend_below(figure, len(methods))
    return figure, (
        f"PAM-SGD at its defaults{' and variants of it' if len(methods) > 1 else ''} on {data_name(results)}: paired ratio of test FVU to "
        f"that of the control of lowest validation FVU ({how_many(results)} SGD controls), mean and 95 % t interval over seeds. An "
        "interval left of the solid line is better, one that ends before the dotted line (+1 %) not worse; an arrow lies outside the axis."
        f"{f' Hollow, with *: {min(seeds)} seeds in place of {max(seeds)}.' if few else ''}"
        f"{''.join(f' `{name}`: {VARIANTS[name]}.' for name in methods if name in VARIANTS)}"
        f"{' Variants are left out where they are the default.' if len(methods) > 1 else ''}"
    )


def how_many(*found: dict[str, Any]) -> str:
    """Controls that verdicts are against."""
    counts = sorted({len(v["against"]) for results in found for v in results["verdicts"]})
    names = {4: "four", 6: "six"}
    return " or ".join(names.get(n, str(n)) for n in counts)


def headline(*found: dict[str, Any]) -> tuple[Figure, str]:
    """Every cell of the second comparison: a panel for each data set, both activations in it."""
    cells = [sorted({(v["budget"], v["n_train"]) for v in results["verdicts"]}) for results in found]
    low, high = _spread([v["log_ratio"] for results in found for v in results["verdicts"]])
    columns = 4 if len(found) > 6 else 3 if len(found) > 4 else 2
    lines = math.ceil(len(found) / columns)
    figure, grid = plt.subplots(lines, columns, figsize=(PAGE, 0.6 + 2.0 * lines), squeeze=False, sharex=True)
    for axes in grid.flat[len(found) :]:
        axes.set_visible(False)
    for place, (axes, results, own) in enumerate(zip(grid.flat, found, cells, strict=False)):
        axes.axvspan(1.03 * low, 0, color="#009E73", alpha=0.08, linewidth=0)
        for v in sorted(results["verdicts"], key=lambda v: ORDER.index(v["activation"])):
            style = ACTIVATION_STYLES[v["activation"]]
            y = own.index((v["budget"], v["n_train"])) + (-0.22 if v["activation"] == "TopK" else 0.22)
            draw_ratio(axes, y, v["log_ratio"], LIMIT, style, v["activation"])
        ratio_axes(axes, [f"{n:,} {unit(results)}, {budget}" for budget, n in own], high, (-12, 0, 12), low)
        if place % columns and own == cells[place - 1] and unit(results) == unit(found[place - 1]):
            axes.tick_params(labelleft=False)  # those of its neighbour
        axes.set_title(
            re.sub(r"^(layer \d+) of (?:a )?(.*?) \(.*\)$", r"\2, \1", data_name(results)).replace("small GPT-2", "GPT-2")
        )
    for axes in grid.flat[: len(found)]:
        axes.tick_params(labelbottom=True)
    last = min(columns, len(found) - columns * (lines - 1))
    label_at = 0.0 if last % 2 == 0 else 0.5  # between two panels where their number is even
    grid[-1][last // 2].set_xlabel("FVU against the best control", x=label_at)
    legend_below(figure, 2)
    worse = sum(v["verdict"] == "worse" for results in found for v in results["verdicts"])
    better = sum(v["verdict"] == "better" for results in found for v in results["verdicts"])
    total = sum(len(results["verdicts"]) for results in found)
    return figure, (
        f"PAM-SGD at its defaults against the best of {how_many(*found)} SGD controls, each with its own step size chosen on validation "
        "data from a grid that grows by the same rule: paired ratio of test FVU, mean and 95 % t interval over four seeds. Left of the "
        f"line PAM-SGD has the lower error: better in {better} of {total} cells, worse in {worse}. Early: ten epochs on images, four on "
        "tokens, the model at the end; long: at least 2,000 steps, the checkpoint of lowest validation FVU. An arrow lies outside the "
        "axis. GPT-2: a small one, of 128 dimensions, trained on Python's documentation."
    )
