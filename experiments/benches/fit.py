"""Whole calls of `fit`: PAM-SGD against SGD on the same tied-residual SAE, the same steps and the same order of the data.

Both take turns, five times each, and medians are compared; one thread and two, each in a process of its own whose libraries have as
many. Times are of the gradient steps and of the solves, without evaluation. The second table takes one solve apart, on all of the
training samples of the case, with an encoder of a hundred steps. The floor of a solve is one Cholesky factor and two triangular
solves; that of coding is the encoder's product. Cases are kept as they are measured: an interrupted run goes on at the next.
"""

from __future__ import annotations

import math
import os
import statistics
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from experiments.benches.parts import Parts
from experiments.benches.problems import samples
from experiments.benches.timing import in_fresh_process, interleaved, require_cpu
from splinterp import PAMSGD, SAE, SGD, TopK, fit
from splinterp.decoder import DecoderStats, gcv_ridge, solve_by_gcv
from splinterp.protocol import sample_blocks
from splinterp.training.batches import Batches

REPEATS, LR, STEPS_BEFORE = 5, 4e-3, 100
LIBRARIES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


class Case(NamedTuple):
    """A run of `fit`."""

    data: str
    n: int
    n_latents: int
    k: int
    steps: int
    batch_size: int


CASES = (
    Case("minilm-3", 9_000, 1_536, 32, 2_016, 256),
    Case("minilm-3", 36_000, 1_536, 32, 2_115, 256),
    Case("mnist", 55_000, 256, 15, 4_300, 128),
    Case("minilm-3", 36_000, 4_096, 32, 2_115, 256),
)
QUICK = (Case("digits", 600, 160, 4, 120, 64),)
METHODS: dict[str, Callable[[], SGD | PAMSGD]] = {"SGD": lambda: SGD(lr=LR), "PAM-SGD": lambda: PAMSGD(lr=LR)}


def _fits(case: Case, repeats: int, threads: int) -> dict[str, dict[str, float]]:
    """Medians of each method over `repeats` turns."""
    torch.set_num_threads(threads)
    x, x_val = samples(case.data, case.n)
    found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in METHODS}
    for _ in range(repeats):
        for name, method in METHODS.items():
            sae = SAE(x.shape[1], case.n_latents, TopK(case.k), "tied_residual", generator=0)
            row = fit(
                sae, x, method(), steps=case.steps, batch_size=case.batch_size, x_val=x_val, generator=0, log_every=10**9
            ).history[-1]
            found[name].append((row["seconds"], row.get("solve_seconds", 0.0), row["val_fvu"]))
            print(f"{case} {threads} {name} {found[name][-1]}", file=sys.stderr)
    return {
        name: dict(zip(("seconds", "solves", "fvu"), map(statistics.median, zip(*turns, strict=True)), strict=True))
        for name, turns in found.items()
    }


def _parts(case: Case, repeats: int, threads: int) -> dict[str, float]:
    """Median seconds of what a solve on all samples is made of."""
    torch.set_num_threads(threads)
    x, _ = samples(case.data, case.n)
    sae = SAE(x.shape[1], case.n_latents, TopK(case.k), "tied_residual", generator=0)
    fit(sae, x, SGD(lr=LR), steps=min(case.steps, STEPS_BEFORE), batch_size=case.batch_size, generator=0)
    sae.eval()
    batches = Batches(x, case.batch_size, x.device, x.dtype)
    with torch.no_grad():
        blocks = list(sample_blocks(sae, batches))
        codes = [sae.code(block) for block in blocks]
    W, b = sae.W_enc.detach(), sae.b_enc.detach()
    room = torch.empty(max(map(len, blocks)), case.n_latents)

    def sums(products: torch.dtype) -> DecoderStats:
        stats = DecoderStats(case.n_latents, x.shape[1], products=products)
        for code, block in zip(codes, blocks, strict=True):
            stats.update(code, block)
        return stats

    stats = sums(torch.float32)
    prior = sae.tied_rows().detach()
    best = solve_by_gcv(stats, prior)[1].ridge
    near = gcv_ridge(stats, prior, around=3 * best).ridge if math.isfinite(best) else 1.0

    def fresh(work: Callable[[], Any]) -> Callable[[], Any]:
        def call() -> Any:
            stats._spectrum = None
            stats._factor = None if stats._factor is None else stats._factor._replace(strength=-1.0)
            return work()

        return call

    def floor() -> Any:
        factor = stats.factor(near)
        assert factor is not None
        return factor.solve(stats.cross)

    def encoder_product() -> None:
        for block in blocks:
            torch.addmm(b, block, W, out=room[: len(block)])

    with torch.no_grad():
        return interleaved({
            "coding": lambda: [sae.code(block) for block in blocks],
            "floor of coding: the encoder's product": encoder_product,
            "sums, products in float64": lambda: sums(torch.float64),
            "sums, products in float32": lambda: sums(torch.float32),
            "ridge by an eigendecomposition": fresh(lambda: gcv_ridge(stats, prior, search="full")),
            "ridge and solution by factors, knowing nothing": fresh(lambda: solve_by_gcv(stats, prior)),
            "ridge and solution by factors, from an earlier ridge": fresh(lambda: solve_by_gcv(stats, prior, around=near)),
            "ridge and solution by factors, from half that": fresh(lambda: solve_by_gcv(stats, prior, around=near / 2)),
            "floor of a solve: a factor, two triangular solves": fresh(floor),
        }, repeats)  # fmt: skip


def _with_threads(threads: int, work: Callable[..., Any], *arguments: Any) -> Any:
    """In a new process whose numerical libraries have so many threads."""
    before = {name: os.environ.get(name) for name in LIBRARIES}
    os.environ.update(dict.fromkeys(LIBRARIES, str(threads)))
    try:
        return in_fresh_process(work, *arguments, threads)
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


def run(quick: bool, device: str, parts: Parts) -> dict[str, Any]:
    """Every case, with one thread and with two."""
    require_cpu(device, "this compares threads of the CPU")
    repeats = 1 if quick else REPEATS
    rows, profile = [], []
    for threads in (1, 2):
        for case in QUICK if quick else CASES:
            about = [case.data, f"{case.n:,}", f"{case.n_latents:,}", threads]
            name = "-".join(map(str, (*case, threads)))
            found = parts(f"fits-{name}", _with_threads, threads, _fits, case, repeats)
            for method, row in found.items():
                rows.append([
                    *about, f"{case.steps:,}", method, f"{row['seconds']:.1f}", f"{row['solves']:.1f}",
                    f"{row['seconds'] / found['SGD']['seconds']:.2f}", f"{row['fvu']:.4f}",
                ])  # fmt: skip
            shares = parts(f"solve-{name}", _with_threads, threads, _parts, case, repeats)
            least = shares["floor of a solve: a factor, two triangular solves"]
            profile += [[*about, share, f"{1e3 * t:.0f}", f"{t / least:.2f}"] for share, t in shares.items()]
    keys = ["data", "N", "n_latents", "threads"]
    return {
        "bench": "fit",
        "tables": [
            {"title": f"a whole fit, tied-residual decoder, TopK, median of {repeats}", "rows": rows,
             "header": [*keys, "steps", "method", "seconds", "of them solves", "it / SGD", "validation FVU"]},
            {"title": "one solve on all samples, in parts", "rows": profile, "header": [*keys, "part", "ms", "it / floor of a solve"]},
        ],
    }  # fmt: skip
