"""The Jacobian between the codes of two SAEs, one before an MLP and one behind it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from splinterp._checks import as_samples
from splinterp._typing import ArrayLike, Float, Int, Tensor
from splinterp.sae import SAE


class MLP(NamedTuple):
    """y = activation(x @ W_in + b_in) @ W_out + b_out, the activation by entries (no gates)."""

    W_in: Float[Tensor, "d_in width"]
    b_in: Float[Tensor, " width"]
    W_out: Float[Tensor, "width d_out"]
    b_out: Float[Tensor, " d_out"]
    activation: Callable[[Tensor], Tensor]

    def __call__(self, x: Tensor) -> Tensor:
        return self.activation(x @ self.W_in + self.b_in) @ self.W_out + self.b_out


class ActiveJacobian(NamedTuple):
    """Of n samples: entry (i, j) is the derivative of latent `after[j]` of the second SAE in latent `before[i]` of the first."""

    values: Float[Tensor, "n k_before k_after"]
    before: Int[Tensor, "n k_before"]
    after: Int[Tensor, "n k_after"]


def active_jacobian(first: SAE, mlp: MLP, second: SAE, x: ArrayLike) -> ActiveJacobian:
    """The Jacobian of z -> second.encode(mlp(first.decode(z))) at the code z of x (n, d_in), in the latents that are active.

    Only k x k entries of a sample are not 0 (supports held, as almost everywhere), and only those are computed:
    W_dec1[S1] W_in diag(activation') W_out W_enc2[:, S2]. Differentiable in all weights, so its mean size can be penalised; rescaling
    codes makes it small too, so compare with rows of W_dec1 of unit norm. Source: Jacobian sparse autoencoders, arXiv 2502.18147.

    Raises:
        TypeError: SAEs without a fixed k (TopK and AbsTopK have one), or whose codes are not of affine scores.
        ValueError: widths that do not fit each other.
    """
    for name, sae in {"first": first, "second": second}.items():
        sae.require_plain(f"the Jacobian of codes ({name})")
    if first.d_in != len(mlp.W_in) or second.d_in != mlp.W_out.shape[1]:
        raise ValueError(
            f"the MLP maps {len(mlp.W_in)} to {mlp.W_out.shape[1]}, and the SAEs have d_in={first.d_in} and {second.d_in}: pass the one "
            "before it and the one behind it"
        )
    x = as_samples(x, first.d_in, dtype=first.W_enc.dtype, device=first.W_enc.device)
    x_hat, code = first.reconstruct(x)
    hidden = x_hat @ mlp.W_in + mlp.b_in
    out, slope = with_slope(mlp.activation, hidden)
    after = second.encode_top(out @ mlp.W_out + mlp.b_out)
    values = entries(first.decoder_rows(), mlp, slope, second.W_enc, code.top_indices, after.top_indices)
    silent = after.top_acts == 0 if not second.activation.signed else torch.zeros_like(after.top_acts, dtype=torch.bool)
    values = torch.where(silent[:, None], 0.0, values)
    return ActiveJacobian(values, code.top_indices, after.top_indices)


def entries(
    rows: Float[Tensor, "m1 d_in"], mlp: MLP, slope: Float[Tensor, "n width"], W_enc: Float[Tensor, "d_out m2"],
    before: Int[Tensor, "n k1"], after: Int[Tensor, "n k2"],
) -> Float[Tensor, "n k1 k2"]:  # fmt: skip
    """rows[before] W_in diag(slope) W_out W_enc[:, after]."""
    into, onward = rows @ mlp.W_in, (mlp.W_out @ W_enc).T  # (m1, width), (m2, width)
    return (into[before] * slope[:, None]) @ onward[after].mT


def with_slope(activation: Callable[[Tensor], Tensor], hidden: Tensor) -> tuple[Tensor, Tensor]:
    """An entrywise activation of `hidden` and its derivative, both differentiable where `hidden` is."""
    with torch.inference_mode(False), torch.enable_grad():
        at = hidden if hidden.requires_grad else hidden.detach().clone().requires_grad_()
        out = activation(at)
        slope = torch.autograd.grad(out.sum(), at, create_graph=hidden.requires_grad)[0]
    return out if hidden.requires_grad else out.detach(), slope
