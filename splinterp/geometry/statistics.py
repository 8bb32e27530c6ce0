"""How a data set sits in the regions of an SAE, and how many regions there are."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from splinterp._documented import documented
from splinterp._typing import Array, ArrayLike, Float, Int
from splinterp.geometry._arrays import blocks
from splinterp.geometry.masses import entropy_of
from splinterp.geometry.power_diagram import PowerDiagram
from splinterp.geometry.regions import regions_of
from splinterp.sae import SAE

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@documented
@dataclass(frozen=True, eq=False)
class RegionStatistics:
    """What `region_statistics` found; regions are supports (acts != 0)."""

    n_samples: int
    """Samples looked at."""
    n_regions: int
    """Different supports among them."""
    n_signed_regions: int
    """Different (support, signs) pairs: convex cells of an AbsTopK SAE. Equal to n_regions otherwise."""
    n_singletons: int
    """Regions that hold one sample."""
    unseen: float
    """n_singletons / n_samples: the Good-Turing estimate of the chance that the next sample falls in a new region."""
    entropy: float
    """Of the samples' distribution over regions, in nats; log(n_samples) if every sample is alone."""
    entropy_corrected: float
    """The same, corrected for regions that no sample was in; see `Entropy.corrected`."""
    entropy_reliable: bool
    """False where more than 5 % of the samples are alone, or with a margin of 3 / n could be: `entropy` is then a lower bound at best."""
    largest: float
    """Share of the samples in the most visited region."""
    mean_l0: float
    """Mean number of active latents."""
    margins: Float[Array, " 5"]
    """Quantiles 5, 25, 50, 75 and 95 % of the distance to the nearest change of support, in units of x."""
    growth: Int[Array, "n_sizes 2"]
    """(samples, regions among that many), at sizes doubling up to n_samples, in a random order of the samples."""


def region_statistics(sae: SAE, x: ArrayLike, generator: torch.Generator | None = None) -> RegionStatistics:
    """Count and measure the regions of an SAE that the samples x (n, d_in) visit.

    Args:
        sae: on the CPU.
        x: samples in rows; at least one.
        generator: CPU generator of the order in which `growth` counts; None is one seeded with 0.

    Raises as `region_of` does, and ValueError for no samples.
    """
    regions = regions_of(sae, x)
    n = len(regions)
    if n == 0:
        raise ValueError("x has no rows: region statistics need at least one sample")
    assert regions.margins is not None
    counts = np.bincount(regions.labels)
    entropy = entropy_of(counts)
    generator = generator if generator is not None else torch.Generator().manual_seed(0)
    order = torch.randperm(n, device="cpu", generator=generator).numpy()
    singles, signed_regions = int((counts == 1).sum()), int(regions.signed_labels().max()) + 1
    return RegionStatistics(
        n_samples=n, n_regions=len(counts), n_signed_regions=signed_regions, n_singletons=singles, unseen=singles / n,
        entropy=entropy.plug_in, entropy_corrected=entropy.corrected, entropy_reliable=entropy.reliable,
        largest=float(counts.max() / n), mean_l0=float(np.diff(regions.starts).mean()),
        margins=np.quantile(regions.margins, QUANTILES, method="inverted_cdf"), growth=growth(regions.labels[order]),
    )  # fmt: skip


def growth(labels: Int[Array, " n"]) -> Int[Array, "n_sizes 2"]:
    """(m, different labels among the first m) for m = 1, 2, 4, ... and n."""
    first = np.unique(labels, return_index=True)[1]
    sizes = np.unique(np.append(2 ** np.arange(int(np.log2(len(labels))) + 1), len(labels)))
    return np.stack([sizes, np.searchsorted(np.sort(first), sizes)], axis=1)


def count_cells(diagram: PowerDiagram) -> int:
    """The exact number of cells of a diagram on the whole line or in the whole plane, without drawing them.

    Line: 1 + the crossings of two scores at which order - 1 others are higher. Plane (claim 10): 1 + V/2 + U/2: V counts the triples of
    sites whose common point has order - 1 or order - 2 sites scoring higher, U the (pair, direction) for which exactly order - 1 sites
    score higher far out on the pair's line. Needs general position (on a line no three scores equal at a point; in the plane no four, and
    no two lines parallel); takes O(n^3), in the plane O(n^3 log n).

    Raises ValueError for a diagram of more dimensions: `restrict` it to a plane, or count the cells of a box in three dimensions by
    `len(diagram.solids(bounds))`.
    """
    if diagram.d > 2:
        box = ", or count the cells of a box, len(diagram.solids(bounds))" if diagram.d == 3 else ""
        raise ValueError(
            f"count_cells counts on a line or in the plane, but d={diagram.d}: restrict the diagram to a plane first{box}"
        )
    k, n = diagram.order, diagram.n_sites
    if k == n:
        return 1
    i, j = np.triu_indices(n, 1)
    if diagram.d == 1:
        return 1 + sum(_crossings(diagram, i[part], j[part]) for part in blocks(len(i), 2 * n))
    triples = ends = 0
    for part in blocks(len(i), 8 * n):
        t, e = _along_bisectors(diagram, i[part], j[part])
        triples, ends = triples + t, ends + e
    return 1 + (triples // 3 + ends) // 2


def _crossings(diagram: PowerDiagram, i: Array, j: Array) -> int:
    """Points of a line where scores i and j are equal and order - 1 others are higher."""
    sites, biases = diagram._local.sites[:, 0], diagram._local.biases
    slope = sites[i] - sites[j]
    i, j, slope = i[slope != 0], j[slope != 0], slope[slope != 0]
    at = (biases[j] - biases[i]) / slope
    scores = at[:, None] * sites + biases
    rows = np.arange(len(at))
    level = scores[rows, i]
    scores[rows, i] = scores[rows, j] = -np.inf
    return int(((scores > level[:, None]).sum(axis=1) == diagram.order - 1).sum())


def _along_bisectors(diagram: PowerDiagram, i: Array, j: Array) -> tuple[int, int]:
    """On the lines score i = score j: (events with order - 1 or order - 2 others ahead, ends with order - 1 ahead)."""
    k, sites, biases = diagram.order, diagram._local.sites, diagram._local.biases
    rows = np.arange(len(i))
    normal, offset = sites[i] - sites[j], biases[i] - biases[j]
    length = np.linalg.norm(normal, axis=1)
    apart = length > 0
    i, j, rows, normal, offset = i[apart], j[apart], rows[: apart.sum()], normal[apart], offset[apart]
    foot = -(offset / length[apart] ** 2)[:, None] * normal
    along = np.stack([-normal[:, 1], normal[:, 0]], axis=1)
    # Every other site's lead over i as start + rate * position along the line.
    start = foot @ sites.T + biases - ((foot * sites[i]).sum(axis=1) + biases[i])[:, None]
    rate = along @ sites.T - (along * sites[i]).sum(axis=1)[:, None]
    own = np.zeros(start.shape, dtype=bool)
    own[rows, i] = own[rows, j] = True
    with np.errstate(divide="ignore", invalid="ignore"):
        position = np.where(own | (rate == 0), np.inf, -start / rate)
    before = (np.where(rate == 0, start > 0, rate < 0) & ~own).sum(axis=1)
    after = (np.where(rate == 0, start > 0, rate > 0) & ~own).sum(axis=1)
    order = position.argsort(axis=1)
    change = np.take_along_axis(np.where(np.isinf(position), 0, np.sign(rate)).astype(np.int64), order, axis=1)
    ahead = before[:, None] + change.cumsum(axis=1)  # after each event
    others = ahead - (change > 0)  # at the event, the third site itself not counted
    events = int(((change != 0) & ((others == k - 1) | (others == k - 2))).sum())
    return events, int((before == k - 1).sum() + (after == k - 1).sum())
