"""Sparse combinations of known features, drawn as a stream: data whose ground truth can be recovered."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch

from splinterp._checks import at_least, one_of, whole
from splinterp._typing import Float, Tensor

FEATURES = ("gaussian", "orthogonal", "coherent")
VALUES = ("binary", "uniform", "exponential")


class SyntheticSamples(NamedTuple):
    """x = codes @ features + noise."""

    x: Float[Tensor, "n d_in"]
    codes: Float[Tensor, "n n_features"]


class SyntheticData:
    """A model that samples of known codes are drawn from."""

    noise: float
    """Standard deviation of Gaussian noise on every entry of x."""
    features: Float[Tensor, "n_features d_in"]

    def sample(self, n: int, generator: torch.Generator) -> SyntheticSamples:
        """Draw n samples, float32, on the CPU. Raises ValueError for n below 1."""
        raise NotImplementedError

    def batches(self, n_batches: int, batch_size: int, generator: torch.Generator) -> Iterator[SyntheticSamples]:
        """A stream of `n_batches` samples of `batch_size`, each drawn when it is asked for."""
        for _ in range(n_batches):
            yield self.sample(batch_size, generator)

    def _samples(self, codes: Tensor, generator: torch.Generator) -> SyntheticSamples:
        x = codes @ self.features
        if self.noise:
            x = x + self.noise * torch.randn(x.shape, device="cpu", generator=generator)
        return SyntheticSamples(x, codes)


class SparseFeatures(SyntheticData):
    """The model X = H V + noise of feature recovery (arXiv 2506.14002): V known, H sparse.

    Every sample has exactly s active features; over many samples feature m is active with probability `frequencies[m]`,
    exactly (systematic sampling in a random order of the features). Draws are made on the CPU from the generator given, so
    a seed gives the same samples in one piece or streamed in the same batches.

    Args:
        n_features, d_in: rows and columns of V.
        sparsity: s, or several: each sample draws one of them, all equally likely ("mixed").
        features: V with entries N(0, 1 / d_in) ("gaussian"), orthonormal rows ("orthogonal", n_features <= d_in), or gaussian
            rows that share a direction ("coherent", see `coherence`).
        coherence: expected cosine of two different coherent features, in (0, 1).
        ratio: highest frequency over lowest; 1 makes them equal, else they fall geometrically from feature 0 on.
        group_size: features are active in whole groups of so many neighbours, which share a frequency; 1 is independent. Both
            n_features and every s must be multiples of it.
        values: active entries of H: 1 ("binary"), uniform in [0, 1], or exponential of mean 1; all over sqrt(s) if `normalise`.
        normalise: divide by sqrt(s), so that samples of different s have norms of the same order.
        signs: random signs of H: features that no non-negative code can represent with one latent.
        noise: standard deviation of Gaussian noise on every entry of x.
        generator: CPU generator of V; None is one seeded with 0.

    Attributes: `features` (n_features, d_in) and `frequencies` (n_features,), the ground truth.

    Raises:
        ValueError: sizes that do not fit, a frequency that would exceed 1, an unknown option.
    """

    features: Float[Tensor, "n_features d_in"]
    frequencies: Float[Tensor, " n_features"]

    def __init__(
        self, n_features: int, d_in: int, sparsity: int | Sequence[int] = 3, *, features: str = "gaussian", coherence: float = 0.5,
        ratio: float = 1.0, group_size: int = 1, values: str = "binary", normalise: bool = True, signs: bool = False, noise: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> None:  # fmt: skip
        self.sparsities = [sparsity] if isinstance(sparsity, int) else list(sparsity)
        self.n_features, self.d_in, self.group_size = n_features, d_in, group_size
        self.values, self.normalise, self.signs, self.noise = values, normalise, signs, noise
        one_of("features", features, FEATURES)
        one_of("values", values, VALUES)
        for name, size in {"n_features": n_features, "d_in": d_in, "group_size": group_size}.items():
            whole(name, size, 1)
        at_least("ratio", ratio, 1.0)
        at_least("noise", noise, 0.0)
        if not self.sparsities:
            raise ValueError("sparsity names no number of active features: pass an int or several")
        self._check_groups()
        generator = generator if generator is not None else torch.Generator().manual_seed(0)
        self.features = _draw_features(features, n_features, d_in, coherence, generator)
        shape = torch.logspace(0, -math.log10(ratio), n_features // group_size, dtype=torch.float64)
        self._shares = shape / shape.sum()  # of the active groups of a sample
        self._check_shares()
        mean = sum(self.sparsities) / len(self.sparsities)
        self.frequencies = (mean / group_size * self._shares).repeat_interleave(group_size)

    def _check_groups(self) -> None:
        for name, count in [("n_features", self.n_features), *(("sparsity", s) for s in self.sparsities)]:
            whole(name, count, 1)
            if count % self.group_size:
                raise ValueError(f"{name}={count} is not a multiple of group_size={self.group_size}")
        if max(self.sparsities) > self.n_features:
            raise ValueError(f"sparsity={max(self.sparsities)} is larger than n_features={self.n_features}")

    def _check_shares(self) -> None:
        highest = float(self._shares.max()) * max(self.sparsities) / self.group_size
        if highest > 1 + 1e-9:
            raise ValueError(
                f"at sparsity={max(self.sparsities)} the most frequent feature would be active with probability {highest:.3g}: "
                "lower ratio or sparsity"
            )

    def sample(self, n: int, generator: torch.Generator) -> SyntheticSamples:
        """Draw n samples, float32, on the CPU. Raises ValueError for n below 1."""
        whole("n", n, 1)
        which = torch.randint(len(self.sparsities), (n,), device="cpu", generator=generator)
        s = torch.tensor(self.sparsities)[which]
        active = self._active(s // self.group_size, generator).repeat_interleave(self.group_size, dim=1)
        codes = active.to(torch.float32)
        if self.values == "uniform":
            codes *= torch.rand(codes.shape, device="cpu", generator=generator)
        elif self.values == "exponential":
            codes *= torch.empty(codes.shape).exponential_(generator=generator)
        if self.signs:
            codes *= 2.0 * torch.randint(2, codes.shape, device="cpu", generator=generator) - 1.0
        if self.normalise:
            codes /= s.sqrt()[:, None]
        return self._samples(codes, generator)

    def _active(self, counts: Tensor, generator: torch.Generator) -> Tensor:
        """Which groups are active, `counts[r]` of them in row r, group m with probability counts[r] * share m.

        Systematic sampling: the probabilities, laid end to end in a random order, cover [0, count]; a comb of unit spacing
        and random offset hits each group at most once, and with its probability.
        """
        n, n_groups = len(counts), len(self._shares)
        order = torch.rand(n, n_groups, device="cpu", generator=generator).argsort(dim=1)
        ends = (counts[:, None] * self._shares[order]).cumsum(dim=1)
        ends[:, -1] = counts  # exactly, so that rounding loses no tooth
        offset = torch.rand(n, 1, device="cpu", generator=generator, dtype=torch.float64)
        teeth = (ends + offset).floor()
        hit = torch.diff(teeth, dim=1, prepend=torch.zeros(n, 1, dtype=torch.float64)) >= 1
        return torch.zeros(n, n_groups, dtype=torch.bool).scatter(1, order, hit)


def _draw_features(kind: str, n_features: int, d_in: int, coherence: float, generator: torch.Generator) -> Tensor:
    drawn = torch.randn(n_features, d_in, device="cpu", generator=generator) / math.sqrt(d_in)
    if kind == "gaussian":
        return drawn
    if kind == "orthogonal":
        if n_features > d_in:
            raise ValueError(f"n_features={n_features} rows cannot be orthogonal in d_in={d_in}: take features='gaussian'")
        return torch.linalg.qr(drawn.T.double())[0].T.float().contiguous()
    if not 0 < coherence < 1:
        raise ValueError(f"coherence={coherence} must lie between 0 and 1")
    shared = torch.randn(1, d_in, device="cpu", generator=generator) / math.sqrt(d_in)
    shared = shared / shared.norm()
    return math.sqrt(1 - coherence) * drawn + math.sqrt(coherence) * shared
