"""Exact cells of power diagrams in space, against the number of sites, beside Qhull's intersection of all half-spaces of each cell (whose
inner points are given to it; timed on a share of the cells)."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from scipy.spatial import HalfspaceIntersection

from experiments.benches.timing import median_seconds, require_cpu
from splinterp.geometry import PowerDiagram, Solids, half_spaces

BOX = (-1.0, 1.0, -1.0, 1.0, -1.0, 1.0)
SIDES = np.concatenate([np.column_stack([-np.eye(3), -np.ones(3)]), np.column_stack([np.eye(3), -np.ones(3)])])
TIMED = 20
"""Cells that Qhull is timed on."""
SIZES = ((1, 100), (1, 300), (1, 1_000), (3, 30), (3, 100))


def qhull_seconds(diagram: PowerDiagram, cells: Solids) -> float:
    """For all cells, from some of them."""
    chosen = np.random.default_rng(0).permutation(len(cells))[:TIMED]
    given = []
    for cell in (cells[m] for m in chosen):
        own = half_spaces(diagram, cell.sites)
        given.append((np.concatenate([np.column_stack([own.normals, -own.offsets]), SIDES]), cell.centre))
    start = time.perf_counter()
    for spaces, centre in given:
        HalfspaceIntersection(spaces, centre)
    return (time.perf_counter() - start) * len(cells) / len(chosen)


def solids(sizes: tuple[tuple[int, int], ...]) -> list[list[Any]]:
    """A row for each order and number of sites."""
    rows: list[list[Any]] = []
    for order, n in sizes:
        diagram = PowerDiagram(np.random.default_rng(0).uniform(-1, 1, (n, 3)), None, order)
        cells = diagram.solids(BOX)
        seconds = median_seconds(lambda d=diagram: d.solids(BOX))  # type: ignore[misc]
        filled = abs(sum(cell.volume for cell in cells) - 8) / 8
        qhull = qhull_seconds(diagram, cells)
        faces = np.mean([len(cell.faces) for cell in cells])
        rows.append([order, f"{n:,}", f"{len(cells):,}", f"{faces:.1f}", f"{seconds:.2f}", f"{1e3 * seconds / len(cells):.1f}",
                     f"{qhull / seconds:.2f}", f"{filled:.0e}"])  # fmt: skip
    return rows


def run(quick: bool, device: str) -> dict[str, Any]:
    """The sizes of the report, or the smallest."""
    require_cpu(device, "geometry runs on the CPU")
    header = ["order", "sites", "cells", "faces a cell", "seconds", "ms a cell", "Qhull / exact", "share of the volume off"]
    title = "cells of uniform sites in a cube"
    return {"tables": [{"title": title, "header": header, "rows": solids(SIZES[:1] if quick else SIZES)}]}
