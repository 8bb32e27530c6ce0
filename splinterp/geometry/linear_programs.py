"""Is a region empty, and which ball fits in it: linear programs, in any dimension."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy.optimize import linprog

from splinterp._documented import documented
from splinterp._typing import Array, ArrayLike, Float
from splinterp.geometry._arrays import as_sets
from splinterp.geometry._encoder import encoder_of, signed
from splinterp.geometry.power_diagram import PowerDiagram
from splinterp.sae import SAE

TOLERANCE = 1e-7
"""HiGHS satisfies constraints to this absolute error; its coordinates are such that distances are of the order of 1."""
ZOOM = 1e-5
"""A result below this is looked at again in coordinates so much finer, about the point found."""
ROUNDING = 1e-8
"""No coordinates finer than this share of the distance to the centre of the scores: there is only rounding below."""

FAR_ENOUGH = 1e-4
"""Share of the centre's coordinates that is no rounding."""


@documented
class Ball(NamedTuple):
    """The largest ball in a region."""

    centre: Float[Array, " d"]
    radius: float
    """inf for a region that holds arbitrarily large balls (then `centre` is that of one about as large as the distances in
    the diagram); negative where the region is empty: by how much each facet would have to move out; -inf where no move
    helps."""


class _Region(NamedTuple):
    """All x with scores inside >= scores outside, or with given signs of all scores (`outside` is None)."""

    sites: Array
    biases: Array
    """Scores at `centre`."""
    centre: Array
    inside: Array
    outside: Array | None
    rank: Array
    """Of equal scores the lowest rank is chosen; for given signs, the signs."""


class _Frame(NamedTuple):
    """Coordinates y of x = centre + origin + unit y."""

    origin: Array
    unit: float


def chebyshev_centre(of: PowerDiagram | SAE, support: ArrayLike, signs: ArrayLike | None = None) -> Ball:
    """Centre and radius of the largest ball in a cell of a diagram or in a region of an SAE, by HiGHS.

    A cell of k out of n sites has k (n - k) half-spaces, all of which bound the ball: a dense program of that many rows
    and d + 1 columns. For emptiness alone, `is_empty` needs n rows. The program is solved about a point amid the diagram
    and in a unit of its size, so neither the unit of x nor a shift matters: the radius is right to about 1e-7 of the
    diagram's distances, one below 1e-5 of them to 1e-12, or to the rounding of the input where that is more. Exactly equal
    scores belong to the lowest index: of equal sites, a cell that has a later one without an earlier one is empty.

    Args:
        of: a diagram, or an SAE on the CPU.
        support: the cell's k sites, or the region's active latents (acts != 0).
        signs: their signs, for an AbsTopK SAE, whose supports own a convex cell for each choice of signs.

    Raises:
        ValueError: sites unknown or repeated, too many active latents, signs missing or of another length.
        RuntimeError: HiGHS gives up.
    """
    region = _region(of, support, signs)
    d = region.sites.shape[1]
    if _impossible(region):
        return Ball(np.full(d, np.nan), -np.inf)
    normals, offsets = _half_spaces(region)
    length = np.linalg.norm(normals, axis=1)
    normals, offsets, length = normals[length > 0], offsets[length > 0], length[length > 0]
    if not len(normals):
        return Ball(region.centre, np.inf)
    normals, offsets = normals / length[:, None], offsets / length
    rows = np.column_stack([-normals, np.ones(len(normals))])
    cost = np.append(np.zeros(d), -1.0)

    def solve(frame: _Frame, limit: float | None) -> tuple[Array, float] | None:
        there = (offsets + normals @ frame.origin) / frame.unit
        result = linprog(cost, rows, there, bounds=[(None, None)] * d + [(None, limit)], method="highs")
        return (result.x[:d], float(result.x[d])) if result.status == 0 else None

    frame = _frame(region)
    if (found := solve(frame, None)) is not None:
        y, radius, frame = _refined(frame, found, lambda finer: solve(finer, None))
        return Ball(region.centre + frame.origin + frame.unit * y, frame.unit * radius)
    # Where all scores meet in one point, nothing but its distance from the centre says how large distances are.
    far = max(frame.unit, float(np.abs(frame.origin).max()), FAR_ENOUGH * float(np.abs(region.centre).max()))
    if (found := solve(frame, far / frame.unit)) is not None:
        return Ball(region.centre + frame.origin + frame.unit * found[0], np.inf)
    raise RuntimeError("HiGHS found no centre: rescale the scores, or merge sites that are nearly equal")


def is_empty(of: PowerDiagram | SAE, support: ArrayLike, signs: ArrayLike | None = None) -> bool:
    """Whether a cell of a diagram or a region of an SAE has no interior.

    Lifts the cell to (x, t) with score_j <= t <= score_i for j outside and i inside (claim 7): n rows instead of
    k (n - k). Coordinates are chosen as for `chebyshev_centre`, so neither the unit of x nor a shift matters: a cell is
    seen if it is wider than about 1e-12 of the diagram's distances, and than the rounding of the input. Of equal scores
    the lowest index is chosen, as there. Arguments and errors as for `chebyshev_centre`.
    """
    region = _region(of, support, signs)
    if _impossible(region):
        return True
    d = region.sites.shape[1]
    sites, biases = _compared(region)
    scale = np.linalg.norm(sites, axis=1).max() or 1.0
    sites, biases = sites / scale, biases / scale
    inside, outside = region.inside, np.empty(0, dtype=np.int64) if region.outside is None else region.outside
    # Sites that equal one of the other side leave no gap there; their gaps to the others are asked for pair by pair.
    kind = np.unique(region.sites + 0.0, axis=0, return_inverse=True)[1].reshape(-1)
    split_in, split_out = np.isin(kind[inside], kind[outside]), np.isin(kind[outside], kind[inside])
    i, j = (part.ravel() for part in np.meshgrid(inside[split_in], outside[split_out], indexing="ij"))
    i, j = i[kind[i] != kind[j]], j[kind[i] != kind[j]]
    # x, t, slack: score_i - t >= slack, t - score_j >= slack; for given signs t is 0 and only the first kind is there.
    gradients = np.concatenate([sites[inside], -sites[outside], sites[i] - sites[j]])
    values = np.concatenate([biases[inside], -biases[outside], biases[i] - biases[j]])
    lift = np.concatenate([-np.ones(len(inside)), np.ones(len(outside)), np.zeros(len(i))])
    gap = np.concatenate([~split_in, ~split_out, np.ones(len(i), dtype=bool)])
    rows = np.column_stack([-gradients, -lift, gap])
    bounds = [(None, None)] * d + [(None, None) if region.outside is not None else (0.0, 0.0), (None, 1.0)]

    def solve(frame: _Frame) -> tuple[Array, float] | None:
        there = values + gradients @ frame.origin
        if region.outside is not None:  # t about its own value there
            there = there + lift * (biases[inside] + sites[inside] @ frame.origin).min()
        result = linprog(np.append(np.zeros(d + 1), -1.0), rows, there / frame.unit, bounds=bounds, method="highs")
        return (result.x[:d], float(result.x[-1])) if result.status == 0 else None

    frame = _frame(region)
    found = solve(frame)
    if found is None:
        raise RuntimeError("HiGHS could not tell whether the region is empty: rescale the scores, or merge near equal sites")
    return bool(_refined(frame, found, solve)[1] <= TOLERANCE)


def _compared(region: _Region) -> tuple[Array, Array]:
    """(sites, biases), without what is common to all where only differences count."""
    if region.outside is None:
        return region.sites, region.biases
    return region.sites - region.sites.mean(axis=0), region.biases - region.biases.mean()


def _frame(region: _Region) -> _Frame:
    """About the point where the scores differ least, if they differ much less there, in the unit of what is left."""
    sites, biases = _compared(region)
    origin = np.linalg.lstsq(sites, -biases, rcond=1e-10)[0]
    left = biases + sites @ origin
    if not np.abs(left).max() < 0.1 * np.abs(biases).max():
        origin, left = np.zeros_like(origin), biases
    length, sizes = np.linalg.norm(sites, axis=1), np.abs(left)
    if not length.max() > 0:
        return _Frame(origin, 1.0)
    typical = np.median(sizes[sizes > 0]) / np.median(length[length > 0]) if sizes.any() else 0.0
    unit = max(typical, 1e-6 * sizes.max() / length.max(), ROUNDING * np.abs(origin).max(initial=0.0))
    return _Frame(origin, float(unit) or 1.0)


def _refined(
    frame: _Frame, found: tuple[Array, float], solve: Callable[[_Frame], tuple[Array, float] | None]
) -> tuple[Array, float, _Frame]:
    """(y, radius, their frame), solved again in finer coordinates where the radius is too small to be told from 0."""
    y, radius = found
    if abs(radius) < ZOOM:
        origin = frame.origin + frame.unit * y
        finer = _Frame(origin, max(ZOOM * frame.unit, ROUNDING * float(np.abs(origin).max(initial=0.0))))
        again = solve(finer) if finer.unit < frame.unit else None
        if again is not None:
            return *again, finer
    return y, radius, frame


def _region(of: PowerDiagram | SAE, support: ArrayLike, signs: ArrayLike | None) -> _Region:
    if isinstance(of, PowerDiagram):
        inside = as_sets(np.asarray(support), of.n_sites)
        if len(inside) != of.order or signs is not None:
            raise ValueError(f"a cell of {of!r} is a set of {of.order} sites and has no signs, got {len(inside)} sites")
        local, every = of._local, np.arange(of.n_sites)
        return _Region(local.sites, local.biases, local.centre, inside, np.setdiff1d(every, inside), every)
    encoder = encoder_of(of)
    n_latents = len(encoder.weights)
    inside = as_sets(np.asarray(support), n_latents, "support")
    if encoder.kind == "threshold":
        side = np.where(np.isin(np.arange(n_latents), inside), 1.0, -1.0)
        biases = side * (encoder.biases - encoder.threshold)
        sloping = np.nonzero(encoder.weights.any(axis=1))[0]
        return _Region(side[:, None] * encoder.weights, biases, encoder.centre, sloping, None, side)
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
    rank = np.arange(len(sites)) % n_latents
    # Latents without weights and bias are never active, whatever place their 0 takes.
    silent = (sites == 0).all(axis=1) & (biases == 0)
    outside = outside[~silent[outside]]
    # Null sites of score 0: active scores are above one, and so is no inactive one while a place is free. The third is
    # better than both; it makes a region with a silent latent among the active ones impossible.
    nulls = len(sites) + np.arange(3)
    rank = np.append(rank, [n_latents, n_latents + 1, -1])
    sites, biases = np.concatenate([sites, np.zeros((3, sites.shape[1]))]), np.append(biases, np.zeros(3))
    if silent[inside].any():
        outside = np.append(outside, nulls[2])
    elif len(inside):
        outside = np.append(outside, nulls[1])
    if len(inside) < encoder.k:
        inside = np.append(inside, nulls[0])
    return _Region(sites, biases, encoder.centre, inside, outside, rank)


def _impossible(region: _Region) -> bool:
    """Whether a site outside is at least as good as an equal one inside everywhere, or a constant score has the wrong sign."""
    if region.outside is None:
        constant = ~region.sites.any(axis=1)
        wrong = (region.biases < 0) | ((region.biases == 0) & (region.rank > 0))  # active is above the threshold
        return bool((constant & wrong).any())
    kind = np.unique(region.sites + 0.0, axis=0, return_inverse=True)[1].reshape(-1)
    place = np.lexsort((region.rank, -region.biases, kind))  # of each kind the best first
    chosen = np.zeros(len(kind), dtype=np.int64)
    chosen[region.inside], chosen[region.outside] = 1, -1
    place = place[chosen[place] != 0]
    same = kind[place[1:]] == kind[place[:-1]]
    return bool((same & (chosen[place[1:]] > chosen[place[:-1]])).any())


def _half_spaces(region: _Region) -> tuple[Array, Array]:
    if region.outside is None:
        return region.sites, region.biases
    inside, outside = (part.ravel() for part in np.meshgrid(region.inside, region.outside, indexing="ij"))
    return region.sites[inside] - region.sites[outside], region.biases[inside] - region.biases[outside]
