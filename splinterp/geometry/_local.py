"""Scores about a centre: what keeps diagrams far from the origin to the digits of their input."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from splinterp._typing import Array

FAR = 4
"""Columns whose middle is beyond this many times their extent from 0 are centred; nearer ones are kept to the last bit."""


def middle(values: Array) -> Array:
    """A point near the middle of each column (row vector), 0 where that is near enough; subtracting it is exact.

    It is a multiple of a power of two about as large as the column's extent, so lattices and exact ties stay what they are.
    """
    low, high = values.min(axis=0), values.max(axis=0)
    extent = high / 2 - low / 2
    grid = np.ldexp(1.0, np.frexp(extent)[1] + 1)  # above the extent of the column
    centre = low + extent
    with np.errstate(over="ignore", invalid="ignore"):
        snapped = np.round(centre / grid) * grid
    return np.where(extent == 0, low, np.where((np.abs(centre) > FAR * grid) & np.isfinite(snapped), snapped, 0.0))


class Columns:
    """Products with the rows of `sites`, equal (or opposite) rows rounded alike, which a matrix product does not promise."""

    def __init__(self, sites: Array) -> None:
        self.sites = sites
        self.first: Array | None = None
        key = np.abs((sites * np.random.default_rng(0).standard_normal(sites.shape[1])).sum(axis=1))  # equal rows: equal keys
        _, first, inverse = np.unique(key, return_index=True, return_inverse=True)
        if len(first) == len(key):
            return
        later = np.nonzero(first[inverse] != np.arange(len(key)))[0]
        rows, before = sites[later], sites[first[inverse[later]]]
        signs = np.ones(len(key))
        signs[later[(rows != before).any(axis=1)]] = -1.0
        if (rows != signs[later, None] * before).any():  # different rows of equal keys
            largest = np.sign(sites[np.arange(len(sites)), np.abs(sites).argmax(axis=1)])
            same = np.unique(largest[:, None] * sites + 0.0, axis=0, return_index=True, return_inverse=True)
            first, inverse = same[1], same[2].reshape(-1)
            signs = np.where(largest == 0, 1.0, largest * largest[first][inverse])
        self.first, self.inverse, self.signs = first, inverse, signs.astype(sites.dtype)

    def __call__(self, x: Array) -> Array:
        """`x @ sites.T`."""
        if self.first is None:
            return x @ self.sites.T
        return (x @ self.sites[self.first].T)[:, self.inverse] * self.signs


class Local(NamedTuple):
    """Scores `(x - centre) @ columns.sites.T + biases`."""

    centre: Array
    columns: Columns
    biases: Array

    @classmethod
    def of(cls, centre: Array, sites: Array, biases: Array) -> Local:
        """Scores of which all is kept, also what they have in common."""
        return cls(centre, Columns(sites), biases)

    @classmethod
    def compared(cls, centre: Array, sites: Array, biases: Array) -> Local:
        """Scores that are only compared with each other: a large common slope or offset is dropped, it only costs digits."""
        return cls(centre, Columns(sites - middle(sites)), biases - middle(biases[:, None])[0])

    @classmethod
    def of_powers(cls, sites: Array, weights: Array) -> Local:
        """The scores of the powers |x - site|^2 - weight, about a centre of the sites where these are far from 0."""
        centre = middle(sites)
        sites = sites - centre
        return cls(centre, Columns(sites), (weights - middle(weights[:, None])[0] - (sites**2).sum(axis=1)) / 2)

    @property
    def sites(self) -> Array:
        """The gradients of the scores."""
        return self.columns.sites

    def scores(self, x: Array) -> Array:
        """(n, n_sites) scores of the rows of x."""
        return self.columns(x - self.centre) + self.biases

    def restrict(self, origin: Array, basis: Array) -> Local:
        """The scores on `origin + y @ basis`, about the point of it that is nearest to the centre."""
        away = self.centre - origin
        foot = basis @ away
        return Local.of(foot, self.columns(basis).T, self.columns((foot @ basis - away)[None])[0] + self.biases)

    def moved(self, shift: Array) -> Local:
        """The scores moved by `shift`."""
        return self._replace(centre=self.centre + shift)

    def scaled(self, factor: float) -> Local:
        """The scores stretched about the origin, times factor^2."""
        return Local.of(factor * self.centre, factor * self.sites, factor**2 * self.biases)
