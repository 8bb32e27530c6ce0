"""Scores along the ridge, by conjugate gradients, and the search of their least."""

from __future__ import annotations

import math

import torch

from splinterp._typing import Tensor
from splinterp.decoder._block_cg import block_cg
from splinterp.decoder._matrix_free_stats import MatrixFreeStats
from splinterp.decoder._search import level, rounding_floor

MOST = 12
"""Ridges looked at, at most."""


class CGCurve:
    """A score at single ridges. Subclasses say what it is: `score` of a solution.

    Args:
        stats: of the training samples.
        Q: what the ridge pulls to; None means 0.
        start: where the first solve begins; None means 0.
        tolerance: of the solves.
    """

    def __init__(self, stats: MatrixFreeStats, Q: Tensor | None, start: Tensor | None, tolerance: float) -> None:
        self.stats, self.Q, self.tolerance = stats, Q, tolerance
        diagonal = stats.diagonal
        rank = min(stats.n_samples - 1, int((diagonal > 0).sum()))
        self.mean_eigenvalue = float(diagonal.sum()) / rank if rank else 0.0
        self.beside = stats.cross[:, :0]
        """Right-hand sides that are solved for beside the decoder."""
        self.guess = torch.zeros_like(stats.cross) if start is None else start
        self.scores: dict[float, float] = {}

    def look(self, ridge: float) -> None:
        """Score one ridge, from the solution of the last one."""
        right = self.stats.cross if self.Q is None else self.stats.cross + ridge * self.Q
        self.guess, _, _ = block_cg(self.stats, torch.cat([right, self.beside], dim=1), ridge, self.guess, self.tolerance, 100)
        W, beside = self.guess.split([self.stats.d_in, self.beside.shape[1]], dim=1)
        self.scores[ridge] = self.score(ridge, W, beside)

    def score(self, ridge: float, W: Tensor, beside: Tensor) -> float:
        """Of a solution W (n_latents, d_in), and what was solved for beside it."""
        raise NotImplementedError

    def at_infinity(self) -> float:
        """The score of the prior alone."""
        raise NotImplementedError

    def floor(self) -> float:
        """Differences between scores up to which only rounding could tell them."""
        return rounding_floor(self.stats.total, self.stats.n_samples, self.stats.dtype)

    def search(self, around: float | None) -> tuple[tuple[float, float], ...]:
        """(ridge, score) by increasing ridge, infinity the last: 10^-4 ... 10 times the mean positive eigenvalue; near an earlier choice,
        at it and four times less and more, moving while the best is at an end."""
        near = around is not None and 0 < around < math.inf
        grid = (
            [around / 4, around, 4 * around] if near and around else [self.mean_eigenvalue * 10.0**p for p in range(1, -5, -1)]
        )
        for ridge in grid:
            self.look(ridge)
        while (
            around is not None
            and len(self.scores) < MOST
            and (best := min(self.scores, key=self.scores.__getitem__)) in (low := min(self.scores), max(self.scores))
        ):
            self.look(best / 4 if best == low else best * 4)
        at_infinity, floor = self.at_infinity(), self.floor()
        return (*((r, level(s, at_infinity, floor)) for r, s in sorted(self.scores.items())), (math.inf, at_infinity))


class ProbedCurve(CGCurve):
    """Generalised cross-validation, its degrees of freedom by random sign vectors."""

    def __init__(
        self,
        stats: MatrixFreeStats,
        Q: Tensor | None,
        start: Tensor | None,
        tolerance: float,
        n_probes: int,
        g: torch.Generator,
    ) -> None:
        super().__init__(stats, Q, start, tolerance)
        self.probes = torch.randint(0, 2, (stats.n_latents, n_probes), device="cpu", generator=g).to(stats.cross) * 2 - 1
        self.beside = stats.gram_product(self.probes)
        self.guess = torch.cat([self.guess, torch.zeros_like(self.probes)], dim=1)
        self.df: dict[float, float] = {}

    def score(self, ridge: float, W: Tensor, beside: Tensor) -> float:
        N = self.stats.n_samples
        rss = max(0.0, self.stats.total + float(((self.stats.gram_product(W) - 2 * self.stats.cross).double() * W).sum()))
        self.df[ridge] = 1 + float((beside * self.probes).sum(0, dtype=torch.float64).mean())
        slack = (N - self.df[ridge]) / N
        return rss / N / slack**2 if slack > 0 else math.inf

    def at_infinity(self) -> float:
        stats, N, rss = self.stats, self.stats.n_samples, self.stats.total
        if self.Q is not None:
            rss += float(((stats.gram_product(self.Q) - 2 * stats.cross).double() * self.Q).sum())
        return rss / N / (1 - 1 / N) ** 2


class HeldOutCGCurve(CGCurve):
    """The mean squared error on held-out samples, of a solution whose bias is exact at the training means."""

    def __init__(
        self, stats: MatrixFreeStats, held_out: MatrixFreeStats, Q: Tensor | None, start: Tensor | None, tolerance: float
    ) -> None:
        super().__init__(stats, Q, start, tolerance)
        self.held_out = held_out
        self.step_acts, self.step_x = held_out.mean_acts - stats.mean_acts, held_out.mean_x - stats.mean_x

    def score(self, ridge: float, W: Tensor, beside: Tensor) -> float:
        return self.error(W)

    def error(self, W: Tensor) -> float:
        """Of a decoder."""
        held_out = self.held_out
        left = held_out.total + float(((held_out.gram_product(W) - 2 * held_out.cross).double() * W).sum())
        return max(0.0, left) / held_out.n_samples + float((self.step_x - self.step_acts @ W.double()).square().sum())

    def at_infinity(self) -> float:
        return self.error(torch.zeros_like(self.stats.cross) if self.Q is None else self.Q)

    def floor(self) -> float:
        return rounding_floor(self.held_out.total, self.held_out.n_samples, self.stats.dtype)
