"""Dictionary atoms and reconstructions of SAEs trained on MNIST."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from experiments.atoms import N_ATOMS, unpack
from paper_figures.style import PAGE, bare, label, lettered

COLUMNS = 12


def atoms(results: dict[str, Any]) -> tuple[Figure, str]:
    """For each SAE: the ten test images' reconstructions and its most active atoms."""
    width = results["width"]
    side = round(width**0.5)
    models = results["atoms_of"]
    lines = 1 + len(models)
    figure, axes = plt.subplots(lines, 2, figsize=(PAGE, 0.6 * lines), width_ratios=(10, COLUMNS), gridspec_kw={"wspace": 0.02})
    axes[0][0].imshow(strip(unpack(results["images"], width), side, 10), cmap="gray_r", vmin=0, vmax=255)
    lettered(figure, axes[0])
    axes[0][0].set_title("test images and their reconstructions")
    axes[0][1].set_title(f"the {N_ATOMS} atoms that are active most often")
    axes[0][0].set_ylabel("images", rotation=0, ha="right", va="center", fontsize=6.5)
    axes[0][1].set_visible(True)
    for row, model in zip(axes[1:], models, strict=True):
        row[0].imshow(strip(unpack(model["reconstructions"], width), side, 10), cmap="gray_r", vmin=0, vmax=255)
        row[1].imshow(strip(unpack(model["atoms"], width), side, COLUMNS), cmap="RdBu_r", vmin=0, vmax=255)
        name = f"{model['activation']},\n{label(model['method'])}\nFVU {model['test_fvu']:.3f}"
        row[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=6.5)
    for ax in axes.flat:
        bare(ax, frame=False)
    axes[0][1].imshow(np.full((side, side * COLUMNS), 128), cmap="RdBu_r", vmin=0, vmax=255, alpha=0)
    config = results["config"]
    return figure, (
        f"SAEs trained on {config['n_train']:,} images of {results['data']['name']} ({config['n_latents']} latents, k = {config['k']}, "
        f"first seed). Left: the "
        "first test image of each digit (top) and its reconstructions. Right: decoder rows of the latents active most often, each scaled "
        "to its largest entry; red positive, blue negative, white zero. FVU is over all test images."
    )


def strip(images: np.ndarray, side: int, columns: int) -> np.ndarray:
    """Images side by side, `columns` in a line; an unfinished line is filled with the middle of the scale."""
    missing = -len(images) % columns
    filled = np.vstack([images, np.full((missing, side * side), 128, dtype=images.dtype)])
    lines = [
        np.hstack([image.reshape(side, side) for image in filled[i : i + columns]]) for i in range(0, len(filled), columns)
    ]
    return np.vstack(lines)
