"""Products with k-sparse codes, forward and backward, without an array of n x n_latents.

A k-sparse code is kept as values and indices, both (n, k). Of a training step only the encoder's product is then
n_latents wide, and that one is taken in blocks of rows, each reduced to its k kept scores while it is in the cache:

    scores of kept latents    n k d_in     gradients of W_enc, b_enc and of the samples
    decoding                  n k d_in     gradients of the kept values and of W_dec

Both weight matrices are read and written by latents: rows of W_dec and of W_enc.T, which an SAE stores contiguously.
On the CPU, sums over samples use the code transposed once (SciPy) and then MKL's sparse product where torch has MKL,
SciPy's elsewhere. Other devices take torch's own gathers and index sums.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse
import torch
from torch.nn import functional as F

from splinterp._typing import Float, Int, Tensor

SCORE_BLOCK = 2**20
"""Scores that are held at a time: 4 MiB in float32, which a core's cache shares with the block's result."""
PARALLEL_SCORES = 2**18
"""Blocks of fewer scores are searched in one thread."""

GRAM_STRIP = 2**22
"""Entries of the Gram matrix that are formed at a time."""

_pools: dict[tuple[int, int], ThreadPoolExecutor] = {}


def select_largest(scores: Float[Tensor, "n n_latents"], k: int) -> Int[Tensor, "n k"]:
    """Indices of the k largest scores of each row, in no order; ties are broken arbitrarily, NaN counts as largest.

    On the CPU by NumPy's partition, several times faster than `torch.topk` there.
    """
    n, width = scores.shape
    if k == width:
        return torch.arange(width, device=scores.device).expand(n, width).contiguous()
    if scores.device.type != "cpu" or scores.dtype not in (torch.float32, torch.float64):
        return scores.topk(k, dim=1, sorted=False).indices
    array, found = scores.detach().numpy(), np.empty((n, k), dtype=np.int64)
    threads = torch.get_num_threads() if scores.numel() >= PARALLEL_SCORES else 1
    chunk = max(1, min(-(-n // threads), SCORE_BLOCK // 4 // width))  # the partition's index array stays in the cache

    def search(start: int) -> None:
        rows = slice(start, start + chunk)
        found[rows] = np.argpartition(array[rows], width - k, axis=1)[:, width - k :]

    _in_threads(search, range(0, n, chunk), threads)
    return torch.from_numpy(found)


def _in_threads(work: Callable[[int], None], starts: range, threads: int) -> None:
    """Call `work`, which must spend its time outside the interpreter's lock, for each of `starts`."""
    if threads == 1 or len(starts) == 1:
        for start in starts:
            work(start)
        return
    key = (os.getpid(), threads)  # a forked child has none of its parent's threads
    if key not in _pools:
        _pools[key] = ThreadPoolExecutor(threads, thread_name_prefix="splinterp")
    list(_pools[key].map(work, starts))


class Transposed(NamedTuple):
    """Which entries of a k-sparse code each latent has: latent m has `order[starts[m] : starts[m + 1]]`.

    `order` are positions in the flattened (n, k) arrays and `samples` their rows.
    """

    starts: Tensor  # (n_latents + 1,) int32
    samples: Tensor  # (n k,) int32
    order: Tensor  # (n k,) int64


def transpose_code(top_indices: Int[Tensor, "n k"], n_latents: int) -> Transposed:
    """Entries of a CPU code grouped by latent, samples in order: a counting sort, n k + n_latents work."""
    n, k = top_indices.shape
    rows = np.arange(0, n * k + 1, k, dtype=np.int32)
    columns = top_indices.numpy().ravel().astype(np.int32)
    by_latent = scipy.sparse.csr_matrix((np.arange(n * k, dtype=np.int32), columns, rows), shape=(n, n_latents)).tocsc()
    return Transposed(*(torch.from_numpy(a) for a in (by_latent.indptr, by_latent.indices, by_latent.data.astype(np.int64))))


def sum_by_latent(
    values: Float[Tensor, "n k"],
    top_indices: Int[Tensor, "n k"],
    x: Float[Tensor, "n d"],
    n_latents: int,
    by: Transposed | None,
) -> Float[Tensor, "n_latents d"]:
    """Z.T @ x for the code Z of these values and indices; `by` is its `transpose_code`, needed on the CPU only."""
    if by is None:
        total = x.new_zeros(n_latents, x.shape[1])
        return total.index_add_(0, top_indices.flatten(), (values[:, :, None] * x[:, None, :]).flatten(0, 1))
    grouped = values.detach().flatten()[by.order]
    if _HAS_MKL:
        matrix = torch.sparse_csr_tensor(by.starts, by.samples, grouped, size=(n_latents, len(x)), check_invariants=False)
        total = x.new_empty(n_latents, x.shape[1])
        return torch.addmm(total, matrix, x.contiguous(), beta=0, out=total)
    arrays = (grouped.numpy(), by.samples.numpy(), by.starts.numpy())
    return torch.from_numpy(scipy.sparse.csr_matrix(arrays, shape=(n_latents, len(x))) @ x.detach().contiguous().numpy())


def _warm_up() -> bool:
    """Whether torch multiplies sparse matrices by MKL; torch's notice that this format is young is shown to nobody."""
    if not torch.backends.mkl.is_available():
        return False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.sparse_csr_tensor(torch.tensor([0, 0]), torch.tensor([], dtype=torch.int64), torch.tensor([]), size=(1, 1))
    return True


_HAS_MKL = _warm_up()


def _decode(values: Tensor, top_indices: Tensor, rows: Tensor) -> Tensor:
    """The weighted sums (n, d) of rows (n_latents, d)."""
    return F.embedding_bag(top_indices, rows, per_sample_weights=values, mode="sum")


def _kept_products(top_indices: Tensor, rows: Tensor, x: Tensor) -> Tensor:
    """rows[top_indices[r, j]] . x[r] for every kept entry, (n, k)."""
    if x.device.type != "cpu":
        return torch.einsum("nkd,nd->nk", rows[top_indices], x)
    n, k = top_indices.shape
    starts = torch.arange(0, n * k + 1, k)
    pattern = torch.sparse_csr_tensor(
        starts, top_indices.flatten(), x.new_zeros(n * k), size=(n, len(rows)), check_invariants=False
    )
    return torch.sparse.sampled_addmm(pattern, x.contiguous(), rows.T, beta=0).values().view(n, k)


class _Scores(torch.autograd.Function):
    """The kept scores x @ W_enc + b_enc, already computed; the backward pass touches kept entries only."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, W_enc: Tensor, b_enc: Tensor, kept: Tensor, top_indices: Tensor, by: Transposed | None
    ) -> Tensor:
        ctx.save_for_backward(x, W_enc, top_indices)
        ctx.by = by
        return kept

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, W_enc, top_indices = ctx.saved_tensors
        n_latents = W_enc.shape[1]
        grad = grad.contiguous()
        d_x = _decode(grad, top_indices, W_enc.T.contiguous()) if ctx.needs_input_grad[0] else None
        d_W = sum_by_latent(grad, top_indices, x, n_latents, ctx.by).T if ctx.needs_input_grad[1] else None
        d_b = None
        if ctx.needs_input_grad[2]:
            d_b = grad.new_zeros(n_latents).index_add_(0, top_indices.flatten(), grad.flatten())
        return d_x, d_W, d_b, None, None, None


class _Decode(torch.autograd.Function):
    """The decoded code without its bias."""

    @staticmethod
    def forward(ctx: Any, top_acts: Tensor, top_indices: Tensor, W_dec: Tensor, by: Transposed | None) -> Tensor:
        W_dec = W_dec.contiguous()
        ctx.save_for_backward(top_acts, top_indices, W_dec)
        ctx.by = by
        return _decode(top_acts, top_indices, W_dec)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        top_acts, top_indices, W_dec = ctx.saved_tensors
        d_acts = _kept_products(top_indices, W_dec, grad) if ctx.needs_input_grad[0] else None
        d_W = sum_by_latent(top_acts, top_indices, grad, len(W_dec), ctx.by) if ctx.needs_input_grad[2] else None
        return d_acts, None, d_W, None


class KeptScores(NamedTuple):
    """Scores of the kept latents, differentiable in x, W_enc and b_enc, with what the backward passes share."""

    values: Float[Tensor, "n k"]
    top_indices: Int[Tensor, "n k"]
    by_latent: Transposed | None


def kept_scores(
    x: Float[Tensor, "n d_in"],
    W_enc: Float[Tensor, "d_in n_latents"],
    b_enc: Float[Tensor, " n_latents"],
    select: Callable[[Tensor], Tensor],
    k: int,
) -> KeptScores:
    """The k scores a row of x @ W_enc + b_enc whose indices `select` picks, from blocks of rows.

    The same as gathering from the full product, in values and gradients, but for the order of summation.
    """
    n, n_latents = len(x), W_enc.shape[1]
    with torch.no_grad():
        values, top_indices = x.new_empty(n, k), torch.empty(n, k, dtype=torch.int64, device=x.device)
        block = max(1, min(n, SCORE_BLOCK // n_latents)) if x.device.type == "cpu" else n
        scores = x.new_empty(block, n_latents)
        for start in range(0, n, block):
            rows = slice(start, start + block)
            part = torch.addmm(b_enc, x[rows], W_enc, out=scores[: len(x[rows])])
            top_indices[rows] = select(part)
            torch.gather(part, 1, top_indices[rows], out=values[rows])
    if not torch.is_grad_enabled():
        return KeptScores(values, top_indices, None)
    by_latent = transpose_code(top_indices, n_latents) if x.device.type == "cpu" else None
    return KeptScores(_Scores.apply(x, W_enc, b_enc, values, top_indices, by_latent), top_indices, by_latent)


def decode_sparse(
    top_acts: Float[Tensor, "n k"],
    top_indices: Int[Tensor, "n k"],
    W_dec: Float[Tensor, "n_latents d_in"],
    b_dec: Float[Tensor, " d_in"],
    by_latent: Transposed | None = None,
) -> Float[Tensor, "n d_in"]:
    """Z @ W_dec + b_dec for the code Z of these values and indices; indices that repeat in a row add up.

    `by_latent` is the code's `transpose_code`, computed where it is None and needed.
    """
    if by_latent is None and top_acts.device.type == "cpu" and torch.is_grad_enabled():
        by_latent = transpose_code(top_indices, len(W_dec))
    return _Decode.apply(top_acts, top_indices, W_dec, by_latent) + b_dec


class KSparse(NamedTuple):
    """A k-sparse code (n, n_latents) on the CPU, for sums over samples."""

    values: Float[Tensor, "n k"]
    top_indices: Int[Tensor, "n k"]
    n_latents: int
    by_latent: Transposed

    @classmethod
    def of(cls, values: Float[Tensor, "n k"], top_indices: Int[Tensor, "n k"], n_latents: int) -> KSparse:
        """The code of these values and indices."""
        return cls(values, top_indices, n_latents, transpose_code(top_indices, n_latents))

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

    def add_gram(self, gram: Float[Tensor, "n_latents n_latents"]) -> None:
        """Add Z.T @ Z to `gram` in place: n k^2 / 2 products, the upper half in strips of latents, and its mirror image."""
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

        _in_threads(add, range(0, m, strip), torch.get_num_threads())
