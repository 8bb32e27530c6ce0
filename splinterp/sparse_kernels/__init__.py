"""Products with k-sparse codes and their gradients, on CPUs and (Triton) on GPUs."""

from splinterp.sparse_kernels._nested import decode_nested
from splinterp.sparse_kernels._select import select_largest, settle_ties
from splinterp.sparse_kernels.grouping import Transposed, takes_triton, transpose_code
from splinterp.sparse_kernels.products import (
    KeptScores,
    autocast_dtype,
    decode_rows,
    decode_sparse,
    kept_products,
    kept_scores,
    sum_by_latent,
)

__all__ = [
    "KeptScores",
    "Transposed",
    "autocast_dtype",
    "decode_nested",
    "decode_rows",
    "decode_sparse",
    "kept_products",
    "kept_scores",
    "select_largest",
    "settle_ties",
    "sum_by_latent",
    "takes_triton",
    "transpose_code",
]
