"""Reconstructions over training, codes of single images, encoder beside decoder."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from experiments.atoms import unpack
from paper_figures.atoms import strip
from paper_figures.style import METHOD_STYLES, PAGE, bare, label


def reconstructions(results: dict[str, Any]) -> tuple[Figure, str]:
    """Three test images as they are reconstructed at several steps."""
    width, models, steps = results["width"], results["looks"], results["config"]["steps"]
    side, images = round(width**0.5), unpack(results["images"], width)
    figure, axes = plt.subplots(len(models), len(steps) + 1, figsize=(PAGE, 0.98 * len(models) * len(images) / 3))
    for number, (row, model) in enumerate(zip(axes, models, strict=True)):
        shown = [images, *(unpack(packed, width) for packed in model["progress"])]
        for place, (ax, several) in enumerate(zip(row, shown, strict=True)):
            ax.imshow(strip(several, side, 1), cmap="gray_r", vmin=0, vmax=255)
            bare(ax, frame=False)
            if place:
                ax.set_xlabel(f"{np.mean(model['errors'][place - 1]):.2f}", fontsize=7, labelpad=1)
            if number == 0:
                ax.set_title(f"step {steps[place - 1]:,}" if place else "image", fontsize=7)
        row[0].set_ylabel(
            f"{label(model['method'])}\nFVU {model['test_fvu']:.3f}", rotation=0, ha="right", va="center", fontsize=7
        )
    config = results["config"]
    return figure, (
        f"Three test images of {results['data']['name']} and their reconstructions at several steps of training (TopK, "
        f"k = {config['k']} of {config['n_latents']} latents, {config['n_train']:,} images, one seed), above the mean squared error of the "
        "three in standardised pixels. FVU is over all test images, at the end."
    )


def codes(results: dict[str, Any]) -> tuple[Figure, str]:
    """The latents that are active for single images, largest first."""
    models = results["looks"]
    n_images = len(models[0]["codes"])
    figure, axes = plt.subplots(1, n_images, figsize=(PAGE, 2.3), sharey=True)
    for number, ax in enumerate(axes):
        for model in models:
            code = np.array(model["codes"][number])
            active = np.sort(code[code != 0])[::-1]
            style = {**METHOD_STYLES[model["method"]], "markersize": 3}
            ax.plot(np.arange(1, len(active) + 1), active, label=label(model["method"]), **style)
        first = models[0]["codes"][number]
        ax.set(
            xlabel="active latents, by size", title=f"image {number + 1} (active: {np.count_nonzero(first)} of {len(first)})"
        )
    axes[0].set(ylabel="code", ylim=(0, None))
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(models))
    config = results["config"]
    return figure, (
        f"Codes of three test images of {results['data']['name']} (those of the figure of reconstructions), sorted by size: TopK keeps "
        f"k = {config['k']} of {config['n_latents']}. A code's size depends on the norm of its decoder row, which differs between methods."
    )


def filters(results: dict[str, Any]) -> tuple[Figure, str]:
    """Columns of the encoder beside rows of the decoder, with their norms."""
    width, models = results["width"], results["looks"]
    side = round(width**0.5)
    figure, axes = plt.subplots(len(models), 1, figsize=(PAGE, 1.36 * len(models)))
    for ax, model in zip(axes, models, strict=True):
        both = np.concatenate([unpack(model[name], width) for name in ("encoder", "decoder")])
        n = len(both) // 2
        ax.imshow(strip(both, side, n), cmap="RdBu_r", vmin=0, vmax=255)
        bare(ax, frame=False)
        for place in range(n):
            x = (place + 0.5) * side - 0.5
            ax.text(x, -2, f"{model['encoder_norms'][place]:.2f}", ha="center", va="bottom", fontsize=7)
            ax.text(x, 2 * side + 1, f"{model['decoder_norms'][place]:.2f}", ha="center", va="top", fontsize=7)
        ax.text(-2, 0.5 * side, "encoder", ha="right", va="center", fontsize=7)
        ax.text(-2, 1.5 * side, "decoder", ha="right", va="center", fontsize=7)
        ax.set_title(f"{label(model['method'])}: cosine {np.mean(model['cosines']):.2f}", pad=12)
    return figure, (
        f"Columns of the encoder above rows of the decoder, of the {len(models[0]['encoder_norms'])} latents most often active on "
        f"{results['data']['name']}'s test images; each scaled to its largest entry (red positive, blue negative), its norm beside it. "
        "Titles have the mean cosine of the two: 1 for a tied decoder."
    )
