"""What trains the gate of a gated SAE, which the squared error does not reach."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch

from splinterp._documented import documented
from splinterp._typing import Tensor
from splinterp.encoders import Gated
from splinterp.losses.forward import Forward
from splinterp.losses.terms import Reconstruction, State, Term
from splinterp.protocol import Code, SparseModel


@dataclass(frozen=True, kw_only=True)
class _OfGate(Term):
    reads_scores: ClassVar[bool] = True

    def check(self, model: SparseModel) -> None:
        if not isinstance(model.parametrisation, Gated):
            raise TypeError(f"{self.name} is of the gate of an SAE with encoder=Gated(), and {model!r} has none")


@documented
@dataclass(frozen=True, kw_only=True)
class GateL1(_OfGate):
    """The mean over samples of sum_i max(gate_i, 0), gate the scores that say which latents fire.

    A coefficient on sums over d_in of squared errors is d_in times as large as `weight`. A decoder solve does not see it.
    Source: arXiv 2404.16014, equation 8.

    Raises:
        TypeError: a model without a `Gated` encoder.
    """

    row_norms: bool = False
    """Multiply each gate by the norm of its row of W_dec, held as it is, as in `GateError`. Published without, where rows have unit norm
    (`unit_norm_decoder`); with rows that are free, small gates and large rows would escape the penalty. Norms that the penalty moved
    would shrink to nothing: the magnitudes make up for it in the error, and nothing else holds them."""

    def __call__(self, out: Forward, state: State) -> Tensor:
        gate = torch.relu(out.pre_acts)
        return (gate * torch.linalg.vector_norm(out.W_dec.detach(), dim=1) if self.row_norms else gate).sum(1).mean()


@documented
@dataclass(frozen=True, kw_only=True)
class GateError(_OfGate):
    """The mean over samples and d_in of |x - max(gate, 0) W_dec - b_dec|^2, the decoder held: gradients reach the gate alone.

    A decoder solve does not see it. Source: arXiv 2404.16014, equation 8.

    Raises:
        TypeError: a model without a `Gated` encoder.
    """

    def __call__(self, out: Forward, state: State) -> Tensor:
        gate = torch.relu(out.pre_acts)
        return (out.target - out.model.b_dec.detach() - gate @ out.W_dec.detach()).square().mean()


@documented
@dataclass(frozen=True, kw_only=True)
class GateReconstruction(_OfGate, Reconstruction):
    """The same error with a decoder that learns from it, by gradients and by exact solves.

    The paper's ablation; its rows then serve two codes. Source: arXiv 2404.16014, section 5.2.

    Raises:
        TypeError: a model without a `Gated` encoder.
    """

    def codes(self, out: Forward) -> Iterator[tuple[float | Tensor, Code]]:
        yield 1.0, torch.relu(out.pre_acts)
