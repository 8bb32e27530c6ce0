"""Decoder solves of dictionaries whose Gram matrix is never formed: time against N, n_latents and k, and peak memory.

Every case runs in a process of its own. Samples are drawn a block at a time, encoded by a TopK SAE at its start and dropped, so that
memory shows what the solve holds. Solved to a relative residual of 1e-4 with a ridge of 1.
"""

from __future__ import annotations

import resource
import time
from typing import Any

import torch

from experiments.benches.timing import exponent, in_fresh_process, require_cpu
from splinterp import SAE, TopK
from splinterp.decoder.matrix_free import MatrixFreeStats, solve_decoder_cg

D_IN, BLOCK, TOLERANCE = 384, 8_192, 1e-4
CASES = {
    "N": [(n, 32_768, 32) for n in (25_000, 50_000, 100_000, 200_000)],
    "n_latents": [(50_000, m, 32) for m in (8_192, 16_384, 32_768)],
    "k": [(50_000, 16_384, k) for k in (8, 16, 32, 64)],
}
QUICK = {
    "N": [(n, 256, 4) for n in (500, 1_000)],
    "n_latents": [(500, m, 4) for m in (128, 256)],
    "k": [(500, 256, k) for k in (2, 4)],
}


def _case(n: int, n_latents: int, k: int, d_in: int, threads: int) -> dict[str, float]:
    torch.set_num_threads(threads)
    g = torch.Generator().manual_seed(0)
    mixing = torch.randn(d_in, d_in, generator=g) / d_in**0.5
    sae = SAE(d_in, n_latents, TopK(k), generator=g)
    stats = MatrixFreeStats(n_latents, d_in)
    start = time.perf_counter()
    with torch.no_grad():
        for first in range(0, n, BLOCK):
            x = torch.randn(min(BLOCK, n - first), d_in, generator=g) @ mixing
            stats.update(sae.encode_top(x), x)
    encoded = time.perf_counter()
    found = solve_decoder_cg(stats, ridge=1.0, tolerance=TOLERANCE)
    solved = time.perf_counter()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"encode": encoded - start, "solve": solved - encoded, "iterations": found.iterations, "residual": found.residual,
            "peak": peak, "live": int((stats.diagonal > 0).sum())}  # fmt: skip


def run(quick: bool, device: str) -> dict[str, Any]:
    """Every case, and the exponents along each of the three."""
    require_cpu(device, "the spooled codes are on the CPU")
    cases, d_in = (QUICK, 16) if quick else (CASES, D_IN)
    found: dict[tuple[int, int, int], dict[str, float]] = {}
    for case in sorted({case for several in cases.values() for case in several}):
        found[case] = in_fresh_process(_case, *case, d_in, torch.get_num_threads())
    rows = [
        [
            f"{n:,}", f"{m:,}", k, f"{r['live']:,}", f"{r['encode']:.1f}", f"{r['solve']:.1f}", r["iterations"],
            f"{r['solve'] / max(r['iterations'], 1):.2f}", f"{r['residual']:.1e}", f"{r['peak']:,.0f}", f"{8 * m * m / 2**20:,.0f}",
        ]
        for (n, m, k), r in found.items()
    ]  # fmt: skip
    fits = []
    for axis, (name, several) in enumerate(cases.items()):
        sizes = [case[axis] for case in several]
        each = [found[case]["solve"] / max(found[case]["iterations"], 1) for case in several]
        fits.append([
            name, f"{min(sizes):,} to {max(sizes):,}", f"{exponent(sizes, [found[c]['solve'] for c in several]):.2f}",
            f"{exponent(sizes, each):.2f}", f"{exponent(sizes, [found[c]['peak'] for c in several]):.2f}",
        ])  # fmt: skip
    header = ["N", "n_latents", "k", "firing", "encoding, s", "solve, s", "iterations", "s an iteration", "residual", "peak MiB",
              "Gram matrix, MiB"]  # fmt: skip
    return {
        "bench": "scale",
        "tables": [
            {"title": f"matrix-free solves, d_in {d_in}, relative residual {TOLERANCE:g}", "header": header, "rows": rows},
            {"title": "exponents", "header": ["along", "range", "of solve", "of an iteration", "of peak memory"], "rows": fits},
        ],
    }  # fmt: skip
