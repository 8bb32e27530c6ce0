"""PAM-SGD and its variants against the best control, cell by cell."""

from __future__ import annotations

import math
from typing import Any

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from experiments.grid import FINAL, HELD, OURS
from experiments.report import unit
from experiments.runs import HOLDS
from paper_figures.curves import data_name
from paper_figures.style import METHOD_STYLES, PAGE, label, legend_below

LIMIT = 0.15
"""Of the axis, in log ratio; what lies outside is drawn as an arrow at the edge."""
VARIANTS = {
    FINAL: "tied SGD, then one exact solve, its ridge by held-out samples",
    HELD: "the residual stays at 0 for the first tenth of the steps, and cross-validation decides when it comes in",
    **{name: f"the residual stays at 0 for a share {hold:g} of the steps" for name, hold in HOLDS.items()},
}


def draw_ratio(
    axes: Axes, y: float, ratio: list[float], limit: float, style: dict[str, Any], name: str, markersize: float = 3.5
) -> None:
    """A log ratio (mean, half-width of its interval) at the height y; what lies beyond the limit is an arrow."""
    mean, half = ratio
    if abs(mean) > limit:
        axes.plot([math.copysign(limit, mean)], [y], marker=">" if mean > 0 else "<", color=style["color"], markersize=4)
        return
    low, high = max(mean - half, -limit), min(mean + half, limit)
    axes.errorbar([mean], [y], xerr=[[mean - low], [high - mean]], capsize=1.5, elinewidth=0.7, markersize=markersize,
                  linestyle="none", label=name, color=style["color"], marker=style["marker"])  # fmt: skip


def ratio_axes(axes: Axes, names: list[str], limit: float, percents: tuple[int, ...]) -> None:
    """A line for each name, and log ratios up to the limit as percentages."""
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(names)), names)
    axes.set(ylim=(len(names) - 0.5, -0.5), xlim=(-limit * 1.03, limit * 1.03))
    axes.set_xticks([math.log1p(p / 100) for p in percents])
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * math.expm1(value):+.0f} %" if value else "0"))


def verdicts(results: dict[str, Any]) -> tuple[Figure, str]:
    """Paired log ratio of test FVU to the best control's, with its interval; a panel for each activation, a line for each cell."""
    methods = {results["config"].get("ours", OURS): results["verdicts"], **results["apart"]}
    methods = {method: found for method, found in methods.items() if found}
    activations = list(dict.fromkeys(v["activation"] for v in results["verdicts"]))
    cells = sorted({(v["budget"], v["n_train"]) for v in results["verdicts"]})
    size = (PAGE, 0.9 + 0.34 * len(cells))
    figure, grid = plt.subplots(1, len(activations), figsize=size, squeeze=False, sharex=True, sharey=True)
    for axes, activation in zip(grid[0], activations, strict=True):
        for j, (method, found) in enumerate(methods.items()):
            for v in found:
                if v["activation"] == activation:
                    row = cells.index((v["budget"], v["n_train"]))
                    y = row + 0.24 * (j - (len(methods) - 1) / 2)
                    draw_ratio(axes, y, v["log_ratio"], LIMIT, METHOD_STYLES[method], label(method))
        ratio_axes(axes, [f"{budget}, {n:,}" for budget, n in cells], LIMIT, (-12, -8, -4, 0, 4, 8, 12))
        axes.set(title=activation, xlabel="test FVU against the best control (left is better)")
    grid[0][0].set_ylabel(f"budget, training {unit(results)}")
    legend_below(figure, len(methods))
    return figure, (
        f"PAM-SGD at its defaults{' and variants of it' if len(methods) > 1 else ''} on {data_name(results)}: paired ratio of test FVU to "
        "that of the control of lowest validation FVU (four SGD controls), mean and 95 % t interval over seeds; an arrow lies outside the "
        f"axis.{''.join(f' `{name}`: {VARIANTS[name]}.' for name in methods if name in VARIANTS)}"
    )
