"""Muon: momentum whose update of each weight matrix is made orthogonal; everything else by Adam.

Source: Jordan et al., "Muon: an optimizer for hidden layers in neural networks" (2024); the scale of the update, which lets Adam's step
sizes carry over, is that of Liu et al., arXiv 2502.16982.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch

from splinterp._typing import Tensor

COEFFICIENTS = (3.4445, -4.775, 2.0315)
STEPS = 5
"""Newton-Schulz steps; singular values end within about 0.7 to 1.2."""
EPS = 1e-7
"""Added to the norm that a matrix is divided by: updates of far smaller ones fade."""
MATCH = 0.2
"""Root mean square entry of an update of Adam, which the scale aims at."""


def orthogonalised(x: Tensor, steps: int = STEPS) -> Tensor:
    """The matrix x (a, b) with its singular values brought near 1, by an odd polynomial of x applied `steps` times.

    All steps are taken on the Gram matrix of the shorter side, whose polynomials commute, so a wide matrix costs two products of its
    own size rather than two or three a step.
    """
    tall = x.shape[0] > x.shape[1]
    short = x.T if tall else x
    short = short / (torch.linalg.vector_norm(short) + EPS)
    a, b, c = COEFFICIENTS
    gram = short @ short.T
    total: Tensor | None = None
    for step in range(steps):
        polynomial = torch.addmm(gram, gram, gram, beta=b, alpha=c)
        polynomial.diagonal().add_(a)
        total = polynomial if total is None else polynomial @ total
        if step < steps - 1:
            gram = polynomial @ gram @ polynomial
    found = short if total is None else total @ short
    return found.T if tall else found


class Muon(torch.optim.Optimizer):
    """Muon on parameters of two axes, Adam on all others. Weight decay is decoupled.

    Args:
        params: parameters or groups of them.
        lr: step size of both; an update of a matrix has entries of about Adam's size.
        momentum: of matrices, with Nesterov's look ahead.
        betas, eps: of Adam.
        weight_decay: share of a parameter, times lr, that a step takes from it.

    Raises:
        ValueError: an option out of range.
    """

    def __init__(
        self, params: Iterable[Any], lr: float = 3e-3, momentum: float = 0.95, betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8, weight_decay: float = 0.0,
    ) -> None:  # fmt: skip
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum={momentum} must be in [0, 1)")
        if not lr >= 0:
            raise ValueError(f"lr={lr} must be at least 0")
        super().__init__(params, {"lr": lr, "momentum": momentum, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of all parameters that have a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                if group["weight_decay"]:
                    p.mul_(1 - group["lr"] * group["weight_decay"])
                update = _matrix_update(p, self.state[p], group) if p.ndim == 2 else _adam_update(p, self.state[p], group)
                p.add_(update, alpha=-group["lr"])
        return loss


def _matrix_update(p: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
    if not state:
        state["momentum_buffer"] = torch.zeros_like(p)
    assert p.grad is not None
    held = state["momentum_buffer"]
    held.lerp_(p.grad, 1 - group["momentum"])
    ahead = p.grad.lerp(held, group["momentum"])
    return orthogonalised(ahead).mul_(MATCH * max(p.shape) ** 0.5)


def _adam_update(p: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
    if not state:
        state.update(step=torch.zeros(()), exp_avg=torch.zeros_like(p), exp_avg_sq=torch.zeros_like(p))
    first, second = group["betas"]
    state["step"] += 1
    state["exp_avg"].lerp_(p.grad, 1 - first)
    state["exp_avg_sq"].mul_(second).addcmul_(p.grad, p.grad, value=1 - second)
    n = int(state["step"])
    size = (state["exp_avg_sq"] / (1 - second**n)).sqrt_().add_(group["eps"])
    return state["exp_avg"] / (1 - first**n) / size
