"""Small builders shared by the tests."""

from __future__ import annotations

import pytest
import torch

from splinterp import SAE, AbsTopK, BatchTopK, JumpReLU, ReLU, TopK
from splinterp.activations import FeatureChoice
from splinterp.decoder import DecoderStats

ACTIVATIONS = {
    "ReLU": ReLU(), "JumpReLU": JumpReLU(threshold=0.2, bandwidth=0.3), "TopK": TopK(3), "AbsTopK": AbsTopK(3), "BatchTopK": BatchTopK(3),
    "FeatureChoice": FeatureChoice(3),
}  # fmt: skip
DECODERS = ("free", "tied", "tied_residual")
NO_BIAS = ("AbsTopK", "FeatureChoice")
"""Activations that bias adaptation refuses."""


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def samples(n: int = 200, d: int = 8, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Low-rank data plus noise, with a mean away from 0."""
    g = rng(seed)
    basis = torch.randn(4, d, generator=rng(12), dtype=torch.float64)  # one distribution for all seeds
    x = torch.randn(n, 4, generator=g, dtype=torch.float64).relu() @ basis
    return (x + 0.1 * torch.randn(n, d, generator=g, dtype=torch.float64) + 0.5).to(dtype)


def make_sae(activation: str = "TopK", decoder: str = "free", d: int = 8, m: int = 12, seed: int = 1, **options) -> SAE:
    return SAE(d, m, ACTIVATIONS[activation], decoder=decoder, generator=rng(seed), **options)


def stats_of(acts: torch.Tensor, x: torch.Tensor, dtype: torch.dtype = torch.float64) -> DecoderStats:
    return DecoderStats(acts.shape[1], x.shape[1], dtype=dtype).update(acts, x)


def sparse_codes(n: int, m: int, k: int, seed: int = 0, dead: int = 0) -> torch.Tensor:
    """Float64 codes with k non-zeros a row; the last `dead` latents never fire."""
    g = rng(seed)
    acts = torch.zeros(n, m, dtype=torch.float64)
    live = max(1, m - dead)
    for row in acts:
        row[torch.randperm(live, generator=g)[:k]] = torch.rand(min(k, live), generator=g, dtype=torch.float64) + 0.1
    return acts


def linear_problem(n: int, m: int, d: int, seed: int, noise: float = 0.5) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Float64 codes, samples that are affine in them plus noise, and rows near the true ones."""
    g = rng(seed)
    z = sparse_codes(n, m, min(m, 6), seed)
    truth = torch.randn(m, d, generator=g, dtype=torch.float64)
    x = 3 + z @ truth + noise * torch.randn(n, d, generator=g, dtype=torch.float64)
    return z, x, truth + 0.3 * torch.randn(m, d, generator=g, dtype=torch.float64)


def stopped_and_resumed(run, epoch: int, path):
    """What `run(**options)`, a call of `fit`, returns where it is stopped after an epoch and goes on from its checkpoint at `path`."""

    def stop(row):
        if row["epoch"] == epoch:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(checkpoint=path, callback=stop)
    return run(checkpoint=path, resume=True)


class Averaging(torch.optim.SGD):
    """An optimizer of two modes, as schedule-free ones are."""

    def train(self):
        """To the point that moves."""

    def eval(self):
        """To the average."""
