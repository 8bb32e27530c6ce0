"""The ridge by Cholesky factors against the full search by an eigendecomposition: how far its score is above the least.

Problems are codes of SAEs after 150 steps: MNIST and MiniLM, TopK, AbsTopK and ReLU, with a prior and without, from a quarter to a
hundred samples a latent; 50 of them, drawn once. Each is searched knowing nothing, and from multiples of the full search's choice.
Excess is score / least score - 1, both by the eigendecomposition. Where there are at most as many samples as latents that fire, factors
leave it to the full search.
"""

from __future__ import annotations

import math
import sys
from typing import Any

import numpy as np
import torch

from experiments.benches.problems import samples
from experiments.benches.timing import require_cpu
from splinterp import SAE, SGD, AbsTopK, ReLU, TopK, fit
from splinterp.decoder import DecoderStats, gcv_ridge
from splinterp.decoder._spectral import gcv_spectrum
from splinterp.decoder.statistics import as_rows

PROBLEMS, STEPS, LR, K = 50, 150, 4e-3, 15
WIDTHS = {"mnist": (128, 256), "minilm-3": (256, 512)}
QUICK_WIDTHS = {"digits": (160,)}
SHARES = (0.25, 0.7, 1.0, 1.3, 2.0, 4.0, 10.0, 40.0, 100.0)
"""Samples a latent."""
STARTS = {"nothing": None, "x 0.1": 0.1, "x 0.5": 0.5, "x 1.3": 1.3, "x 3": 3.0, "x 30": 30.0, "infinity": math.inf}
"""Where a search begins: multiples of the full search's choice."""


def _drawn(quick: bool) -> list[tuple[str, int, Any, str, float]]:
    widths = QUICK_WIDTHS if quick else WIDTHS
    all_of_them = [
        (data, n_latents, activation, decoder, share)
        for data, several in widths.items() for n_latents in several
        for activation in (TopK(K), AbsTopK(K), ReLU()) for decoder in ("tied_residual", "free") for share in SHARES
    ]  # fmt: skip
    chosen = torch.randperm(len(all_of_them), generator=torch.Generator().manual_seed(0))[: 4 if quick else PROBLEMS]
    return [all_of_them[i] for i in sorted(chosen.tolist())]


def _statistics(x: torch.Tensor, n_latents: int, activation: Any, decoder: str) -> tuple[list[DecoderStats], Any]:
    """With products in float64 and in float32, and the prior."""
    sae = SAE(x.shape[1], n_latents, activation, decoder, generator=0)
    fit(sae, x, SGD(lr=LR), steps=STEPS, batch_size=min(128, len(x)), generator=0, log_every=10**9)
    prior = sae.decoder_block().prior
    both = [DecoderStats(n_latents, x.shape[1], products=dtype) for dtype in (torch.float64, torch.float32)]
    with torch.no_grad():
        acts = sae.eval().encode(x)
    return [stats.update(acts, x) for stats in both], None if prior is None else prior.detach()


def run(quick: bool, device: str) -> dict[str, Any]:
    """Every problem."""
    require_cpu(device, "the full search is the CPU's")
    torch.set_num_threads(1)
    found: dict[float, list[dict[str, Any]]] = {share: [] for share in SHARES}
    pools = {data: samples(data, 1_200 if quick else 51_200 if data == "minilm-3" else 25_600)[0]
             for data in (QUICK_WIDTHS if quick else WIDTHS)}  # fmt: skip
    for data, n_latents, activation, decoder, share in _drawn(quick):
        x = pools[data][: min(round(share * n_latents), len(pools[data]))]
        (exact, lower), prior = _statistics(x, n_latents, activation, decoder)
        full = gcv_ridge(exact, prior, search="full")
        curve = gcv_spectrum(exact, None if prior is None else as_rows(prior, "prior", exact), 0.0, None, 1.0)
        exact.altered()
        for stats in (exact, lower):
            for name, start in STARTS.items():
                around = start if start is None or math.isinf(start) else start * full.ridge
                chosen = gcv_ridge(stats, prior, around=around, search="factors")
                by_factors = stats._spectrum is None
                stats.altered()
                score = (
                    curve.score_at_infinity() if math.isinf(chosen.ridge) else float(curve.score(np.array([chosen.ridge]))[0])
                )
                found[share].append({
                    "excess": score / full.score - 1, "start": name,
                    "looks": sum(math.isfinite(ridge) for ridge, _ in chosen.path) if by_factors else math.nan,
                    "factors": by_factors, "lower": stats is lower, "problem": (data, n_latents, str(activation), decoder),
                })  # fmt: skip
        print(f"{data} {n_latents} {activation} {decoder} {share}", file=sys.stderr)
    rows = []
    for share, several in found.items():
        if several:
            worst = {
                lower: max((r["excess"] for r in several if r["factors"] and r["lower"] == lower), default=math.nan)
                for lower in (False, True)
            }
            near = [r["looks"] for r in several if r["factors"] and r["start"] in ("x 0.5", "x 1.3")]
            looks = [r["looks"] for r in several if r["factors"]]
            searches = sum(r["factors"] for r in several)
            rows.append([
                f"{share:g}", len({r["problem"] for r in several}), searches, len(several) - searches,
                *("" if math.isnan(w) else f"{w:.1e}" for w in worst.values()),
                *(f"{np.mean(values):.1f}" if values else "" for values in (looks, near)),
            ])  # fmt: skip
    header = ["N / n_latents", "problems", "searches by factors", "left to the full search", "largest excess, float64",
              "largest excess, products in float32", "factors a search", "from 0.5 to 1.3 times the choice"]  # fmt: skip
    return {
        "bench": "ridge",
        "tables": [{"title": "the ridge by factors against the full search", "header": header, "rows": rows}],
    }
