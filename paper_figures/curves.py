"""Line plots with intervals, and the figures made of them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Any

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from experiments.compare import t_interval
from experiments.grid import ALL_CONTROLS, IN_EVERY_CELL, OURS, PENALISED
from experiments.report import unit
from experiments.sources import IMAGES, split_name
from paper_figures.style import COLUMN, METHOD_STYLES, PAGE, in_order, label, legend_below, lettered

Row = dict[str, Any]


def data_name(results: Row) -> str:
    """The data set as a caption names it."""
    data, name = results["config"]["data"], results["data"]["name"]
    return name if data in IMAGES else f"layer {split_name(data)[1]} of {name}"


def draw(axes: Axes, x: Sequence[float], rows: Sequence[Row], method: str, joined: bool = True) -> None:
    """Mean test FVU of `rows` at `x`, with 95 % t intervals as bars; a line joins them."""
    intervals = [t_interval(row["fvu"]) for row in rows]
    kept = [(a, i) for a, i in zip(x, intervals, strict=True) if math.isfinite(i.mean)]
    if kept:
        axes.errorbar(
            [a for a, _ in kept], [i.mean for _, i in kept],
            yerr=[0.0 if math.isnan(i.half) else i.half for _, i in kept],
            capsize=1.5, elinewidth=0.7, label=label(method),
            **(METHOD_STYLES[method] if joined else {**METHOD_STYLES[method], "linestyle": "none"}),
        )  # fmt: skip


def log_x(axes: Axes, ticks: Iterable[float]) -> None:
    """Logarithmic x axis with `ticks` as plain numbers."""
    ticks = list(ticks)
    axes.set_xscale("log")
    axes.set_xticks(ticks, [f"{t:,.0f}" for t in ticks])
    axes.minorticks_off()


def log_axes(axes: Axes, ticks: Iterable[float], limit: float | None = None) -> None:
    """`log_x`, and a logarithmic FVU axis with plain numbers."""
    axes.set_yscale("log")
    log_x(axes, ticks)
    low, high = axes.get_ylim()
    high = high if limit is None else min(high, limit)
    marks: list[float] = []
    for t in (0.03, 0.05, 0.08, 0.12, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0):
        if low <= t <= high and (not marks or math.log(t / marks[-1]) > 0.07 * math.log(high / low)):  # labels must not touch
            marks.append(t)
    axes.set_yticks(marks, [f"{t:g}" for t in marks])
    axes.set_ylim(low, high)


def sample_efficiency(results: Row) -> tuple[Figure, str]:
    """Test FVU against the number of training samples, by activation and budget; under each panel the ratios to the best control."""
    ours = results["config"].get("ours", OURS)
    rows = [row for row in results["rows"] if row["part"] in IN_EVERY_CELL and row["method"] in (*ALL_CONTROLS, ours)]
    activations = in_order(row["activation"] for row in rows)
    config = results["config"]
    titles = {"early": f"{config['early_epochs']} epochs", "long": "long training, best checkpoint"}
    figure, grid = plt.subplots(
        2 * len(activations), len(titles), figsize=(PAGE, 0.7 + 2.7 * len(activations)), squeeze=False, sharex=True, sharey="row",
        height_ratios=[2.2, 1] * len(activations),
    )  # fmt: skip
    ticks = sorted({row["n_train"] for row in rows})
    for i, activation in enumerate(activations):
        for j, (budget, title) in enumerate(titles.items()):
            chosen = [row for row in rows if (row["activation"], row["budget"]) == (activation, budget)]
            best = {
                v["n_train"]: v["control"]
                for v in results["verdicts"]
                if (v["activation"], v["budget"]) == (activation, budget)
            }
            for method in dict.fromkeys(row["method"] for row in chosen):
                points = sorted((row for row in chosen if row["method"] == method), key=lambda row: row["n_train"])
                draw(grid[2 * i][j], [p["n_train"] for p in points], points, method)
                _draw_ratios(grid[2 * i + 1][j], points, chosen, best, method)
            grid[2 * i][j].set_title(f"{activation}, {title}")
        grid[2 * i][0].set_ylabel("test FVU")
        grid[2 * i + 1][0].set_ylabel("against the\nbest control")
    for axes in grid[::2].flat:  # after all panels are drawn: rows share their limits
        log_axes(axes, ticks)
    for axes in grid[1::2].flat:
        axes.axhline(0, color="black", linewidth=0.6)
        axes.set_ylim(-10, 20)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:+.0f} %" if value else "0"))
    for axes in grid[-1]:
        axes.set_xlabel(f"training {unit(results)}")
    legend_below(figure, 5)
    lettered(figure, grid[::2].flat)
    n_seeds = sorted({len(row["seeds"]) for row in rows})
    return figure, (
        f"Sample efficiency on {data_name(results)}: fraction of variance unexplained on the test split (lower is better) against the "
        f"number of training {unit(results)}, {config['n_latents']:,} latents, k = {config['k']}, and below it the ratio of the means to "
        "the control of lowest validation FVU (cut at +20 %). Every method starts from the same encoder, sees the same batches and has its "
        "own step size, chosen on validation data from a grid that grows by the same rule. Bars: 95 % t intervals over "
        f"{' or '.join(map(str, n_seeds))} seeds. Left: {config['early_epochs']} epochs, the model at the end. Right: at least "
        f"{config['long_steps']:,} steps, the checkpoint of lowest validation FVU."
    )


def _draw_ratios(axes: Axes, points: Sequence[Row], chosen: Sequence[Row], best: dict[int, str], method: str) -> None:
    """Mean test FVU over that of the best control of each size, less 1, in percent."""
    means = {(row["method"], row["n_train"]): t_interval(row["fvu"]).mean for row in chosen}
    x = [p["n_train"] for p in points if p["n_train"] in best]
    y = [100 * (means[method, n] / means[best[n], n] - 1) for n in x]
    style = {name: value for name, value in METHOD_STYLES[method].items() if name != "linewidth"}
    axes.plot(x, y, linewidth=1.0, markersize=3, **style)


LEAST_L0 = 0.5
"""Active latents a sample, of what a figure of error against l0 shows."""


def sparsity(results: Row) -> tuple[Figure, str]:
    """Test FVU against l0 along a penalty, of ReLU and where there is one of JumpReLU, a panel for each number of training images."""
    rows = [row for row in results["rows"] if row["part"] in PENALISED]
    places = sorted(
        {(row["part"], row["n_train"]) for row in rows}, key=lambda place: (list(PENALISED).index(place[0]), place[1])
    )
    width = PAGE if len({row["method"] for row in rows}) > 4 else COLUMN * len(places)  # what the legend needs
    figure, grid = plt.subplots(1, len(places), figsize=(width, 2.8), squeeze=False, sharey=True)
    sweeps: dict[str, list[float]] = {}
    for axes, (part, n_train) in zip(grid[0], places, strict=True):
        activation, penalty = PENALISED[part]
        chosen = [row for row in rows if (row["part"], row["n_train"]) == (part, n_train)]
        sweeps[penalty.upper()] = sorted({row["options"][penalty] for row in chosen})
        for method in dict.fromkeys(row["method"] for row in chosen):
            points = [row for row in chosen if row["method"] == method and row["l0"] >= LEAST_L0]
            points.sort(key=lambda row: row["options"][penalty])
            draw(axes, [p["l0"] for p in points], points, method)
        axes.set(xlabel=r"$\ell_0$ (active latents a sample)", title=f"{activation}, {n_train:,} training {unit(results)}")
    for axes in grid[0]:
        log_axes(axes, (1, 3, 10, 30, 100))
    grid[0][0].set_ylabel("test FVU (lower is better)")
    legend_below(figure, 3)
    along = "; ".join(f"{name} = {', '.join(f'{v:g}' for v in values)}" for name, values in sweeps.items())
    return figure, (
        f"Sparsity under a penalty on {data_name(results)}: test FVU against the mean number of active latents along {along} "
        "(weights of the mean over samples of the code's L1 norm, or of its number of active latents). Lower left is better. Each "
        "point has its own step size, chosen by the penalised loss on validation samples; bars: 95 % t intervals over "
        f"{len(rows[0]['seeds'])} seeds."
    )


def variants(results: Row) -> tuple[Figure, str]:
    """Variants of PAM: test FVU by budget and size, one marker a variant, PAM as recommended beside them."""
    rows = [row for row in results["rows"] if row["part"] == "variants"]
    keys = sorted(
        {(row["activation"], row["budget"], row["n_train"]) for row in rows},
    )
    seeds = rows[0]["seeds"]
    ours = [row for row in results["rows"] if row["part"] == "sizes" and row["method"] == "PAM"]
    methods = [*dict.fromkeys(row["method"] for row in rows), "PAM"]
    figure, axes = plt.subplots(figsize=(PAGE, 2.8))
    for j, method in enumerate(methods):
        x, points = [], []
        for i, key in enumerate(keys):
            for row in ours if method == "PAM" else rows:
                if (row["activation"], row["budget"], row["n_train"]) == key and row["method"] == method:
                    x.append(i + (j - (len(methods) - 1) / 2) * 0.12)
                    points.append({**row, "fvu": row["fvu"][: len(seeds)]})
        style = METHOD_STYLES[method]
        intervals = [t_interval(p["fvu"]) for p in points]
        axes.errorbar(x, [i.mean for i in intervals], yerr=[i.half for i in intervals], label=label(method), capsize=2,
                      color=style["color"], marker=style["marker"], linestyle="none")  # fmt: skip
    axes.set_xticks(range(len(keys)), [f"{a}, {b}\n{n:,} {unit(results)}" for a, b, n in keys])
    axes.set_ylabel("test FVU (lower is better)")
    legend_below(figure, 3)
    return figure, (
        f"Variants of PAM-SGD on {data_name(results)}, each with its own step size chosen on validation data: test FVU, 95 % "
        f"t intervals over {len(seeds)} seeds. `published`: encoder-only gradients, weights solved without the bias, no ridge. "
        "`joint bias`: weights and bias solved together. `GCV`: ridge by generalised cross-validation."
    )


def ridge(results: Row) -> tuple[Figure, str]:
    """Fixed ridges of the recommended PAM against the choice by GCV (the main table's PAM at the same seeds)."""
    fixed = [row for row in results["rows"] if row["part"] == "ridge"]
    cells = {(row["activation"], row["budget"], row["n_train"]) for row in fixed}
    seeds = len(fixed[0]["seeds"]) if fixed else 0
    chosen = [
        {**row, "part": "ridge", "options": {"ridge": "gcv"}, "fvu": row["fvu"][:seeds]}
        for row in results["rows"]
        if row["part"] == "sizes" and row["method"] == "PAM" and (row["activation"], row["budget"], row["n_train"]) in cells
    ]
    what = "The ridge of the recommended PAM-SGD (AbsTopK, long training, own step sizes) on"
    return settings({**results, "rows": fixed + chosen}, "ridge", "ridge of the solve (multiplies a sum over samples)", what)


def settings(results: Row, part: str, xlabel: str, what: str) -> tuple[Figure, str]:
    """Test FVU against a setting (a column each), a panel for each number of training images and, in rows, each activation."""
    rows = [row for row in results["rows"] if row["part"] == part]
    if not rows:
        raise KeyError(part)
    sizes = sorted({row["n_train"] for row in rows})
    activations = in_order(row["activation"] for row in rows)
    values = list(dict.fromkeys(_setting(row, part) for row in rows))
    if not any(isinstance(v, str) for v in values):
        values.sort()
    height = 2.5 + 1.9 * (len(activations) - 1)
    figure, grid = plt.subplots(
        len(activations), len(sizes), figsize=(COLUMN * min(2, len(sizes)), height), squeeze=False, sharey="row", sharex=True
    )
    for axes, (activation, n_train) in zip(grid.flat, itertools.product(activations, sizes), strict=True):
        for method in dict.fromkeys(row["method"] for row in rows):
            points = [
                row for row in rows if (row["activation"], row["n_train"], row["method"]) == (activation, n_train, method)
            ]
            points.sort(key=lambda row: values.index(_setting(row, part)))
            joined = not any(isinstance(v, str) for v in values)  # no line between a number and a rule
            draw(axes, [values.index(_setting(p, part)) for p in points], points, method, joined)
        axes.set_xticks(range(len(values)), ["GCV" if v == "gcv" else v if isinstance(v, str) else f"{v:,g}" for v in values])
        axes.set_title(f"{activation}, {n_train:,} training {unit(results)}")
    for axes in grid[-1]:
        axes.set_xlabel(xlabel)
    for axes in grid[:, 0]:
        axes.set(ylabel="test FVU (lower is better)", ylim=(max(0.0, axes.get_ylim()[0]), None))
    legend_below(figure, 3)
    if len(activations) > 1:
        what = (
            f"{what.removesuffix(' on').removesuffix(',')}, ReLU codes not matched in l0 and without points that diverged, on"
        )
    return figure, f"{what} {data_name(results)}. Bars: 95 % t intervals over {len(rows[0]['seeds'])} seeds."


ABLATIONS = {
    "encoder_updates": "encoder updates a batch",
    "k": "k",
    "weight_decay": "weight decay",
    "mu_nu_pull": r"$\mu = \nu$ (proximal pull)",
}


def ablations(results: Row) -> tuple[Figure, str]:
    """Test FVU against each setting of the published algorithm, a panel a setting; activations last."""
    figure, axes = plt.subplots(
        1, len(ABLATIONS) + 1, figsize=(PAGE, 2.4), sharey=True, width_ratios=[*[1.0] * len(ABLATIONS), 0.6]
    )
    for ax, (part, xlabel) in zip(axes, ABLATIONS.items(), strict=False):
        rows = [row for row in results["rows"] if row["part"] == part]
        values = sorted({float(_setting(row, part)) for row in rows})
        for method in dict.fromkeys(row["method"] for row in rows):
            points = sorted((row for row in rows if row["method"] == method), key=lambda row: float(_setting(row, part)))
            draw(ax, [values.index(float(_setting(p, part))) for p in points], points, method)
        ax.set_xticks(range(len(values)), [f"{v:g}" for v in values], rotation=45)
        ax.set_xlabel(xlabel)
    first = next(row for row in results["rows"] if row["part"] == "k")
    methods = list(dict.fromkeys(row["method"] for row in results["rows"] if row["part"] == "k"))
    same = [row for row in results["rows"] if row["part"] == "sizes" and row["n_train"] == first["n_train"]]
    l0 = _by_activation(axes[-1], same, methods)
    axes[0].set(ylabel="test FVU (lower is better)", ylim=(0, 1.05 * axes[0].get_ylim()[1]))  # shared by all
    figure.align_xlabels(axes)
    legend_below(figure, 2)
    config = results["config"]
    return figure, (
        f"Settings of the published algorithm on {data_name(results)}, {first['n_train']:,} training {unit(results)}, "
        f"{first['activation']} with {config['n_latents']:,} latents, k = {config['k']} but where it varies, {config['epochs']} epochs: "
        "encoder updates a batch and mu = nu as the paper's text has it, a proximal pull (both of PAM-SGD alone), k, weight decay "
        f"(squared in the decoder solve), and activations, which are not matched in l0 (under ReLU {l0}). Bars: 95 % t intervals over "
        f"{len(first['seeds'])} seeds."
    )


def _by_activation(ax: Axes, rows: list[Row], methods: list[str]) -> str:
    """A column for each activation; returns the active latents under ReLU, which does not fix them."""
    activations = in_order(row["activation"] for row in rows)
    said = []
    for method in methods:
        points = sorted((row for row in rows if row["method"] == method), key=lambda row: activations.index(row["activation"]))
        draw(ax, [activations.index(p["activation"]) for p in points], points, method, joined=False)
        said += [f"{p['l0']:.0f} for {label(method)}" for p in points if p["activation"] == "ReLU"]
    ax.set_xticks(range(len(activations)), activations, rotation=45)
    ax.set(xlabel="activation", xlim=(-0.5, len(activations) - 0.5))
    return ", ".join(said)


def _setting(row: Row, part: str) -> Any:
    return row["setting"] if "setting" in row else row["options"][part]


def paper_sizes(results: Row) -> tuple[Figure, str]:
    """The published comparison and the rows that change one of its choices, a panel for each activation."""
    rows = [row for row in results["rows"] if row["part"] == "sizes"]
    activations = list(dict.fromkeys(row["activation"] for row in rows))
    figure, grid = plt.subplots(1, len(activations), figsize=(PAGE, 2.8), squeeze=False)
    for axes, activation in zip(grid[0], activations, strict=True):
        for method in dict.fromkeys(row["method"] for row in rows):
            points = [row for row in rows if (row["activation"], row["method"]) == (activation, method)]
            draw(axes, [p["n_train"] for p in points], points, method)
        log_axes(axes, sorted({row["n_train"] for row in rows}), limit=4.0)
        axes.tick_params(axis="x", rotation=45)
        axes.set(title=activation, xlabel=f"training {unit(results)}")
    grid[0][0].set_ylabel("test FVU (lower is better)")
    legend_below(figure, 5)
    return figure, (
        f"The published comparison on {data_name(results)}, with its quirks (tied SGD against untied PAM-SGD, W_enc ~ 0.1 N(0, 1), one "
        f"constant step size {results['config']['lr']:g}, weights solved without the bias), and rows that change one choice each: an "
        "untied SGD baseline, a tied one started at unit scale, PAM-SGD with the bias solved jointly. ReLU codes are not matched in l0. "
        f"Bars: 95 % t intervals over {len(rows[0]['seeds'])} seeds."
    )
