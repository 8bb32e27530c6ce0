"""Nested parts of a k-sparse code, each decoded: the work of one decoding, however many parts there are."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse
import torch
from torch.nn import functional as F

from splinterp._typing import Float, Int, Tensor
from splinterp.sparse_kernels.grouping import Transposed, check_indices, transpose_on_cpu
from splinterp.sparse_kernels.products import sampled_products, sum_grouped


class _DecodeNested(torch.autograd.Function):
    """x_hat of parts 0 ... j, for every j. Entries are dealt to one row for each part and sample; what part j adds to part j - 1
    is one row, and part j is a running sum. Gradients run back the same way."""

    @staticmethod
    def forward(
        ctx: Any,
        top_acts: Tensor,
        top_indices: Tensor,
        depth: Tensor,
        n_parts: int,
        W_dec: Tensor,
        b_dec: Tensor,
        by: Transposed | None,
    ) -> Tensor:
        n, W_dec = len(top_acts), W_dec.contiguous()
        rows = torch.arange(n)[:, None].add(depth, alpha=n).flatten()  # of what lies in no part: beyond the last
        starts, order = _deal(rows, (n_parts + 1) * n)
        starts = starts[: n_parts * n + 1]
        columns = top_indices.flatten()[order][: int(starts[-1])]
        values = top_acts.flatten()[order][: len(columns)]
        x_hat = F.embedding_bag(columns, W_dec, starts, per_sample_weights=values, mode="sum", include_last_offset=True)
        x_hat = x_hat.view(n_parts, n, W_dec.shape[1])
        x_hat[0] += b_dec
        for part in range(1, n_parts):
            x_hat[part] += x_hat[part - 1]
        ctx.save_for_backward(top_acts, top_indices, rows, starts, order, columns, W_dec)
        ctx.by, ctx.n_parts = by, n_parts
        return x_hat

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        top_acts, top_indices, rows, starts, order, columns, W_dec = ctx.saved_tensors
        n, k = top_acts.shape
        grad = torch.cat([grad, grad.new_zeros(1, *grad.shape[1:])])  # a copy, with rows for what lies in no part
        for part in range(ctx.n_parts - 1, 0, -1):
            grad[part - 1] += grad[part]
        d_b = grad[0].sum(0) if ctx.needs_input_grad[5] else None
        grad = grad.flatten(0, 1)
        d_acts = d_W = None
        if ctx.needs_input_grad[0]:
            d_acts = torch.zeros_like(top_acts).view(-1)
            d_acts[order[: len(columns)]] = sampled_products(starts, columns, W_dec, grad[: ctx.n_parts * n])
            d_acts = d_acts.view(n, k)
        if ctx.needs_input_grad[4]:
            by: Transposed = ctx.by or transpose_on_cpu(top_indices, len(W_dec))
            grouped = top_acts.flatten()[by.order]
            d_W = sum_grouped(by.starts, rows[by.order].int(), grouped, grad, W_dec.new_empty(W_dec.shape), False)
        return d_acts, None, None, None, d_W, d_b, None


def _deal(rows: Tensor, n_rows: int) -> tuple[Tensor, Tensor]:
    """(where each row starts, the entries in order of rows): a counting sort."""
    one_each = np.arange(len(rows) + 1, dtype=np.int32)
    entries = scipy.sparse.csr_matrix(
        (one_each[:-1], rows.numpy().astype(np.int32), one_each), shape=(len(rows), n_rows)
    ).tocsc()
    return tuple(torch.from_numpy(a.astype(np.int64)) for a in (entries.indptr, entries.data))  # type: ignore[return-value]


def decode_nested(
    top_acts: Float[Tensor, "n k"],
    top_indices: Int[Tensor, "n k"],
    depth: Int[Tensor, "n k"],
    n_parts: int,
    W_dec: Float[Tensor, "n_latents d_in"],
    b_dec: Float[Tensor, " d_in"],
    by_latent: Transposed | None = None,
) -> Float[Tensor, "n_parts n d_in"]:
    """Z_j @ W_dec + b_dec for every part j of a code Z on the CPU: Z_j has the entries with depth <= j, those of depth n_parts or more
        are in none. `by_latent` is the code's `transpose_code`, computed where it is None and needed.

    Raises:
        ValueError: an index of no latent.
    """
    if by_latent is None:
        check_indices(top_indices, len(W_dec))
    return _DecodeNested.apply(top_acts, top_indices, depth.clamp(max=n_parts), n_parts, W_dec, b_dec, by_latent)
