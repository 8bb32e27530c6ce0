"""The field's variants against what they are in a limit: error against l0, and error at equal $\\ell_0$."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

from experiments.compositions import VARIANTS
from experiments.variants import TREE_NAME
from paper_figures.style import PAGE, legend_below
from paper_figures.verdicts import draw_ratio, ratio_axes

ENTRIES: dict[str, dict[str, Any]] = {
    "SGD": {"color": "#0072B2", "marker": "s", "linestyle": "--"},
    "SGD, read out": {"color": "#999999", "marker": "^", "linestyle": ":"},
    "PAM-SGD, read out": {"color": "#D55E00", "marker": "o", "linestyle": "-"},
}
EDGE = 0.75
"""Of the lower panels, in log ratio; what lies outside is drawn as an arrow."""


def families(results: dict[str, Any]) -> tuple[Figure, str]:
    """One column a family: above, test FVU against l0 (limits as lines, variants as points); below, error at the limit's l0."""
    shown = [p for p in results["variants"] if p["variant"] in VARIANTS and p["entry"] in ENTRIES]
    names = list(dict.fromkeys(VARIANTS[p["variant"]].family for p in shown))
    rows = {name: list(dict.fromkeys(r["variant"] for r in results["against_limits"] if r["family"] == name)) for name in names}
    tallest = max(map(len, rows.values()))
    figure, grid = plt.subplots(
        2, len(names), figsize=(PAGE, 2.6 + 0.3 * tallest), squeeze=False, height_ratios=(2.0, 0.3 * tallest + 0.3)
    )
    for axes, below, name in zip(grid[0], grid[1], names, strict=True):
        _curves(axes, [p for p in shown if VARIANTS[p["variant"]].family == name], name)
        _ratios(below, [r for r in results["against_limits"] if r["family"] == name], rows[name])
    grid[0][0].set_ylabel("test FVU")
    legend_below(figure, len(ENTRIES))
    config = results["config"]
    where = results["data"]["name"] if "data" in results else TREE_NAME
    return figure, (
        f"Variants of SAEs with {config['n_latents']:,} latents on {where}, {config['n_train']:,} training samples, {config['steps']:,} "
        "steps, each with its own step size for each optimizer. Above: test FVU against l0, the limit of each family as a line, its "
        "variants as points. Below: a variant's error over that of its limit (by the same optimizer) at equal l0, mean over knobs, with "
        f"the 95 % interval over {len(config['seeds'])} seeds; left of 0 is better. Arrows lie beyond {100 * math.expm1(EDGE):.0f} %; "
        "variants whose l0 lies outside their limit's have no point."
    )


def _curves(axes: Axes, points: list[dict[str, Any]], family: str) -> None:
    def means(found: list[dict[str, Any]]) -> list[tuple[float, float]]:
        return sorted((float(np.mean(p["l0"])), float(np.mean(p["fvu"]))) for p in found)

    for entry, style in ENTRIES.items():
        own = [p for p in points if p["entry"] == entry and all(map(math.isfinite, p["fvu"])) and min(p["l0"]) > 0]
        limit = means([p for p in own if VARIANTS[p["variant"]].limit == p["variant"]])
        others = means([p for p in own if VARIANTS[p["variant"]].limit != p["variant"]])
        if limit:
            axes.plot(*zip(*limit, strict=True), label=entry, **style)
        if others:
            axes.plot(*zip(*others, strict=True), **{**style, "linestyle": "none"}, markersize=2.5, alpha=0.55)
    title = next(name for name, v in VARIANTS.items() if v.family == family and v.limit == name)
    axes.set(xscale="log", yscale="log", xlabel=r"$\ell_0$", title=title)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.set_major_formatter(ScalarFormatter())
        axis.set_minor_formatter(NullFormatter())


def _ratios(axes: Axes, found: list[dict[str, Any]], names: list[str]) -> None:
    for j, (entry, style) in enumerate(ENTRIES.items()):
        for r in found:
            if r["entry"] == entry and math.isfinite(r["log_ratio"][0]):
                draw_ratio(axes, names.index(r["variant"]) + 0.24 * (j - 1), r["log_ratio"], EDGE, style, entry, markersize=3)
    ratio_axes(axes, names, EDGE, (-50, 0, 100))
    axes.set_xlabel("error at equal $\\ell_0$")
