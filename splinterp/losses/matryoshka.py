"""Matryoshka: every prefix of the dictionary reconstructs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from splinterp._typing import Tensor
from splinterp.losses._levels import check_levels, check_weights, shares
from splinterp.losses.forward import Forward
from splinterp.losses.terms import Reconstruction
from splinterp.protocol import Code, SparseModel


def _below(width: int, values: Tensor, latents: Tensor) -> Tensor:
    return latents < width


@dataclass(frozen=True, kw_only=True)
class Matryoshka(Reconstruction):
    """The sum over prefixes p of u_p times the mean over samples and d_in of |x - z[:, :p] W_dec[:p] - b_dec|^2.

    The code is made once, over the whole dictionary; the whole of it is the last prefix. Equal weights u_p sum to 1. Source:
    Learning Multi-Level Features with Matryoshka Sparse Autoencoders, arXiv 2503.17547 (whose code counts the empty prefix).

    Raises:
        ValueError: widths that do not increase, a weight below 0; on a model, widths beyond n_latents, another number of
            weights than prefixes.
    """

    widths: tuple[int, ...] = (64, 256)
    """Of the prefixes; n_latents need not be among them."""
    weights: tuple[float, ...] | None = None
    """One for each prefix, the empty one first (if counted), the whole dictionary last. None: equal ones that sum to 1."""
    empty: bool = False
    """Count the prefix of no latents, whose reconstruction is b_dec."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_levels("widths", self.widths)
        check_weights(self.weights)

    def prefixes(self, n_latents: int) -> tuple[int, ...]:
        """All widths, in order."""
        return tuple(sorted({*self.widths, n_latents, *((0,) if self.empty else ())}))

    def check(self, model: SparseModel) -> None:
        n_latents = model.shape[1]
        if self.widths[-1] > n_latents:
            raise ValueError(f"widths={self.widths} go beyond n_latents={n_latents}")
        n = len(self.prefixes(n_latents))
        if self.weights is not None and len(self.weights) != n:
            raise ValueError(f"{len(self.weights)} weights for the {n} prefixes {self.prefixes(n_latents)}: pass one for each")

    def codes(self, out: Forward) -> Iterator[tuple[float | Tensor, Code]]:
        n_latents = out.model.shape[1]
        widths = self.prefixes(n_latents)
        for width, share in zip(widths, shares(self.weights, len(widths)), strict=True):
            yield share, out.code if width == n_latents else out.where(partial(_below, width))
