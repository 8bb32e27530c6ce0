"""Order-1 cells of a window from the lower hull of the lifted sites."""

from __future__ import annotations

import numpy as np
from scipy.spatial import ConvexHull, QhullError

from splinterp._typing import Array
from splinterp.geometry._polygons import PolygonBatch, RaggedPolygons, joined

AT_A_TIME = 4096
"""Cells cut together: their vertices stay in the processor's cache."""


def lower_hull_edges(sites: Array, biases: Array) -> Array | None:
    """Pairs (n_edges, 2), i < j, of sites joined on the lower hull of (site, -2 bias): the regular triangulation.

    Edges between cells that meet in one point only may be among them. None where the lifted sites are flat (fewer than
    four, or collinear), which Qhull does not take, and where it leaves out a site for being too close to a facet to tell.
    """
    if len(sites) < 4:
        return None
    try:
        hull = ConvexHull(np.column_stack([sites, -2 * biases]), qhull_options="Qt Qc")
    except QhullError:
        return None
    if len(hull.coplanar):
        return None
    lower = hull.simplices[hull.equations[:, 2] < 0]
    pairs = np.sort(np.concatenate([lower[:, [0, 1]], lower[:, [1, 2]], lower[:, [2, 0]]]), axis=1)
    code = np.unique(pairs[:, 0].astype(np.int64) * len(sites) + pairs[:, 1])
    return np.stack(np.divmod(code, len(sites)), axis=1)


def hull_cells(sites: Array, biases: Array, half: Array) -> tuple[Array, RaggedPolygons] | None:
    """(site of each cell, polygons) over the rectangle `[-half, half]`; labels are the sites across the edges.

    The polygons are cut by neighbours on the hull only, hence contain the cells: where their areas sum to the window's
    they are the cells. None where there is no hull.
    """
    edges = lower_hull_edges(sites, biases)
    if edges is None:
        return None
    both = np.concatenate([edges, edges[:, ::-1]])
    both = both[np.argsort(both[:, 0], kind="stable")]
    normals = sites[both[:, 0]] - sites[both[:, 1]]
    length = np.hypot(normals[:, 0], normals[:, 1])
    both, normals, length = both[length > 0], normals[length > 0], length[length > 0]
    normals /= length[:, None]
    offsets = (biases[both[:, 0]] - biases[both[:, 1]]) / length
    owners, degree = np.unique(both[:, 0], return_counts=True)
    first = np.concatenate([[0], np.cumsum(degree)])
    parts = []
    for start in range(0, len(owners), AT_A_TIME):
        end = min(start + AT_A_TIME, len(owners))
        lines = slice(first[start], first[end])
        parts.append(_cut(half, degree[start:end], normals[lines], offsets[lines], both[lines, 1]))
    polygons = joined(parts)
    visible = np.nonzero(np.diff(polygons.starts) > 0)[0]
    return owners[visible], polygons.take(visible)


def _cut(half: Array, degree: Array, normals: Array, offsets: Array, labels: Array) -> RaggedPolygons:
    """Rectangles cut by `degree[m]` consecutive lines each, the first of all of them, then the second, ..."""
    batch = PolygonBatch(len(degree), half)
    cell = np.repeat(np.arange(len(degree)), degree)
    turn = np.arange(len(cell)) - np.repeat(np.cumsum(degree) - degree, degree)
    for t in range(degree.max()):
        now = np.nonzero(turn == t)[0]
        batch.clip(cell[now], normals[now], offsets[now], labels[now])
    return batch.ragged()
