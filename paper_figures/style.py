"""One style: text of at least 7 pt at the width it is printed, colour-blind safe (Okabe and Ito), distinguishable in greyscale by marker
and dash."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure

COLUMN, PAGE = 3.4, 7.0
"""Widths of one column and of the page, in inches."""

RC: Any = {
    "font.size": 8, "axes.titlesize": 8, "axes.labelsize": 8, "legend.fontsize": 7, "xtick.labelsize": 7, "ytick.labelsize": 7,
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.25, "grid.linewidth": 0.5,
    "lines.linewidth": 1.2, "lines.markersize": 4, "legend.frameon": False, "legend.handlelength": 3.2, "figure.dpi": 200,
    "savefig.dpi": 200,
    "pdf.fonttype": 42, "figure.constrained_layout.use": True,
}  # fmt: skip

OURS: dict[str, Any] = {"color": "#D55E00", "marker": "o", "linestyle": "-", "linewidth": 1.8, "zorder": 5}
METHOD_STYLES: dict[str, dict[str, Any]] = {
    "PAM": OURS,
    "PAM-SGD": OURS,
    "PAM-SGD, hold 0": {"color": "#D55E00", "marker": "h", "linestyle": ":"},
    "PAM-SGD, hold 0.1": {"color": "#0072B2", "marker": "^", "linestyle": "-."},
    "PAM-SGD, hold 1": {"color": "#000000", "marker": "s", "linestyle": "--"},
    "PAM-SGD, decoder_lr 1": {"color": "#E69F00", "marker": "X", "linestyle": "-."},
    "PAM-SGD, decoder_lr 0.3": {"color": "#CC79A7", "marker": "P", "linestyle": "-"},
    "SGD tied-residual, decoder_lr 0.3": {"color": "#009E73", "marker": "<", "linestyle": ":"},
    "SGD tied-residual, decoder_lr 0.1": {"color": "#009E73", "marker": ">", "linestyle": "-."},
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
    "PAM published": "PAM-SGD as published",
    "PAM, held": "PAM-SGD, held",
    "PAM, one solve at the end": "PAM-SGD, one solve at the end",
    "PAM joint bias": "PAM-SGD, joint bias",
    "PAM encoder-only, GCV": "PAM-SGD, encoder only, GCV",
    "PAM untied, GCV": "PAM-SGD, untied, GCV",
    "PAM encoder-only tied-residual": "PAM-SGD, encoder only, tied-residual",
}
ORDER = ("TopK", "AbsTopK", "BatchTopK", "JumpReLU", "ReLU")
"""Of activations, in every figure."""


def label(method: str) -> str:
    """The method's name as a legend shows it."""
    return LABELS.get(method, method)


def short(method: str) -> str:
    """The method's name where there is little room."""
    return label(method).removesuffix(" (ours)")


def in_order(activations: Iterable[str]) -> list[str]:
    """Each activation once, in the order of every figure."""
    return sorted(dict.fromkeys(activations), key=lambda name: ORDER.index(name) if name in ORDER else len(ORDER))


@contextmanager
def styled() -> Iterator[None]:
    """The style, for the figures made inside."""
    with mpl.rc_context(RC):
        yield
    plt.close("all")


def legend_below(figure: Figure, columns: int) -> None:
    """One legend under all panels, each entry once, in at most so many columns as fit the figure."""
    entries: dict[str, Any] = {}
    for axes in figure.axes:
        for handle, name in zip(*axes.get_legend_handles_labels(), strict=True):
            # of a line with bars the line alone, whose dashes can then be told
            entries.setdefault(name, handle.lines[0] if isinstance(handle, ErrorbarContainer) and handle.lines[0] else handle)
    while True:
        legend = figure.legend(list(entries.values()), list(entries), loc="outside lower center", ncols=columns)
        if columns == 1 or legend.get_window_extent().width <= figure.bbox.width:
            return
        legend.remove()
        columns -= 1


def bare(axes: Axes, frame: bool) -> None:
    """No ticks and no grid: a picture, with a frame around it or without."""
    axes.set(xticks=[], yticks=[])
    axes.grid(False)
    for spine in axes.spines.values():
        spine.set_visible(frame)


def lettered(figure: Figure, panels: Iterable[Axes] | None = None) -> None:
    """(a), (b), ... at the upper left of the panels (default: all that have axes), where there are several."""
    chosen = list(figure.axes if panels is None else panels)
    chosen = [
        axes for axes in chosen if (axes.axison or axes.name == "3d") and axes.get_label() != "<colorbar>"
    ]  # 3-D has axes of its own
    if 1 < len(chosen) <= 26:
        for letter, axes in zip("abcdefghijklmnopqrstuvwxyz", chosen, strict=False):
            axes.annotate(f"({letter})", (0, 1), xytext=(-4, 4), textcoords="offset points", xycoords="axes fraction", ha="right",
                          va="bottom", fontweight="bold", fontsize=8, annotation_clip=False)  # fmt: skip


def command_line(command: str) -> str:
    """A command without the folders and the number of jobs of the machine it ran on."""
    words = shlex.split(command)
    for option, shown in (("--data-dir", ["--data-dir", "FOLDER"]), ("--out", []), ("--jobs", [])):
        if option in words:
            at = words.index(option)
            words[at : at + 2] = shown
    return shlex.join(words)


def latex(caption: str) -> str:
    """A caption as LaTeX has it: code in backticks as \\texttt, special characters escaped."""
    text = re.sub(r"([%&#_$])", r"\\\1", caption).replace("~", r"$\sim$").replace("^", r"\^{}")
    return re.sub(r"`([^`]*)`", r"\\texttt{\1}", text)


def save(figure: Figure, folder: Path, name: str, caption: str) -> list[Path]:
    """Write NAME.png, NAME.pdf, NAME.txt (the caption) and NAME.tex (the same for LaTeX) into `folder`. Returns the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    if not any(text.get_text() == "(a)" for axes in figure.axes for text in axes.texts):
        lettered(figure)
    paths = [folder / f"{name}.{kind}" for kind in ("png", "pdf")]
    for path in paths:
        figure.savefig(path, metadata={"CreationDate": None} if path.suffix == ".pdf" else {"Software": None})
    text, tex = folder / f"{name}.txt", folder / f"{name}.tex"
    text.write_text(caption.strip().replace("`", "") + "\n")
    tex.write_text(latex(caption.strip()) + "\n")
    return [*paths, text, tex]
