"""The k largest entries of each row, equal entries to the lowest index."""

from __future__ import annotations

import numpy as np

from splinterp._typing import Array


def top_indices(scores: Array, k: int) -> Array:
    """Sorted column indices (n, k) of the k largest entries of each row of `scores` (n, m); ties go to the lowest index."""
    n, m = scores.shape
    if k == 1:
        return scores.argmax(axis=1)[:, None]
    if k == m:
        return np.tile(np.arange(m), (n, 1))
    threshold = np.partition(scores, m - k, axis=1)[:, m - k, None]
    chosen = scores >= threshold
    surplus = np.nonzero(chosen.sum(axis=1) > k)[0]
    if len(surplus):
        above = scores[surplus] > threshold[surplus]
        tied = scores[surplus] == threshold[surplus]
        room = k - above.sum(axis=1, keepdims=True)
        chosen[surplus] = above | (tied & (tied.cumsum(axis=1) <= room))
    return np.nonzero(chosen)[1].reshape(n, k)
