"""Plane slices of an SAE's linear regions, exactly."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
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

    def window(self, x: ArrayLike, margin: float = 0.2) -> tuple[float, ...]:
        """Bounds around the samples' projections: square, wider than they are by `margin` of their extent on each side."""
        return window(_around(self.coordinates(x), margin))


@documented
class Space(NamedTuple):
    """The three-dimensional affine subspace of the points `origin + y @ basis`."""

    origin: Float[Array, " d"]
    basis: Float[Array, "3 d"]
    """Orthonormal rows, so distances in y are distances in R^d."""

    def coordinates(self, x: ArrayLike) -> Float[Array, "n 3"]:
        """Coordinates y of the samples x (n, d), projected onto the space."""
        return (as_float64(x, len(self.origin)) - self.origin) @ self.basis.T

    def points(self, y: ArrayLike) -> Float[Array, "n d"]:
        """The points of R^d with coordinates y (n, 3)."""
        return self.origin + as_float64(y, 3, "y") @ self.basis

    def box(self, x: ArrayLike, margin: float = 0.2) -> tuple[float, ...]:
        """Bounds around the samples' projections: a cube, wider than they are by `margin` of their extent on each side."""
        return window(_around(self.coordinates(x), margin), 3)


def _around(y: Array, margin: float) -> list[float]:
    if not len(y) or not np.ptp(y, axis=0).any():
        raise ValueError(
            f"x has {len(y)} rows and no extent here to make bounds of: pass samples that differ, or give bounds yourself"
        )
    centre, half = (y.max(axis=0) + y.min(axis=0)) / 2, np.ptp(y, axis=0).max() * (0.5 + margin)
    return np.stack([centre - half, centre + half], axis=1).ravel().tolist()


def subspace(given: Plane | Space, d: int, rows: int) -> tuple[Array, Array]:
    """(origin, basis) in float64. Raises ValueError unless it is a subspace of R^d of `rows` dimensions."""
    name, other = ("plane", "slice_solids") if rows == 2 else ("space", "slice_cells")
    origin = as_vector(given.origin, d, f"{name}.origin")
    basis = orthonormal(given.basis, d)
    if len(basis) != rows:
        raise ValueError(f"{name}.basis has {len(basis)} rows: a {name} has {rows} ({other} takes the other)")
    return origin, basis


def plane_through(p0: ArrayLike, p1: ArrayLike, p2: ArrayLike) -> Plane:
    """The plane through three points (d,): p0 at coordinates (0, 0), p1 on the positive first axis, p2 above it.

    Raises:
        ValueError: the points lie on a line, or are not vectors of one length.
    """
    return Plane(*_through([p0, p1, p2], "the three points lie on a line, to 1e-9: choose three that span a plane"))


def space_through(p0: ArrayLike, p1: ArrayLike, p2: ArrayLike, p3: ArrayLike) -> Space:
    """The space through four points (d,): p0, p1 and p2 as in `plane_through`, with third coordinate 0, p3 above them.

    Raises:
        ValueError: the points lie in a plane, or are not vectors of one length.
    """
    return Space(*_through([p0, p1, p2, p3], "the four points lie in a plane, to 1e-9: choose four that span a space"))


def _through(points: list[ArrayLike], flat: str) -> tuple[Array, Array]:
    """(origin, basis) of the affine subspace of the points. Raises ValueError with the text `flat` where it has fewer dimensions."""
    origin = as_vector(points[0], name="p0")
    edges = [as_vector(p, len(origin), f"p{i}") - origin for i, p in enumerate(points[1:], 1)]
    if len(edges) > len(origin):
        raise ValueError(flat)
    basis, triangle = np.linalg.qr(np.stack(edges, axis=1))
    heights, lengths = np.abs(np.diag(triangle)), np.linalg.norm(triangle, axis=0)
    if (heights <= 1e-9 * lengths).any():
        raise ValueError(flat)
    return origin, (basis * np.sign(np.diag(triangle))).T


def principal_plane(x: ArrayLike, components: tuple[int, int] = (0, 1)) -> Plane:
    """The plane through the mean of x (n, d) along two of its principal directions (0 is the largest variance).

    Each direction's sign is such that its entry of largest magnitude is positive.

    Raises:
        ValueError: equal or unknown components, or directions without variance.
    """
    return Plane(*_principal(x, components, 2))


def principal_space(x: ArrayLike, components: tuple[int, int, int] = (0, 1, 2)) -> Space:
    """The space through the mean of x (n, d) along three of its principal directions; see `principal_plane`.

    Raises:
        ValueError: equal or unknown components, or directions without variance.
    """
    return Space(*_principal(x, components, 3))


def _principal(x: ArrayLike, components: tuple[int, ...], rows: int) -> tuple[Array, Array]:
    x = as_float64(x)
    if not len(x):
        raise ValueError("x has no rows: principal directions need samples")
    mean = x.mean(axis=0)
    variances, directions = np.linalg.eigh((x - mean).T @ (x - mean))
    if len(components) != rows or len(set(components)) != rows or not all(0 <= c < x.shape[1] for c in components):
        how_many = {2: "two", 3: "three"}[rows]
        raise ValueError(f"components={components} must be {how_many} different integers in [0, {x.shape[1]})")
    chosen = [x.shape[1] - 1 - c for c in components]
    if min(variances[chosen]) <= 1e-12 * variances[-1]:
        raise ValueError(f"components={components}: the data have no variance there; choose smaller ones")
    basis = directions[:, chosen].T
    signs = np.sign(basis[np.arange(rows), np.abs(basis).argmax(axis=1)])
    return mean, basis * signs[:, None]


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
    plane = Plane(*subspace(plane, encoder.weights.shape[1], 2))
    whole("max_cells", max_cells, 1)
    if encoder.kind == "threshold":
        return Cells(_threshold_cells(encoder, plane, bounds, max_cells), bounds, len(encoder.weights))
    chosen = selection(encoder, plane)
    sets, polygons = walk_cells(chosen.scores, encoder.k, bounds, max_cells)
    supports, signs = chosen.named(sets)
    return Cells(listed(supports, polygons, signs), bounds, len(encoder.weights))


class Selection(NamedTuple):
    """The scores whose k largest are what a TopK or AbsTopK SAE selects in an affine subspace, and what their sites stand for."""

    scores: Local
    latents: Array
    signs: Array
    silent: Array
    """Sites that are chosen or not with a code of 0."""

    def named(self, sets: Iterable[Array]) -> tuple[list[Array], list[Array]]:
        """(active latents, signs of their codes) of each site set."""
        supports, signs = [], []
        for chosen in sets:
            active = chosen[~self.silent[chosen]]
            order = self.latents[active].argsort()
            supports.append(self.latents[active][order])
            signs.append(self.signs[active][order])
        return supports, signs


def selection(encoder: Encoder, within: Plane | Space) -> Selection:
    """The selections of a TopK or AbsTopK encoder in a plane or space."""
    n_latents, k = len(encoder.weights), encoder.k
    if encoder.kind == "topk":
        nothing = np.zeros((k, encoder.weights.shape[1]))
        sites, biases = np.concatenate([encoder.weights, nothing]), np.concatenate([encoder.biases, np.zeros(k)])
        latents, signs = np.arange(n_latents + k), np.ones(n_latents + k, dtype=np.int64)
    else:
        # Both signs of a latent side by side: ties go to the lowest site, which must be the lowest latent.
        pairs = np.arange(2 * n_latents).reshape(2, n_latents).T.ravel()
        sites, biases = (part[pairs] for part in signed(encoder.weights, encoder.biases))
        latents, signs = pairs % n_latents, np.where(pairs < n_latents, 1, -1)
    scores = Local.of(encoder.centre, sites, biases).restrict(within.origin, within.basis)
    silent = (scores.sites == 0).all(axis=1) & (scores.biases == 0)  # chosen or not, their code is 0
    return Selection(Local.compared(scores.centre, scores.sites, scores.biases), latents, signs, silent)


def _smaller_window(bounds: Bounds, fits: Callable[[Bounds], bool]) -> tuple[float, ...]:
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
