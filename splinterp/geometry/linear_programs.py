"""Is a region empty, and which ball fits in it: linear programs, in any dimension."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.optimize import linprog

from splinterp._typing import Array, ArrayLike, Float
from splinterp.geometry._arrays import as_sets
from splinterp.geometry._encoder import encoder_of, signed
from splinterp.geometry.power_diagram import PowerDiagram
from splinterp.sae import SAE

TOLERANCE = 1e-7
"""HiGHS satisfies constraints to this absolute error; they are scaled to unit normals first."""


class Ball(NamedTuple):
    """The largest ball in a region."""

    centre: Float[Array, " d"]
    radius: float
    """inf for a region that holds arbitrarily large balls (then `centre` is that of one of radius 1); negative where the
    region is empty: by how much each facet would have to move out; -inf where no move helps."""


class _Region(NamedTuple):
    """All x with scores inside >= scores outside, or with given signs of all scores (`outside` is None)."""

    sites: Array
    biases: Array
    inside: Array
    outside: Array | None


def chebyshev_centre(of: PowerDiagram | SAE, support: ArrayLike, signs: ArrayLike | None = None) -> Ball:
    """Centre and radius of the largest ball in a cell of a diagram or in a region of an SAE, by HiGHS.

    A cell of k out of n sites has k (n - k) half-spaces, all of which bound the ball: a dense program of that many rows
    and d + 1 columns. For emptiness alone, `is_empty` needs n rows.

    Args:
        of: a diagram, or an SAE on the CPU.
        support: the cell's k sites, or the region's active latents (acts != 0).
        signs: their signs, for an AbsTopK SAE, whose supports own a convex cell for each choice of signs.

    Raises:
        ValueError: sites unknown or repeated, too many active latents, signs missing or of another length.
        RuntimeError: HiGHS gives up.
    """
    normals, offsets = _half_spaces(_region(of, support, signs))
    length = np.linalg.norm(normals, axis=1)
    if (offsets[length == 0] < 0).any():
        return Ball(np.full(normals.shape[1], np.nan), -np.inf)
    normals, offsets = normals[length > 0] / length[length > 0, None], offsets[length > 0] / length[length > 0]
    d = normals.shape[1]
    if not len(normals):
        return Ball(np.zeros(d), np.inf)
    rows = np.column_stack([-normals, np.ones(len(normals))])
    cost = np.append(np.zeros(d), -1.0)
    for limit, radius in ((None, None), (1.0, np.inf)):
        result = linprog(cost, rows, offsets, bounds=[(None, None)] * d + [(None, limit)], method="highs")
        if result.status == 0:
            return Ball(result.x[:d], float(result.x[d]) if radius is None else radius)
    raise RuntimeError(f"HiGHS found no centre: {result.message}")


def is_empty(of: PowerDiagram | SAE, support: ArrayLike, signs: ArrayLike | None = None) -> bool:
    """Whether a cell of a diagram or a region of an SAE has no interior, to HiGHS's tolerance of 1e-7.

    Lifts the cell to (x, t) with score_j <= t <= score_i for j outside and i inside (claim 7): n rows instead of
    k (n - k). Scores are scaled so that the longest site has length 1. Arguments and errors as for `chebyshev_centre`.
    """
    region = _region(of, support, signs)
    scale = np.linalg.norm(region.sites, axis=1).max() or 1.0
    sites, biases = region.sites / scale, region.biases / scale
    d = sites.shape[1]
    # x, t, slack: score_i - t >= slack, t - score_j >= slack; for given signs t is 0 and only the first kind is there.
    rows = [np.column_stack([-sites[region.inside], np.ones(len(region.inside)), np.ones(len(region.inside))])]
    limits = [biases[region.inside]]
    if region.outside is not None:
        ones = np.ones(len(region.outside))
        rows.append(np.column_stack([sites[region.outside], -ones, ones]))
        limits.append(-biases[region.outside])
    lifted = (None, None) if region.outside is not None else (0.0, 0.0)
    result = linprog(
        np.append(np.zeros(d + 1), -1.0), np.concatenate(rows), np.concatenate(limits),
        bounds=[(None, None)] * d + [lifted, (None, 1.0)], method="highs",
    )  # fmt: skip
    if result.status != 0:
        raise RuntimeError(f"HiGHS could not tell whether the region is empty: {result.message}")
    return bool(result.x[-1] <= TOLERANCE)


def _region(of: PowerDiagram | SAE, support: ArrayLike, signs: ArrayLike | None) -> _Region:
    if isinstance(of, PowerDiagram):
        inside = as_sets(np.asarray(support), of.n_sites)
        if len(inside) != of.order or signs is not None:
            raise ValueError(f"a cell of {of!r} is a set of {of.order} sites and has no signs, got {len(inside)} sites")
        return _Region(of.sites, of.biases, inside, np.setdiff1d(np.arange(of.n_sites), inside))
    encoder = encoder_of(of)
    n_latents = len(encoder.weights)
    inside = as_sets(np.asarray(support), n_latents, "support")
    if encoder.kind == "threshold":
        side = np.where(np.isin(np.arange(n_latents), inside), 1.0, -1.0)
        biases = side * (encoder.biases - encoder.threshold)
        return _Region(side[:, None] * encoder.weights, biases, np.arange(n_latents), None)
    if len(inside) > encoder.k:
        raise ValueError(f"support has {len(inside)} latents but k={encoder.k} are active at most")
    outside = np.setdiff1d(np.arange(n_latents), inside)
    if encoder.kind == "topk":
        sites, biases = encoder.weights, encoder.biases
    else:
        if signs is None or len(np.asarray(signs)) != len(inside):
            raise ValueError("an AbsTopK region needs the signs of its active latents, one for each: pass region.signs")
        negative = np.asarray(signs)[np.argsort(np.asarray(support), kind="stable")] < 0
        inside = inside + n_latents * negative
        outside = np.concatenate([outside, outside + n_latents])
        sites, biases = signed(encoder.weights, encoder.biases)
    # A null site of score 0: an active score of TopK is above it, and so is no inactive one while a place is free.
    null = len(sites)
    if len(inside) < encoder.k:
        inside = np.append(inside, null)
    elif encoder.kind == "topk":
        outside = np.append(outside, null)
    sites, biases = np.concatenate([sites, np.zeros((1, sites.shape[1]))]), np.append(biases, 0.0)
    return _Region(sites, biases, inside, outside)


def _half_spaces(region: _Region) -> tuple[Array, Array]:
    if region.outside is None:
        return region.sites, region.biases
    inside, outside = (part.ravel() for part in np.meshgrid(region.inside, region.outside, indexing="ij"))
    return region.sites[inside] - region.sites[outside], region.biases[inside] - region.biases[outside]
