"""Timing: medians, of works that take turns, so that a slow spell of the machine falls on all of them."""

from __future__ import annotations

import multiprocessing
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

REPEATS = 5


def interleaved(works: Mapping[str, Callable[[], Any]], repeats: int = REPEATS) -> dict[str, float]:
    """Median wall seconds of each work over `repeats` rounds, after one to warm up; a GPU is waited for."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(repeats + 1):
        for name, work in works.items():
            synchronise()
            start = time.perf_counter()
            work()
            synchronise()
            if turn:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def median_seconds(work: Callable[[], Any], repeats: int = REPEATS) -> float:
    """Median wall seconds of `repeats` calls after one to warm up."""
    return interleaved({"work": work}, repeats)["work"]


def synchronise() -> None:
    """Wait for a GPU, where there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def exponent(sizes: Sequence[float], seconds: Sequence[float]) -> float:
    """Slope of log(seconds) against log(size), by least squares."""
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


def require_cpu(device: str, what: str) -> None:
    """Raises ValueError for another device, saying what it is that the CPU is needed for."""
    if device != "cpu":
        raise ValueError(f"{what}: leave --device {device} out")


def in_fresh_process(work: Callable[..., Any], *arguments: Any) -> Any:
    """The result of a call in a new process, whose memory no earlier case has touched."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(work, arguments)
