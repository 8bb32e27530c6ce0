"""Top-AFA: as many latents of a sample as its norm asks for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from splinterp._typing import Tensor
from splinterp.encoders._needs import needs_relu
from splinterp.encoders.base import Encoder


@dataclass(frozen=True)
class TopAFA(Encoder):
    """The positive scores of a sample that are largest as parts of the output, |z_i| |w_i|: so many of them that the root of the sum of
    their squares is nearest to |x - b_dec|.

    That root is the norm of x_hat - b_dec where the rows in use are orthogonal, so a good reconstruction has about the norm of
    x - b_dec. There is no k: the encoder's scale decides l0 (smaller scores, more latents), and so does a penalty. At equal distance
    the fewer are kept, at least one where a score is positive. The choice has no gradient. Since it reads W_dec and b_dec, a decoder solve
    moves some of the codes that it was of. Source: top-AFA, arXiv 2503.24277
    (whose code also forbids that all latents are kept; here they may be).

    Raises:
        TypeError: an activation other than ReLU.
    """

    couples_samples: ClassVar[bool] = False

    def check(self, n_latents: int, activation: Any, decoder: str) -> None:
        needs_relu(self, activation)

    def acts_of(self, sae: Any, pre_acts: Tensor, x: Tensor) -> Tensor:
        acts = self.acts(sae, pre_acts)
        with torch.no_grad():
            norm = torch.linalg.vector_norm(x - sae.b_dec, dim=1, keepdim=True)
            sizes = acts * torch.linalg.vector_norm(sae.decoder_rows(), dim=1)
            ordered, order = sizes.sort(dim=1, descending=True, stable=True)
            roots = ordered.square().cumsum(1).sqrt()
            last = (roots - norm).abs().argmin(1, keepdim=True)
            ranks = torch.arange(acts.shape[1], device=acts.device).expand_as(order)
            kept = torch.zeros_like(order, dtype=torch.bool).scatter_(1, order, ranks <= last)
        return torch.where(kept | acts.isnan(), acts, 0.0)
