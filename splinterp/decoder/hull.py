"""The exact decoder solve where every row must lie in a scaled convex hull of given points, or near it.

With codes z and samples x in rows, and points P (n_points, d_in), `solve_in_hull` minimises over A, D and b

    sum_r |x_r - z_r W - b|^2,    W = scale (A P + D),    rows of A on the simplex,    |D_i| <= relaxation

a convex problem whose bias is solved in closed form. Accelerated projected gradients with a step size for each row (a row's steps are as
long as its own codes allow) bring it down, and the Frank-Wolfe duality gap says how far it is from the minimum at most. Source of the set:
Archetypal SAE, arXiv 2502.12892; of the solve: Nesterov's method with restarts (O'Donoghue and Candes, 2015).
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from splinterp._checks import as_samples, at_least, whole
from splinterp._documented import documented
from splinterp._typing import ArrayLike, Float, Tensor
from splinterp.decoder.statistics import DecoderStats, require_samples

__all__ = ["HullSolution", "solve_in_hull", "to_ball", "to_simplex"]

CHECK_EVERY = 10
"""Steps between two looks at the gap, which costs as much as a step."""


@documented
class HullSolution(NamedTuple):
    """A minimiser and its certificate: W_dec = scale (mixing @ points + deviation)."""

    mixing: Float[Tensor, "n_latents n_points"]
    """Rows on the simplex."""
    deviation: Float[Tensor, "n_latents d_in"]
    """Rows no longer than the relaxation."""
    b_dec: Float[Tensor, " d_in"]
    gap: float
    """At most so much above the minimum is its sum of squared errors, as a share of the samples' sum of squares about their mean."""
    steps: int


def to_simplex(rows: Float[Tensor, "n p"]) -> Float[Tensor, "n p"]:
    """Each row's nearest point of the probability simplex (Held, Wolfe and Crowder 1974)."""
    rows = rows - rows.amax(dim=1, keepdim=True)  # the same projection, and no digits lost
    falling = rows.sort(dim=1, descending=True).values
    excess = (falling.cumsum(1) - 1) / torch.arange(1, rows.shape[1] + 1, dtype=rows.dtype, device=rows.device)
    positive = (falling > excess).sum(1, keepdim=True).clamp_min(1)
    return (rows - excess.gather(1, positive - 1)).clamp_min(0.0)


def to_ball(rows: Float[Tensor, "n d"], radius: float) -> Float[Tensor, "n d"]:
    """Each row's nearest point of the ball of this radius about 0."""
    norms = rows.norm(dim=1, keepdim=True)
    return rows * (radius / norms.clamp_min(torch.finfo(rows.dtype).tiny)).clamp_max(1.0)


@torch.no_grad()
def solve_in_hull(
    stats: DecoderStats,
    points: ArrayLike,
    relaxation: float = 0.0,
    scale: float = 1.0,
    *,
    start: tuple[ArrayLike, ArrayLike] | None = None,
    tolerance: float = 1e-4,
    max_steps: int = 500,
) -> HullSolution:
    """The best decoder whose rows are mixtures of points, plus a deviation of bounded length.

    A latent that never fires keeps its row of `start`. The error is never above that of `start`.

    Args:
        stats: the codes' and samples' statistics.
        points: P, (n_points, d_in).
        relaxation: the longest deviation, in units of the points; 0: rows are mixtures exactly.
        scale: of all rows, above 0.
        start: (A, D), feasible; None: the mean of the points.
        tolerance: steps end where the gap is at most this share of the samples' sum of squares.
        max_steps: and in any case after so many, each about 2 n_latents d_in (n_latents + n_points) multiplications.

    Raises:
        ValueError: no samples, shapes that do not fit, a scale that is not above 0, a negative relaxation or tolerance.

    Examples:
        >>> x = torch.randn(200, 3, generator=torch.Generator().manual_seed(0))
        >>> found = solve_in_hull(DecoderStats(4, 3).update(x[:, [0, 1, 2, 0]].relu(), x), x[:20], scale=0.5)
        >>> bool((found.mixing >= 0).all()), bool(torch.allclose(found.mixing.sum(1), torch.ones(4, dtype=torch.float64)))
        (True, True)
    """
    require_samples(stats)
    at_least("relaxation", relaxation, 0.0)
    at_least("tolerance", tolerance, 0.0)
    whole("max_steps", max_steps, 0)
    if not 0 < scale < float("inf"):
        raise ValueError(f"scale={scale}: rows are multiples of mixtures, by a finite number above 0")
    P = as_samples(points, stats.d_in, dtype=stats.dtype, device=stats.device, name="points")
    if not len(P):
        raise ValueError("points has no rows: a hull needs at least one point")
    problem = _Problem(stats, P, float(relaxation), float(scale))
    A, D = problem.start(start)
    A, D, gap, steps = problem.descend(A, D, tolerance, max_steps)
    return HullSolution(A, D, stats.mean_x - stats.mean_acts @ problem.rows(A, D), gap, steps)


class _Problem:
    """Half the sum of squared errors over mixings and deviations, in the statistics' dtype."""

    def __init__(self, stats: DecoderStats, points: Tensor, relaxation: float, scale: float) -> None:
        self.gram, self.cross, self.P, self.relaxation, self.scale = stats.gram, stats.cross, points, relaxation, scale
        self.total = float(stats.total) or 1.0
        # diag(bound) - gram is diagonally dominant, so a row's curvature is at most its bound whatever the others do
        bound = scale**2 * stats.gram.abs().sum(1, keepdim=True)
        fires = bound > 0
        largest = float(torch.linalg.matrix_norm(points, 2)) ** 2
        share = 2.0 if relaxation else 1.0  # |a P + d|^2 <= 2 |a P|^2 + 2 |d|^2
        self.step_D = fires / (share * bound).where(fires, 1.0)
        self.step_A = self.step_D / (largest or 1.0)

    def start(self, given: tuple[ArrayLike, ArrayLike] | None) -> tuple[Tensor, Tensor]:
        n_latents, d_in = self.cross.shape
        if given is None:
            mean = self.cross.new_full((n_latents, len(self.P)), 1 / len(self.P))
            return mean, torch.zeros_like(self.cross)
        A = as_samples(given[0], len(self.P), dtype=self.P.dtype, device=self.P.device, name="start's mixing")
        D = as_samples(given[1], d_in, dtype=self.P.dtype, device=self.P.device, name="start's deviation")
        if len(A) != n_latents or len(D) != n_latents:
            raise ValueError(f"start has {len(A)} and {len(D)} rows, and the statistics are of {n_latents} latents")
        return to_simplex(A), to_ball(D, self.relaxation)

    def rows(self, A: Tensor, D: Tensor) -> Tensor:
        return self.scale * torch.addmm(D, A, self.P)

    def value(self, W: Tensor, pull: Tensor) -> float:
        """The objective less that of W = 0; pull is its gradient, gram @ W - cross."""
        return float(0.5 * ((pull - self.cross) * W).sum())

    def gap(self, W: Tensor, pull: Tensor) -> float:
        """The Frank-Wolfe gap: how far the objective can be above its minimum at most."""
        best = (pull @ self.P.T).amin(1) - self.relaxation * pull.norm(dim=1)
        return max(0.0, float((pull * W).sum() - self.scale * best.sum()))

    def descend(self, A: Tensor, D: Tensor, tolerance: float, max_steps: int) -> tuple[Tensor, Tensor, float, int]:
        """The best (A, D) seen, its gap as a share of the total, and the steps taken."""
        W = self.rows(A, D)
        pull = self.gram @ W - self.cross
        best = (self.value(W, pull), A, D, 2 * self.gap(W, pull) / self.total)
        ahead_A, ahead_D, ahead, t = A, D, pull, 1.0
        steps = 0
        while steps < max_steps and best[3] > tolerance:
            steps += 1
            new_A = to_simplex(ahead_A - self.scale * self.step_A * (ahead @ self.P.T))
            new_D = to_ball(ahead_D - self.scale * self.step_D * ahead, self.relaxation) if self.relaxation else D
            # a momentum that points uphill is dropped
            uphill = ((ahead_A - new_A) * (new_A - A)).sum() + ((ahead_D - new_D) * (new_D - D)).sum() > 0
            t, last = (1.0, 1.0) if uphill else (0.5 * (1 + (1 + 4 * t * t) ** 0.5), t)
            push = (last - 1) / t
            ahead_A, ahead_D = new_A + push * (new_A - A), new_D + push * (new_D - D)
            A, D = new_A, new_D
            ahead = self.gram @ self.rows(ahead_A, ahead_D) - self.cross
            if steps % CHECK_EVERY == 0 or steps == max_steps:
                W = self.rows(A, D)
                pull = self.gram @ W - self.cross
                value = self.value(W, pull)
                if value <= best[0]:
                    best = (value, A, D, 2 * self.gap(W, pull) / self.total)
        return best[1], best[2], best[3], steps
