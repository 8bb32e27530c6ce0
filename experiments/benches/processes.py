"""Data-parallel training: steps a second of one process and of two, each on one thread, and of one process on two threads."""

from __future__ import annotations

import multiprocessing
import os
import socket
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import distributed as dist

from experiments.benches.timing import require_cpu
from splinterp import SAE, SGD, TopK
from splinterp.training import ProcessGroup

D_IN, K, BATCH, WIDTHS, STEPS = 384, 32, 2_048, (3_072, 24_576), 9

WAYS = {"one process, one thread": (1, 1), "two processes, one thread each": (2, 1), "one process, two threads": (1, 2)}


def _worker(rank: int, size: int, port: int, threads: int, shape: tuple[int, int, int, int], out: str) -> None:
    """Median seconds of a step, written by the first process."""
    torch.set_num_threads(threads)
    d_in, n_latents, k, batch = shape
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=size)
    processes = ProcessGroup()
    g = torch.Generator().manual_seed(0)
    x = torch.randn(batch, d_in, generator=g)
    sae, method = SAE(d_in, n_latents, TopK(k), "tied_residual", generator=g), SGD()
    state = method.init(sae, x, total_steps=1_000)
    state.processes = processes if size > 1 else None
    times = []
    for step in range(STEPS + 2):
        start = time.perf_counter()
        method.step(sae, state, processes.share(x))
        if step > 1:
            times.append(time.perf_counter() - start)
    if processes.first:
        Path(out).write_text(repr(statistics.median(times)))
    dist.destroy_process_group()


def seconds(size: int, threads: int, shape: tuple[int, int, int, int]) -> float:
    """Median seconds of a step of `size` processes."""
    with tempfile.TemporaryDirectory() as folder, socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        out = str(Path(folder) / "seconds")
        context = multiprocessing.get_context("spawn")
        workers = [context.Process(target=_worker, args=(rank, size, port, threads, shape, out)) for rank in range(size)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        if any(worker.exitcode for worker in workers):
            raise RuntimeError(f"a process of {size} failed: see its output above")
        return float(Path(out).read_text())


def run(quick: bool, device: str) -> dict[str, Any]:
    """Every width."""
    require_cpu(device, "the processes here share CPU cores")
    rows = []
    for shape in ((16, 128, 4, 64),) if quick else [(D_IN, width, K, BATCH) for width in WIDTHS]:
        alone = seconds(1, 1, shape)
        for name, (size, threads) in WAYS.items():
            t = alone if (size, threads) == (1, 1) else seconds(size, threads, shape)
            rows.append([f"{shape[1]:,}", name, f"{1e3 * t:.1f}", f"{alone / t:.2f}"])
    title = f"a tied-residual SGD step: d_in {shape[0]}, k {shape[2]}, batch {shape[3]:,}; gradients summed by gloo; median of {STEPS}"
    header = ["n_latents", "what", "ms", "speed-up"]
    return {"bench": "processes", "tables": [{"title": title, "header": header, "rows": rows}]}
