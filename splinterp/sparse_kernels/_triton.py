"""Products with k-sparse codes on a GPU, in Triton: one program a row, or a latent, and a block of columns.

Sums are taken in float32 (float64 for float64) and in a fixed order, without atomic additions, so that results repeat to the bit.
Imported where Triton is installed only.
"""

from __future__ import annotations

from typing import no_type_check

import torch
import triton
import triton.language as tl

from splinterp._typing import Tensor

COLUMNS, ENTRIES = 128, 16
"""Columns and entries of a program's tile."""


@triton.jit
@no_type_check
def _decode_kernel(values, indices, rows, out, k, d, DTYPE: tl.constexpr, COLUMNS: tl.constexpr, ENTRIES: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros((COLUMNS,), dtype=DTYPE)
    for start in range(0, k, ENTRIES):
        entries = start + tl.arange(0, ENTRIES)
        weight = tl.load(values + row * k + entries, mask=entries < k, other=0.0).to(DTYPE)
        latent = tl.load(indices + row * k + entries, mask=entries < k, other=0)
        inside = (entries < k)[:, None] & (columns < d)[None, :]
        tile = tl.load(rows + latent[:, None] * d + columns[None, :], mask=inside, other=0.0).to(DTYPE)
        total += tl.sum(weight[:, None] * tile, axis=0)
    tl.store(out + row * d + columns, total, mask=columns < d)


@triton.jit
@no_type_check
def _products_kernel(indices, rows, x, out, k, d, DTYPE: tl.constexpr, COLUMNS: tl.constexpr, ENTRIES: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    entries = tl.program_id(1) * ENTRIES + tl.arange(0, ENTRIES)
    latent = tl.load(indices + row * k + entries, mask=entries < k, other=0)
    total = tl.zeros((ENTRIES,), dtype=DTYPE)
    for start in range(0, d, COLUMNS):
        columns = start + tl.arange(0, COLUMNS)
        sample = tl.load(x + row * d + columns, mask=columns < d, other=0.0).to(DTYPE)
        inside = (entries < k)[:, None] & (columns < d)[None, :]
        tile = tl.load(rows + latent[:, None] * d + columns[None, :], mask=inside, other=0.0).to(DTYPE)
        total += tl.sum(tile * sample[None, :], axis=1)
    tl.store(out + row * k + entries, total, mask=entries < k)


@triton.jit
@no_type_check
def _latents_kernel(
    values, starts, samples, order, x, out, d, ADD: tl.constexpr, DTYPE: tl.constexpr, COLUMNS: tl.constexpr, ENTRIES: tl.constexpr
):  # fmt: skip
    latent = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    first, last = tl.load(starts + latent), tl.load(starts + latent + 1)
    total = tl.zeros((COLUMNS,), dtype=DTYPE)
    for start in range(first, last, ENTRIES):
        entries = start + tl.arange(0, ENTRIES)
        sample = tl.load(samples + entries, mask=entries < last, other=0).to(tl.int64)
        weight = tl.load(values + tl.load(order + entries, mask=entries < last, other=0), mask=entries < last, other=0.0).to(
            DTYPE
        )
        inside = (entries < last)[:, None] & (columns < d)[None, :]
        tile = tl.load(x + sample[:, None] * d + columns[None, :], mask=inside, other=0.0).to(DTYPE)
        total += tl.sum(weight[:, None] * tile, axis=0)
    place = out + latent * d + columns
    if ADD:
        total += tl.load(place, mask=columns < d, other=0.0).to(DTYPE)
    tl.store(place, total, mask=columns < d)


def decode_rows(values: Tensor, top_indices: Tensor, rows: Tensor) -> Tensor:
    """As `sparse_kernels.decode_rows`."""
    (n, k), d = values.shape, rows.shape[1]
    out = rows.new_empty(n, d)
    if out.numel():
        grid = (n, triton.cdiv(d, COLUMNS))
        _decode_kernel[grid](
            values.contiguous(), top_indices.contiguous(), rows.contiguous(), out, k, d, _sum_type(out), COLUMNS, ENTRIES
        )
    return out


def kept_products(top_indices: Tensor, rows: Tensor, x: Tensor) -> Tensor:
    """As `sparse_kernels.kept_products`."""
    (n, k), d = top_indices.shape, rows.shape[1]
    out = x.new_empty(n, k)
    if out.numel():
        grid = (n, triton.cdiv(k, ENTRIES))
        _products_kernel[grid](
            top_indices.contiguous(), rows.contiguous(), x.contiguous(), out, k, d, _sum_type(out), COLUMNS, ENTRIES
        )
    return out


def sum_by_latent(values: Tensor, starts: Tensor, samples: Tensor, order: Tensor, x: Tensor, out: Tensor, add: bool) -> Tensor:
    """As `sparse_kernels.sum_by_latent`, from the code's transposition, into a contiguous `out` (n_latents, d)."""
    n_latents, d = out.shape
    if out.numel():
        grid = (n_latents, triton.cdiv(d, COLUMNS))
        _latents_kernel[grid](
            values.contiguous(), starts, samples, order, x.contiguous(), out, d, add, _sum_type(out), COLUMNS, ENTRIES
        )
    return out


def _sum_type(out: Tensor) -> tl.dtype:
    return tl.float64 if out.dtype == torch.float64 else tl.float32
