"""How much of a distribution each region holds, and how far such an estimate can be trusted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from splinterp._checks import whole
from splinterp._documented import documented
from splinterp._random import as_generator
from splinterp._typing import Array, ArrayLike, Float, Int
from splinterp.geometry._arrays import as_float64
from splinterp.geometry.power_diagram import PowerDiagram
from splinterp.geometry.regions import regions_of
from splinterp.sae import SAE

NORMAL_95 = 1.959963984540054
ENOUGH_SEEN = 0.05
"""An entropy is called reliable where a new sample falls outside the regions seen with at most this probability."""


@documented
class Entropy(NamedTuple):
    """Estimates of the entropy of a distribution over regions, in nats, from a sample of it."""

    plug_in: float
    """Of the shares in the sample. Too low on average, and never above log n: where most samples are alone it measures n."""
    corrected: float
    """By Chao and Shen (2003), who weigh up the regions that the sample has missed: shares shrunk to their Good-Turing coverage, terms by
    the chance that a region was seen at all."""
    error: float
    """Standard error of `plug_in`, of sampling alone: it does not tell of the bias."""
    reliable: bool
    """Whether a new sample falls into a region that was seen with a probability of at least 95 %: by Good-Turing, with 3 / n to spare, so
    that fewer than 60 samples are never enough. Where not, `plug_in` is a lower bound at best and `corrected` a guess."""


@documented
@dataclass(frozen=True, eq=False)
class RegionMasses:
    """Masses of regions as shares of n independent samples; the largest first."""

    supports: tuple[Array, ...]
    """Active latents of each region that was met (of a diagram: its sites), sorted."""
    counts: Int[Array, " n_regions"]
    """Samples in each."""
    n_samples: int
    """In all."""
    unseen: float
    """Good-Turing estimate of the mass of all other regions: the share of samples that are alone in theirs."""
    entropy: Entropy
    """Of the distribution over regions."""

    @property
    def masses(self) -> Float[Array, " n_regions"]:
        """The share of samples in each region."""
        return self.counts / self.n_samples

    @property
    def intervals(self) -> Float[Array, "n_regions 2"]:
        """95 % intervals of the masses, each for itself, by Wilson's score: right for rare regions too."""
        return wilson(self.counts, self.n_samples)


def region_masses(of: PowerDiagram | SAE, x: ArrayLike) -> RegionMasses:
    """The mass of each region under the distribution that x (n, d) is a sample of: data, or drawn, by `gaussian_samples` say.

    Regions are supports (acts != 0), or cells of a diagram. Errors shrink as 1 / sqrt(n); in high dimensions nearly every sample is alone
    in its region, and `unseen` and `entropy.reliable` say so.

    Raises:
        ValueError: no samples; else as `regions_of` or `PowerDiagram.assign`.
    """
    if isinstance(of, PowerDiagram):
        sets, counts = np.unique(of.assign(x), axis=0, return_counts=True)
        supports = list(sets)
    else:
        regions = regions_of(of, x, margins=False)
        first = np.unique(regions.labels, return_index=True)[1]
        supports, counts = [regions.support(int(i)) for i in first], np.bincount(regions.labels)
    if not counts.sum():
        raise ValueError("x has no rows: masses need at least one sample")
    order = np.argsort(-counts, kind="stable")
    n = int(counts.sum())
    return RegionMasses(
        tuple(supports[m] for m in order), counts[order].astype(np.int64), n, int((counts == 1).sum()) / n, entropy_of(counts)
    )


def gaussian_samples(
    x: ArrayLike, n: int, generator: torch.Generator | int | None = None, *, of_moments: bool = False
) -> Float[Array, "n d"]:
    """n samples of the Gaussian with the mean and covariance of x (m, d), in float64; directions without variance get none.

    Args:
        of_moments: x holds the moments themselves, (1 + d, d): the mean, then the covariance's rows.
        generator: CPU generator or an int that seeds one.

    Raises:
        ValueError: n below 1, fewer than two samples, moments of another shape, or a covariance that is not symmetric and positive
            semidefinite to rounding.
    """
    whole("n", n, 1)
    x = as_float64(x)
    d = x.shape[1]
    if of_moments:
        if x.shape != (d + 1, d):
            raise ValueError(f"moments have the shape ({d + 1}, {d}), mean and covariance's rows, not {x.shape}")
        mean, covariance = x[0], x[1:]
        if not np.allclose(covariance, covariance.T, rtol=1e-9, atol=1e-12 * np.abs(covariance).max(initial=0.0)):
            raise ValueError("the covariance is not symmetric")
    else:
        if len(x) < 2:
            raise ValueError(f"x has {len(x)} rows: a covariance needs at least two samples")
        mean, covariance = x.mean(axis=0), np.cov(x.T).reshape(d, d)
    variances, directions = np.linalg.eigh(covariance)
    if variances[0] < -1e-9 * max(abs(variances[-1]), np.finfo(float).tiny):
        raise ValueError(f"the covariance has the eigenvalue {variances[0]:.3g}: none may be below 0")
    variances[variances < 10 * d * np.finfo(float).eps * variances[-1]] = 0.0
    z = torch.randn(int(n), d, device="cpu", generator=as_generator(generator), dtype=torch.float64).numpy()
    return mean + (z * np.sqrt(variances.clip(0))) @ directions.T


def wilson(counts: Int[Array, " n_regions"], n: int) -> Float[Array, "n_regions 2"]:
    """95 % intervals of binomial shares, by Wilson's score (1927)."""
    share, z2 = counts / n, NORMAL_95**2
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = NORMAL_95 * np.sqrt(share * (1 - share) / n + z2 / (4 * n**2)) / (1 + z2 / n)
    return np.stack([(middle - half).clip(0), (middle + half).clip(max=1)], axis=1)


def entropy_of(counts: Int[Array, " n_regions"]) -> Entropy:
    """Estimates from the number of samples in each region that was met."""
    n = int(counts.sum())
    share = counts[counts > 0] / n
    plug_in = float(-(share * np.log(share)).sum())
    variance = float((share * np.log(share) ** 2).sum() - plug_in**2)
    alone = int((counts == 1).sum())
    coverage = 1 - min(alone, n - 1) / n if n > 1 else 1.0  # not 0 where all are alone
    shrunk = coverage * share
    seen = -np.expm1(n * np.log1p(-np.minimum(shrunk, 1 - 1e-16)))
    corrected = float(-(shrunk * np.log(shrunk) / seen).sum()) + 0.0
    return Entropy(plug_in + 0.0, corrected, float(np.sqrt(max(variance, 0.0) / n)), alone + 3 <= ENOUGH_SEEN * n)
