"""Step sizes chosen on validation data, with the same number of trials for every method."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from experiments.runs import Run, as_default

MAX_EXTENSIONS = 3

Complete = Callable[[list[Run]], None]
Get = Callable[[Run], dict[str, Any]]


@dataclass(frozen=True)
class Cell:
    """What methods are compared in: same data, activation, size and budget. `metric` is what validation chooses by:
    "val_last" (the model at the end) or "val_best" (the checkpoint of lowest validation FVU)."""

    base: Run
    metric: str
    methods: tuple[str, ...]
    grid: tuple[float, ...]
    extend: bool = True

    def run(self, method: str, lr: float, seed: int, role: str = "reported") -> Run:
        """The run of one method in this cell; the default's where it is the same training."""
        return as_default(replace(self.base, method=method, lr=lr, seed=seed, role=role))


def choose_step_sizes(
    cells: Iterable[Cell], seeds: tuple[int, ...], complete: Complete, get: Get
) -> dict[Cell, dict[str, float]]:
    """The step size of lowest mean validation FVU for each method in each cell.

    A choice at an end of the grid extends the grid of every method in the cell by a factor of 2, up to three times
    at each end.
    """
    grids = {cell: tuple(sorted(cell.grid)) for cell in cells}
    limits = {cell: (min(cell.grid) / 2**MAX_EXTENSIONS, max(cell.grid) * 2**MAX_EXTENSIONS) for cell in grids}
    while True:
        complete([c.run(m, lr, s, "tuning") for c, grid in grids.items() for m in c.methods for lr in grid for s in seeds])
        chosen = {cell: {m: _best(cell, m, grid, seeds, get) for m in cell.methods} for cell, grid in grids.items()}
        extended = {cell: _extend(cell, grids[cell], set(chosen[cell].values()), limits[cell]) for cell in grids}
        if extended == grids:
            return chosen
        grids = extended


def tuning_error(cell: Cell, method: str, lr: float, seeds: tuple[int, ...], get: Get) -> float:
    """What step sizes are chosen by, at one of them."""
    return sum(get(cell.run(method, lr, seed, "tuning"))[cell.metric] for seed in seeds) / len(seeds)


def _best(cell: Cell, method: str, grid: tuple[float, ...], seeds: tuple[int, ...], get: Get) -> float:
    return min(grid, key=lambda lr: tuning_error(cell, method, lr, seeds, get))


def _extend(cell: Cell, grid: tuple[float, ...], chosen: set[float], limits: tuple[float, float]) -> tuple[float, ...]:
    if not cell.extend:
        return grid
    low, high = grid[0], grid[-1]
    if low in chosen and low > limits[0]:
        grid = (low / 2, *grid)
    if high in chosen and high < limits[1]:
        grid = (*grid, high * 2)
    return grid
