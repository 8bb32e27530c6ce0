"""A penalty on how many latents before an MLP act on those behind it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from splinterp._documented import documented
from splinterp._typing import Tensor
from splinterp.jacobian_sae import JacobianSAE
from splinterp.losses.forward import Forward
from splinterp.losses.terms import State, Term
from splinterp.protocol import SparseModel


@documented
@dataclass(frozen=True, kw_only=True)
class JacobianL1(Term):
    """The mean over samples and pairs of kept latents of |J_ij| |w_j| / |w_i|, J the Jacobian of the codes behind an MLP in those
    before it (`JacobianSAE.jacobian`; 0 where one of them is silent), w_i and w_j their rows of W_dec.

    It is of codes in the units of their rows, z_i |w_i|, so that it cannot be made small by rescaling latents; with rows of norm 1 it
    is the published mean of |J|. An exact solve does not see it. Source: arXiv 2502.18147, whose weights are 0.125 (6.9 billion
    parameters) to 1 (70 million) beside squared errors that are summed over the two SAEs, where `SquaredError` is their mean over all
    columns; the weight is raised over the first 5 % of the steps there.

    Raises:
        TypeError: on a model that is no `JacobianSAE`.
    """

    def check(self, model: SparseModel) -> None:
        if not isinstance(model, JacobianSAE):
            raise TypeError(
                f"JacobianL1 is of a JacobianSAE, which knows the MLP between its two blocks, and not of a {model.label}"
            )

    def __call__(self, out: Forward, state: State) -> Tensor:
        model = out.model
        assert isinstance(model, JacobianSAE)
        J = model.jacobian(out.x, out.code)
        norms = torch.linalg.vector_norm(out.W_dec, dim=1)
        first, second = norms.chunk(2)
        tiny = torch.finfo(norms.dtype).tiny ** 0.5  # a row of 0 acts on nothing
        return (J.values.abs() * second[J.after][:, None] / first.clamp_min(tiny)[J.before][:, :, None]).mean()
