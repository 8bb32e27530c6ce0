"""Matryoshka: every prefix of the dictionary reconstructs."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from splinterp._typing import Tensor
from splinterp.losses.forward import Forward
from splinterp.losses.nested import Nested, check_increasing
from splinterp.protocol import SparseModel


@dataclass(frozen=True, kw_only=True)
class Matryoshka(Nested):
    """The sum over prefixes p of u_p times the mean over samples and d_in of |x - z[:, :p] W_dec[:p] - b_dec|^2.

    The code is made once, over the whole dictionary; the whole of it is the last prefix. Weights go by prefixes, the empty one
    first where it counts. Source: arXiv 2503.17547 (whose code counts the empty prefix).

    Raises:
        ValueError: widths that do not increase, as `Nested`; on a model, widths beyond n_latents.
    """

    widths: tuple[int, ...] = (64, 256)
    """Of the prefixes; n_latents need not be among them."""
    empty: bool = False
    """Count the prefix of no latents, whose reconstruction is b_dec."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_increasing("widths", self.widths)

    def sizes(self, model: SparseModel) -> tuple[int, ...]:
        if self.widths[-1] > model.shape[1]:
            raise ValueError(f"widths={self.widths} go beyond n_latents={model.shape[1]}")
        return tuple(sorted({*self.widths, model.shape[1], *((0,) if self.empty else ())}))

    def depth(self, out: Forward) -> Tensor:
        widths = torch.tensor(self.sizes(out.model), device=out.target.device)
        return torch.bucketize(out.latents(), widths, right=True)
