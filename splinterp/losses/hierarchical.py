"""HierarchicalTopK: the largest few codes of a sample reconstruct it too."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch

from splinterp._typing import Tensor
from splinterp.activations import RowTop
from splinterp.losses._levels import check_levels, check_weights, shares
from splinterp.losses.forward import Forward
from splinterp.losses.terms import Reconstruction
from splinterp.protocol import Code, SparseModel


def _first(ranks: Tensor, level: int, values: Tensor, latents: Tensor) -> Tensor:
    return ranks < level


@dataclass(frozen=True, kw_only=True)
class HierarchicalTopK(Reconstruction):
    """The sum over levels j of u_j times the mean over samples and d_in of the squared error of each sample's j largest codes.

    Largest is by magnitude; of equal ones, any (codes of 0 do not matter). Equal weights u_j sum to 1. The one level k is
    `SquaredError`; levels (k, 4 k) of a TopK(4 k) with weights (1, 1/8) are Multi-TopK. Source: arXiv 2505.24473.

    Raises:
        ValueError: levels that do not increase, a weight below 0, another number of weights; on a model, levels above k.
        TypeError: a model whose activation does not keep a fixed k of each sample.
    """

    levels: tuple[int, ...] = (4, 8, 16, 32)
    """Numbers of codes, the last at most k."""
    weights: tuple[float, ...] | None = None
    """One for each level; None: equal ones that sum to 1."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_levels("levels", self.levels)
        check_weights(self.weights)
        if self.weights is not None and len(self.weights) != len(self.levels):
            raise ValueError(f"{len(self.weights)} weights for {len(self.levels)} levels: pass one for each")

    def check(self, model: SparseModel) -> None:
        activation = model.nonlinearity
        if not isinstance(activation, RowTop):
            kind = type(model if activation is None else activation).__name__
            raise TypeError(f"{self.name} ranks the k codes of a sample, and {kind} has no fixed k: use TopK or AbsTopK")
        if self.levels[-1] > activation.k:
            raise ValueError(f"levels={self.levels} go beyond k={activation.k}")

    def codes(self, out: Forward) -> Iterator[tuple[float | Tensor, Code]]:
        activation, ranks = out.model.nonlinearity, self._ranks(out.values().detach())
        assert isinstance(activation, RowTop)
        for level, share in zip(self.levels, shares(self.weights, len(self.levels)), strict=True):
            yield share, out.code if level == activation.k else out.where(partial(_first, ranks, level))

    def _ranks(self, values: Tensor) -> Tensor:
        """The place of each value in its row by magnitude, from 0; the last level for all that come after it."""
        last = self.levels[-1]
        order = values.abs().topk(last, dim=1, sorted=True).indices  # kept codes come in no order
        places = torch.arange(last, device=values.device).expand_as(order)
        return torch.full(values.shape, last, device=values.device).scatter_(1, order, places)
