"""Sums over samples of k-sparse codes, for the statistics of a decoder solve."""

from __future__ import annotations

from typing import NamedTuple

import scipy.sparse
import torch

from splinterp._typing import Float, Int, Tensor
from splinterp.sparse_kernels._select import in_threads
from splinterp.sparse_kernels.grouping import Transposed, transpose_known
from splinterp.sparse_kernels.products import sum_by_latent

GRAM_STRIP = 2**22
"""Entries of the Gram matrix that are formed at a time."""


class KSparse(NamedTuple):
    """A k-sparse code (n, n_latents), for sums over samples."""

    values: Float[Tensor, "n k"]
    top_indices: Int[Tensor, "n k"]
    n_latents: int
    by_latent: Transposed | None

    @classmethod
    def of(cls, values: Float[Tensor, "n k"], top_indices: Int[Tensor, "n k"], n_latents: int) -> KSparse:
        """The code of these values and indices."""
        return cls(values, top_indices, n_latents, transpose_known(top_indices, n_latents))

    def _sums(self, values: Tensor) -> Tensor:
        return torch.bincount(self.top_indices.flatten(), weights=values.flatten(), minlength=self.n_latents).to(values.dtype)

    def mean(self) -> Float[Tensor, " n_latents"]:
        """Mean code."""
        return self._sums(self.values) / len(self.values)

    def centring_loses(self, share: float) -> bool:
        """Whether a latent that fires has less than this share of its sum of squares about its mean."""
        squares = self._sums(self.values.square())
        centred = squares - len(self.values) * self.mean().square()
        return bool(((centred < share * squares) & (squares > 0)).any())

    def product(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n_latents d"]:
        """Z.T @ x."""
        return sum_by_latent(self.values, self.top_indices, x, self.n_latents, self.by_latent)

    def add_product(self, x: Float[Tensor, "n d"], total: Float[Tensor, "n_latents d"]) -> None:
        """Add Z.T @ x to `total` in place."""
        sum_by_latent(self.values, self.top_indices, x, self.n_latents, self.by_latent, out=total, add=True)

    def add_gram(self, gram: Float[Tensor, "n_latents n_latents"]) -> None:
        """Add Z.T @ Z to `gram` in place, on the CPU: n k^2 / 2 products, the upper half in strips of latents, and its mirror image."""
        assert self.by_latent is not None
        n, m = len(self.values), self.n_latents
        total = gram.numpy()
        starts, samples, order = self.by_latent
        columns = scipy.sparse.csr_matrix(
            (self.values.flatten()[order].numpy(), samples.numpy(), starts.numpy()), shape=(m, n)
        )  # Z.T
        rows = columns.T.tocsr()  # Z, sorted by latent
        strip = max(1, min(-(-m // 8), GRAM_STRIP // m))

        def add(start: int) -> None:
            stop = min(m, start + strip)
            part = (columns[start:stop] @ rows[:, start:]).toarray()
            total[start:stop, start:] += part
            total[stop:, start:stop] += part[:, stop - start :].T

        in_threads(add, range(0, m, strip), torch.get_num_threads())
