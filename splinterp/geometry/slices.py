"""Plane slices of an SAE's linear regions, exactly."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from splinterp._checks import whole
from splinterp._documented import documented
from splinterp._typing import Array, ArrayLike, Float
from splinterp.geometry._arrangement import Chords, chords, count_faces, faces
from splinterp.geometry._arrays import as_float64, as_vector
from splinterp.geometry._encoder import Encoder, encoder_of, signed
from splinterp.geometry._local import Local
from splinterp.geometry._polygons import RaggedPolygons
from splinterp.geometry.cells import Bounds, Cell, Cells, Frame, listed, walk_cells, window
from splinterp.geometry.power_diagram import orthonormal
from splinterp.sae import SAE


@documented
class Plane(NamedTuple):
    """The plane of the points `origin + y @ basis`."""

    origin: Float[Array, " d"]
    basis: Float[Array, "2 d"]
    """Orthonormal rows, so distances in y are distances in R^d."""

    def coordinates(self, x: ArrayLike) -> Float[Array, "n 2"]:
        """Coordinates y of the samples x (n, d), projected onto the plane."""
        return (as_float64(x, len(self.origin)) - self.origin) @ self.basis.T

    def points(self, y: ArrayLike) -> Float[Array, "n d"]:
        """The points of R^d with coordinates y (n, 2)."""
        return self.origin + as_float64(y, 2, "y") @ self.basis

    def window(self, x: ArrayLike, margin: float = 0.2) -> tuple[float, float, float, float]:
        """Bounds around the samples' projections: square, wider than they are by `margin` of their extent on each side."""
        y = self.coordinates(x)
        centre, half = (y.max(axis=0) + y.min(axis=0)) / 2, np.ptp(y, axis=0).max() * (0.5 + margin)
        return window((centre[0] - half, centre[0] + half, centre[1] - half, centre[1] + half))


def plane_through(p0: ArrayLike, p1: ArrayLike, p2: ArrayLike) -> Plane:
    """The plane through three points (d,): p0 at coordinates (0, 0), p1 on the positive first axis, p2 above it.

    Raises:
        ValueError: the points lie on a line, or are not vectors of one length.
    """
    origin = as_vector(p0, name="p0")
    a = as_vector(p1, len(origin), "p1") - origin
    b = as_vector(p2, len(origin), "p2") - origin
    basis, triangle = np.linalg.qr(np.stack([a, b], axis=1))
    if abs(triangle[1, 1]) <= 1e-9 * np.hypot(*triangle[:, 1]) or abs(triangle[0, 0]) == 0:
        raise ValueError("the three points lie on a line, to 1e-9: choose three that span a plane")
    return Plane(origin, (basis * np.sign(np.diag(triangle))).T)


def principal_plane(x: ArrayLike, components: tuple[int, int] = (0, 1)) -> Plane:
    """The plane through the mean of x (n, d) along two of its principal directions (0 is the largest variance).

    Each direction's sign is such that its entry of largest magnitude is positive.

    Raises:
        ValueError: equal or unknown components, or directions without variance.
    """
    x = as_float64(x)
    mean = x.mean(axis=0)
    variances, directions = np.linalg.eigh((x - mean).T @ (x - mean))
    if len(set(components)) != 2 or not all(0 <= c < x.shape[1] for c in components):
        raise ValueError(f"components={components} must be two different integers in [0, {x.shape[1]})")
    chosen = [x.shape[1] - 1 - c for c in components]
    if min(variances[chosen]) <= 1e-12 * variances[-1]:
        raise ValueError(f"components={components}: the data have no variance there; choose smaller ones")
    basis = directions[:, chosen].T
    signs = np.sign(basis[np.arange(2), np.abs(basis).argmax(axis=1)])
    return Plane(mean, basis * signs[:, None])


def slice_cells(sae: SAE, plane: Plane, bounds: Bounds, max_cells: int = 100_000) -> Cells:
    """The exact linear regions of an SAE in a window of a plane, as convex polygons in the plane's coordinates.

    A cell's `sites` are the active latents (acts != 0) and its `signs` those of their codes; on it the SAE is one affine
    map. With its threshold a BatchTopK SAE is treated as at inference.

    - TopK: the order-k power diagram of the projected sites (claim 5) and k null sites of score 0, which stand for scores
      cut at 0: selections that differ only in latents with negative scores are one region.
    - AbsTopK: signed cells; one support may own several, all with the same map (claim 4).
    - ReLU, JumpReLU, BatchTopK: faces of the arrangement of the lines score = threshold. Their number,
      1 + lines + crossings, is counted first.

    `cells.hidden` are the latents active nowhere in the window. Sites that cannot be chosen in the window are dropped
    early, so wide dictionaries cost what their visible part costs.

    Args:
        sae: on the CPU.
        plane: from `plane_through` or `principal_plane`.
        bounds: (xmin, xmax, ymin, ymax) in the plane's coordinates; `plane.window(points)` makes one.
        max_cells: refuse to list more.

    Raises:
        ValueError: a plane of another width, a window without area, or more than `max_cells` cells.
        ArithmeticError: cells that float64 cannot tell apart.
        RuntimeError: a BatchTopK SAE that has no inference threshold or is in training mode.
    """
    encoder = encoder_of(sae)
    origin = as_vector(plane.origin, encoder.weights.shape[1], "plane.origin")
    basis = orthonormal(plane.basis, len(origin))
    if len(basis) != 2:
        raise ValueError(f"plane.basis has {len(basis)} rows: a plane has 2")
    whole("max_cells", max_cells, 1)
    if encoder.kind == "threshold":
        cells = _threshold_cells(encoder, Plane(origin, basis), bounds, max_cells)
    else:
        cells = _selection_cells(encoder, Plane(origin, basis), bounds, max_cells)
    return Cells(cells, bounds, len(encoder.weights))


def _selection_cells(encoder: Encoder, plane: Plane, bounds: Bounds, max_cells: int) -> Iterator[Cell]:
    n_latents, k = len(encoder.weights), encoder.k
    if encoder.kind == "topk":
        nothing = np.zeros((k, encoder.weights.shape[1]))
        sites, biases = np.concatenate([encoder.weights, nothing]), np.concatenate([encoder.biases, np.zeros(k)])
        latents, signs_of = np.arange(n_latents + k), np.ones(n_latents + k, dtype=np.int64)
    else:
        # Both signs of a latent side by side: ties go to the lowest site, which must be the lowest latent.
        pairs = np.arange(2 * n_latents).reshape(2, n_latents).T.ravel()
        sites, biases = (part[pairs] for part in signed(encoder.weights, encoder.biases))
        latents, signs_of = pairs % n_latents, np.where(pairs < n_latents, 1, -1)
    scores = Local.of(encoder.centre, sites, biases).restrict(plane.origin, plane.basis)
    silent = (scores.sites == 0).all(axis=1) & (scores.biases == 0)  # chosen or not, their code is 0
    sets, polygons = walk_cells(Local.compared(scores.centre, scores.sites, scores.biases), k, bounds, max_cells)
    supports, signs = [], []
    for chosen in sets:
        active = chosen[~silent[chosen]]
        order = latents[active].argsort()
        supports.append(latents[active][order])
        signs.append(signs_of[active][order])
    yield from listed(supports, polygons, signs)


def _smaller_window(bounds: Bounds, fits: Callable[[Bounds], bool]) -> tuple[float, float, float, float]:
    """A window about the same centre, by halving its size, then growing back as far as it fits."""
    xmin, xmax, ymin, ymax = window(bounds)

    def shrunk(factor: float) -> tuple[float, float, float, float]:
        x, y, dx, dy = (xmin + xmax) / 2, (ymin + ymax) / 2, factor * (xmax - xmin) / 2, factor * (ymax - ymin) / 2
        digits = 5 - int(np.floor(np.log10(min(dx, dy))))  # of the window's size: far out few of a side's own would be left
        rounded = [float(np.round(value, digits)) for value in (x - dx, x + dx, y - dy, y + dy)]
        return rounded[0], rounded[1], rounded[2], rounded[3]

    factor = 0.5
    while factor > 1e-6 and not fits(shrunk(factor)):
        factor /= 2
    return next((shrunk(grown * factor) for grown in (1.75, 1.5, 1.25) if fits(shrunk(grown * factor))), shrunk(factor))


def _threshold_cells(encoder: Encoder, plane: Plane, bounds: Bounds, max_cells: int) -> Iterator[Cell]:
    thresholds = Local.of(encoder.centre, encoder.weights, encoder.biases - encoder.threshold)
    scores = thresholds.restrict(plane.origin, plane.basis)

    def lines_in(bounds: Bounds) -> tuple[Frame, Chords]:
        frame = Frame.of(bounds)
        return frame, chords(*frame.scores(scores), frame.half)

    frame, lines = lines_in(bounds)
    count = count_faces(lines)
    if count > max_cells:
        smaller = _smaller_window(bounds, lambda bounds: count_faces(lines_in(bounds)[1]) <= max_cells)
        raise ValueError(
            f"the window holds {count} cells (1 + lines + crossings), more than max_cells={max_cells}: "
            f"choose a smaller window, such as bounds={smaller}, or a larger max_cells"
        )
    found = faces(lines)
    polygons = found.polygons
    polygons = RaggedPolygons(frame.outward(polygons.vertices), polygons.labels, polygons.starts)
    on_line = np.nonzero(lines.line_of >= 0)[0]
    always = (lines.line_of < 0) & lines.positive
    supports = []
    for side in found.sides:
        active = always.copy()
        active[on_line] = side[lines.line_of[on_line]] == lines.positive[on_line]
        supports.append(np.nonzero(active)[0])
    yield from listed(supports, polygons, [np.ones(len(support), dtype=np.int64) for support in supports])
