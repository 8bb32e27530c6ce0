"""One style: legible at column width, colour-blind safe (Okabe and Ito), distinguishable in greyscale by marker and dash."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLUMN, PAGE = 3.4, 7.0
"""Widths of one column and of the page, in inches."""

RC: Any = {
    "font.size": 8, "axes.titlesize": 8, "axes.labelsize": 8, "legend.fontsize": 7, "xtick.labelsize": 7, "ytick.labelsize": 7,
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.25, "grid.linewidth": 0.5,
    "lines.linewidth": 1.2, "lines.markersize": 4, "legend.frameon": False, "figure.dpi": 200, "savefig.dpi": 200,
    "pdf.fonttype": 42, "figure.constrained_layout.use": True,
}  # fmt: skip

OURS: dict[str, Any] = {"color": "#D55E00", "marker": "o", "linestyle": "-", "linewidth": 1.8, "zorder": 5}
METHOD_STYLES: dict[str, dict[str, Any]] = {
    "PAM": OURS,
    "PAM-SGD": OURS,
    "PAM-SGD, hold 0": {"color": "#D55E00", "marker": "h", "linestyle": ":"},
    "PAM-SGD, hold 0.1": {"color": "#0072B2", "marker": "^", "linestyle": "-."},
    "PAM-SGD, hold 1": {"color": "#000000", "marker": "s", "linestyle": "--"},
    "SGD tied": {"color": "#0072B2", "marker": "s", "linestyle": "--"},
    "SGD untied": {"color": "#999999", "marker": "v", "linestyle": ":"},
    "SGD untied from W_enc^T": {"color": "#56B4E9", "marker": "^", "linestyle": "-."},
    "SGD tied-residual": {"color": "#009E73", "marker": "D", "linestyle": (0, (5, 1))},
    "PAM, one solve at the end": {"color": "#000000", "marker": "s", "linestyle": "--"},
    "PAM, held": {"color": "#0072B2", "marker": "^", "linestyle": "-."},
    "PAM published": {"color": "#CC79A7", "marker": "P", "linestyle": "-"},
    "PAM joint bias": {"color": "#E69F00", "marker": "X", "linestyle": "-."},
    "PAM encoder-only, GCV": {"color": "#000000", "marker": "<", "linestyle": "--"},
    "PAM untied, GCV": {"color": "#56B4E9", "marker": ">", "linestyle": ":"},
    "PAM encoder-only tied-residual": {"color": "#0072B2", "marker": "h", "linestyle": (0, (3, 1, 1, 1))},
    "SGD tied, unit start": {"color": "#009E73", "marker": "D", "linestyle": (0, (5, 1))},
}
LABELS = {
    "SGD untied from W_enc^T": r"SGD untied from $W_{\mathrm{enc}}^\top$",
    "PAM": "PAM-SGD (ours)",
    "PAM-SGD": "PAM-SGD (ours)",
}


def label(method: str) -> str:
    """The method's name as a legend shows it."""
    return LABELS.get(method, method)


@contextmanager
def styled() -> Iterator[None]:
    """The style, for the figures made inside."""
    with mpl.rc_context(RC):
        yield
    plt.close("all")


def legend_below(figure: Figure, columns: int) -> None:
    """One legend under all panels, each entry once."""
    entries: dict[str, Any] = {}
    for axes in figure.axes:
        for handle, name in zip(*axes.get_legend_handles_labels(), strict=True):
            entries.setdefault(name, handle)
    figure.legend(list(entries.values()), list(entries), loc="outside lower center", ncols=columns)


def bare(axes: Axes, frame: bool) -> None:
    """No ticks and no grid: a picture, with a frame around it or without."""
    axes.set(xticks=[], yticks=[])
    axes.grid(False)
    for spine in axes.spines.values():
        spine.set_visible(frame)


def save(figure: Figure, folder: Path, name: str, caption: str) -> list[Path]:
    """Write NAME.png, NAME.pdf and NAME.txt (the caption) into `folder`. Returns the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.{kind}" for kind in ("png", "pdf")]
    for path in paths:
        figure.savefig(path, metadata={"CreationDate": None} if path.suffix == ".pdf" else {"Software": None})
    text = folder / f"{name}.txt"
    text.write_text(caption.strip() + "\n")
    return [*paths, text]
