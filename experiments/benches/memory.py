"""Training on a store that is larger than the memory allowed.

A process may hold 700 MiB of private memory beyond what it starts with (`RLIMIT_DATA`; file maps are not counted) and trains on a
store of 1.5 GiB: read as a tensor, which must fail, and as a store, which must not.
"""

from __future__ import annotations

import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from experiments.benches.timing import in_fresh_process, require_cpu
from splinterp import PAMSGD, SAE, TopK, fit
from splinterp.data.store import ActivationStore
from splinterp.data.store_writer import StoreWriter

D_IN, ROWS, PER_SHARD, LIMIT_MIB, BUDGET = 384, 2**20, 2**16, 700, 2**27


def write(folder: Path, rows: int, d_in: int, per_shard: int) -> None:
    """Random activations, a shard at a time."""
    writer, g = StoreWriter(folder, d_in, about={"made of": "normal numbers"}), torch.Generator().manual_seed(0)
    mixing = torch.randn(d_in, d_in, generator=g) / d_in**0.5
    for _ in range(rows // per_shard):
        writer.append(torch.randn(per_shard, d_in, generator=g) @ mixing, torch.zeros(per_shard, 3, dtype=torch.int64))
    writer.finish()


def _status(key: str) -> int:
    """A field of /proc/self/status, in MiB."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) // 1024


def _child(folder: str, way: str, limit_mib: int, n_latents: int, budget: int) -> dict[str, Any]:
    torch.set_num_threads(1)
    store = ActivationStore(folder, memory=budget)
    d_in = store.d_in
    fit(SAE(d_in, n_latents, TopK(4)), torch.randn(512, d_in), PAMSGD(), epochs=1)  # libraries and threads are there
    before = _status("VmData")
    resource.setrlimit(resource.RLIMIT_DATA, ((before + limit_mib) * 2**20,) * 2)
    start = time.perf_counter()
    try:
        x = store if way == "store" else store[:]
        result = fit(SAE(d_in, n_latents, TopK(4)), x, PAMSGD(), epochs=1, batch_size=1_024)
    except (MemoryError, RuntimeError) as error:
        return {"outcome": f"{type(error).__name__}: {str(error).splitlines()[0][:60]}", "seconds": time.perf_counter() - start}
    return {"outcome": f"trained, FVU {result.history[-1]['train_fvu']:.3f}", "seconds": time.perf_counter() - start}


def run(quick: bool, device: str) -> dict[str, Any]:
    """Both ways."""
    require_cpu(device, "the limit is on the CPU's memory")
    rows, limit, n_latents = (2**15, 10**4, 32) if quick else (ROWS, LIMIT_MIB, 256)
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder) / "store", rows, D_IN, min(PER_SHARD, rows // 4))
        size = rows * D_IN * 4 / 2**20
        for way in ("tensor", "store"):
            found = in_fresh_process(_child, str(Path(folder) / "store"), way, limit, n_latents, BUDGET)
            lines.append([way, f"{size:,.0f}", f"{limit:,}", found["outcome"], f"{found['seconds']:.0f}"])
    header = ["read as", "store, MiB", "allowed, MiB", "outcome", "seconds"]
    title = f"one epoch of PAM-SGD on {rows:,} activations, d_in {D_IN}, {n_latents} latents; budget of the shuffle {BUDGET // 2**20} MiB"
    return {"bench": "memory", "tables": [{"title": title, "header": header, "rows": lines}]}
