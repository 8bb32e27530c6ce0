"""Where a warning points."""

from __future__ import annotations

import os
import sys
from pathlib import Path

OURS = f"{Path(__file__).parent}{os.sep}"
BETWEEN = ("jaxtyping", "beartype", f"{os.sep}sklearn{os.sep}")
"""Type checkers, and wrappers of estimators' methods, that may stand between two of our functions, or above them."""


def outside() -> int:
    """The `stacklevel` of `warnings.warn` that names the line which called this package."""
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and _between(frame.f_code.co_filename):  # of this function itself
        frame = frame.f_back
    while frame.f_back is not None and (frame.f_code.co_filename.startswith(OURS) or _between(frame.f_code.co_filename)):
        if frame.f_back.f_code.co_filename.startswith("<frozen"):  # `python -m splinterp`: nobody called
            break
        frame, level = frame.f_back, level + 1
    return level


def _between(filename: str) -> bool:
    return any(name in filename for name in BETWEEN)
