"""Sufficient statistics of the decoder's least squares, and the spectrum of their Gram matrix."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import scipy.linalg
import torch

from splinterp._checks import as_code, as_samples, whole
from splinterp._typing import ArrayLike, Float, Tensor
from splinterp.activations import TopActs
from splinterp.decoder._cholesky import Factor, factored
from splinterp.sparse_kernels._sums import KSparse

SPARSE_GAIN = 16
"""Sums of products are sparse where k is at most this part of n_latents (measured: `bench solve`)."""
STRIP, SYMMETRIC_ROWS = 512, 256
"""From so many rows on half of a Gram matrix is formed, in strips of so many latents, and mirrored."""
DENSE_ENTRIES = 2**22
"""Of a sparse code that are made dense at a time."""
CENTRING_LOSS = 1e6
"""Raw sums are centred afterwards where each latent's centred sum of squares is at least so many eps of its raw one."""
RANK_TOLERANCE = 1e-12
"""Eigenvalues of the centred Gram matrix up to this share of the largest count as zero (n_latents * eps where that is more)."""


class Spectrum(NamedTuple):
    """Eigendecomposition of the centred Gram matrix, gram = vectors @ diag(values) @ vectors.T, in no particular order."""

    values: Float[Tensor, " n_latents"]
    vectors: Float[Tensor, "n_latents n_latents"]
    positive: Tensor  # (n_latents,) bool: the values that count as above zero


class DecoderStats:
    """Sufficient statistics of the decoder's least squares: streamed, mergeable, of fixed size.

    Holds the number of samples, the means of codes and samples, and the sums of products about those means
    (so that nothing cancels): `gram` = sum (z - z̄)^T (z - z̄), `cross` = sum (z - z̄)^T (x - x̄) and
    `total` = sum |x - x̄|^2. Batches are centred first and combined pairwise (Chan, Golub and LeVeque 1983).

    Args:
        n_latents, d_in: widths of codes and samples.
        dtype: of the sums; float64 keeps GCV reliable for N below n_latents, float32 is about twice as fast.
        device: where the sums live; batches must be there.
        products: of the products within a batch, which are then added to the sums. torch.float32 with float64 sums costs
            little more than float32 alone, and is as good where N is at least twice n_latents (`bench ridge`). None: as the sums.

    Raises:
        ValueError: sizes below 1.
    """

    def __init__(
        self,
        n_latents: int,
        d_in: int,
        *,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str = "cpu",
        products: torch.dtype | None = None,
    ) -> None:
        whole("n_latents", n_latents, 1)
        whole("d_in", d_in, 1)
        self.n_latents, self.d_in, self.dtype = n_latents, d_in, dtype
        self.products = dtype if products is None else products
        self.device = torch.empty(0, device=device).device
        self.clear()

    def clear(self) -> None:
        """Forget every sample."""
        m, d = self.n_latents, self.d_in
        self.n_samples: float = 0
        """Samples, each counted by its weight: what sums and means run over."""
        self.n_distinct: float = 0
        """Samples whatever their weights, each counted once however many codes it has: what cross-validation counts."""
        self.mean_acts, self.mean_x, self.gram, self.cross, self.total = (
            torch.zeros(shape, dtype=self.dtype, device=self.device) for shape in ((m,), (d,), (m, m), (m, d), ())
        )
        self.altered()

    def empty(self) -> DecoderStats:
        """Statistics of no samples, of the same widths, dtypes and device."""
        return DecoderStats(self.n_latents, self.d_in, dtype=self.dtype, device=self.device, products=self.products)

    def altered(self) -> None:
        """Drop what was derived from the sums: call it wherever something else than this class changes them."""
        self._spectrum: Spectrum | None = None
        self._factor: Factor | None = None

    @torch.no_grad()
    def update(
        self, acts: ArrayLike | TopActs, x: ArrayLike, weights: ArrayLike | float | None = None, again: bool = False
    ) -> DecoderStats:
        """Add a batch: acts (n, n_latents) or a code's sparse form, x (n, d_in), n >= 0. Returns self.

        `weights`, one for each sample (n,) or one for all, at least 0, multiply the samples' squared errors in what is solved. `again` says
        that these samples were added before, with another code: cross-validation does not count them anew.

        A sparse form of few latents costs n k^2 + n k d_in and no array of n x n_latents. Its Gram matrix is centred after
        the sum; where that would lose digits (a latent that hardly varies about a mean far from 0) it is centred before.

        Raises TypeError, ValueError: bad input.
        """
        roots = None if weights is None else self._roots(weights, len(x))
        self._update(acts, x, roots)
        if not again:  # now that the batch is known to be one
            self.n_distinct += len(x)
        return self

    def _update(self, acts: ArrayLike | TopActs, x: ArrayLike, roots: Tensor | None) -> DecoderStats:
        if isinstance(acts, TopActs):
            return self._update_top(acts, x, roots)
        z = as_samples(acts, self.n_latents, dtype=self.products, device=self.device, name="acts")
        x = as_samples(x, self.d_in, dtype=self.products, device=self.device)
        if len(z) != len(x):
            raise ValueError(f"acts has {len(z)} rows and x has {len(x)}: pass the codes of the same samples")
        if len(x) == 0:
            return self
        mean_acts = z.mean(0) if roots is None else _weighted_mean(z, roots)
        return self._add(mean_acts, x, [z], roots)

    def _roots(self, weights: ArrayLike | float, n: int) -> Tensor:
        """Square roots (n,) of weights. Raises ValueError: another number of them, one below 0 or not finite."""
        found = torch.as_tensor(weights, dtype=self.products, device=self.device)
        found = found.expand(n) if found.ndim == 0 else found
        if found.shape != (n,):
            raise ValueError(f"weights has shape {tuple(found.shape)}: pass one for each of the {n} samples, or one number")
        if n and not (bool(torch.isfinite(found).all()) and float(found.min()) >= 0):
            raise ValueError("weights must be finite and at least 0")
        return found.sqrt()

    def _add(self, mean_acts: Tensor, x: Tensor, blocks: Iterable[Tensor], roots: Tensor | None = None) -> DecoderStats:
        """Add samples x whose dense codes, of this mean, come in blocks of rows; `roots` of their weights."""
        n = float(len(x)) if roots is None else float(roots.square().sum())
        if n == 0:
            return self
        mean_x, start = x.mean(0) if roots is None else _weighted_mean(x, roots), 0
        self._absorb(n, mean_acts, mean_x)
        strip = STRIP if len(x) >= SYMMETRIC_ROWS else self.n_latents
        for z in blocks:
            z = z - mean_acts
            part = x[start : start + len(z)] - mean_x
            if roots is not None:
                own = roots[start : start + len(z), None]
                z, part = z * own, part * own
            start += len(z)
            for first in range(0, self.n_latents, strip):
                self._add_product(self.gram[first : first + strip, first:], z[:, first : first + strip], z[:, first:])
            self._add_product(self.cross, z, part)
            self.total += squared_norm(part)
        for first in range(strip, self.n_latents, strip):
            self.gram[first : first + strip, :first] = self.gram[:first, first : first + strip].T
        return self

    def _add_product(self, total: Tensor, left: Tensor, right: Tensor) -> None:
        """Add left.T @ right, taken in the dtype of products, to sums."""
        if self.products == self.dtype:
            total.addmm_(left.T, right)
        else:
            total += left.T @ right

    def _update_top(self, top: TopActs, x: ArrayLike, roots: Tensor | None = None) -> DecoderStats:
        values, x = as_code(*top, x, self.n_latents, self.d_in, self.products, self.device)
        n, k = values.shape
        if n == 0:
            return self
        gain = SPARSE_GAIN * k <= self.n_latents and self.device.type == "cpu"
        code = KSparse.of(values, top.top_indices, self.n_latents) if gain else None
        if code is not None and self._loses(code) and self.products != self.dtype:  # more digits may do
            values, x = values.to(self.dtype), x.to(self.dtype)
            roots = None if roots is None else roots.to(self.dtype)
            code = KSparse.of(values, top.top_indices, self.n_latents)
        if code is None or self._loses(code):
            return self._add_scattered(values, top.top_indices, x, roots)
        size, mean_acts, mean_x = float(n), code.mean(), x.mean(0)
        if roots is not None:  # sums of w z z' and w z x' are those of sqrt(w) z
            size = float(roots.square().sum())
            if size == 0:
                return self
            mean_x = _weighted_mean(x, roots)
            mean_acts = _latent_sums(values * roots.square()[:, None], top.top_indices, self.n_latents) / size
            code = KSparse.of(values * roots[:, None], top.top_indices, self.n_latents)
        self._absorb(size, mean_acts, mean_x)
        code.add_gram(self.gram)
        mean_acts = mean_acts.to(self.dtype)
        self.gram.addr_(mean_acts, mean_acts, alpha=-size)
        x = x - mean_x
        if roots is not None:
            x.mul_(roots[:, None])
        self.cross += code.product(x)
        self.total += squared_norm(x)
        return self

    def _loses(self, code: KSparse) -> bool:
        """Whether centring this code's sums afterwards would lose digits."""
        return code.centring_loses(CENTRING_LOSS * torch.finfo(code.values.dtype).eps)

    def _add_scattered(self, values: Tensor, indices: Tensor, x: Tensor, roots: Tensor | None) -> DecoderStats:
        rows = max(1, DENSE_ENTRIES // self.n_latents)
        if roots is None:
            mean_acts = _latent_sums(values, indices, self.n_latents) / len(x)
        else:
            square = roots.square()
            mean_acts = _latent_sums(values * square[:, None], indices, self.n_latents) / square.sum().clamp_min(
                torch.finfo(x.dtype).tiny
            )
        pairs = zip(values.split(rows), indices.split(rows), strict=True)
        return self._add(mean_acts, x, (x.new_zeros(len(v), self.n_latents).scatter_add_(1, i, v) for v, i in pairs), roots)

    def merge(self, other: DecoderStats) -> DecoderStats:
        """Add the samples of `other` (same widths; converted to this dtype and device). Returns self."""
        if (other.n_latents, other.d_in) != (self.n_latents, self.d_in):
            raise ValueError(
                f"cannot merge statistics of (n_latents, d_in) = {(other.n_latents, other.d_in)} "
                f"into {(self.n_latents, self.d_in)}"
            )
        self.n_distinct += other.n_distinct
        if other.n_samples:
            self._absorb(other.n_samples, other.mean_acts.to(self.mean_acts), other.mean_x.to(self.mean_x))
            self.gram += other.gram.to(self.gram)
            self.cross += other.cross.to(self.cross)
            self.total += other.total.to(self.total)
        return self

    def forget(self, keep: float) -> DecoderStats:
        """Give all samples so far the weight `keep`, in [0, 1]: sums and number of samples shrink, means stay. Returns self."""
        if not 0 <= keep <= 1:
            raise ValueError(f"keep={keep} must be in [0, 1]")
        self.altered()
        self.n_samples *= keep
        self.n_distinct *= keep
        for total in (self.gram, self.cross, self.total):
            total *= keep
        return self

    def _absorb(self, n: float, mean_acts: Tensor, mean_x: Tensor) -> None:
        """Move the means to those of the union with n samples of other means; add the between-group products."""
        self.altered()
        old, new = self.n_samples, self.n_samples + n
        step_acts, step_x = mean_acts.to(self.dtype) - self.mean_acts, mean_x.to(self.dtype) - self.mean_x
        if old:
            weight = old * n / new
            self.gram.addr_(step_acts, step_acts, alpha=weight)
            self.cross.addr_(step_acts, step_x, alpha=weight)
            self.total += weight * step_x.square().sum()
        self.mean_acts += step_acts * (n / new)
        self.mean_x += step_x * (n / new)
        self.n_samples = new

    def spectrum(self) -> Spectrum:
        """Eigendecomposition of `gram`, computed once and kept until the next update."""
        if self._spectrum is None:
            self._spectrum = eigh(self.gram)
        return self._spectrum

    def factor(self, strength: float) -> Factor | None:
        """The Cholesky factor of `gram` + strength I, kept until the next update or another strength, whose factor takes its place;
        None where that is not positive definite."""
        if self._factor is None or self._factor.strength != strength:
            room = None if self._factor is None or self.device.type != "cpu" else self._factor.lower.T
            self._factor = factored(self.gram, strength, room)
        return self._factor


def squared_norm(x: Float[Tensor, "n d"]) -> Tensor:
    """The sum of squares, of rows in their own dtype and over rows in float64: no copy of x."""
    return torch.linalg.vector_norm(x, dim=1).double().square().sum()


def _weighted_mean(x: Tensor, roots: Tensor) -> Tensor:
    square = roots.square()
    return square @ x / square.sum().clamp_min(torch.finfo(x.dtype).tiny)


def _latent_sums(values: Tensor, indices: Tensor, n_latents: int) -> Tensor:
    return values.new_zeros(n_latents).index_add_(0, indices.flatten(), values.flatten())


def eigh(gram: Float[Tensor, "n_latents n_latents"]) -> Spectrum:
    live = gram.diagonal() > 0  # a dead latent is an exact null vector; divide and conquer can fail on many of them
    values, vectors = torch.zeros_like(gram[0]), torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    if live.any():
        block = gram if live.all() else gram[live][:, live]
        try:
            found, basis = torch.linalg.eigh(block)
        except RuntimeError:  # a tight cluster of eigenvalues: QR iteration is slower and does converge
            by_qr = scipy.linalg.eigh(block.cpu().numpy(), driver="ev")
            found, basis = (torch.from_numpy(a).to(block) for a in by_qr)
        values[live] = found
        vectors[live.nonzero(), live.nonzero().T] = basis
    tolerance = max(RANK_TOLERANCE, len(gram) * torch.finfo(gram.dtype).eps)
    positive = values > tolerance * values.max().clamp_min(0)
    return Spectrum(values, vectors, positive)


def require_samples(stats: DecoderStats) -> None:
    """Raises ValueError for statistics of nothing."""
    if stats.n_samples == 0:
        raise ValueError("the statistics are empty: call update(acts, x) first")


def as_rows(value: ArrayLike, name: str, stats: DecoderStats) -> Tensor:
    """A decoder's rows (n_latents, d_in) in the dtype and on the device of the statistics. Raises TypeError, ValueError."""
    matrix = as_samples(value, stats.d_in, dtype=stats.dtype, device=stats.device, name=name)
    if len(matrix) != stats.n_latents:
        raise ValueError(f"{name} has {len(matrix)} rows but n_latents={stats.n_latents}")
    return matrix
