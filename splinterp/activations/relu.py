"""Activations that look at each score alone: ReLU, and JumpReLU with a trained threshold for every latent."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import nn

from splinterp._checks import at_least
from splinterp._typing import Float, Tensor
from splinterp.activations.base import Activation, _infeasible


class ReLU(Activation):
    """max(u, 0): the proximal map of the indicator of z >= 0. An l1 penalty lambda is the bias b_enc - lambda.

    Examples:
        >>> ReLU()(torch.tensor([[-1.0, 2.0]]))
        tensor([[0., 2.]])
    """

    allows_l1 = True
    couples_samples = False
    by_own_score = True

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
        return u * (u > theta)  # NaN stays NaN, so that divergence is seen

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None]:
        u, theta = ctx.saved_tensors
        through = torch.where(u > theta, grad, 0.0)  # selected, not multiplied: a silent latent's gradient may be infinite
        if not ctx.needs_input_grad[1]:
            return through, None, None
        near = (u - theta).abs() < ctx.bandwidth / 2
        return through, torch.where(near, -theta * grad / ctx.bandwidth, 0.0).sum_to_size(theta.shape), None


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
        near = (u - theta).abs() < ctx.bandwidth / 2
        return torch.zeros_like(u), torch.where(near, -grad / ctx.bandwidth, 0.0).sum_to_size(theta.shape), None


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
    couples_samples = False
    by_own_score = True

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

    @property
    def threshold_parameter(self) -> nn.Parameter:
        return self.log_threshold

    def set_threshold(self, threshold: Float[Tensor, " n_latents"]) -> None:
        self.log_threshold.copy_(threshold.clamp_min(torch.finfo(threshold.dtype).tiny).log())

    def bind(self, n_latents: int, dtype: torch.dtype, device: torch.device) -> JumpReLU:
        bound = copy.deepcopy(self)
        start = self.log_threshold.detach().to(device=device, dtype=dtype)
        bound.log_threshold = nn.Parameter(start.expand(n_latents).clone())
        return bound

    def config(self) -> dict[str, Any]:
        return {**super().config(), "threshold": self.initial_threshold, "bandwidth": self.bandwidth}

    def forward(self, pre_acts: Float[Tensor, "n n_latents"]) -> Float[Tensor, "n n_latents"]:
        return _Jump.apply(pre_acts, self.threshold, self.bandwidth)

    def count(self, pre_acts: Float[Tensor, "n n_latents"]) -> Float[Tensor, " n"]:
        """Number of active latents of each sample, differentiable in theta by the straight-through estimator."""
        return _Count.apply(pre_acts, self.threshold, self.bandwidth).sum(dim=1)

    def regularizer(self, acts: Float[Tensor, "n n_latents"]) -> Float[Tensor, " n"]:
        cost = (0.5 * self.threshold.detach() ** 2 * (acts != 0)).sum(dim=1)
        return cost + _infeasible((acts < 0).any(dim=1))
