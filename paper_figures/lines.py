"""Regions along the line between two images."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from experiments.compare import t_interval
from paper_figures.style import METHOD_STYLES, PAGE, label, legend_below


def lines(results: dict[str, Any]) -> tuple[Figure, str]:
    """The error on the way from one image to another, and how often the region changes."""
    rows = {(row["activation"], row["method"]): row for row in results["lines"]}
    activations, methods = (list(dict.fromkeys(key[i] for key in rows)) for i in (0, 1))
    figure, axes = plt.subplots(
        2, len(activations), figsize=(PAGE, 3.9), sharey="row", height_ratios=[2.2, 1], squeeze=False
    )  # fmt: skip
    for (top, bottom), activation in zip(axes.T, activations, strict=True):
        for place, method in enumerate(methods):
            row, style = rows[activation, method], METHOD_STYLES[method]
            drawn, plain = row["drawn"], {name: style[name] for name in ("color", "linestyle")}
            top.plot(drawn["at"], drawn["error"], linewidth=0.9, label=label(method), **plain)
            low = -0.035 * (place + 1)
            top.plot(drawn["crossings"], np.full(len(drawn["crossings"]), low), "|", color=style["color"], markersize=4,
                     transform=top.get_xaxis_transform(), clip_on=False)  # fmt: skip
            for kind, offset in (("one digit", 0.0), ("two digits", 1.0)):
                mean, half = t_interval(row["kinds"][kind]["crossings"])
                bottom.errorbar(
                    mean,
                    offset + 0.22 * (place - 1),
                    xerr=half,
                    color=style["color"],
                    marker=style["marker"],
                    linestyle="",
                    capsize=2,
                )
        active = ", ".join(format(np.mean(rows[activation, method]["l0"]), ".0f") for method in methods)
        top.set_title(f"{activation} (l0 {active})")
        top.set(xlim=(0, 1), xlabel="share of the way")
        top.tick_params(axis="x", pad=12)
        bottom.set(
            xlabel="changes of region on the way", ylim=(1.5, -0.5), yticks=[0, 1], yticklabels=["one digit", "two digits"]
        )
        bottom.set_xlim(left=0)
    axes[0, 0].set_ylabel(r"$|\hat x - x|^2$")
    legend_below(figure, len(methods))
    config = results["config"]
    return figure, (
        f"Above: the squared error (standardised pixels, summed over 784) on the line between two test images of "
        f"{results['data']['name']} of different digits, exact; marks below are the points where the region changes, one row a method in "
        f"the order of the legend. Within a region the error is a parabola; TopK and AbsTopK jump between regions. Below: changes of "
        f"region on the way between {config['pairs']} pairs of images of one digit and {config['pairs']} of two, mean and 95 % interval "
        f"over {len(config['seeds'])} seeds. {config['n_latents']} latents, k = {config['k']}, {config['n_train']:,} training images; "
        "l0 of each method in brackets."
    )
