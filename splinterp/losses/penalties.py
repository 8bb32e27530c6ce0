"""Penalties beside L1: annealed powers of codes, silent scores, and the norm of a code."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from splinterp._checks import whole
from splinterp._documented import documented
from splinterp._typing import Tensor
from splinterp.losses.forward import Forward
from splinterp.losses.row_norms import sizes_of
from splinterp.losses.terms import State, Term, needs, needs_scores
from splinterp.protocol import SparseModel

ROUND = 1e-8
"""Added to |z| before a power below 1, whose slope at 0 is infinite."""


@documented
@dataclass(frozen=True, kw_only=True)
class PAnneal(Term):
    """c_p times the mean over samples of sum_i |z_i|^p (with `row_norms`, of |z_i| |w_i|), p falling from 1 to `power`: p-annealing.

    p is 1 for `begin` steps and falls in `stages` equal parts, evenly spaced up to step `until`. c_p starts at 1 and changes with p so
    that the penalty of the batch at which p falls does not: the pull on the many small codes grows instead. Steps are counted by the
    term. Source: Measuring progress in dictionary learning for language model interpretability with board game models, arXiv 2408.00113.

    Raises:
        ValueError: a power outside (0, 1), begin below 0, until not after begin, stages below 1; a model whose sparsity the activation
            fixes.
    """

    power: float = 0.2
    """The last p; 0, a count, has no gradient."""
    begin: int
    """Steps at p = 1."""
    until: int
    """Where the last of the stages ends: p is `power` from its beginning, the step begin + (until - begin) (stages - 1) / stages. With one
    stage that is `begin`, and only the order of the two matters."""
    stages: int = 10
    """Equal parts in which p falls."""
    row_norms: bool = False
    """Take codes times the norms of their decoder rows, as `RowNormL1` does. Published without, where rows have unit norm
    (`unit_norm_decoder`); with rows that are free, small codes and large rows would escape the penalty."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.power < 1:
            raise ValueError(f"power={self.power} must lie between 0 and 1: for p = 1 use L1")
        whole("begin", self.begin, 0)
        whole("until", self.until, self.begin + 1)
        whole("stages", self.stages, 1)

    def check(self, model: SparseModel) -> None:
        needs(model, self, "allows_l1")

    def init(self, model: SparseModel) -> State:
        """`step`, int64, and `scale`, c_p, float64: both of no dimension."""
        device = model.b_dec.device
        return {
            "step": torch.zeros((), dtype=torch.int64, device=device),
            "scale": torch.ones((), dtype=torch.float64, device=device),
        }

    def power_at(self, step: int) -> float:
        """p at a step, from 0."""
        passed = (step - self.begin) * self.stages // (self.until - self.begin)
        stage = min(self.stages, max(0, passed + 1))
        return 1 + (self.power - 1) * stage / self.stages

    def __call__(self, out: Forward, state: State) -> Tensor:
        return self._powers(out, self.power_at(int(state["step"]))) * state["scale"].to(out.target)

    @torch.no_grad()
    def after(self, out: Forward, state: State) -> None:
        step = int(state["step"])
        now, coming = self.power_at(step), self.power_at(step + 1)
        if now != coming:
            above, below = float(self._powers(out, now)), float(self._powers(out, coming))
            if above > 0 and below > 0:
                state["scale"].mul_(above / below)
        state["step"].add_(1)

    def _powers(self, out: Forward, p: float) -> Tensor:
        sizes = sizes_of(out) if self.row_norms else out.values().abs()
        return sizes.sum(1).mean() if p == 1 else ((sizes + ROUND) ** p - ROUND**p).sum(1).mean()


@documented
@dataclass(frozen=True, kw_only=True)
class PreActs(Term):
    """The mean over samples of sum_i max(theta_i - pre_acts_i, 0) |w_i|, theta the thresholds of JumpReLU (0 of ReLU): a small pull
    on every silent latent towards firing. Source: Anthropic, Circuits Updates, January 2025 (weight 3e-6 on sums over d_in).

    Raises:
        TypeError: a model without `pre_acts`.
        ValueError: a model whose activation has a fixed number of active latents.
    """

    reads_scores: ClassVar[bool] = True

    def check(self, model: SparseModel) -> None:
        needs_scores(model, self)
        needs(model, self, "allows_l1")

    def __call__(self, out: Forward, state: State) -> Tensor:
        theta = getattr(out.model.nonlinearity, "threshold", 0.0)
        return (torch.relu(theta - out.pre_acts) * torch.linalg.vector_norm(out.W_dec, dim=1)).sum(1).mean()


@documented
@dataclass(frozen=True, kw_only=True)
class GaussianPrior(Term):
    """The mean over samples of sum_i pre_acts_i^2 / 2: the KL divergence of N(pre_acts, sigma^2) from N(0, 1), but for a constant.

    Goes with the encoder `Variational`. Source: arXiv 2509.22994.

    Raises:
        TypeError: a model without `pre_acts`.
    """

    reads_scores: ClassVar[bool] = True

    def check(self, model: SparseModel) -> None:
        needs_scores(model, self)

    def __call__(self, out: Forward, state: State) -> Tensor:
        return 0.5 * out.pre_acts.square().sum(1).mean()


@documented
@dataclass(frozen=True, kw_only=True)
class NormMatch(Term):
    """The mean over samples of (|s| - |x - b_dec|)^2 / d_in, s_i = |z_i| |w_i|: the loss that goes with `TopAFA`.

    For rows that are orthogonal |s| is the norm of the output. (The published code takes |z| and uncentred x.) Source: top-AFA,
    arXiv 2503.24277.
    """

    def __call__(self, out: Forward, state: State) -> Tensor:
        sizes = out.values() * torch.linalg.vector_norm(out.W_dec, dim=1)[out.latents()]
        squares = sizes.square().sum(1)
        size = torch.where(squares > 0, torch.where(squares > 0, squares, 1.0).sqrt(), 0.0)  # the root's slope at 0 is infinite
        norm = torch.linalg.vector_norm(out.target - out.model.b_dec, dim=1)
        return (size - norm).square().mean() / out.model.shape[0]
