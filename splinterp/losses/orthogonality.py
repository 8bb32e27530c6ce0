"""OrtSAE: rows of the decoder are kept from pointing the same way."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from splinterp._checks import at_least, whole
from splinterp._documented import documented
from splinterp._random import drawing_from, seeded_state
from splinterp._typing import Tensor
from splinterp.losses.forward import Forward
from splinterp.losses.terms import State, Term
from splinterp.protocol import SparseModel


@documented
@dataclass(frozen=True, kw_only=True)
class OrtSAE(Term):
    """The mean over chunks, and over the rows i of each, of (max over the other rows j of the chunk of cos(w_i, w_j))^2.

    0 for orthonormal rows, 1 for duplicates. The largest is by sign for codes that are not negative, where opposite rows are
    two features, and by magnitude for signed ones (AbsTopK). The rows are dealt anew each time, into about n_latents / chunk
    chunks of one size. Rows of zeros have cosine 0. It has no unit, so its weight goes with a squared error of data of variance
    1. A decoder solve does not see it. A pair's gradient costs d_in, finding it chunk d_in. Source: OrtSAE, arXiv 2509.22033.

    Raises:
        ValueError: chunk below 2; on a model, fewer than 2 latents.
    """

    weight: float = 0.25
    chunk: int = 8192
    """Rows that are compared with each other (one more where one would be left alone)."""
    seed: int = 0
    """Of the order in which rows are dealt."""

    def __post_init__(self) -> None:
        super().__post_init__()
        whole("chunk", self.chunk, 2)

    def check(self, model: SparseModel) -> None:
        at_least(f"{self.name} compares latents: n_latents", model.shape[1], 2)

    def init(self, model: SparseModel) -> State:
        """`generator`: the state of a CPU generator, uint8."""
        return {"generator": seeded_state(self.seed)}

    def __call__(self, out: Forward, state: State) -> Tensor:
        W_dec = out.W_dec
        n = len(W_dec)
        with drawing_from(state["generator"]) as generator:
            order = torch.randperm(n, device="cpu", generator=generator).to(W_dec.device)
        signed = out.model.nonlinearity is not None and out.model.nonlinearity.signed
        chunks = order.tensor_split(min(-(-n // self.chunk), n // 2))
        return torch.stack([_largest_cosines(W_dec[rows], signed).square().mean() for rows in chunks]).mean()


def _largest_cosines(rows: Tensor, signed: bool) -> Tensor:
    """Each row's cosine to the other row where it is largest, (n,)."""
    norms = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    unit = rows / torch.where(norms > 0, norms, 1.0)
    with torch.no_grad():  # gradients reach the pairs that are found, not an array of all of them
        cosines = unit @ unit.T
        cosines = cosines.abs_() if signed else cosines
        partners = cosines.fill_diagonal_(-torch.inf).argmax(1)
    return (unit * unit[partners]).sum(1)
