"""Activations of an SAE, each the proximal map of a penalty.

`rho(u) = argmin_z 1/2 |z - u|^2 + R(z)` for every activation here (AbsTopK paper, arXiv 2510.00404, section 3);
`regularizer` returns R, so the claim can be tested. A TopK always applies ReLU to what it keeps.
"""

from __future__ import annotations

import copy
import math
from typing import Any, ClassVar, NamedTuple

import torch
from torch import nn

from splinterp._checks import at_least, one_of
from splinterp._typing import Float, Int, Tensor
from splinterp.sparse_kernels import select_largest


class TopActs(NamedTuple):
    """The sparse form of `acts`: row r has `top_acts[r, j]` at latent `top_indices[r, j]` and zeros elsewhere.

    Indices in a row are distinct and in no particular order; a kept value may be 0 (TopK of negative scores).
    """

    top_acts: Float[Tensor, "n k"]
    top_indices: Int[Tensor, "n k"]


class Activation(nn.Module):
    """Base of the activations: a map from `pre_acts (n, n_latents)` to `acts` of the same shape.

    `allows_l1` / `allows_l0` say which sparsity penalty of the training methods the activation can take.
    """

    allows_l1: ClassVar[bool] = False
    allows_l0: ClassVar[bool] = False

    def bind(self, n_latents: int, dtype: torch.dtype, device: torch.device) -> Activation:
        """Return an independent copy for an SAE of `n_latents` latents.

        Raises ValueError where the activation does not fit that many latents.
        """
        return copy.deepcopy(self).to(device=device, dtype=dtype)

    def config(self) -> dict[str, Any]:
        """The constructor's arguments, with the class name under "name"."""
        raise NotImplementedError

    def top(self, pre_acts: Float[Tensor, "n n_latents"]) -> TopActs:
        """The sparse form of `acts`. Raises TypeError for activations without a fixed number of active latents."""
        raise TypeError(f"{type(self).__name__} has no fixed number of active latents; use the dense acts")

    def regularizer(self, acts: Float[Tensor, "n n_latents"]) -> Float[Tensor, " n"]:
        """R(z) of each sample, `inf` where z is not feasible."""
        raise NotImplementedError

    def extra_repr(self) -> str:
        return ", ".join(f"{key}={value!r}" for key, value in self.config().items() if key != "name")


def _infeasible(condition: Tensor) -> Tensor:
    return torch.where(condition, math.inf, 0.0)


class ReLU(Activation):
    """max(u, 0): the proximal map of the indicator of z >= 0. An l1 penalty lambda is the bias b_enc - lambda.

    >>> ReLU()(torch.tensor([[-1.0, 2.0]]))
    tensor([[0., 2.]])
    """

    allows_l1 = True

    def config(self) -> dict[str, Any]:
        return {"name": "ReLU"}

    def forward(self, pre_acts: Float[Tensor, "n n_latents"]) -> Float[Tensor, "n n_latents"]:
        return torch.relu(pre_acts)

    def regularizer(self, acts: Float[Tensor, "n n_latents"]) -> Float[Tensor, " n"]:
        return _infeasible((acts < 0).any(dim=1))


class _Jump(torch.autograd.Function):
    """u where u > theta, else 0; the threshold's gradient is a rectangle kernel of the given bandwidth."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, theta: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(u, theta)
        ctx.bandwidth = bandwidth
        return u * (u > theta)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None]:
        u, theta = ctx.saved_tensors
        if not ctx.needs_input_grad[1]:
            return grad * (u > theta), None, None
        window = ((u - theta).abs() < ctx.bandwidth / 2) / ctx.bandwidth
        return grad * (u > theta), (-theta * window * grad).sum_to_size(theta.shape), None


class _Count(torch.autograd.Function):
    """1 where u > theta, with the same straight-through gradient for theta and none for u."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, theta: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(u, theta)
        ctx.bandwidth = bandwidth
        return (u > theta).to(u.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        u, theta = ctx.saved_tensors
        window = ((u - theta).abs() < ctx.bandwidth / 2) / ctx.bandwidth
        return torch.zeros_like(u), (-window * grad).sum_to_size(theta.shape), None


class JumpReLU(Activation):
    """u where u > theta, else 0: the proximal map of lambda |z|_0 + indicator(z >= 0) with theta = sqrt(2 lambda).

    Every latent has its own theta > 0, trained through its logarithm by a straight-through estimator with a
    rectangle kernel (Rajamanoharan et al., arXiv 2407.14435, equations 11 and 12).

    Args:
        threshold: start of every theta, in units of `pre_acts`.
        bandwidth: full width of the kernel, in units of `pre_acts`: scores within half of it of theta move theta.

    Raises:
        ValueError: threshold or bandwidth not above 0.
    """

    allows_l1 = True
    allows_l0 = True

    def __init__(self, threshold: float = 0.1, bandwidth: float = 0.1) -> None:
        super().__init__()
        at_least("threshold", threshold, 0.0, strict=True)
        at_least("bandwidth", bandwidth, 0.0, strict=True)
        self.initial_threshold = float(threshold)
        self.bandwidth = float(bandwidth)
        self.log_threshold = nn.Parameter(torch.tensor(math.log(threshold)))

    @property
    def threshold(self) -> Tensor:
        """theta of each latent, shape (n_latents,); a scalar before the activation belongs to an SAE."""
        return self.log_threshold.exp()

    def bind(self, n_latents: int, dtype: torch.dtype, device: torch.device) -> JumpReLU:
        bound = copy.deepcopy(self)
        start = self.log_threshold.detach().to(device=device, dtype=dtype)
        bound.log_threshold = nn.Parameter(start.expand(n_latents).clone())
        return bound

    def config(self) -> dict[str, Any]:
        return {"name": "JumpReLU", "threshold": self.initial_threshold, "bandwidth": self.bandwidth}

    def forward(self, pre_acts: Float[Tensor, "n n_latents"]) -> Float[Tensor, "n n_latents"]:
        return _Jump.apply(pre_acts, self.threshold, self.bandwidth)

    def count(self, pre_acts: Float[Tensor, "n n_latents"]) -> Float[Tensor, " n"]:
        """Number of active latents of each sample, differentiable in theta by the straight-through estimator."""
        return _Count.apply(pre_acts, self.threshold, self.bandwidth).sum(dim=1)

    def regularizer(self, acts: Float[Tensor, "n n_latents"]) -> Float[Tensor, " n"]:
        cost = (0.5 * self.threshold.detach() ** 2 * (acts != 0)).sum(dim=1)
        return cost + _infeasible((acts < 0).any(dim=1))


class _FixedCount(Activation):
    """Shared part of the activations that keep k latents (a sample, or a sample on average)."""

    def __init__(self, k: int) -> None:
        super().__init__()
        if not isinstance(k, int) or isinstance(k, bool):
            raise TypeError(f"k={k!r} must be an int")
        at_least("k", k, 1)
        self.k = k

    def bind(self, n_latents: int, dtype: torch.dtype, device: torch.device) -> Activation:
        if self.k > n_latents:
            raise ValueError(f"k={self.k} is larger than n_latents={n_latents}: choose k <= n_latents")
        return super().bind(n_latents, dtype, device)

    def config(self) -> dict[str, Any]:
        return {"name": type(self).__name__, "k": self.k}

    def regularizer(self, acts: Float[Tensor, "n n_latents"]) -> Float[Tensor, " n"]:
        return _infeasible(((acts != 0).sum(dim=1) > self.k) | (acts < 0).any(dim=1))


class RowTop(_FixedCount):
    """Shared part of the activations that keep k latents of each sample: which (`select`), and as what value (`keep`)."""

    def select(self, pre_acts: Float[Tensor, "n n_latents"]) -> Int[Tensor, "n k"]:
        """Indices of the kept latents."""
        raise NotImplementedError

    def keep(self, scores: Tensor) -> Tensor:
        """The codes of kept scores."""
        raise NotImplementedError

    def keep_backward(self, grad: Tensor, acts: Tensor) -> Tensor:
        """The gradient of kept scores, given that of their codes."""
        raise NotImplementedError

    def top(self, pre_acts: Float[Tensor, "n n_latents"]) -> TopActs:
        indices = self.select(pre_acts.detach())
        return TopActs(self.keep(pre_acts.gather(1, indices)), indices)

    def forward(self, pre_acts: Float[Tensor, "n n_latents"]) -> Float[Tensor, "n n_latents"]:
        top = self.top(pre_acts)
        return torch.zeros_like(pre_acts).scatter(1, top.top_indices, top.top_acts)


class TopK(RowTop):
    """The k largest scores of each sample, then ReLU: the projection onto {|z|_0 <= k, z >= 0}.

    Raises:
        TypeError, ValueError: k is not an int of at least 1.

    >>> TopK(1)(torch.tensor([[1.0, 3.0, -5.0]]))
    tensor([[0., 3., 0.]])
    """

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

    >>> AbsTopK(1)(torch.tensor([[1.0, 3.0, -5.0]]))
    tensor([[ 0.,  0., -5.]])
    """

    def select(self, pre_acts: Float[Tensor, "n n_latents"]) -> Int[Tensor, "n k"]:
        return select_largest(pre_acts, self.k, magnitude=True)

    def keep(self, scores: Tensor) -> Tensor:
        return scores

    def keep_backward(self, grad: Tensor, acts: Tensor) -> Tensor:
        return grad

    def regularizer(self, acts: Float[Tensor, "n n_latents"]) -> Float[Tensor, " n"]:
        return _infeasible((acts != 0).sum(dim=1) > self.k)


class BatchTopK(_FixedCount):
    """The k * n largest positive scores of a batch of n samples while training; a fixed threshold at inference.

    The threshold is the running mean, over training batches, of the smallest value kept (arXiv 2412.06410): an
    exponential mean with the given momentum that starts at the first batch. It moves only while gradients are
    enabled, so collecting codes for a decoder solve leaves it alone.

    Raises:
        TypeError, ValueError: k is not an int of at least 1, momentum outside [0, 1).
        RuntimeError: evaluation before any training batch has set the threshold.
    """

    threshold: Tensor

    def __init__(self, k: int, momentum: float = 0.99) -> None:
        super().__init__(k)
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum={momentum} must be in [0, 1)")
        self.momentum = float(momentum)
        self.register_buffer("threshold", torch.tensor(math.nan))

    def config(self) -> dict[str, Any]:
        return {**super().config(), "momentum": self.momentum}

    def forward(self, pre_acts: Float[Tensor, "n n_latents"]) -> Float[Tensor, "n n_latents"]:
        positive = torch.relu(pre_acts)
        if not self.training:
            if torch.isnan(self.threshold):
                raise RuntimeError("BatchTopK has no threshold yet: train it first, or call .train() to select by batch")
            return positive * (pre_acts >= self.threshold)
        flat = positive.flatten()
        values, indices = flat.topk(min(self.k * pre_acts.shape[0], flat.numel()), sorted=False)
        if torch.is_grad_enabled():
            self._update_threshold(values.detach())
        return torch.zeros_like(flat).scatter(0, indices, values).view_as(pre_acts)

    def _update_threshold(self, kept: Tensor) -> None:
        active = kept[kept > 0]
        if active.numel():
            smallest = active.min()
            mean = self.momentum * self.threshold + (1 - self.momentum) * smallest
            self.threshold.copy_(torch.where(torch.isnan(self.threshold), smallest, mean))

    def regularizer(self, acts: Float[Tensor, "n n_latents"]) -> Float[Tensor, " n"]:
        """R couples the samples of a batch: each row carries the whole batch's feasibility."""
        feasible = ((acts != 0).sum() <= self.k * acts.shape[0]) & (acts >= 0).all()
        return _infeasible(~feasible).expand(acts.shape[0])


ACTIVATIONS: dict[str, type[Activation]] = {cls.__name__: cls for cls in (ReLU, JumpReLU, TopK, AbsTopK, BatchTopK)}


def activation_from_config(config: dict[str, Any]) -> Activation:
    """The inverse of `Activation.config`. Raises ValueError for an unknown name."""
    arguments = dict(config)
    name = arguments.pop("name", None)
    one_of("activation name", name, ACTIVATIONS)
    return ACTIVATIONS[name](**arguments)
