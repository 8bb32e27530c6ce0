"""What the terms with several nested parts of one code share."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch.nn import functional as F

from splinterp._checks import at_least, whole
from splinterp._typing import Tensor
from splinterp.losses.forward import Forward
from splinterp.losses.terms import Reconstruction, State
from splinterp.protocol import Code, SparseModel, masked


def check_increasing(name: str, sizes: Sequence[int]) -> None:
    """Raise ValueError unless `sizes` has ints of at least 1 that increase."""
    if not sizes:
        raise ValueError(f"{name} is empty: pass at least one")
    whole(f"the first of {name}", sizes[0], 1)
    if any(later <= earlier for earlier, later in itertools.pairwise(sizes)):
        raise ValueError(f"{name}={tuple(sizes)} must increase")


@dataclass(frozen=True, kw_only=True)
class Nested(Reconstruction):
    """The sum over nested parts of a code of u_j times the mean over samples and d_in of the squared error of part j.

    A subclass says which part each value enters at. All parts together cost about one decoding.

    Raises:
        ValueError: a weight below 0, or where all are 0; on a model, another number of weights than parts.
    """

    weights: tuple[float, ...] | None = None
    """u_j, one for each part, the smallest first. None: equal ones that sum to 1."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for weight in self.weights or ():
            at_least("each of weights", weight, 0.0)
        if self.weights is not None and not any(self.weights):
            raise ValueError(f"weights={self.weights} leaves nothing to reconstruct: give one part a weight above 0")

    def sizes(self, model: SparseModel) -> tuple[int, ...]:
        """The size of each part, as messages name them."""
        raise NotImplementedError

    def depth(self, out: Forward) -> Tensor:
        """The part, from 0, that each value of the code enters at, in the shape of `out.values()`, or (n_latents,) where that is
        the code's width; of the number of parts, or more, where none has it."""
        raise NotImplementedError

    def check(self, model: SparseModel) -> None:
        self.check_number(self.sizes(model))

    def check_number(self, sizes: Sequence[int]) -> None:
        """Raise ValueError unless there is one weight for each of the parts of these sizes."""
        if self.weights is not None and len(self.weights) != len(sizes):
            raise ValueError(f"{len(self.weights)} weights for the {len(sizes)} parts {tuple(sizes)}: pass one for each")

    def shares(self, model: SparseModel) -> Sequence[float]:
        """The weight of each part."""
        n = len(self.sizes(model))
        return [1.0 / n] * n if self.weights is None else self.weights

    def codes(self, out: Forward) -> Iterator[tuple[float | Tensor, Code]]:
        depth = self.depth(out)
        for part, share in enumerate(self.shares(out.model)):
            yield share, masked(out.code, depth <= part)

    def __call__(self, out: Forward, state: State) -> Tensor:
        if type(self).codes is not Nested.codes:  # what the solve goes by
            return super().__call__(out, state)
        return nested_error(out, self.depth(out), self.shares(out.model))


def nested_error(out: Forward, depth: Tensor, shares: Sequence[float]) -> Tensor:
    """The sum over nested parts of their share times their mean squared error, all decoded at about the price of one."""
    total = out.target.new_zeros(())
    for share, x_hat in zip(shares, out.model.decode_nested(out.code, depth, len(shares)), strict=True):
        total = total + share * F.mse_loss(x_hat, out.target)
    return total
