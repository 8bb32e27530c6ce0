"""Activations that keep k latents of each sample: TopK and AbsTopK."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from splinterp._checks import whole
from splinterp._typing import Float, Int, Tensor
from splinterp.activations.base import Activation, TopActs, _infeasible
from splinterp.sparse_kernels import select_largest, settle_ties


class _FixedCount(Activation):
    """Shared part of the activations that keep k latents (a sample, or a sample on average)."""

    def __init__(self, k: int) -> None:
        super().__init__()
        self.k = whole("k", k, 1)

    def bind(self, n_latents: int, dtype: torch.dtype, device: torch.device) -> Activation:
        if self.k > n_latents:
            raise ValueError(f"k={self.k} is larger than n_latents={n_latents}: choose k <= n_latents")
        return super().bind(n_latents, dtype, device)

    def config(self) -> dict[str, Any]:
        return {"name": type(self).__name__, "k": self.k}

    @property
    def kept(self) -> int | None:
        return self.k

    @contextmanager
    def keeping(self, k: int) -> Iterator[None]:
        own, self.k = self.k, k
        try:
            yield
        finally:
            self.k = own

    def regularizer(self, acts: Float[Tensor, "n n_latents"]) -> Float[Tensor, " n"]:
        return _infeasible(((acts != 0).sum(dim=1) > self.k) | (acts < 0).any(dim=1))


class RowTop(_FixedCount):
    """Shared part of the activations that keep k latents of each sample: which (`select`), and as what value (`keep`).

    A subclass that overrides `forward` instead has its sparse form read off `forward`, and no kernel goes around it.
    """

    couples_samples = False

    @property
    def selects(self) -> bool:
        """Whether codes are made by `select` and `keep`, which sparse kernels call."""
        return not self.patched and type(self).forward is RowTop.forward and type(self).top is RowTop.top

    @property
    def has_gradients(self) -> bool:
        """Whether `keep_backward` belongs to `keep`: both are of one class."""
        kind: Any = type(self)
        return self.selects and "keep_backward" not in self.__dict__ and _owner(kind, "keep") is _owner(kind, "keep_backward")

    def select(self, pre_acts: Float[Tensor, "n n_latents"]) -> Int[Tensor, "n k"]:
        """Indices of the kept latents."""
        raise NotImplementedError

    def select_settled(self, pre_acts: Float[Tensor, "n n_latents"]) -> Int[Tensor, "n k"]:
        """The same; where `select` is TopK's or AbsTopK's, of equal scores those of the lowest indices, however it searches."""
        found = self.select(pre_acts)
        kind: Any = type(self)
        known = "select" not in self.__dict__ and any(_owner(kind, "select") is home for home in (TopK, AbsTopK))
        return settle_ties(pre_acts, found, self.signed) if known else found

    def keep(self, scores: Tensor) -> Tensor:
        """The codes of kept scores."""
        raise NotImplementedError

    def keep_backward(self, grad: Tensor, acts: Tensor) -> Tensor:
        """The gradient of kept scores, given that of their codes."""
        raise NotImplementedError

    def top(self, pre_acts: Float[Tensor, "n n_latents"]) -> TopActs:
        if type(self).forward is not RowTop.forward:
            return self._read_off(self(pre_acts))
        return self._selected(pre_acts)

    def _selected(self, pre_acts: Tensor) -> TopActs:
        indices = self.select_settled(pre_acts.detach())
        return TopActs(self.keep(pre_acts.gather(1, indices)), indices)

    def forward(self, pre_acts: Float[Tensor, "n n_latents"]) -> Float[Tensor, "n n_latents"]:
        # a subclass's own forward may call this one, whose `top` is then read off it
        top = self.top(pre_acts) if type(self).forward is RowTop.forward else self._selected(pre_acts)
        return torch.zeros_like(pre_acts).scatter(1, top.top_indices, top.top_acts)

    def _read_off(self, acts: Tensor) -> TopActs:
        k = min(acts.shape[1], max(self.k, int((acts != 0).sum(1).max()) if len(acts) else 0))
        indices = acts.detach().abs().topk(k, dim=1).indices
        return TopActs(acts.gather(1, indices), indices)


class TopK(RowTop):
    """The k largest scores of each sample, then ReLU: the projection onto {|z|_0 <= k, z >= 0}.

    Raises:
        TypeError, ValueError: k is not an int of at least 1.

    Examples:
        >>> TopK(1)(torch.tensor([[1.0, 3.0, -5.0]]))
        tensor([[0., 3., 0.]])
    """

    couples_samples = False
    competes = True

    def select(self, pre_acts: Float[Tensor, "n n_latents"]) -> Int[Tensor, "n k"]:
        return select_largest(pre_acts, self.k)

    def keep(self, scores: Tensor) -> Tensor:
        return torch.relu(scores)

    def keep_backward(self, grad: Tensor, acts: Tensor) -> Tensor:
        return grad * (acts > 0)


class AbsTopK(RowTop):
    """The k scores of largest magnitude of each sample, signs kept: the projection onto {|z|_0 <= k}.

    Source: arXiv 2510.00404. The SplInterp scripts call this "topk".

    Raises:
        TypeError, ValueError: k is not an int of at least 1.

    Examples:
        >>> AbsTopK(1)(torch.tensor([[1.0, 3.0, -5.0]]))
        tensor([[ 0.,  0., -5.]])
    """

    signed = True
    couples_samples = False
    competes = True

    def select(self, pre_acts: Float[Tensor, "n n_latents"]) -> Int[Tensor, "n k"]:
        return select_largest(pre_acts, self.k, magnitude=True)

    def keep(self, scores: Tensor) -> Tensor:
        return scores

    def keep_backward(self, grad: Tensor, acts: Tensor) -> Tensor:
        return grad

    def regularizer(self, acts: Float[Tensor, "n n_latents"]) -> Float[Tensor, " n"]:
        return _infeasible((acts != 0).sum(dim=1) > self.k)


@functools.cache
def _owner(kind: Any, name: str) -> Any:
    """The class that defines a method of `kind`."""
    return next(c for c in kind.__mro__ if name in c.__dict__)
