"""Regions along segments between two Gaussian inputs, against the number of latents. The floor of a crossing is one pass over all scores,
at one t, and the largest of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from experiments.benches.timing import median_seconds, require_cpu
from splinterp import SAE, AbsTopK, ReLU, TopK
from splinterp.geometry import segment_regions
from splinterp.geometry._encoder import encoder_of

WIDTH, K = 512, 32
SIZES = (1_024, 4_096, 16_384)


def segments(sizes: tuple[int, ...]) -> list[list[Any]]:
    """A row for each activation and size."""
    rows: list[list[Any]] = []
    for name, activation in (("TopK", TopK(K)), ("AbsTopK", AbsTopK(K)), ("ReLU", ReLU())):
        for n_latents in sizes:
            sae = SAE(WIDTH, n_latents, activation, generator=0)
            a, b = torch.randn(2, WIDTH, generator=torch.Generator().manual_seed(1))
            crossings = len(segment_regions(sae, a, b).at)
            seconds = median_seconds(lambda s=sae, a=a, b=b: segment_regions(s, a, b))  # type: ignore[misc]
            encoder = median_seconds(lambda s=sae: encoder_of(s))  # type: ignore[misc]
            alpha, beta = np.random.default_rng(0).standard_normal((2, n_latents))
            scores = median_seconds(lambda x=alpha, y=beta: int((x + 0.5 * y).argmax()))  # type: ignore[misc]
            passes = (seconds - encoder) / scores / max(1, crossings)
            rows.append([name, f"{n_latents:,}", crossings, f"{seconds:.3f}", f"{encoder:.3f}", f"{passes:.1f}"])
    return rows


def run(quick: bool, device: str) -> dict[str, Any]:
    """The sizes of the report, or the smallest."""
    require_cpu(device, "geometry runs on the CPU")
    header = ["activation", "latents", "crossings", "seconds", "of them reading the encoder", "passes a crossing"]
    title = f"segments between two Gaussian inputs of width {WIDTH}, k = {K}"
    return {"tables": [{"title": title, "header": header, "rows": segments(SIZES[:1] if quick else SIZES)}]}
