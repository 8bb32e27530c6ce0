"""Verdicts on the rows of the controlled comparison."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

from experiments.compare import Interval, bend_at, log_ratio, log_ratio_at, t_interval, verdict
from experiments.grid import ALL_CONTROLS, CONTROLS, IN_EVERY_CELL, OURS, PENALISED


def _cells(
    rows: list[dict[str, Any]], parts: Collection[str] = IN_EVERY_CELL
) -> dict[tuple[str, str, int], dict[str, dict[str, Any]]]:
    """The rows of every cell, by method: of the main table, or of other parts that are reported by cells."""
    cells: dict[tuple[str, str, int], dict[str, dict[str, Any]]] = {}
    for row in rows:
        if row["part"] in parts:
            cells.setdefault(_place(row), {})[row["method"]] = row
    return cells


def _place(row: dict[str, Any]) -> tuple[str, str, int]:
    return row["activation"], row["budget"], row["n_train"]


def contests(rows: list[dict[str, Any]], ours: tuple[str, ...], theirs: tuple[str, ...]) -> list[dict[str, Any]]:
    """The best of some methods against the best of others, both of lowest mean validation FVU, in every cell that has them all."""
    found = []
    for here in _cells(rows).values():
        if not {*ours, *theirs} <= set(here):
            continue
        one, other = (min((here[m] for m in several), key=lambda row: row["val"]) for several in (ours, theirs))
        found.append(_contest(one, other))
    return found


def _contest(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """A row against another of its cell."""
    ratio = log_ratio(one["fvu"], other["fvu"])
    return {
        **{name: one[name] for name in ("activation", "budget", "n_train")}, "ours": one["method"], "theirs": other["method"],
        "log_ratio": list(ratio), "verdict": verdict(ratio),
    }  # fmt: skip


def against_longer(rows: list[dict[str, Any]], ours: str) -> list[dict[str, Any]]:
    """A method against the best of the controls that had more time, of lowest mean validation FVU, in every cell that has both."""
    longer = _cells(rows, ("longer",))
    main = _cells(rows)
    return [
        _contest(main[place][ours], min(theirs.values(), key=lambda row: row["val"]))
        for place, theirs in longer.items() if ours in main.get(place, {})
    ]  # fmt: skip


def verdicts(rows: list[dict[str, Any]], method: str = OURS) -> list[dict[str, Any]]:
    """A method against the control of lowest mean validation FVU, in every cell of the main table that it was run in; the controls are the
    four, and the further ones that were run there."""
    found = []
    for (activation, budget, n_train), here in _cells(rows).items():
        if not {method, *CONTROLS} <= set(here):
            continue
        controls = [m for m in ALL_CONTROLS if m in here]
        best = min((here[m] for m in controls), key=lambda row: row["val"])
        ratios = {m: log_ratio(here[method]["fvu"], here[m]["fvu"]) for m in controls}
        found.append(
            {
                "activation": activation, "budget": budget, "n_train": n_train, "control": best["method"],
                "log_ratio": list(ratios[best["method"]]), "verdict": verdict(ratios[best["method"]]),
                "against": {m: [*ratio, verdict(ratio)] for m, ratio in ratios.items()},
            }
        )  # fmt: skip
    return found


def matched(
    rows: list[dict[str, Any]], ours: tuple[str, ...] = (OURS,), theirs: tuple[str, ...] = CONTROLS
) -> list[dict[str, Any]]:
    """Each of some methods at every penalty against the control that validation samples prefer at the method's l0, on the control's
    curve of error against l0 (`log_ratio_at`), seed by seed; only controls whose curves reach that l0 with every seed take part. The
    interval is widened by how much the curve may bend between its points (`bend_at`). A method that diverges is worse."""
    found = []
    for row in rows:
        if row["part"] not in PENALISED or row["method"] not in ours or "by_seed" not in row:
            continue
        beside = [r for r in rows if (r["part"], r["n_train"]) == (row["part"], row["n_train"]) and "by_seed" in r]
        curves = {control: [r for r in beside if r["method"] == control] for control in theirs}
        ratios = {m: {split: _at_its_l0(row, curve, split) for split in ("val", "test")} for m, curve in curves.items()}
        known = {m: r for m, r in ratios.items() if all(map(math.isfinite, (*r["val"], *r["test"])))}
        best = max(known, key=lambda m: sum(known[m]["val"]), default=None)  # beside which the method looks worst
        if best is None:
            ratio, said = Interval(math.nan, math.nan), _why_none(row)
        else:
            bends = [bend_at(l0, _curve(curves[best], "test", seed)) for seed, (l0, _) in enumerate(row["by_seed"]["test"])]
            ratio = t_interval(known[best]["test"])
            ratio = Interval(ratio.mean, ratio.half + sum(bends) / len(bends))
            said = verdict(ratio)
        found.append(
            {
                "part": row["part"], "n_train": row["n_train"], "method": row["method"], "options": row["options"], "control": best,
                "log_ratio": list(ratio), "verdict": said,
            }
        )  # fmt: skip
    return found


def _why_none(row: dict[str, Any]) -> str:
    """What is said of a method that no control can be compared with."""
    if any(math.isinf(error) for _, error in row["by_seed"]["test"]):
        return "worse"
    return "no active latents" if any(l0 == 0 for l0, _ in row["by_seed"]["test"]) else "no equal l0"


def _curve(rows: list[dict[str, Any]], split: str, seed: int) -> list[tuple[float, float]]:
    """(l0, error) along the penalty."""
    return [tuple(row["by_seed"][split][seed]) for row in rows]


def _at_its_l0(row: dict[str, Any], curve: list[dict[str, Any]], split: str) -> list[float]:
    """Of every seed."""
    return [log_ratio_at(l0, error, _curve(curve, split, seed)) for seed, (l0, error) in enumerate(row["by_seed"][split])]
