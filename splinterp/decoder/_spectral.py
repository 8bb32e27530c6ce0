"""The ridge by one eigendecomposition, which serves every ridge: a full search, and scores right for N <= n_latents too."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch

from splinterp._typing import ArrayLike, Tensor
from splinterp.decoder._search import HIGHEST, LOWEST, level
from splinterp.decoder.statistics import DecoderStats, as_rows

Path = tuple[tuple[float, float], ...]
"""(ridge, score) pairs by increasing ridge."""


def full_path(
    score: Callable[[np.ndarray], np.ndarray], at_infinity: float, eig: np.ndarray, n_grid: int, floor: float
) -> Path:
    """(ridge, score) by increasing ridge: a logarithmic grid, a second one around its best point, and infinity."""
    if len(eig) == 0:
        return ((math.inf, at_infinity),)
    grid = eig.mean() * np.geomspace(LOWEST, HIGHEST, n_grid)
    scores = score(grid)
    best = int(scores.argmin())
    fine = np.geomspace(grid[max(best - 1, 0)], grid[min(best + 1, n_grid - 1)], n_grid)
    grid, scores = np.concatenate([grid, fine]), np.concatenate([scores, score(fine)])
    order = np.argsort(grid, kind="stable")
    return (*((float(grid[i]), level(float(scores[i]), at_infinity, floor)) for i in order), (math.inf, at_infinity))


class GCVSpectrum(NamedTuple):
    """rss(l) = rest + sum_i |l A_i + prox B_i|^2 / (e_i (e_i + l + prox)^2), A and B the gradients at prior and previous.

    `eig` holds the e_i above zero, `aa`, `ab`, `bb` the products |A_i|^2, <A_i, B_i>, |B_i|^2.
    """

    eig: np.ndarray
    aa: np.ndarray
    ab: np.ndarray
    bb: np.ndarray
    rest: float
    total: float  # of the samples' weights
    N: float  # samples, each counted once
    prox: float
    inflation: float

    def score(self, ridges: np.ndarray) -> np.ndarray:
        """GCV at finite ridges."""
        lam, prox = ridges[:, None], self.prox
        pulled = lam * lam * self.aa + 2 * lam * prox * self.ab + prox * prox * self.bb
        rss = self.rest + (pulled / (self.eig * (self.eig + lam + prox) ** 2)).sum(1)
        with np.errstate(divide="ignore"):
            return rss / self.total / self._slack(lam + prox) ** 2

    def score_at_infinity(self) -> float:
        """GCV of the prior alone."""
        return (self.rest + float((self.aa / self.eig).sum())) / self.total / (1 - 1 / self.N) ** 2

    def _slack(self, strength: np.ndarray) -> np.ndarray:
        """(N - 1 - inflation * (df - 1)) / N; at inflation 1 a sum of positive terms, so it does not cancel at rank N - 1.

        Where inflation exhausts the samples it is 0, and the score infinite.
        """
        slack = np.maximum(0.0, self.N - 1 - len(self.eig) + (strength / (self.eig + strength)).sum(1))
        if self.inflation > 1:
            slack = np.maximum(0.0, slack - (self.inflation - 1) * (self.eig / (self.eig + strength)).sum(1))
        return slack / self.N


def gcv_spectrum(
    stats: DecoderStats, prior: ArrayLike | None, prox: float, previous: ArrayLike | None, inflation: float
) -> GCVSpectrum:
    values, vectors, positive = stats.spectrum()
    e = values[positive]
    P = (vectors.T @ stats.cross)[positive]

    def gradient_at(W: ArrayLike, name: str) -> Tensor:
        return P - e[:, None] * (vectors.T @ as_rows(W, name, stats))[positive]

    A = P if prior is None else gradient_at(prior, "prior")
    B = gradient_at(previous, "previous") if prox > 0 and previous is not None else torch.zeros_like(P)
    explained = float((P.square().sum(1) / e).sum())
    interpolated = stats.n_samples == stats.n_distinct and len(e) >= stats.n_samples - 1
    rest = 0.0 if interpolated else max(0.0, float(stats.total) - explained)
    eig, aa, ab, bb = (t.double().cpu().numpy() for t in (e, (A * A).sum(1), (A * B).sum(1), (B * B).sum(1)))
    return GCVSpectrum(eig, aa, ab, bb, rest, stats.n_samples, stats.n_distinct, prox, inflation)


def held_out_path(
    stats: DecoderStats, prior: Tensor, gram: Tensor, slope: Tensor, constant: float, n: float, floor: float, n_grid: int
) -> Path:
    """The path of a full search on held-out samples; arguments as of `HeldOutCurve`."""
    values, vectors, positive = stats.spectrum()
    e, basis = values[positive], vectors[:, positive]
    # W = Q + basis @ diag(1 / (e + ridge)) @ A, so the error is constant + 2 h . f + f . H f in f = 1 / (e + ridge)
    A = basis.T @ stats.cross - e[:, None] * (basis.T @ prior)
    H = ((basis.T @ gram @ basis) * (A @ A.T)).double().cpu().numpy()
    h = ((basis.T @ slope) * A).sum(1).double().cpu().numpy()
    eig = e.double().cpu().numpy()

    def score(ridges: np.ndarray) -> np.ndarray:
        filters = 1 / (eig + ridges[:, None])
        return (constant + 2 * filters @ h + ((filters @ H) * filters).sum(1)) / n

    return full_path(score, constant / n, eig, n_grid, floor)
