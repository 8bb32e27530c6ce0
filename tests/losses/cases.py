"""Builders shared by the tests of losses."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from splinterp import SAE, AbsTopK, JumpReLU, ReLU, TopK
from splinterp.losses import (
    L1,
    AuxK,
    Forward,
    GaussianPrior,
    HierarchicalTopK,
    Matryoshka,
    NormMatch,
    OrtSAE,
    PAnneal,
    PreActs,
    RandomMatryoshka,
    RowNormL1,
    SquaredError,
    Tanh,
    Term,
    Tilted,
)
from splinterp.protocol import Code, dense
from tests.helpers import rng

ACTIVATIONS = {"TopK": TopK(3), "AbsTopK": AbsTopK(3), "ReLU": ReLU(), "JumpReLU": JumpReLU(threshold=0.2, bandwidth=0.3)}
TERMS: dict[str, Term] = {
    "SquaredError": SquaredError(),
    "Matryoshka": Matryoshka(widths=(4, 13), empty=True),
    "RandomMatryoshka": RandomMatryoshka(n_prefixes=4),
    "HierarchicalTopK": HierarchicalTopK(levels=(1, 2)),
    "Tilted": Tilted(tilt=0.2),
    "AuxK": AuxK(k_aux=2, dead_after=100),
    "OrtSAE": OrtSAE(chunk=8),
    "L1": L1(weight=1e-3),
    "RowNormL1": RowNormL1(weight=1e-3),
    "Tanh": Tanh(weight=1e-3),
    "PAnneal": PAnneal(weight=1e-3, power=0.5, begin=2, until=8, stages=3),
    "PreActs": PreActs(weight=1e-4),
    "NormMatch": NormMatch(weight=0.1),
    "GaussianPrior": GaussianPrior(weight=1e-3),
}


def make(
    activation: str = "TopK", decoder: str = "free", d: int = 8, m: int = 32, dtype: Any = torch.float64, **options: Any
) -> SAE:
    """An SAE that trains sparse where its activation has a k; W_dec of the free kind is not W_enc.T, and biases are not 0."""
    sae = SAE(d, m, ACTIVATIONS[activation], decoder=decoder, generator=rng(1), dtype=dtype, **options)
    g = rng(2)
    with torch.no_grad():
        for p in (sae.b_enc, sae.b_dec, *sae.decoder_block().weights):
            p += 0.1 * torch.randn(p.shape, generator=g, dtype=torch.float64).to(p)
    return sae


def no_sparse_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SAE, "trains_sparse", property(lambda self: False))


def state_of(term: Term, sae: SAE) -> dict[str, torch.Tensor]:
    """What the term keeps at the start; for AuxK every third latent is dead."""
    state = term.init(sae)
    if isinstance(term, AuxK):
        state["silent"][::3] = term.dead_after
    return state


def value_and_gradients(term: Term, sae: SAE, x: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    for p in sae.parameters():
        p.grad = None
    value = term(Forward(sae, x, term.reads_scores), state_of(term, sae))
    value.backward()
    found = {name: torch.zeros_like(p) if p.grad is None else p.grad.clone() for name, p in sae.named_parameters()}
    return value.detach(), found


def codes_of(term: Any, sae: SAE, x: torch.Tensor) -> list[tuple[Any, torch.Tensor]]:
    """(weight, dense code) of each part of a reconstruction."""
    with torch.no_grad():
        return [(weight, as_dense(code, sae)) for weight, code in term.codes(Forward(sae, x))]


def as_dense(code: Code, sae: SAE) -> torch.Tensor:
    return dense(code, sae.n_latents)
