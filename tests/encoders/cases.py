"""Encoders that the tests of encoders run over, and what they go with."""

from __future__ import annotations

from typing import Any

import torch

from splinterp import SAE, AbsTopK, BatchTopK, ReLU, TopK
from splinterp.encoders import AdaptiveK, Encoder, Gated, InputNoise, Kronecker, TopAFA, Variational
from tests.helpers import rng

ENCODERS: dict[str, tuple[Encoder, Any]] = {
    "Gated": (Gated(), ReLU()),
    "Gated TopK": (Gated(), TopK(3)),
    "Gated BatchTopK": (Gated(), BatchTopK(3)),
    "Kronecker": (Kronecker(heads=2, left=2, right=3), TopK(3)),
    "Kronecker ReLU": (Kronecker(heads=4, left=3, right=1), ReLU()),
    "TopAFA": (TopAFA(), ReLU()),
    "InputNoise": (InputNoise(0.1), TopK(3)),
    "Variational": (Variational(0.1), AbsTopK(3)),
    "AdaptiveK": (AdaptiveK(lowest=1, highest=5), ReLU()),
}


def make(
    name: str, decoder: str = "free", d: int = 8, m: int = 12, dtype: Any = torch.float64, seed: int = 1, **options: Any
) -> SAE:
    """An SAE whose parameters and buffers are all away from where they start."""
    encoder, activation = ENCODERS[name]
    sae = SAE(d, m, activation, decoder, encoder=encoder, generator=rng(seed), dtype=dtype, **options)
    g = rng(seed + 1)
    with torch.no_grad():
        moved = [*sae.parameters(), *(b for key, b in sae.named_buffers() if key in ("b_pre", "probe", "probe_bias"))]
        for value in moved:
            value += 0.2 * torch.randn(value.shape, generator=g, dtype=torch.float64).to(value)
    return sae
