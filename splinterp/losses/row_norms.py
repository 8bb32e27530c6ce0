"""Sparsity penalties on codes times the norms of their decoder rows: rescaling a latent does not change them."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from splinterp._checks import at_least
from splinterp._documented import documented
from splinterp._typing import Tensor
from splinterp.activations import TopActs
from splinterp.losses.forward import Forward
from splinterp.losses.terms import Term, totals_of
from splinterp.protocol import SparseModel


class _RowNorms(Term):
    """The mean over samples of sum_i g(|z_i| |w_i|), g concave."""

    def check(self, model: SparseModel) -> None:
        activation = model.nonlinearity
        if activation is not None and not activation.allows_l1:
            raise ValueError(
                f"{self.name} has no effect on the sparsity of {type(activation).__name__}, which fixes it: use ReLU, JumpReLU"
            )

    def row_ridge(self, model: SparseModel, totals: Tensor, n_samples: float) -> Tensor:
        """d_in totals_i / (2 |w_i|): the loss times N d_in is a sum over samples. Rows of (nearly) zero count as of norm
        eps times the largest."""
        norms = torch.linalg.vector_norm(model.W_dec.detach(), dim=1).to(totals)
        eps = torch.finfo(model.b_dec.dtype).eps
        return model.shape[0] * totals / (2 * norms.clamp_min(eps * float(norms.max())).clamp_min(eps))


def sizes_of(out: Forward) -> Tensor:
    """|z_i| |w_i| of each of the code's values."""
    return out.values().abs() * torch.linalg.vector_norm(out.W_dec, dim=1)[out.latents()]


@documented
@dataclass(frozen=True, kw_only=True)
class RowNormL1(_RowNorms):
    """The mean over samples of sum_i |z_i| |w_i|, w_i the rows of W_dec, whose norms are free.

    A solve sees it through its quadratics |w|^2 / (2 |w_t|) + |w_t| / 2, which touch from above at the rows w_t before it.
    Source: Anthropic, Circuits Updates, April 2024.

    Raises:
        ValueError: a model whose sparsity the activation fixes.
    """

    def __call__(self, out: Forward, state: dict[str, Tensor]) -> Tensor:
        return sizes_of(out).sum(1).mean()

    def row_totals(self, out: Forward) -> Tensor:
        return totals_of(out.code, out.model.shape[1])


@documented
@dataclass(frozen=True, kw_only=True)
class Tanh(_RowNorms):
    """The mean over samples of sum_i tanh(c |z_i| |w_i|), c the steepness: nearly a count of what is active.

    A solve sees its tangents, which lie above it, at the rows that the pass over the samples has seen.
    Source: Anthropic, Circuits Updates, January 2025.

    Raises:
        ValueError: a steepness not above 0; a model whose sparsity the activation fixes.
    """

    steepness: float = 4.0
    """c, in units of 1 / (|z| |w|)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("steepness", self.steepness, 0.0, strict=True)

    def __call__(self, out: Forward, state: dict[str, Tensor]) -> Tensor:
        return torch.tanh(self.steepness * sizes_of(out)).sum(1).mean()

    def row_totals(self, out: Forward) -> Tensor:
        slopes = self.steepness * out.values() * (1 - torch.tanh(self.steepness * sizes_of(out)).square())
        code = out.code.with_values(slopes) if isinstance(out.code, TopActs) else slopes
        return totals_of(code, out.model.shape[1])
