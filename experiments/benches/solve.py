"""The exact decoder solve against the published one, in time and peak memory.

The published solve stacks every sample's dense code and calls `lstsq` on them (weights without a bias, on samples less b_dec). Ours
streams sparse codes into sums and factors the Gram matrix. Both solve the same problem here, without a bias: the objective reached
by each is compared. Each runs in a process of its own, whose peak memory is counted from after its data are there. The floor of an
exact solve through the Gram matrix is its factor and the two triangular solves, as if the sums were free.
"""

from __future__ import annotations

import resource
import statistics
import threading
import time
from typing import Any

import torch

from experiments.benches.timing import in_fresh_process, require_cpu
from splinterp.activations import TopActs
from splinterp.decoder import DecoderStats, solve_decoder
from splinterp.decoder._cholesky import cholesky_in_place
from splinterp.sparse_kernels import decode_rows

N, D_IN, N_LATENTS, KS = 9_000, 2_304, 4_096, (320, 32)
BLOCK = 2_048
REPEATS = 5


def problem(n: int, d_in: int, n_latents: int, k: int) -> tuple[TopActs, torch.Tensor]:
    """Random k-sparse non-negative codes and samples that they explain in part."""
    g = torch.Generator().manual_seed(0)
    indices = torch.stack([torch.randperm(n_latents, generator=g)[:k] for _ in range(n)])
    top = TopActs(torch.rand(n, k, generator=g) + 0.1, indices)
    W = torch.randn(n_latents, d_in, generator=g) / d_in**0.5
    x = decode_rows(top.top_acts, top.top_indices, W) + 0.3 * torch.randn(n, d_in, generator=g)
    return top, x


def published(top: TopActs, x: torch.Tensor, n_latents: int) -> torch.Tensor:
    """Dense codes batch by batch, stacked, then lstsq."""
    stacked = torch.cat([
        torch.zeros(len(values), n_latents).scatter_(1, indices, values)
        for values, indices in zip(top.top_acts.split(BLOCK), top.top_indices.split(BLOCK), strict=True)
    ])  # fmt: skip
    return torch.linalg.lstsq(stacked, x).solution


def ours(top: TopActs, x: torch.Tensor, n_latents: int, dtype: torch.dtype) -> torch.Tensor:
    """Streamed sums of products, then Cholesky in place."""
    stats = DecoderStats(n_latents, x.shape[1], dtype=dtype)
    for values, indices, part in zip(top.top_acts.split(BLOCK), top.top_indices.split(BLOCK), x.split(BLOCK), strict=True):
        stats.update(TopActs(values, indices), part)
    return solve_decoder(stats, ridge=0.0, bias_ridge=float("inf"), overwrite=True).W_dec


WAYS = {
    "published: stacked lstsq": lambda top, x, m: published(top, x, m),
    "ours, float64": lambda top, x, m: ours(top, x, m, torch.float64),
    "ours, float32": lambda top, x, m: ours(top, x, m, torch.float32),
}


def peak_above_start(work: Any) -> tuple[Any, float]:
    """The result of a call, and by how many MiB its memory rose above what it was before, sampled each millisecond."""

    def resident() -> int:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * resource.getpagesize()

    before, peak, done = resident(), [0], threading.Event()

    def watch() -> None:
        while not done.is_set():
            peak[0] = max(peak[0], resident())
            time.sleep(0.001)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        found = work()
    finally:
        done.set()
        watcher.join()
    return found, (max(peak[0], before) - before) / 2**20


def _child(way: str, shape: tuple[int, int, int, int], repeats: int, threads: int) -> tuple[float, float, float]:
    """(median seconds, peak MiB, objective) of one way, in a fresh process."""
    torch.set_num_threads(threads)
    n, d_in, n_latents, k = shape
    top, x = problem(n, d_in, n_latents, k)
    small = problem(64, 8, 16, 2)
    WAYS[way](*small, 16)  # libraries loaded
    W, peak = peak_above_start(lambda: WAYS[way](top, x, n_latents))
    objective = float((x - decode_rows(top.top_acts, top.top_indices, W.float())).double().square().sum())
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        WAYS[way](top, x, n_latents)
        times.append(time.perf_counter() - start)
    return statistics.median(times), peak, objective


def _floor(n_latents: int, d_in: int, repeats: int, threads: int) -> float:
    """Median seconds of a float32 Cholesky factor and its two triangular solves alone, the sums being there."""
    torch.set_num_threads(threads)
    g = torch.Generator().manual_seed(0)
    codes, right = torch.randn(2 * n_latents, n_latents, generator=g), torch.randn(n_latents, d_in, generator=g)
    gram, times = codes.T @ codes, []
    for _ in range(repeats + 1):
        matrix, solution = gram.clone(), right.clone()
        start = time.perf_counter()
        assert cholesky_in_place(matrix, 1.0, solution)
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def run(quick: bool, device: str) -> dict[str, Any]:
    """Every k, each way in its own process."""
    require_cpu(device, "this compares CPU solves")
    n, d_in, n_latents, ks = (300, 40, 64, (8, 2)) if quick else (N, D_IN, N_LATENTS, KS)
    rows = []
    for k in ks:
        found = {}
        for way in WAYS:
            found[way] = in_fresh_process(_child, way, (n, d_in, n_latents, k), REPEATS, torch.get_num_threads())
        base = found["published: stacked lstsq"]
        for way, (seconds, peak, objective) in found.items():
            rows.append([
                k, way, f"{seconds:.2f}", f"{base[0] / seconds:.1f}", f"{peak:.0f}", f"{peak / max(base[1], 1e-9):.2f}",
                f"{(objective - base[2]) / base[2]:+.1e}",
            ])  # fmt: skip
        least = in_fresh_process(_floor, n_latents, d_in, REPEATS, torch.get_num_threads())
        rows.append([k, "floor, float32: factor, substitutions", f"{least:.2f}", f"{base[0] / least:.1f}", "", "", ""])
    header = ["k", "way", "seconds", "published / it", "peak MiB", "of published", "objective, relative difference"]
    title = f"decoder solve: N {n:,}, d_in {d_in:,}, n_latents {n_latents:,}, median of {REPEATS}"
    return {"bench": "solve", "tables": [{"title": title, "header": header, "rows": rows}]}
