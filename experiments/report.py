"""Results files as text tables (plain or Markdown)."""

from __future__ import annotations

import itertools
import math
import shutil
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from experiments.compare import log_ratio_at, t_interval
from experiments.grid import IN_EVERY_CELL, OURS, PENALISED
from experiments.runs import OPEN

DETAILS = {"train": 3, "l0": 1, "frac_dead": 2, "seconds": 1}
"""Numbers of a row that tables print beside the error, and their digits."""
DEFAULT_WIDTH = 120
"""Of a table, in characters, where there is no terminal."""
MIN_CELL = 20
"""Longer cells may be broken into lines."""


def table(
    header: Sequence[str], rows: Iterable[Sequence[object]], markdown: bool = False, keys: int = 1, width: int | None = None
) -> str:
    """Columns aligned to their widest cell; `markdown` adds the pipes.

    As text it is at most `width` characters wide (None: the terminal, or 120): headings are broken into lines, and columns that do
    not fit beside the others follow below them, the first `keys` columns repeated.
    """
    body = [[str(c) for c in row] for row in rows]
    if markdown:
        widths = [max(len(row[j]) for row in [list(header), *body]) for j in range(len(header))]
        lines = ["| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |" for row in [header, *body]]
        return "\n".join([lines[0], "|" + "|".join("-" * (w + 2) for w in widths) + "|", *lines[1:]])
    width = width or shutil.get_terminal_size((DEFAULT_WIDTH, 24)).columns
    keys = min(keys, len(header) - 1)
    longest = [max((len(row[j]) for row in body), default=0) for j in range(len(header))]
    if sum(2 + max(n, len(name)) for n, name in zip(longest, header, strict=True)) - 2 <= width:
        return _block([[name] for name in header], [[[cell] for cell in row] for row in body])
    headings = [_broken(name, n) for name, n in zip(header, longest, strict=True)]
    room = max(MIN_CELL, width - sum(2 + max(map(len, [*headings[j], "-" * longest[j]])) for j in range(keys)))
    cells = [[textwrap.wrap(cell, room) or [""] for cell in row] for row in body]
    widths = [max(map(len, [*headings[j], *(line for row in cells for line in row[j])])) for j in range(len(header))]
    return "\n\n".join(
        _block([headings[j] for j in group], [[row[j] for j in group] for row in cells])
        for group in _groups(widths, keys, width)
    )


def _broken(name: str, width: int) -> list[str]:
    """A heading in lines of the width of its column, as far as its words allow."""
    return textwrap.wrap(name, max([width, *map(len, name.split())]) or 1, break_long_words=False, break_on_hyphens=False) or [
        ""
    ]


def _groups(widths: Sequence[int], keys: int, width: int) -> list[list[int]]:
    """Columns of each block, its keys included, none wider than `width` if one column and the keys fit."""
    first = list(range(keys))
    groups, used = [list(first)], sum(widths[j] + 2 for j in first)
    start = used
    for j in range(keys, len(widths)):
        if used + widths[j] > width and len(groups[-1]) > keys:
            groups.append(list(first))
            used = start
        groups[-1].append(j)
        used += widths[j] + 2
    return groups


def _block(headings: Sequence[Sequence[str]], body: Sequence[Sequence[Sequence[str]]]) -> str:
    """Cells are lists of lines; headings stand on the rule below them."""
    height = max(map(len, headings))
    top = [["", *[""] * height, *h][-height:] for h in headings]
    widths = [max(len(line) for cell in [h, *(row[j] for row in body)] for line in cell) for j, h in enumerate(headings)]
    rows = [top, [["-" * w] for w in widths], *body]
    return "\n".join(
        "  ".join(line.ljust(w) for line, w in zip(lines, widths, strict=True)).rstrip()
        for row in rows for lines in itertools.zip_longest(*row, fillvalue="")
    )  # fmt: skip


def with_interval(values: Sequence[float], digits: int = 3) -> str:
    """Mean ± half of the 95 % interval."""
    interval = t_interval(values)
    if not math.isfinite(interval.mean):
        return "diverged"
    half = "" if math.isnan(interval.half) else f" ± {interval.half:.{digits}f}"
    return f"{interval.mean:.{digits}f}{half}"


def percent(log_ratio: Sequence[float]) -> str:
    """A log ratio and its interval as percent of change."""
    mean, half = log_ratio
    if not math.isfinite(mean):
        return "n/a"
    if math.isnan(half):
        return f"{math.expm1(mean):+.1%}"
    return f"{math.expm1(mean):+.1%} [{math.expm1(mean - half):+.1%}, {math.expm1(mean + half):+.1%}]"


def unit(results: dict[str, Any]) -> str:
    """What the training samples are."""
    return "images" if results["config"]["data"] in ("mnist", "digits") else "tokens"


def size_tables(results: dict[str, Any], markdown: bool = False) -> str:
    """The main comparison: test FVU of every method at every size, and the verdict on PAM, by budget and activation."""
    rows = [row for row in results["rows"] if row["part"] == "sizes"]
    parts = []
    for budget, title in {"early": "early training (the paper's epochs, model at the end)",
                          "long": "long training (checkpoint of lowest validation FVU)"}.items():  # fmt: skip
        for activation in dict.fromkeys(row["activation"] for row in rows):
            chosen = [row for row in rows if (row["activation"], row["budget"]) == (activation, budget)]
            methods = list(dict.fromkeys(row["method"] for row in chosen))
            lines = []
            for n_train in sorted({row["n_train"] for row in chosen}):
                here = {row["method"]: row for row in chosen if row["n_train"] == n_train}
                found = next(
                    v for v in results["verdicts"]
                    if (v["activation"], v["budget"], v["n_train"]) == (activation, budget, n_train)
                )  # fmt: skip
                first = here[methods[0]]
                values = [with_interval(here[m]["fvu"]) for m in methods]
                lines.append(
                    [n_train, first["steps"], *values, found["control"], percent(found["log_ratio"]), found["verdict"]]
                )
            header = [unit(results), "steps", *methods, "best control", "PAM against it", "verdict"]
            parts.append(f"{activation}, {title}: test FVU, mean ± 95 % interval\n\n{table(header, lines, markdown, keys=2)}")
    return "\n\n".join(parts)


def summary(results: dict[str, Any], markdown: bool = False) -> str:
    """One row a cell of the main comparison: the best control, PAM, ratio and verdict; its variants apart."""
    ours = results["config"].get("ours", OURS)
    tables = [_summary(results, results["verdicts"], ours, ("PAM's FVU", "PAM against control"), markdown)]
    for method, found in results.get("apart", {}).items():
        if found:
            apart = _summary(results, found, method, ("its FVU", "it against control"), markdown)
            tables.append(f"apart: {method}\n\n{apart}")
    for title, found in results.get("contests", {}).items():
        lines = [
            [c["budget"], c["activation"], f"{c['n_train']:,}", c["ours"], c["theirs"], percent(c["log_ratio"]), c["verdict"]]
            for c in sorted(found, key=lambda c: (c["budget"], c["activation"], c["n_train"]))
        ]
        if lines:
            header = ["budget", "activation", unit(results), "one", "the other", "one against the other", "verdict"]
            tables.append(f"{title}\n\n{table(header, lines, markdown, keys=3)}")
    return "\n\n".join(tables)


def _summary(
    results: dict[str, Any], verdicts: list[dict[str, Any]], method: str, names: tuple[str, str], markdown: bool
) -> str:
    rows = {(r["activation"], r["budget"], r["n_train"], r["method"]): r for r in results["rows"] if r["part"] in IN_EVERY_CELL}
    lines = []
    for found in sorted(verdicts, key=lambda v: (v["budget"], v["activation"], v["n_train"])):
        cell = (found["activation"], found["budget"], found["n_train"])
        control, ours = rows[*cell, found["control"]], rows[*cell, method]
        lines.append([
            found["budget"], found["activation"], f"{found['n_train']:,}", f"{ours['steps']:,}", found["control"],
            with_interval(control["fvu"]), with_interval(ours["fvu"]), percent(found["log_ratio"]), found["verdict"],
        ])  # fmt: skip
    header = [
        "budget", "activation", unit(results), "steps", "best control", "control's FVU", *names, "verdict",
    ]  # fmt: skip
    return table(header, lines, markdown, keys=4)


VERDICTS = ("better", "not worse", "undecided", "worse")


def counts(found: dict[str, dict[str, Any]], markdown: bool = False) -> str:
    """Verdicts counted: a row for each results file by its name, activation and number of controls; sums by the number of controls, by
    activation, and over all."""
    groups: dict[tuple[str, str, int], list[dict[str, Any]]] = {}
    for name, results in found.items():
        for v in results["verdicts"]:
            groups.setdefault((name, v["activation"], len(v["against"])), []).append(v)
    numbers = sorted({n for *_, n in groups})
    activations = list(dict.fromkeys(activation for _, activation, _ in groups))
    rows: list[tuple[Sequence[object], list[dict[str, Any]]]] = list(groups.items())
    if len(numbers) > 1:
        rows += [(("all", "", n), [v for key, own in groups.items() if key[2] == n for v in own]) for n in numbers]
    if len(activations) > 1:
        rows += [(("all", a, ""), [v for key, own in groups.items() if key[1] == a for v in own]) for a in activations]
    rows.append((("all", "", ""), [v for own in groups.values() for v in own]))
    lines = []
    for key, own in rows:
        said = [v["verdict"] for v in own]
        ratios = [v["log_ratio"][0] for v in own]
        known = all(map(math.isfinite, ratios))
        change = f"{math.expm1(min(ratios)):+.1%} to {math.expm1(max(ratios)):+.1%}" if known else "n/a"
        lines.append([*key, len(own), *(said.count(each) for each in VERDICTS), change])
    return table(["file", "activation", "controls", "cells", *VERDICTS, "PAM against control"], lines, markdown, keys=3)


def part_table(results: dict[str, Any], part: str, markdown: bool = False) -> str:
    """Every row of a part, means over its seeds: sizes, ReLU sweep, variants, ridge, or the published comparison's ablations."""
    rows = [row for row in results["rows"] if row["part"] == part]
    if all(isinstance(row.get("setting"), int | float) for row in rows):
        rows.sort(key=lambda row: (row["activation"], row["n_train"], row["setting"]))
    details = {key: digits for key, digits in DETAILS.items() if any(key in row for row in rows)}
    lines = []
    for row in rows:
        setting = row.get("setting")
        if setting is None:
            setting = ", ".join(f"{k}={v:g}" if isinstance(v, float) else f"{k}={v}" for k, v in row.get("options", {}).items())
        lines.append([
            row["activation"], row["n_train"], row.get("budget", ""), row["method"], setting, row.get("lr", ""),
            with_interval(row["fvu"]), *(f"{row[key]:.{digits}f}" if key in row else "" for key, digits in details.items()),
        ])  # fmt: skip
    split = "validation" if part == "causes" else "test"
    names = [{"train": "training FVU", "frac_dead": "dead"}.get(key, key) for key in details]
    header = ["activation", unit(results), "budget", "method", "setting", "lr", f"{split} FVU", *names]
    return f"{part}\n\n{table(header, lines, markdown, keys=5)}"


def matched_l0(results: dict[str, Any], part: str, markdown: bool = False) -> str:
    """PAM's FVU along a penalty beside each control's at the same l0, interpolated linearly in (log l0, log mean FVU), and the verdict."""
    ours_there = (results["config"].get("ours", OURS), OPEN)
    activation, penalty = PENALISED[part]
    rows = [row for row in results["rows"] if row["part"] == part]
    controls = [m for m in dict.fromkeys(row["method"] for row in rows) if m not in ours_there]
    judged = [found for found in results.get("matched", ()) if found["part"] == part]
    lines = []
    for ours in (row for row in rows if row["method"] in ours_there):
        line = [
            ours["n_train"],
            ours["method"],
            f"{ours['options'][penalty]:g}",
            f"{ours['l0']:.1f}",
            f"{np.mean(ours['fvu']):.3f}",
        ]
        for control in controls:
            points = [
                (row["l0"], float(np.mean(row["fvu"])))
                for row in rows
                if (row["method"], row["n_train"]) == (control, ours["n_train"])
            ]
            own = float(np.mean(ours["fvu"]))
            ratio = log_ratio_at(ours["l0"], own, points)
            line.append("outside" if math.isnan(ratio) else f"{own / math.exp(ratio):.3f}")
        for found in judged:
            if all(found[name] == ours[name] for name in ("n_train", "method", "options")):
                line += [found["control"] or "", percent(found["log_ratio"]), found["verdict"]]
        lines.append(line)
    header = [unit(results), "method", penalty, "its l0", "its FVU", *(f"{m} at that l0" for m in controls)]
    header += ["best control there", "against it", "verdict"] if judged else []
    return f"{activation} at matched l0: mean test FVU\n\n{table(header, lines, markdown, keys=3)}"


def render(results: dict[str, Any], markdown: bool = False) -> str:
    """Every table of a results file."""
    parts = [size_tables(results, markdown)] if "verdicts" in results else []
    for part in dict.fromkeys(row["part"] for row in results["rows"]):
        parts.append(part_table(results, part, markdown))
        if part in PENALISED:
            parts.append(matched_l0(results, part, markdown))
    return "\n\n".join(parts)
