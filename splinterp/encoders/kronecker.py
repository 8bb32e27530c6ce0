"""KronSAE: latents are pairs of the outputs of small heads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch.nn import functional as F

from splinterp._checks import whole
from splinterp._typing import Tensor
from splinterp.encoders.base import Encoder


@dataclass(frozen=True)
class Kronecker(Encoder):
    """pre_acts = sqrt(u_i v_j) where both are positive, else 0, for each pair (i, j) of each head: n_latents = heads * left * right.

    u = (x - b_pre) @ P + p (heads, left) and v = (x - b_pre) @ Q + q (heads, right) are one product: W_enc (d_in,
    heads * (left + right)) has the columns of P, head by head, then those of Q; b_enc likewise. Latent (h * left + i) * right + j
    is pair (i, j) of head h. With left = right = 1 and Q = P it is the ReLU of an ordinary encoder. Encoding takes
    (1 / left + 1 / right) of its products; where only one of a pair is positive there is no gradient.

    A free decoder starts at P_i + Q_j, scaled to unit norm. Scores are not affine in x, so geometry, tied decoders and bias adaptation
    do not apply. Source: KronSAE, arXiv 2505.22255, whose mAND this is (its 1e-5 inside the root, which makes silent latents fire, is
    left out).

    Raises:
        ValueError: heads, left or right below 1; n_latents that is not their product.
    """

    couples_samples: ClassVar[bool] = False
    by_latents: ClassVar[bool] = False

    heads: int
    left: int = 2
    right: int = 4

    def __post_init__(self) -> None:
        for name in ("heads", "left", "right"):
            whole(name, getattr(self, name), 1)

    def check(self, n_latents: int, activation: Any, decoder: str) -> None:
        found = self.heads * self.left * self.right
        if found != n_latents:
            raise ValueError(
                f"Kronecker(heads={self.heads}, left={self.left}, right={self.right}) makes {found} latents, not n_latents={n_latents}"
            )

    def columns(self, n_latents: int) -> int:
        return self.heads * (self.left + self.right)

    def rows(self, W_enc: Tensor) -> Tensor:
        P, Q = self._split(W_enc.T)
        return F.normalize((P[:, :, None] + Q[:, None]).flatten(0, 2), dim=1)

    def _split(self, columns: Tensor) -> tuple[Tensor, Tensor]:
        """(heads, left, ...) and (heads, right, ...) of what has the columns of W_enc in front."""
        P, Q = columns.split([self.heads * self.left, self.heads * self.right])
        return P.unflatten(0, (self.heads, self.left)), Q.unflatten(0, (self.heads, self.right))

    def pre_acts(self, sae: Any, centred: Tensor) -> Tensor:
        u, v = self._split(super().pre_acts(sae, centred).T)
        u, v = u[:, :, None], v[:, None]
        both = (u > 0) & (v > 0)
        # selected inside and out: the root has an infinite gradient at 0, and infinity times 0 is not a number
        pairs = torch.where(both, torch.where(both, u * v, 1.0).sqrt(), torch.where(torch.isnan(u * v), u * v, 0.0))
        return pairs.flatten(0, 2).T
