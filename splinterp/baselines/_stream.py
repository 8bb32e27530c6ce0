"""Streamed fits: exact moments for one flat, sketches of bounded size for many."""

from __future__ import annotations

import numpy as np

from splinterp._typing import Array
from splinterp.baselines._affine import Flats, by_region

EXTRA = 10
"""Directions a sketch keeps beyond the rank, so that what it forgets hardly matters."""


class Moments:
    """Weight, mean and scatter of everything added, merged batch by batch about the batch's own mean."""

    def __init__(self, d: int) -> None:
        self.total = 0.0
        self.mean = np.zeros(d)
        self.scatter = np.zeros((d, d))

    def add(self, x: Array, weights: Array | None) -> None:
        """Add the rows of x."""
        rows = x.astype(np.float64)
        w = np.ones(len(rows)) if weights is None else weights
        mean = np.average(rows, axis=0, weights=w)
        centred = np.sqrt(w)[:, None] * (rows - mean)
        shift, total = mean - self.mean, self.total + w.sum()
        self.scatter += centred.T @ centred + self.total * w.sum() / total * np.outer(shift, shift)
        self.mean = self.mean + w.sum() / total * shift
        self.total = total

    def flat(self, rank: int) -> tuple[Array, Array]:
        """(mean, top `rank` directions); each direction's largest entry is positive."""
        components = np.linalg.eigh(self.scatter)[1][:, ::-1].T[:rank]
        signs = np.sign(components[np.arange(len(components)), np.abs(components).argmax(axis=1)])
        return self.mean.copy(), signs[:, None] * components


class FlatStream:
    """For each region its weight, mean and the leading right singular vectors (times singular values) of its rows.

    A batch is merged by a decomposition of the sketch, the batch's centred rows and the shift of the mean, stacked.
    """

    def __init__(self, n_regions: int, d: int, rank: int) -> None:
        self.rank = rank
        self.totals = np.zeros(n_regions)
        self.means = np.zeros((n_regions, d))
        self.sketches: list[Array] = [np.zeros((0, d)) for _ in range(n_regions)]

    def add(self, x: Array, weights: Array, labels: Array) -> None:
        """Add the rows of x to their regions."""
        for region, chosen in by_region(labels, len(self.totals)):
            rows, w = x[chosen].astype(np.float64), weights[chosen]
            if not w.sum() > 0:
                continue
            mean = np.average(rows, axis=0, weights=w)
            shift, total = mean - self.means[region], self.totals[region] + w.sum()
            step = np.sqrt(self.totals[region] * w.sum() / total) * shift
            stacked = np.concatenate([self.sketches[region], np.sqrt(w)[:, None] * (rows - mean), step[None]])
            _, singular, directions = np.linalg.svd(stacked, full_matrices=False)
            kept = min(self.rank + EXTRA, int((singular > 1e-12 * max(singular[0], 1e-300)).sum()))
            self.sketches[region] = singular[:kept, None] * directions[:kept]
            self.means[region] += w.sum() / total * shift
            self.totals[region] = total

    def flats(self, previous: Flats) -> Flats:
        """The flat of every region; regions that nothing was added to keep their previous one."""
        means, components = previous.means.copy(), previous.components.copy()
        for region in np.nonzero(self.totals)[0]:
            sketch = self.sketches[region][: self.rank]
            length = np.linalg.norm(sketch, axis=1, keepdims=True)
            found = sketch / np.where(length > 0, length, 1.0)
            signs = np.sign(found[np.arange(len(found)), np.abs(found).argmax(axis=1)])
            components[region] = 0
            components[region, : len(found)] = signs[:, None] * found
            means[region] = self.means[region]
        return Flats(means, components)
