"""The ridge by a few Cholesky factors, instead of an eigendecomposition.

At one ridge l, with L L^T = A + l I of the centred Gram matrix A, the solution is W = L^{-T} L^{-1} (C + l Q), and D = W - Q its
deviation from the prior. Its squared error rss = |X|^2 - <W, C> - l <W, D> needs no further product, and its derivatives by l are
rss' = 2 l |L^{-1} D|^2 and rss'' = 2 |L^{-1} D|^2 - 6 l |(A + l I)^{-1} D|^2, taken of a few random combinations of the columns. Degrees
of freedom are traces, m - l tr (A + l I)^{-1}, by random signs (Hutchinson 1990). So each factor tells value, slope and curvature of
the score, which a Newton method goes by.
"""

from __future__ import annotations

import math
from functools import cached_property
from typing import Any

import torch

from splinterp._typing import Float, Tensor
from splinterp.decoder._cholesky import Factor
from splinterp.decoder._search import HIGHEST, DoubtError, Point, search
from splinterp.decoder.statistics import DecoderStats, squared_norm

PROBES, COMBINATIONS, OF_THEM = 64, 64, 32
"""Random vectors for a trace, random combinations of columns for derivatives, and how many of either are enough for second ones."""
SMALL, FEW = 2**17, 128
"""A deviation of at most so many numbers is used whole, and traces of at most so many latents are exact."""
START = 0.2
"""Of the mean eigenvalue: where a search begins that knows nothing. For more than `START_SAMPLES` samples a latent it falls as 1 / N."""
START_SAMPLES = 10
NOISE = 0.03
"""Of the slack N - df: the largest standard error at which a trace by probes is used."""
CANCELLED = {torch.float64: 1e-8, torch.float32: 1e-3}
"""Of the squares that it is the rest of: the smallest rss that is used."""


def squares(x: Tensor) -> float:
    """The sum of squares."""
    return float(squared_norm(x))


def inner(x: Tensor, y: Tensor) -> float:
    """The sum of products, in float64."""
    return float((x * y).sum(dtype=torch.float64))


def _by_columns(x: Tensor) -> Tensor:
    """x laid out by columns, as triangular solves take it."""
    return x.T.contiguous().T


def rank_and_mean(stats: DecoderStats) -> tuple[int, float]:
    """How many eigenvalues of the Gram matrix can be positive, at least 1, and their mean if all of those are."""
    diagonal = stats.gram.diagonal()
    rank = max(1, min(int((diagonal > 0).sum()), int(stats.n_distinct) - 1))
    return rank, float(diagonal.sum(dtype=torch.float64)) / rank


def beginning(around: float | None, rank: int, mean: float, n_samples: float) -> float:
    """The ridge to begin at: an earlier choice, the mean eigenvalue where that was infinity, or else a guess."""
    if around is not None and 0 < around < math.inf:
        return around
    return mean if around == math.inf else START * mean * min(1.0, START_SAMPLES * rank / n_samples)


def signs(rows: int, columns: int, like: Tensor, generator: torch.Generator) -> Tensor:
    """Random signs, of the dtype and on the device of `like`."""
    return (torch.randint(0, 2, (rows, columns), device="cpu", generator=generator) * 2 - 1).to(like)


def combinations(x: Tensor, generator: torch.Generator) -> Tensor | None:
    """Random combinations of the columns of x, as a matrix to multiply it by; None where its columns are few enough to be used whole."""
    d = x.shape[1]
    return None if d <= 2 * COMBINATIONS else signs(d, COMBINATIONS, x, generator) / COMBINATIONS**0.5


class Curve:
    """A score along the ridge, by factors. Subclasses say what it is: `evaluate` adds a ridge's score to `looked`."""

    def __init__(self, stats: DecoderStats, prior: Tensor | None) -> None:
        self.stats, self.prior = stats, None if prior is None else _by_columns(prior)
        self.cross = _by_columns(stats.cross)
        self.rank, self.mean = rank_and_mean(stats)
        self.looked: dict[float, float] = {}
        self._solved: tuple[float, Tensor, Tensor] | None = None
        generator = torch.Generator().manual_seed(0)
        d, m = stats.d_in, stats.n_latents
        self.exact = m <= FEW
        self.combinations = None if m * d <= SMALL else combinations(stats.cross, generator)
        self.probes = (
            torch.eye(m, dtype=stats.dtype, device=stats.device) if self.exact else signs(m, PROBES, stats.cross, generator)
        )

    @cached_property
    def gradient(self) -> Float[Tensor, "n_latents d_in"]:
        """B = C - A Q, half the downhill gradient at the prior: a product that most searches do without."""
        return self.cross if self.prior is None else torch.addmm(self.cross, self.stats.gram, self.prior, alpha=-1)

    def solve(self, ridge: float) -> tuple[Factor, Float[Tensor, "n_latents d_in"], Float[Tensor, "n_latents d_in"]]:
        """The factor, W and D, once for calls on end. Raises DoubtError where there is no factor."""
        factor = self.stats.factor(ridge)
        if factor is None:
            raise DoubtError
        if self._solved is None or self._solved[0] != ridge:
            if self.prior is None:
                W = D = factor.solve(self.cross)
            elif self.stats.dtype == torch.float64:
                W = factor.solve(torch.add(self.cross, self.prior, alpha=ridge))
                D = W - self.prior
            else:  # at a large ridge W - Q would have few digits
                D = factor.solve(self.gradient)
                W = self.prior + D
            self._solved = ridge, W, D
        return factor, *self._solved[1:]

    def at_the_prior(self) -> Float[Tensor, "n_latents d_in"]:
        """W at an infinite ridge."""
        return torch.zeros_like(self.cross) if self.prior is None else self.prior.clone()

    def few(self, x: Tensor) -> Tensor:
        """The columns of x, or random combinations of them with the same expected products."""
        return x if self.combinations is None else x @ self.combinations

    def search(self, around: float | None) -> float:
        """The chosen ridge, infinity included; its score is looked at. Raises DoubtError."""
        start = beginning(around, self.rank, self.mean, self.stats.n_samples)
        found = search(self.look, self.score, start, self.mean, self.falls_to_infinity)
        if not math.isinf(found):
            self.score(found)
        elif self.prior is None:  # infinity would be W = 0: the largest finite ridge stands in
            self.score(HIGHEST * self.mean)
        return found

    def score(self, ridge: float) -> float:
        """The score at a ridge. Raises DoubtError."""
        if ridge not in self.looked:
            self.evaluate(ridge)
        return self.looked[ridge]

    def evaluate(self, ridge: float) -> Any:
        """Put the score at a ridge into `looked`; returns what `look` goes on with. Raises DoubtError."""
        raise NotImplementedError

    def look(self, ridge: float) -> Point:
        """What the score does at a ridge. Raises DoubtError."""
        raise NotImplementedError

    def at_infinity(self) -> float:
        """The score of the prior alone."""
        raise NotImplementedError

    def infinity_loses(self, margin: float) -> bool:
        """Whether the prior's score is known, without the work of telling it, to be above the least one looked at by a margin."""
        return False

    def falls_to_infinity(self) -> bool:
        """Whether the prior is a local minimum: to first order in 1 / ridge."""
        raise NotImplementedError


class GCVCurve(Curve):
    """Generalised cross-validation: rss / n over ((N - 1 - inflation (df - 1)) / N)^2."""

    def __init__(self, stats: DecoderStats, prior: Tensor | None, inflation: float) -> None:
        super().__init__(stats, prior)
        self.inflation, self.total = inflation, float(stats.total)
        self.df: dict[float, float] = {}

    @cached_property
    def at_prior(self) -> float:
        """|X - Z Q|^2."""
        return self.total if self.prior is None else self.total - inner(self.cross + self.gradient, self.prior)

    def at_infinity(self) -> float:
        return self._prior_scores(self.at_prior)

    def _prior_scores(self, rss: float) -> float:
        return rss / self.stats.n_samples / (1 - 1 / self.stats.n_distinct) ** 2

    def infinity_loses(self, margin: float) -> bool:
        """By |X - Z Q|^2 = rss + 2 l |D|^2 + <D, A D>, of whose last term a quarter of an estimate by a few combinations is taken."""
        if self.prior is None or self._solved is None:
            return False
        ridge, _, D = self._solved
        least, limit = self.rss + 2 * ridge * squares(D), min(self.looked.values()) + margin
        if self._prior_scores(least) > limit:
            return True
        few = self.few(D)
        share = 0.25
        if self.combinations is not None:
            few, share = few[:, :OF_THEM], share * COMBINATIONS / OF_THEM
        return self._prior_scores(least + share * inner(few, self.stats.gram @ few)) > limit

    def falls_to_infinity(self) -> bool:
        return squares(self.gradient) * (self.stats.n_distinct - 1) <= self.inflation * self.rank * self.mean * self.at_prior

    def evaluate(self, ridge: float) -> tuple[float, float, Tensor]:
        """(rss, slack, L^{-1} probes)."""
        N, m = self.stats.n_distinct, self.stats.n_latents
        factor, W, D = self.solve(ridge)
        explained, pulled = inner(W, self.cross), ridge * inner(W, D)
        rss = self.rss = self.total - explained - pulled
        half = factor.forward(self.probes)
        each = half.square().sum(0, dtype=torch.float64)
        trace = float(each.sum() if self.exact else each.mean())
        error = 0.0 if self.exact else ridge * float(each.std()) / len(each) ** 0.5
        df = m - ridge * trace
        slack = N - 1 - self.inflation * df
        rounding = 1e3 * m * torch.finfo(self.stats.dtype).eps
        parts = self.total + abs(explained) + abs(pulled)
        if slack * NOISE <= self.inflation * error + rounding or rss <= CANCELLED[self.stats.products] * parts:
            raise DoubtError
        self.df[ridge] = 1 + df
        self.looked[ridge] = rss / self.stats.n_samples / (slack / N) ** 2
        return rss, slack, half

    def look(self, ridge: float) -> Point:
        rss, slack, half = self.evaluate(ridge)
        factor, _, whole = self.solve(ridge)
        deviation = self.few(whole)
        columns, probes = deviation.shape[1], self.probes.shape[1]
        some_columns = columns if self.combinations is None else OF_THEM
        some_probes = probes if self.exact else OF_THEM
        solved = factor.backward(half)
        again = factor.forward(torch.cat([deviation, solved[:, :some_probes]], dim=1))
        third = squares(again[:, :columns])
        last = squares(factor.backward(again[:, :some_columns])) * columns / some_columns
        share = 1.0 if self.exact else 1 / probes
        trace = share * squares(half), share * squares(solved), share * squares(again[:, columns:]) * probes / some_probes
        rss_1, rss_2 = 2 * ridge * third, 2 * third - 6 * ridge * last
        slack_1 = self.inflation * (trace[0] - ridge * trace[1])
        slack_2 = -2 * self.inflation * (trace[1] - ridge * trace[2])
        # log(score) falls where `loses`, what the error gains, is below `wins`, what the slack gains; log(loses / wins) is nearly straight
        loses, wins = ridge * rss_1 / rss, 2 * ridge * slack_1 / slack
        if not (loses > 0 and wins > 0):
            return Point(loses - wins, math.nan)
        bend = ridge * rss_2 / rss_1 - loses - ridge * slack_2 / slack_1 + wins / 2
        return Point(loses - wins, math.log(wins / loses) / bend if bend > 0 else math.nan)


class HeldOutCurve(Curve):
    """The mean squared error on held-out samples, a quadratic form in D: (constant + 2 <D, M> + <D, H D>) / n.

    Args:
        stats, prior: of the training samples.
        gram: H, about the training means.
        slope: M, half the gradient at the prior.
        constant: the squared error at the prior.
        n: held-out samples.
    """

    def __init__(
        self, stats: DecoderStats, prior: Tensor | None, gram: Tensor, slope: Tensor, constant: float, n: float
    ) -> None:
        super().__init__(stats, prior)
        self.gram, self.slope, self.constant, self.n = gram, slope, constant, n

    def at_infinity(self) -> float:
        return self.constant / self.n

    def falls_to_infinity(self) -> bool:
        return inner(self.slope, self.gradient) >= 0

    def evaluate(self, ridge: float) -> tuple[float, Tensor]:
        """(squared error, half its gradient in D)."""
        _, _, deviation = self.solve(ridge)
        gradient = self.gram @ deviation
        error = self.constant + 2 * inner(deviation, self.slope) + inner(deviation, gradient)
        if error <= CANCELLED[self.stats.products] * abs(self.constant):
            raise DoubtError
        self.looked[ridge] = error / self.n
        return error, gradient.add_(self.slope)

    def look(self, ridge: float) -> Point:
        error, gradient = self.evaluate(ridge)
        factor, _, deviation = self.solve(ridge)
        moved = factor.solve(self.few(deviation))  # -dD / dl
        again = factor.solve(moved)
        few = self.few(gradient)
        first = -2 * inner(few, moved) / error
        second = (2 * inner(moved, self.gram @ moved) + 4 * inner(few, again)) / error - first**2
        slope, curvature = ridge * first, ridge * first + ridge * ridge * second
        return Point(slope, -slope / curvature if curvature > 0 else math.nan)
