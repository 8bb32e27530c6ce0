"""Regions as polytopes: their half-spaces, which of them are facets, what lies across each, and how far they reach."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from scipy.optimize import linprog

from splinterp._documented import documented
from splinterp._typing import Array, ArrayLike, Float, Int
from splinterp.geometry._encoder import Encoder, encoder_of
from splinterp.geometry.linear_programs import _half_spaces, _impossible, _region, chebyshev_centre
from splinterp.geometry.power_diagram import PowerDiagram
from splinterp.sae import SAE

INFEASIBLE = 2
"""What HiGHS says of a program without a solution."""
MOST_TRIED = 20_000_000
"""Regions times half-spaces up to which all pairs of regions are looked at."""
CLOSE = 1e-9
"""Of a region's distances: by how much a half-space has to cut to count."""


@documented
class HalfSpaces(NamedTuple):
    """The closed region {x: normals @ x <= offsets}; normals have unit length."""

    normals: Float[Array, "n d"]
    offsets: Float[Array, " n"]
    entering: Int[Array, " n"]
    """What becomes active (of a diagram: what comes into the set) across each of them; -1 for none."""
    leaving: Int[Array, " n"]
    """What becomes inactive; -1 for none."""


@documented
class Facet(NamedTuple):
    """A facet of a region, and what lies across it."""

    point: Float[Array, " d"]
    """In it, and in no other facet but by chance."""
    normal: Float[Array, " d"]
    """Outward, of unit length."""
    entering: int
    leaving: int
    """The latents (or sites) that change there; -1 for none."""


def half_spaces(
    of: PowerDiagram | SAE, support: ArrayLike, signs: ArrayLike | None = None, irredundant: bool = False
) -> HalfSpaces:
    """The half-spaces of a cell of a diagram, or of a region of an SAE.

    A cell of k out of n sites has k (n - k), of which few touch it. `irredundant` leaves those that are facets: with a point of the inside
    (`chebyshev_centre`), each is tried by a linear program over the facets found so far (Clarkson 1994); of equal ones one is left.

    Args:
        of, support, signs: as of `chebyshev_centre`.

    Raises:
        ValueError: as `chebyshev_centre`; with `irredundant` a region without an interior.
        RuntimeError: HiGHS gives up.
    """
    region = _region(of, support, signs)
    if _impossible(region):
        raise ValueError("the region is empty: of equal scores the lowest index is chosen, so that no x belongs to it")
    slopes, values = _half_spaces(region)
    if region.outside is None:
        inactive = region.rank[region.inside] < 0
        entering = np.where(inactive, region.inside, -1)
        leaving = np.where(inactive, -1, region.inside)
        slopes, values = region.sites[region.inside], region.biases[region.inside]
    else:
        leaving, entering = (part.ravel() for part in np.meshgrid(region.inside, region.outside, indexing="ij"))
        if not isinstance(of, PowerDiagram):
            n_latents = len(encoder_of(of).weights)
            n_sites = len(region.sites) - 3
            leaving, entering = (np.where(part < n_sites, part % n_latents, -1) for part in (leaving, entering))
    length = np.linalg.norm(slopes, axis=1)
    there = length > 0
    normals = -slopes[there] / length[there, None]
    offsets = values[there] / length[there] + normals @ region.centre
    found = HalfSpaces(normals, offsets, entering[there].astype(np.int64), leaving[there].astype(np.int64))
    if not irredundant:
        return found
    return HalfSpaces(*(part[_facets(found, _inside(of, support, signs))] for part in found))


def facets(of: PowerDiagram | SAE, support: ArrayLike, signs: ArrayLike | None = None) -> list[Facet]:
    """The facets of a cell or region: what changes across each, with a point in it. Arguments and errors as of `half_spaces`."""
    inner = _inside(of, support, signs)
    found = half_spaces(of, support, signs, irredundant=True)
    return [
        Facet(_point_in(found, i, inner)[0], found.normals[i], int(found.entering[i]), int(found.leaving[i]))
        for i in range(len(found.offsets))
    ]


def bounding_box(of: PowerDiagram | SAE, support: ArrayLike, signs: ArrayLike | None = None) -> Float[Array, "d 2"]:
    """The least and largest coordinates of a cell or region, -inf and inf where it has none. Arguments and errors as of `half_spaces`."""
    found = half_spaces(of, support, signs)
    inner = _inside(of, support, signs)
    d = found.normals.shape[1]
    box = np.empty((d, 2))
    for axis, (column, sign) in ((axis, end) for axis in range(d) for end in enumerate((-1.0, 1.0))):
        cost = np.zeros(d)
        cost[axis] = -sign
        result = linprog(cost, found.normals, found.offsets - found.normals @ inner, bounds=[(None, None)] * d, method="highs")
        if result.status not in (0, 2, 3, 4):
            raise RuntimeError(f"HiGHS gave up: {result.message}")
        box[axis, column] = inner[axis] + result.x[axis] if result.status == 0 else sign * np.inf
    return box


def _inside(of: PowerDiagram | SAE, support: ArrayLike, signs: ArrayLike | None) -> Float[Array, " d"]:
    ball = chebyshev_centre(of, support, signs)
    if not ball.radius > 0:
        raise ValueError(f"the region has no interior: its largest ball has radius {ball.radius:.3g}")
    return ball.centre


def _facets(found: HalfSpaces, inner: Array) -> list[int]:
    """Which half-spaces are facets, seen from an inner point."""
    room = found.offsets - found.normals @ inner  # their distances from it
    order = np.argsort(room, kind="stable")
    chosen: list[int] = []
    unit = float(np.median(room)) or 1.0
    for i in order:
        while i not in chosen:
            direction = _beyond(found.normals[chosen], room[chosen], found.normals[i], float(room[i]), unit)
            hit = None if direction is None else _first_hit(found.normals, room, direction, order)
            if hit is None or hit in chosen:  # the others imply it, to rounding
                break
            chosen.append(hit)
    return sorted(chosen)


def _beyond(normals: Array, room: Array, normal: Array, own: float, unit: float) -> Array | None:
    """A move from the inner point that crosses a half-space before any of some others; None where they do not let it."""
    d = len(normal)
    rows = np.concatenate([normals, normal[None]])
    limits = np.append(room, own + unit) / unit
    result = linprog(-normal, rows, limits, bounds=[(None, None)] * d, method="highs")
    if result.status != 0:
        raise RuntimeError(f"HiGHS gave up: {result.message}")
    return result.x if normal @ result.x > own / unit + CLOSE else None


def _first_hit(normals: Array, room: Array, direction: Array, order: Array) -> int:
    """The half-space that a ray from the inner point leaves first; of equal ones the one that is nearest to the point."""
    speed = normals @ direction
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.where(speed > 0, room / speed, np.inf)
    hits = np.nonzero(t <= t.min() * (1 + 1e-12))[0]
    return int(next(i for i in order if i in set(hits.tolist())))


def _point_in(found: HalfSpaces, i: int, inner: Array) -> tuple[Float[Array, " d"], float]:
    """(a point of a facet as far from the other facets as may be, how far); what is no facet has none that is away from them."""
    d = found.normals.shape[1]
    normal, room = found.normals[i], found.offsets - found.normals @ inner
    others = np.delete(np.arange(len(room)), i)
    along = found.normals[others] - np.outer(found.normals[others] @ normal, normal)  # distances within the facet
    unit = float(np.median(room)) or 1.0
    rows = np.column_stack([found.normals[others], np.linalg.norm(along, axis=1)])
    cost = np.append(np.zeros(d), -1.0)
    result = linprog(
        cost, rows, room[others] / unit, A_eq=np.append(normal, 0.0)[None], b_eq=[room[i] / unit],
        bounds=[(None, None)] * d + [(None, 1e3)], method="highs",
    )  # fmt: skip
    if result.status == INFEASIBLE:
        return inner, -np.inf
    if result.status != 0:
        raise RuntimeError(f"HiGHS gave up: {result.message}")
    point = inner + unit * result.x[:d]
    return point + (found.offsets[i] - normal @ point) * normal, float(result.x[-1])


def region_graph(of: SAE, starts: ArrayLike, most: int = 1_000) -> Iterator[tuple[tuple[int, ...], list[tuple[int, ...]]]]:
    """Walk over an SAE's regions from those of samples (n, d_in), facet by facet: (support, supports across its facets) of each, in the
    order in which they are found, `most` of them.

    TopK, ReLU, JumpReLU and BatchTopK, whose supports are regions. Whether all regions are reached is not promised where `most` is.

    Raises:
        TypeError: an AbsTopK, whose supports own several regions.
        ValueError, RuntimeError: as `facets`.
    """
    from splinterp.geometry.regions import regions_of

    encoder = _one_region_each(of)
    regions = regions_of(of, starts, margins=False)
    waiting = list(dict.fromkeys(tuple(regions.support(i).tolist()) for i in range(len(regions))))
    known = set(waiting)
    for done, support in enumerate(waiting):
        if done >= most:
            return
        neighbours = []
        for facet in facets(of, np.array(support, dtype=np.int64)):
            other = _across(encoder, facet.point, facet.normal)
            neighbours.append(other)
            if other not in known:
                known.add(other)
                waiting.append(other)  # the loop comes to it
        yield support, neighbours


@documented
class RegionGraph(NamedTuple):
    """The regions that samples visit, and which of them touch along a facet."""

    supports: tuple[Array, ...]
    """Active latents of each region, sorted; regions in order of their first sample."""
    counts: Int[Array, " n_regions"]
    """Samples in each."""
    edges: Int[Array, "n_edges 2"]
    """Neighbours (i, j), i < j, sorted."""
    swaps: Int[Array, "n_edges 2"]
    """(entering, leaving) latents on the way from i to j, -1 for none; where several change at once, those of one of the planes."""
    points: Float[Array, "n_edges d"]
    """A point of each common facet."""


def visited_graph(of: SAE, x: ArrayLike) -> RegionGraph:
    """The graph of the regions that the samples x (n, d) visit: an edge where two of them share a facet.

    Regions touch where all planes between them are one, which is a facet: that is looked for among all pairs, or, where regions times
    half-spaces are more than 2e7, among those whose supports differ by one latent, or by one for another (in general position no others
    touch), and confirmed by a linear program. TopK, ReLU, JumpReLU and BatchTopK, as `region_graph`, which walks on to regions without
    samples.

    Raises:
        TypeError: an AbsTopK, whose supports own several regions.
        ValueError, RuntimeError: as `regions_of` and `half_spaces`.
    """
    from splinterp.geometry.regions import regions_of

    encoder = _one_region_each(of)
    regions = regions_of(of, x, margins=False)
    firsts = np.unique(regions.labels, return_index=True)[1]
    supports = [regions.support(int(first)) for first in firsts]
    d = encoder.weights.shape[1]
    balls = [chebyshev_centre(of, support) for support in supports]
    solid = [i for i, ball in enumerate(balls) if ball.radius > 0]  # samples on a facet may have a support without an interior
    sets = [set(support.tolist()) for support in supports]
    n_spaces = encoder.k * len(encoder.weights) or len(encoder.weights)
    near = None if len(solid) * n_spaces <= MOST_TRIED else _one_step_apart(supports)
    edges, swaps, points = [], [], []
    for i in solid:
        later = [j for j in solid if j > i] if near is None else [j for j in near[i] if balls[j].radius > 0]
        if not later:
            continue
        own, inner = half_spaces(of, supports[i]), balls[i].centre
        unit = float(np.median(own.offsets - own.normals @ inner))
        for j in later:
            m = _one_plane(own, sets[i], sets[j], encoder.kind == "threshold", unit)
            point, away = (inner, -np.inf) if m is None else _point_in(own, m, inner)
            if m is not None and away > CLOSE:
                edges.append((i, j))
                swaps.append((int(own.entering[m]), int(own.leaving[m])))
                points.append(point)
    return RegionGraph(
        tuple(supports), np.bincount(regions.labels, minlength=len(supports)), np.array(edges, dtype=np.int64).reshape(-1, 2),
        np.array(swaps, dtype=np.int64).reshape(-1, 2), np.array(points).reshape(-1, d),
    )  # fmt: skip


def _one_plane(own: HalfSpaces, here: set[int], there: set[int], fixed: bool, unit: float) -> int | None:
    """The half-space of a region by which another one begins, where all planes that part the two coincide; else None.

    `fixed`: every latent has a plane of its own; else each that leaves is exchanged for each that enters, or for none (-1) where the
    numbers of active ones differ.
    """
    leave, enter = list(here - there), list(there - here)
    if fixed:
        parting = (np.isin(own.leaving, leave) & (own.entering < 0)) | (np.isin(own.entering, enter) & (own.leaving < 0))
    else:
        leave, enter = leave + [-1] * (len(there) > len(here)), enter + [-1] * (len(here) > len(there))
        parting = np.isin(own.leaving, leave) & np.isin(own.entering, enter)
    planes = np.nonzero(parting)[0]
    if not len(planes):
        return None
    normals, offsets = own.normals[planes], own.offsets[planes]
    one = np.abs(normals - normals[0]).max() <= CLOSE and np.abs(offsets - offsets[0]).max() <= CLOSE * unit
    return int(planes[0]) if one else None


def _across(encoder: Encoder, point: Array, normal: Array) -> tuple[int, ...]:
    """The support just beyond a point of a facet, in the direction of its normal: of what ties there, what grows fastest."""
    scores, growth = encoder.scored().scores(point[None])[0], encoder.weights @ normal
    if encoder.kind == "threshold":
        length = np.linalg.norm(encoder.weights, axis=1)
        height = (scores - encoder.threshold) / np.where(length > 0, length, 1.0)
        tied = (np.abs(height) <= CLOSE * float(np.abs(height).max())) & (length > 0)
        return tuple(np.nonzero(np.where(tied, growth > 0, height > 0))[0].tolist())
    free = np.zeros(encoder.k)  # places that no latent takes, as in slices
    values, slopes = np.append(scores, free), np.append(growth, free)
    level = np.partition(values, -encoder.k)[-encoder.k]
    tie = CLOSE * float(np.abs(values - level).max())
    above, tied = np.nonzero(values > level + tie)[0], np.nonzero(np.abs(values - level) <= tie)[0]
    chosen = np.concatenate([above, tied[np.lexsort((tied, -slopes[tied]))][: encoder.k - len(above)]])
    chosen = chosen[chosen < len(scores)]
    positive = np.where(np.abs(scores[chosen]) <= tie, growth[chosen] > 0, scores[chosen] > 0)
    return tuple(np.sort(chosen[positive]).tolist())


def _one_step_apart(supports: list[Array]) -> list[list[int]]:
    """For each support the later ones that have one latent more or less, or one for another."""
    sets = [tuple(support.tolist()) for support in supports]
    number = {key: i for i, key in enumerate(sets)}
    short: dict[tuple[int, ...], list[int]] = {}  # supports less one latent
    for i, key in enumerate(sets):
        for m in range(len(key)):
            short.setdefault(key[:m] + key[m + 1 :], []).append(i)
    found: list[set[int]] = [set() for _ in sets]
    for key, several in short.items():
        group = [*several, number[key]] if key in number else several
        for i in group:
            found[i].update(group)
    return [sorted(j for j in others if j > i) for i, others in enumerate(found)]


def _one_region_each(of: SAE) -> Encoder:
    encoder = encoder_of(of)
    if encoder.kind == "abstopk":
        raise TypeError(
            "a support of an AbsTopK SAE owns a region for each choice of signs: walk over its PowerDiagram.from_sae"
        )
    return encoder
