"""Products with k-sparse codes, forward and backward, without an array of n x n_latents.

A k-sparse code is kept as values and indices, both (n, k). Of a training step only the encoder's product is then
n_latents wide, and that one is taken in blocks of rows, each reduced to its k kept scores while it is in the cache:

    scores of kept latents    n k d_in     gradients of W_enc, b_enc and of the samples
    decoding                  n k d_in     gradients of the kept values and of W_dec

Both weight matrices are read and written by latents: rows of W_dec and of W_enc.T, which an SAE stores contiguously.
Sums over samples use the code transposed once. On the CPU they are MKL's sparse product where torch has MKL, SciPy's elsewhere;
on a GPU with Triton there are kernels for all three products. What is left takes torch's own gathers and index sums.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import scipy.sparse
import torch
from torch.nn import functional as F

from splinterp._typing import Float, Int, Tensor
from splinterp.sparse_kernels._select import workspace
from splinterp.sparse_kernels.grouping import Transposed, check_grouping, check_indices, takes_triton, transpose_known

SCORE_ROWS = 512
"""Rows of scores that are held at a time: fewer make the product slower."""


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """What `torch.autocast` lowers products on this device to; None outside of it."""
    return torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else None


def sum_by_latent(
    values: Float[Tensor, "n k"],
    top_indices: Int[Tensor, "n k"],
    x: Float[Tensor, "n d"],
    n_latents: int,
    by: Transposed | None,
    out: Float[Tensor, "n_latents d"] | None = None,
    add: bool = False,
) -> Float[Tensor, "n_latents d"]:
    """Z.T @ x for the code Z of these values and indices; into, or added to, a contiguous `out` where it is given.

    `by` is the code's `transpose_code`.

    Raises:
        ValueError: shapes that do not belong together.
    """
    if out is None:
        out, add = x.new_empty(n_latents, x.shape[1]), False
    if values.shape != top_indices.shape or values.shape[0] != x.shape[0] or out.shape != (n_latents, x.shape[1]):
        raise ValueError(
            f"values {tuple(values.shape)}, top_indices {tuple(top_indices.shape)}, x {tuple(x.shape)} and out {tuple(out.shape)} "
            f"do not belong together, n_latents={n_latents}"
        )
    check_grouping(by, top_indices, n_latents)
    if by is None:
        total = out if add else out.zero_()
        return total.index_add_(0, top_indices.flatten(), (values[:, :, None] * x[:, None, :]).flatten(0, 1))
    if takes_triton(x):
        from splinterp.sparse_kernels import _triton

        return _triton.sum_by_latent(values, *by, x, out, add)
    return sum_grouped(by.starts, by.samples, values.detach().flatten()[by.order], x, out, add)


def sum_grouped(starts: Tensor, samples: Tensor, grouped: Tensor, x: Tensor, out: Tensor, add: bool) -> Tensor:
    """Into row m of `out`, or added to it, the sum of grouped[e] * x[samples[e]] over the entries e in starts[m] : starts[m + 1]."""
    shape = (out.shape[0], x.shape[0])
    if _HAS_MKL:
        matrix = torch.sparse_csr_tensor(starts, samples, grouped, size=shape, check_invariants=False)
        return torch.addmm(out, matrix, x.contiguous(), beta=int(add), out=out)
    arrays = (grouped.numpy(), samples.numpy(), starts.numpy())
    found = torch.from_numpy(scipy.sparse.csr_matrix(arrays, shape=shape) @ x.detach().contiguous().numpy())
    return out.add_(found) if add else out.copy_(found)


def _warm_up() -> bool:
    """Whether torch multiplies sparse matrices by MKL; torch's notice that this format is young is shown to nobody."""
    if not torch.backends.mkl.is_available():
        return False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.sparse_csr_tensor(torch.tensor([0, 0]), torch.tensor([], dtype=torch.int64), torch.tensor([]), size=(1, 1))
    return True


_HAS_MKL = _warm_up()


def decode_rows(values: Tensor, top_indices: Tensor, rows: Tensor) -> Tensor:
    """The weighted sums (n, d) of rows (n_latents, d). On the CPU an index of no row raises RuntimeError, on a GPU nothing looks."""
    if takes_triton(rows):
        from splinterp.sparse_kernels import _triton

        return _triton.decode_rows(values, top_indices, rows)
    return F.embedding_bag(top_indices, rows, per_sample_weights=values, mode="sum")


def kept_products(top_indices: Tensor, rows: Tensor, x: Tensor) -> Tensor:
    """rows[top_indices[r, j]] . x[r] for every kept entry, (n, k).

    Raises:
        ValueError: an index of no row, another number of samples or another width of x.
    """
    check_indices(top_indices, len(rows))
    if x.shape != (len(top_indices), rows.shape[1]):
        raise ValueError(f"x has shape {tuple(x.shape)}, not {(len(top_indices), rows.shape[1])}")
    return products_known(top_indices, rows, x)


def products_known(top_indices: Tensor, rows: Tensor, x: Tensor) -> Tensor:
    """`kept_products` of indices that were found among as many scores."""
    if takes_triton(x):
        from splinterp.sparse_kernels import _triton

        return _triton.kept_products(top_indices, rows, x)
    if x.device.type != "cpu":
        return (rows[top_indices] * x[:, None, :]).sum(2)
    n, k = top_indices.shape
    return sampled_products(torch.arange(0, n * k + 1, k), top_indices.flatten(), rows, x).view(n, k)


def sampled_products(starts: Tensor, columns: Tensor, rows: Tensor, x: Tensor) -> Tensor:
    """rows[columns[e]] . x[r] for every entry e in starts[r] : starts[r + 1], (n_entries,), on the CPU."""
    pattern = torch.sparse_csr_tensor(
        starts, columns, x.new_zeros(columns.shape[0]), size=(x.shape[0], rows.shape[0]), check_invariants=False
    )
    return torch.sparse.sampled_addmm(pattern, x.contiguous(), rows.T, beta=0).values()


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
        d_x = decode_rows(grad, top_indices, W_enc.T.contiguous()) if ctx.needs_input_grad[0] else None
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
        return decode_rows(top_acts, top_indices, W_dec)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        top_acts, top_indices, W_dec = ctx.saved_tensors
        d_acts = products_known(top_indices, W_dec, grad) if ctx.needs_input_grad[0] else None
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
    lower: torch.dtype | None = None,
) -> KeptScores:
    """The k scores a row of x @ W_enc + b_enc whose indices `select` picks, from blocks of rows.

    The same as gathering from the full product, in values and gradients, but for the order of summation. With `lower`, the full
    product is taken in that dtype and decides which scores are kept; their values are then computed in x's own.
    """
    if lower is not None and lower != x.dtype:
        with torch.no_grad():
            top_indices = select(torch.addmm(b_enc.to(lower), x.to(lower), W_enc.to(lower)))
            bias = b_enc.gather(0, top_indices.flatten()).view_as(top_indices)  # raises for an index of no latent
            values = products_known(top_indices, W_enc.T, x).add_(bias)
        return _differentiable(x, W_enc, b_enc, values, top_indices)
    n, n_latents = x.shape[0], W_enc.shape[1]
    cpu = x.device.type == "cpu"
    block = max(1, min(n, SCORE_ROWS) if cpu else n)
    with torch.no_grad():
        scores = workspace("scores", (block, n_latents), x.dtype) if cpu else x.new_empty(block, n_latents)
        if n == block:
            top_indices = select(torch.addmm(b_enc, x, W_enc, out=scores))
            values = scores.gather(1, top_indices)
        else:
            values, top_indices = x.new_empty(n, k), torch.empty(n, k, dtype=torch.int64, device=x.device)
            for start in range(0, n, block):
                rows = slice(start, start + block)
                part = torch.addmm(b_enc, x[rows], W_enc, out=scores[: n - start])
                top_indices[rows] = select(part)
                torch.gather(part, 1, top_indices[rows], out=values[rows])
    return _differentiable(x, W_enc, b_enc, values, top_indices)


def _differentiable(x: Tensor, W_enc: Tensor, b_enc: Tensor, values: Tensor, top_indices: Tensor) -> KeptScores:
    if not torch.is_grad_enabled():
        return KeptScores(values, top_indices, None)
    by_latent = transpose_known(top_indices, W_enc.shape[1])
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

    Raises:
        ValueError: an index of no latent, a grouping of another code.

    Examples:
        >>> decode_sparse(torch.tensor([[2.0]]), torch.tensor([[1]]), torch.eye(3), torch.zeros(3))
        tensor([[0., 2., 0.]])
    """
    if by_latent is None:
        check_indices(top_indices, len(W_dec))
        if torch.is_grad_enabled():
            by_latent = transpose_known(top_indices, len(W_dec))
    check_grouping(by_latent, top_indices, len(W_dec))
    return _Decode.apply(top_acts, top_indices, W_dec, by_latent) + b_dec
