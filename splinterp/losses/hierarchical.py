"""HierarchicalTopK: the largest few codes of a sample reconstruct it too."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from splinterp._documented import documented
from splinterp._typing import Tensor
from splinterp.activations import RowTop
from splinterp.losses.forward import Forward
from splinterp.losses.nested import Nested, check_increasing
from splinterp.protocol import SparseModel


@documented
@dataclass(frozen=True, kw_only=True)
class HierarchicalTopK(Nested):
    """The sum over levels j of u_j times the mean over samples and d_in of the squared error of each sample's j largest codes.

    Largest is by magnitude; of equal ones, any (codes of 0 do not matter). The one level k is `SquaredError`; levels (k, 4 k) of
    a TopK(4 k) with weights (1, 1/8) are Multi-TopK. Source: arXiv 2505.24473.

    Raises:
        ValueError: levels that do not increase, as `Nested`; on a model, levels above k.
        TypeError: a model whose activation does not keep a fixed k of each sample.
    """

    levels: tuple[int, ...] = (4, 8, 16, 32)
    """Numbers of codes, the last at most k."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_increasing("levels", self.levels)
        self.check_number(self.levels)

    def sizes(self, model: SparseModel) -> tuple[int, ...]:
        kind = type(model.nonlinearity or model).__name__
        if not isinstance(model.nonlinearity, RowTop):
            raise TypeError(f"{self.name} ranks the k codes of a sample, and {kind} has no fixed k: use TopK or AbsTopK")
        if self.levels[-1] > model.nonlinearity.k:
            raise ValueError(f"levels={self.levels} go beyond k={model.nonlinearity.k}")
        return self.levels

    def depth(self, out: Forward) -> Tensor:
        sizes, last = torch.tensor(self.levels, device=out.target.device), self.levels[-1]
        order = out.values().detach().abs().topk(last, dim=1, sorted=True).indices  # kept codes come in no order
        depth = torch.full(out.values().shape, len(self.levels), device=out.target.device)
        return depth.scatter_(
            1, order, torch.bucketize(torch.arange(last, device=sizes.device), sizes, right=True).expand_as(order)
        )
