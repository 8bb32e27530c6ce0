"""AuxK: latents that no longer fire learn what the others leave."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from splinterp._checks import whole
from splinterp._documented import documented
from splinterp._typing import Tensor
from splinterp.activations import TopActs
from splinterp.losses.forward import Forward
from splinterp.losses.terms import State, Term, needs_scores
from splinterp.protocol import SparseModel


@documented
@dataclass(frozen=True, kw_only=True)
class AuxK(Term):
    """mean |e - z_aux W_dec|^2 * Var(x) / Var(e): the residual e = x - x_hat, predicted by dead latents without b_dec.

    z_aux are, for each sample, the `k_aux` largest `pre_acts` of dead latents, by ReLU. e and the factor get no gradient, so
    only the dead latents' encoder and decoder do. Means and variances run over the batch and d_in (about the batch's mean), so
    that the main error over Var(x) plus this over Var(e) is what is weighed, as published. 0 where no latent is dead, and where
    e does not vary. Scores of all latents, a dense array and one more encoder product, are taken only while some latent is
    dead. Source: Scaling and evaluating sparse autoencoders, arXiv 2406.04093.

    Raises:
        ValueError: k_aux or dead_after below 1.
        TypeError: a model without `pre_acts`.
    """

    couples_samples: ClassVar[bool] = True

    weight: float = 1 / 32
    k_aux: int | None = None
    """Dead latents of each sample that predict; None: half of d_in. Where fewer are dead, all of them."""
    dead_after: int = 10_000
    """Training samples without firing after which a latent is dead."""

    def __post_init__(self) -> None:
        super().__post_init__()
        whole("dead_after", self.dead_after, 1)
        if self.k_aux is not None:
            whole("k_aux", self.k_aux, 1)

    def check(self, model: SparseModel) -> None:
        needs_scores(model, self, "the scores of dead latents")

    def init(self, model: SparseModel) -> State:
        """`silent`: samples since each latent last fired, int64 (n_latents,)."""
        return {"silent": torch.zeros(model.shape[1], dtype=torch.int64, device=model.b_dec.device)}

    def __call__(self, out: Forward, state: State) -> Tensor:
        dead = (state["silent"] >= self.dead_after).nonzero().flatten()
        if not len(dead):
            return out.target.new_zeros(())
        k_aux = max(1, out.model.shape[0] // 2) if self.k_aux is None else self.k_aux
        kept = out.pre_acts[:, dead].topk(min(k_aux, len(dead)), dim=1)
        found = out.decode(TopActs(torch.relu(kept.values), dead[kept.indices])) - out.model.b_dec  # whose gradients cancel
        error = out.error.detach()
        return (error - found).square().mean() * _ratio(out.target, error)

    def after(self, out: Forward, state: State) -> None:
        state["silent"].add_(len(out.x)).masked_fill_(out.fired(), 0)


@torch.no_grad()
def _ratio(x: Tensor, error: Tensor) -> Tensor:
    """Var(x) / Var(error) of arrays (n, d_in), about their means over samples; 0 where the error is constant up to rounding."""
    above, below = ((part - part.mean(0)).square().mean() for part in (x, error))
    varies = below > torch.finfo(error.dtype).eps * error.square().mean()
    return torch.where(varies, above / torch.where(varies, below, 1.0), 0.0)
