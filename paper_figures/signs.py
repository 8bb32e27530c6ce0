"""AbsTopK against TopK and JumpReLU on a language model's activations."""

from __future__ import annotations

import math
from typing import Any

from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from experiments.compare import t_interval
from paper_figures.style import PAGE, legend_below

STYLES: dict[str, dict[str, Any]] = {
    "TopK": {"color": "#0072B2", "marker": "s", "linestyle": "--"},
    "AbsTopK": {"color": "#D55E00", "marker": "o", "linestyle": "-"},
    "JumpReLU": {"color": "#009E73", "marker": "D", "linestyle": ":"},
}


def signs(results: dict[str, Any]) -> tuple[Figure, str]:
    """FVU, share of latents that fire with both signs, likeness of dictionaries and, for causal models, loss not recovered, by layer."""
    rows, config = results["signs"], results["config"]
    causal = any(t is not None and t["loss"] is not None for row in rows for t in row["test"])
    panels = 4 if causal else 3
    figure, axes = plt.subplots(1, panels, figsize=(PAGE, 2.1))
    names = list(dict.fromkeys(row["activation"] for row in rows))
    layers = sorted({row["layer"] for row in rows})
    for name in names:
        of_name = sorted((row for row in rows if row["activation"] == name), key=lambda row: row["layer"])
        for ax, values in zip(axes, _values(of_name, causal), strict=True):
            intervals = [t_interval(v) for v in values]
            x = [layers.index(row["layer"]) + 0.06 * (names.index(name) - 1) for row in of_name]
            half = [0.0 if math.isnan(i.half) else i.half for i in intervals]
            ax.errorbar(x, [i.mean for i in intervals], yerr=half, capsize=1.5, elinewidth=0.7, label=name, **STYLES[name])
    titles = [
        "test FVU\n(lower is better)", "latents firing with both\nsigns (minority above 0.1)", "likeness of seeds\n(mean best |cosine|)",
        "loss not recovered\n(share of mean ablation's)",
    ]  # fmt: skip
    for ax, title in zip(axes, titles, strict=False):
        top = max(ax.get_ylim()[1], ax.dataLim.y1)
        ax.set(title=title, xlabel="layer", ylim=(-0.05 * top, 1.1 * top), xlim=(-0.4, len(layers) - 0.6))
        ax.set_xticks(range(len(layers)), [str(layer) for layer in layers])
    legend_below(figure, 3)
    return figure, (
        f"SAEs of {config['n_latents']:,} latents with {config['k']} active ones (JumpReLU: on average over the training tokens) on "
        f"{results['data']['name']}, {config['n_train']:,} training tokens, each with its own step size. From the left: "
        "test FVU; the share of live latents whose rarer sign makes up more than a tenth of their firings, 0 by construction for TopK and "
        "JumpReLU; the mean best absolute cosine between dictionaries of different seeds"
        + ("; the share of the loss from mean ablation that the reconstruction leaves (lower is better)" if causal else "")
        + f". Mean and 95 % interval over {len(config['seeds'])} seeds (likeness: over pairs of seeds, no interval)."
    )


def _values(rows: list[dict[str, Any]], causal: bool) -> list[list[list[float]]]:
    """The numbers of each panel, layer by layer."""
    tests = [[t for t in row["test"] if t is not None] for row in rows]
    found = [
        [[t["fvu"] for t in of_layer] for of_layer in tests],
        [[t["minority"]["above_10"] for t in of_layer] for of_layer in tests],
        [[sum(row["likeness"][1]) / len(row["likeness"][1])] for row in rows],
    ]
    if causal:
        found.append([[1 - t["loss"]["recovered_mean"] for t in of_layer] for of_layer in tests])
    return found
