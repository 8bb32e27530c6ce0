"""Power diagrams of any order and dimension: what a TopK or AbsTopK encoder cuts space into."""

from __future__ import annotations

from itertools import combinations
from math import comb

import numpy as np

from splinterp._checks import at_least
from splinterp._typing import Array, ArrayLike, Float, Int
from splinterp.geometry._arrays import as_float64, as_vector, blocks
from splinterp.geometry._encoder import encoder_of, signed
from splinterp.geometry._local import Columns, Local, middle
from splinterp.geometry._topk import top_indices
from splinterp.geometry.cells import Bounds, Cells, listed, walk_cells
from splinterp.geometry.solids import Solids, listed_solids, solids_of
from splinterp.sae import SAE

ORTHONORMAL = 1e-6
MAX_SUBSETS = 200_000


class PowerDiagram:
    """The order-k power diagram: space cut by which k sites have the least power.

        power_i(x) = |x - sites_i|^2 - weights_i = |x|^2 - 2 score_i(x)
        score_i(x) = x . sites_i + biases_i,   biases_i = (weights_i - |sites_i|^2) / 2

    So the k least powers are the k largest scores of an affine encoder, and every such diagram is one of an encoder
    (SplInterp, arXiv 2505.11836, and claim 1 of its converse tested here). Order 1 with equal weights is the Voronoi
    diagram. Everything is computed in float64; equal scores go to the lowest index.

    `assign`, `power`, `cells`, `restrict`, `translate`, `scale` and `regauge` work about a centre of the sites, in which
    what all scores have in common is dropped: far from the origin (sites at 1e9, with distances of 1 between them) and in
    any unit they are as right as the input is, that is, a point is given to a wrong cell only within some roundings of its
    own coordinates, and of the sites', to the cell's border. Sites and weights say where far cells are; biases do not, for
    |site|^2 drowns them: `from_scores` keeps what is in the biases it gets, and `biases`, `scores` and `to_encoder` are of
    the scores about the origin.

    Args:
        sites: (n_sites, d) array or CPU tensor.
        weights: (n_sites,), in squared units of x. None: all 0.
        order: k, how many sites a cell belongs to; 1 <= order <= n_sites.

    Raises:
        TypeError, ValueError: input that is not finite floats of these shapes, or an order out of range.

    Examples:
        >>> diagram = PowerDiagram(np.array([[0.0, 0.0], [2.0, 0.0], [0.0, 2.0]]))
        >>> diagram.assign(np.array([[0.2, 0.1], [1.9, 0.3]])).ravel()
        array([0, 1])
        >>> len(diagram.cells((-1.0, 3.0, -1.0, 3.0)))
        3
    """

    sites: Float[Array, "n_sites d"]
    weights: Float[Array, " n_sites"]
    biases: Float[Array, " n_sites"]
    order: int

    def __init__(self, sites: ArrayLike, weights: ArrayLike | None = None, order: int | np.integer = 1) -> None:
        self.sites = as_float64(sites, name="sites").copy()
        n_sites = len(self.sites)
        if not n_sites or not self.sites.shape[1]:
            raise ValueError(f"sites has shape {self.sites.shape}: at least one site of at least one dimension is needed")
        self.weights = np.zeros(n_sites) if weights is None else as_vector(weights, n_sites, "weights").copy()
        self.order = _checked_order(order, n_sites)
        self.biases = (self.weights - (self.sites**2).sum(axis=1)) / 2
        self._local = Local.of_powers(self.sites, self.weights)
        self._columns: Columns | None = None

    @classmethod
    def from_scores(cls, sites: ArrayLike, biases: ArrayLike, order: int | np.integer = 1) -> PowerDiagram:
        """The diagram of the scores `x @ sites.T + biases`, which are kept to the last bit. Raises as the constructor does."""
        diagram = cls(sites, None, order)
        diagram.biases = as_vector(biases, diagram.n_sites, "biases").copy()
        diagram.weights = (diagram.sites**2).sum(axis=1) + 2 * diagram.biases
        diagram._local = Local.compared(np.zeros(diagram.d), diagram.sites, diagram.biases)
        return diagram

    def _about(self, local: Local) -> PowerDiagram:
        """This diagram with its cells taken from `local`."""
        self._local = local
        return self

    @classmethod
    def from_sae(cls, sae: SAE) -> PowerDiagram:
        """The diagram whose cells are the selections of a TopK or AbsTopK SAE.

        TopK: sites are the columns of W_enc. AbsTopK: the 2 n_latents signed sites [+w; -w]; both signs of one latent
        are never chosen together, up to ties, which go to the lowest signed site and in `region_of` to the lowest latent.
        Cells are selections: the support (acts != 0) of a TopK SAE with negative scores among the k largest is smaller.

        Raises:
            TypeError: another activation. Its regions are no power diagram of fixed order; see `slice_cells`.
        """
        encoder = encoder_of(sae)
        if encoder.kind == "threshold":
            raise TypeError(
                f"{type(sae.activation).__name__} chooses no fixed number of latents, so its regions are no power diagram "
                "of one order: use splinterp.geometry.slice_cells for their slices and region_of for single regions"
            )
        arrays = encoder.weights, encoder.biases
        sites, biases = arrays if encoder.kind == "topk" else signed(*arrays)
        diagram = cls.from_scores(sites, biases - sites @ encoder.centre, encoder.k)
        return diagram._about(Local.compared(encoder.centre, sites, biases))

    def to_encoder(self) -> tuple[Float[Array, "d n_sites"], Float[Array, " n_sites"]]:
        """(W_enc, b_enc) of the TopK encoder with these selections; for AbsTopK that of the signed sites [+w; -w]."""
        return self.sites.T.copy(), self.biases.copy()

    @property
    def n_sites(self) -> int:
        """Number of sites."""
        return len(self.sites)

    @property
    def d(self) -> int:
        """Dimension of the space."""
        return self.sites.shape[1]

    def power(self, x: ArrayLike) -> Float[Array, "n n_sites"]:
        """|x - site|^2 - weight of every sample and site."""
        x = as_float64(x, self.d)
        centre = middle(self.sites)
        local, sites = x - centre, self.sites - centre
        scores = self._project(local) if not centre.any() else Columns(sites)(local)
        return (local**2).sum(axis=1, keepdims=True) - 2 * scores + (sites**2).sum(axis=1) - self.weights

    def scores(self, x: ArrayLike) -> Float[Array, "n n_sites"]:
        """The scores `x @ sites.T + biases`; equal sites have equal scores to the last bit."""
        return self._project(as_float64(x, self.d)) + self.biases

    def _project(self, directions: Array) -> Array:
        """`directions @ sites.T`."""
        if self._columns is None:
            self._columns = Columns(self.sites)
        return self._columns(directions)

    def assign(self, x: ArrayLike) -> Int[Array, "n order"]:
        """Sorted indices of the k sites of least power of each sample, equal powers to the lowest index.

        Works in blocks of samples: memory beyond x and the result stays near 64 MiB, or one row of scores.
        """
        x = as_float64(x, self.d)
        result = np.empty((len(x), self.order), dtype=np.int64)
        for rows in blocks(len(x), self.n_sites):
            result[rows] = top_indices(self._local.scores(x[rows]), self.order)
        return result

    def subsets(self) -> Int[Array, "n_subsets order"]:
        """All k-subsets of the sites in lexicographic order: what the sites of `flatten()` stand for.

        Raises ValueError above 200,000 subsets.
        """
        count = comb(self.n_sites, self.order)
        if count > MAX_SUBSETS:
            raise ValueError(
                f"order {self.order} of {self.n_sites} sites has {count} subsets, more than {MAX_SUBSETS}: "
                "use assign, cells or restrict, which need no list of them"
            )
        return np.array(list(combinations(range(self.n_sites), self.order)), dtype=np.int64)

    def flatten(self) -> PowerDiagram:
        """The order-1 diagram with the same cells: site mean(c_i), weight |mean|^2 + (2/k) sum b_i of each `subsets()` row.

        Raises ValueError above 200,000 subsets.
        """
        subsets = self.subsets()
        means = [part[subsets].mean(axis=1) for part in (self.sites, self.biases, self._local.sites, self._local.biases)]
        return PowerDiagram.from_scores(means[0], means[1], 1)._about(Local.of(self._local.centre, means[2], means[3]))

    def restrict(self, origin: ArrayLike, basis: ArrayLike) -> PowerDiagram:
        """The diagram of dimension p that the affine subspace `origin + y @ basis` cuts out, in coordinates y.

        Sites U^T c_i with biases c_i . origin + b_i: a point y has the same scores in both (claim 5).

        Args:
            origin: (d,).
            basis: (p, d), orthonormal rows.

        Raises:
            ValueError: rows that are not orthonormal to 1e-6, or other shapes.
        """
        origin = as_vector(origin, self.d, "origin")
        basis = orthonormal(basis, self.d)
        cut = PowerDiagram.from_scores(self._project(basis).T, self._project(origin[None])[0] + self.biases, self.order)
        return cut._about(self._local.restrict(origin, basis))

    def translate(self, shift: ArrayLike) -> PowerDiagram:
        """The diagram moved by `shift` (d,): weights stay, powers at x + shift are those at x.

        Cells keep their shape to the last digit however far they go; `sites` are rounded to the digits they have there.
        """
        shift = as_vector(shift, self.d, "shift")
        return PowerDiagram(self.sites + shift, self.weights, self.order)._about(self._local.moved(shift))

    def scale(self, factor: float) -> PowerDiagram:
        """The diagram stretched about the origin: weights times factor^2, powers at factor x are factor^2 times those at x.

        Raises ValueError unless factor > 0.
        """
        at_least("factor", factor, 0.0, strict=True)
        scaled = PowerDiagram(factor * self.sites, factor**2 * self.weights, self.order)
        return scaled._about(self._local.scaled(factor))

    def regauge(self, gain: float = 1.0, tilt: ArrayLike | None = None, offset: float = 0.0) -> PowerDiagram:
        """Another diagram with the same cells: that of the scores `gain * score + x . tilt + offset` (claim 3).

        Of the signed sites of an AbsTopK SAE only `gain` gives those of another AbsTopK SAE.

        Args:
            gain: above 0.
            tilt: (d,), added to every gain * site; None is 0.
            offset: added to every bias.

        Raises ValueError unless gain > 0.
        """
        at_least("gain", gain, 0.0, strict=True)
        sites = gain * self.sites if tilt is None else gain * self.sites + as_vector(tilt, self.d, "tilt")
        local = Local.of(self._local.centre, gain * self._local.sites, gain * self._local.biases)
        return PowerDiagram.from_scores(sites, gain * self.biases + offset, self.order)._about(local)

    def cells(self, bounds: Bounds, max_cells: int | None = None) -> Cells:
        """The exact cells of a 2-D diagram inside a window, sorted by their site sets.

        Order 1 goes through the lower hull of the lifted sites, O(n log n); higher orders walk from cell to cell over
        their edges. Vertices are float64 solutions, cells tile the window (areas sum to its area within 1e-9 of it, up
        to the rounding of the vertices' own coordinates where the window is far from the origin).
        Cells that have no interior in the window are left out, and sites that own none are `cells.hidden`; of equal
        sites the last are hidden. Repeated and collinear sites, ties and n_sites = order are handled.

        Args:
            bounds: (xmin, xmax, ymin, ymax).
            max_cells: refuse to list more.

        Raises:
            ValueError: not 2-D (see `restrict`), a window without area, more than `max_cells` cells.
            ArithmeticError: sites too nearly equal for float64 to tell their cells apart.
        """
        if self.d != 2:
            raise ValueError(f"cells are drawn in the plane, but d={self.d}: cut one out with restrict(origin, basis) first")
        sets, polygons = walk_cells(self._local, self.order, bounds, max_cells)
        return Cells(listed(sets, polygons), bounds, self.n_sites)

    def solids(self, bounds: Bounds, max_cells: int | None = None) -> Solids:
        """The exact cells of a 3-D diagram inside a box, as polyhedra, sorted by their site sets.

        A walk from cell to cell over their faces; all else is as in `cells`: volumes sum to the box's within 1e-9 of it (and what vertices
        far from the origin are rounded by), cells without volume are left out, sites that own none are `solids.hidden`, ties and repeated
        sites are handled.

        Args:
            bounds: (xmin, xmax, ymin, ymax, zmin, zmax).
            max_cells: refuse to list more.

        Raises:
            ValueError: not 3-D (see `restrict`), a box without volume, more than `max_cells` cells.
            ArithmeticError: sites too nearly equal for float64 to tell their cells apart.
        """
        if self.d != 3:
            raise ValueError(f"solids are cells in space, but d={self.d}: cut a space out with restrict(origin, basis) first")
        return Solids(listed_solids(*solids_of(self._local, self.order, bounds, max_cells)), bounds, self.n_sites)

    def __repr__(self) -> str:
        return f"PowerDiagram(n_sites={self.n_sites}, d={self.d}, order={self.order})"


def orthonormal(basis: ArrayLike, d: int) -> Array:
    """`basis` as a (p, d) array. Raises ValueError unless its rows are orthonormal to 1e-6."""
    basis = as_float64(basis, d, "basis")
    error = np.abs(basis @ basis.T - np.eye(len(basis))).max(initial=0.0)
    if error > ORTHONORMAL:
        raise ValueError(f"the rows of basis are not orthonormal (off by {error:.2g}): take numpy.linalg.qr(basis.T)[0].T")
    return basis


def _checked_order(order: int | np.integer, n_sites: int) -> int:
    if not isinstance(order, int | np.integer) or isinstance(order, bool):
        raise TypeError(f"order={order!r} must be an int")
    if not 1 <= order <= n_sites:
        raise ValueError(f"order={order} must be between 1 and n_sites={n_sites}")
    return int(order)
