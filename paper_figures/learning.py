"""Learning curves: error against steps, and against seconds."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from experiments.report import unit
from paper_figures.curves import data_name
from paper_figures.style import METHOD_STYLES, PAGE, label, legend_below

SPAN = 1.8
"""The error axis ends at so many times the least error: what comes before is all alike."""


def learning(results: dict[str, Any]) -> tuple[Figure, str]:
    """A row for each size; validation error against steps on the left, against seconds on the right."""
    sizes = sorted({c["n_train"] for c in results["curves"]})
    figure, grid = plt.subplots(len(sizes), 2, figsize=(PAGE, 0.7 + 2.0 * len(sizes)), squeeze=False, sharey="row")
    for line, n_train in zip(grid, sizes, strict=True):
        chosen = [c for c in results["curves"] if c["n_train"] == n_train]
        least = min(float(np.min(np.mean(c["val_fvu"], axis=1))) for c in chosen)
        for axes, clock in zip(line, ("step", "seconds"), strict=True):
            for c in chosen:
                style = {**METHOD_STYLES[c["method"]], "markersize": 2.5}
                axes.plot(c[clock], np.mean(c["val_fvu"], axis=1), label=label(c["method"]), **style)
            axes.set(yscale="log", ylim=(0.97 * least, SPAN * least), title=f"{n_train:,} training {unit(results)}")
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.yaxis.set_minor_formatter(NullFormatter())
            ticks = [t for t in (0.15, 0.17, 0.2, 0.25, 0.3, 0.35, 0.4) if 0.97 * least <= t <= SPAN * least]
            axes.set_yticks(ticks)
        line[0].set_ylabel("validation FVU")
    grid[-1][0].set_xlabel("step")
    grid[-1][1].set_xlabel("seconds of training, solves and readouts included")
    legend_below(figure, 5)
    config = results["config"]
    return figure, (
        f"Learning curves on {data_name(results)}: validation FVU (lower is better), {config['activation']}, k = {config['k']} of "
        f"{config['n_latents']:,} latents, mean over {len(config['seeds'])} seeds, each method at the step size that validation chose "
        "for the long budget. Rows of PAM-SGD that have a readout are of the decoder it would end with."
    )
