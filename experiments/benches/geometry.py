"""Exact cells of power diagrams against the number of sites, with the fitted exponent, beside a 400 x 400 raster
that loops over its pixels (timed on a share of them). The floor of order 1 is the lower hull itself, of order k one pass
over the cells' vertices.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.benches.timing import exponent, median_seconds, require_cpu
from experiments.report import table
from splinterp.geometry import PowerDiagram
from splinterp.geometry._hull import lower_hull_edges

PIXELS, TIMED = 400, 1_600
"""The raster's side, and how many of its pixels are timed."""


def random_diagram(n: int, order: int, seed: int = 0) -> PowerDiagram:
    """Uniform sites in the square [-1, 1]^2, weights that hide few of them."""
    rng = np.random.default_rng(seed)
    return PowerDiagram(rng.uniform(-1, 1, (n, 2)), rng.uniform(0, 0.3, n) / n, order)


def raster_seconds(diagram: PowerDiagram, seed: int = 0) -> float:
    """Time of a 400 x 400 raster that finds the sites of each pixel in a Python loop, from 1,600 random pixels of it."""
    pixels = np.random.default_rng(seed).uniform(-1, 1, (TIMED, 2))
    start = time.perf_counter()
    for pixel in pixels:
        power = ((diagram.sites - pixel) ** 2).sum(axis=1) - diagram.weights
        np.argpartition(power, diagram.order - 1)[: diagram.order] if diagram.order < diagram.n_sites else power
    return (time.perf_counter() - start) * PIXELS**2 / TIMED


def geometry(sizes: Mapping[int, Sequence[int]]) -> dict[str, Any]:
    """Rows of (order, sites) and a fit for each order, over its sizes from 1/20 of the largest up."""
    rows, fits = [], []
    for order, counts in sizes.items():
        for n in counts:
            diagram = random_diagram(n, order)
            cells = len(diagram.cells((-1, 1, -1, 1)))
            seconds = median_seconds(lambda diagram=diagram: diagram.cells((-1, 1, -1, 1)))  # type: ignore[misc]
            raster = raster_seconds(diagram)
            row = {"order": order, "sites": n, "cells": cells, "seconds": seconds, "raster_over_exact": raster / seconds,
                   "microseconds_a_cell": 1e6 * seconds / cells}  # fmt: skip
            if order == 1:
                hull = median_seconds(lambda d=diagram: lower_hull_edges(d.sites, d.biases))  # type: ignore[misc]
                row |= {"over_hull": seconds / hull, "over_n_log_n": 1e9 * seconds / (n * np.log2(n))}
            rows.append(row)
        used = [row for row in rows if row["order"] == order and row["sites"] >= max(counts) / 20]
        ns = [row["sites"] for row in used]
        fits.append({
            "order": order, "sites_from": min(ns), "sites_to": max(ns), "exponent": exponent(ns, [row["seconds"] for row in used]),
            "exponent_in_cells": exponent([row["cells"] for row in used], [row["seconds"] for row in used]),
            "exponent_of_n_log_n": exponent(ns, [n * np.log(n) for n in ns]),
        })  # fmt: skip
    return {"rows": rows, "fits": fits}


def render(results: dict[str, Any], markdown: bool = False) -> str:
    """The two tables."""
    rows = [
        [
            r["order"], f"{r['sites']:,}", f"{r['cells']:,}", f"{r['seconds']:.4f}", f"{r['microseconds_a_cell']:.0f}",
            f"{r['raster_over_exact']:.1f}", *(f"{r[name]:.1f}" if name in r else "" for name in ("over_hull", "over_n_log_n")),
        ]
        for r in results["rows"]
    ]  # fmt: skip
    fits = [[f["order"], f"{f['sites_from']:,} to {f['sites_to']:,}", f"{f['exponent']:.2f}", f"{f['exponent_of_n_log_n']:.2f}",
             f"{f['exponent_in_cells']:.2f}"] for f in results["fits"]]  # fmt: skip
    header = ["order", "sites", "cells", "seconds", "us a cell", "raster / exact", "exact / hull", "ns / (n log2 n)"]
    header_fits = ["order", "sites", "exponent in sites", "that of n log n", "exponent in cells"]
    return f"{table(header, rows, markdown)}\n\n{table(header_fits, fits, markdown)}"


GEOMETRY_SIZES = {
    1: (100, 300, 1_000, 3_000, 10_000, 30_000, 100_000),
    **dict.fromkeys((2, 8, 32), (50, 100, 200, 500, 1_000, 2_000)),
}


def run(quick: bool, device: str) -> dict[str, Any]:
    """The sizes of the report, or their three smallest."""
    require_cpu(device, "geometry runs on the CPU")
    return geometry({order: counts[:3] for order, counts in GEOMETRY_SIZES.items()} if quick else GEOMETRY_SIZES)
