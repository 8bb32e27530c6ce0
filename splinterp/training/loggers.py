"""Callbacks for `fit(..., callback=)` that keep its history rows elsewhere, each as it is made."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

Row = dict[str, float]
SAME = 1e-2
"""Of a train_fvu in a row that was logged before: a run that is resumed with another number of threads is rounded otherwise."""


class CSVLogger:
    """Appends rows to a CSV file, a column for each entry of the first row.

    A file that is there is continued: rows of steps that it has already are written once, so that a resumed run leaves no doubles.

    Raises:
        ValueError: a file with other columns, or with rows of another run.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.columns: list[str] = []
        self.known: dict[float, float] = {}
        """train_fvu of the file's steps."""
        if self.path.exists() and self.path.stat().st_size:
            self._cut()
            with open(self.path, newline="") as file:
                rows = list(csv.DictReader(file))
                self.columns = list(rows[0]) if rows else []
            self.known = {float(row["step"]): float(row.get("train_fvu") or math.nan) for row in rows if row.get("step")}
        self.last = max(self.known, default=-math.inf)

    def _cut(self) -> None:
        """Remove a last line that was not written to its end."""
        content = self.path.read_bytes()
        if not content.endswith(b"\n"):
            os.truncate(self.path, content.rfind(b"\n") + 1)

    def __call__(self, row: Row) -> None:
        fresh = not self.columns
        if fresh:
            self.columns = list(row)
            self.path.parent.mkdir(parents=True, exist_ok=True)
        if set(row) != set(self.columns):
            raise ValueError(
                f"{self.path} has the columns {', '.join(self.columns)}, and the row {', '.join(row)}: log to another file"
            )
        if row["step"] <= self.last:
            before, now = self.known.get(row["step"], math.nan), row.get("train_fvu", math.nan)
            if not math.isclose(before, now, rel_tol=SAME) and not math.isnan(now):
                raise ValueError(
                    f"{self.path} is of another run: of its {len(self.known)} rows none has step {row['step']:g} and a train_fvu near "
                    f"{now:.4g}; log to another file"
                )
            return
        with open(self.path, "w" if fresh else "a", newline="") as file:
            writer = csv.DictWriter(file, self.columns)
            if fresh:
                writer.writeheader()
            writer.writerow(row)
        self.last = row["step"]


class TensorBoardLogger:
    """Writes rows as scalars for TensorBoard. Raises ImportError where it is not installed."""

    def __init__(self, folder: str | Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ImportError("logging to TensorBoard needs it: pip install tensorboard") from error
        self.writer: Any = SummaryWriter(str(folder))

    def __call__(self, row: Row) -> None:
        for name, value in row.items():
            if name != "step" and math.isfinite(value):
                self.writer.add_scalar(name, value, int(row["step"]))
        self.writer.flush()


class WandbLogger:
    """Logs rows to a Weights & Biases run: `options` go to `wandb.init`. Raises ImportError where it is not installed."""

    def __init__(self, **options: Any) -> None:
        try:
            import wandb  # type: ignore[import-not-found, unused-ignore]
        except ImportError as error:
            raise ImportError("logging to Weights & Biases needs it: pip install wandb") from error
        self.run: Any = wandb.init(**options)

    def __call__(self, row: Row) -> None:
        self.run.log({name: value for name, value in row.items() if name != "step"}, step=int(row["step"]))


def several(*callbacks: Callable[[Row], object]) -> Callable[[Row], None]:
    """One callback that calls each of some."""

    def call(row: Row) -> None:
        for callback in callbacks:
            callback(row)

    return call
