"""Linear regions of an SAE around given samples: affine piece, margin, what enters and leaves."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from splinterp._documented import documented
from splinterp._typing import Array, ArrayLike, Float, Int
from splinterp.geometry._arrays import as_float64, as_vector, blocks
from splinterp.geometry._encoder import Encoder, decoder_of, encoder_of
from splinterp.geometry._swaps import nearest_swaps, nearest_thresholds
from splinterp.geometry._topk import top_indices
from splinterp.sae import SAE


@documented
@dataclass(frozen=True, eq=False)
class Region:
    """The linear region of an SAE that holds one sample."""

    support: Int[Array, " n_active"]
    """Active latents (acts != 0), sorted."""
    signs: Int[Array, " n_active"]
    """Signs of their codes; all 1 except under AbsTopK."""
    matrix: Float[Array, "d_in d_out"]
    """On the region x_hat = x @ matrix + offset; autograd's Jacobian is its transpose (claim 8). d_out is d_in but of transcoders."""
    offset: Float[Array, " d_out"]
    """See `matrix`."""
    margin: float
    """Distance to the nearest point where the support changes; inf where there is none."""
    entering: int
    """The latent that becomes active there; -1 if one only becomes inactive, or nothing changes."""
    leaving: int
    """The latent that becomes inactive there; -1 if one only becomes active, or nothing changes."""


@documented
@dataclass(frozen=True, eq=False)
class Regions:
    """The linear regions of n samples, in sparse form; their affine maps are applied, never formed.

    Sample m has the active latents `latents[starts[m]:starts[m + 1]]`, sorted, with `signs` beside them.
    """

    latents: Int[Array, " total"]
    signs: Int[Array, " total"]
    starts: Int[Array, " n_plus_1"]
    margins: Float[Array, " n"] | None
    """Distance of each sample to the nearest change of its support; None if not asked for."""
    entering: Int[Array, " n"] | None
    """The latent that becomes active there, -1 for none."""
    leaving: Int[Array, " n"] | None
    """The latent that becomes inactive there, -1 for none."""
    labels: Int[Array, " n"]
    """Number of each sample's support among the different ones, in order of first appearance."""

    def __len__(self) -> int:
        return len(self.labels)

    def support(self, sample: int) -> Int[Array, " n_active"]:
        """Active latents of a sample."""
        return self.latents[self.starts[sample] : self.starts[sample + 1]]

    def signed_labels(self) -> Int[Array, " n"]:
        """Like `labels`, of the different (support, signs): the convex cells of an AbsTopK SAE."""
        return _labels(2 * self.latents + (self.signs < 0), self.starts)


def region_of(sae: SAE, x: ArrayLike) -> Region:
    """The linear region of an SAE at the sample x (d_in,) or (1, d_in).

    On a region with support S the SAE is x_hat = x A + c with A = W_enc[:, S] W_dec[S] and
    c = b[S] W_dec[S] + b_dec, b = b_enc or b_enc - b_pre W_enc (claim 8). The margin is the least distance to a facet:
    TopK, score differences over |w_i - w_j|, and |score| / |w_i| where scores are cut at 0; AbsTopK, the same over
    signed sites (claim 4); ReLU and JumpReLU, |score - threshold| / |w_i|. Computed in float64: within rounding of a
    facet a float32 forward pass may choose otherwise. Exactly equal scores go to the lowest index, as in the SAE's own
    codes, and equal columns of W_enc, for AbsTopK also opposite ones, have equal scores to the last bit (in a forward pass
    as far as the matrix product rounds them alike).

    Raises:
        TypeError, ValueError: input that does not fit, or an SAE that is not on the CPU.
        RuntimeError: a BatchTopK SAE without an inference threshold or in training mode.
    """
    d_in = encoder_of(sae).weights.shape[1]
    rows = as_vector(x, d_in)[None] if getattr(x, "ndim", None) == 1 else as_float64(x, d_in)
    if len(rows) != 1:
        raise ValueError(f"region_of takes one sample but x has {len(rows)} rows: use regions_of")
    regions = regions_of(sae, rows)
    assert regions.margins is not None
    assert regions.entering is not None
    assert regions.leaving is not None
    support = regions.support(0)
    encoder, (W_dec, b_dec) = encoder_of(sae), decoder_of(sae)
    matrix = encoder.weights[support].T @ W_dec[support]
    offset = encoder.offsets()[support] @ W_dec[support] + b_dec
    margin, entering, leaving = float(regions.margins[0]), int(regions.entering[0]), int(regions.leaving[0])
    return Region(support, regions.signs, matrix, offset, margin, entering, leaving)


def regions_of(sae: SAE, x: ArrayLike, margins: bool = True) -> Regions:
    """The linear regions of many samples x (n, d_in), in blocks of bounded memory; no d_in x d_in matrix is formed.

    Args:
        sae: on the CPU.
        x: samples in rows.
        margins: also find each sample's margin and what enters and leaves there.

    Raises as `region_of` does.
    """
    encoder = encoder_of(sae)
    x = as_float64(x, encoder.weights.shape[1])
    n, n_latents, scored = len(x), len(encoder.weights), encoder.scored()
    active_rows, active_latents, signs, facets = [], [], [], []
    for rows in blocks(n, 4 * n_latents):
        scores = scored.scores(x[rows])
        active = active_latents_of(encoder, scores)
        row, latent = np.nonzero(active)
        active_rows.append(row + rows.start)
        active_latents.append(latent)
        signs.append(np.where(scores[row, latent] < 0, -1, 1))
        if margins:
            facets.append(_facets(encoder, scores, active))
    lengths = np.bincount(np.concatenate([*active_rows, np.empty(0, dtype=np.int64)]), minlength=n)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    latents = np.concatenate([*active_latents, np.empty(0, dtype=np.int64)])
    found = [np.concatenate(part) for part in zip(*facets, strict=True)] if facets else [None, None, None]
    every_sign = np.concatenate([*signs, np.empty(0, dtype=np.int64)])
    return Regions(latents, every_sign, starts, found[0], found[1], found[2], _labels(latents, starts))


def active_latents_of(encoder: Encoder, scores: Array) -> Array:
    """Which latents have acts != 0, (n, n_latents) bool; equal scores go to the lowest index."""
    if encoder.kind == "threshold":
        return scores > encoder.threshold
    magnitude = scores if encoder.kind == "topk" else np.abs(scores)
    active = np.zeros(scores.shape, dtype=bool)
    np.put_along_axis(active, top_indices(magnitude, encoder.k), True, axis=1)
    return active & (magnitude > 0)


def _facets(encoder: Encoder, scores: Array, active: Array) -> tuple[Array, Array, Array]:
    if encoder.kind == "threshold":
        return nearest_thresholds(encoder, scores, active)
    return nearest_swaps(encoder, scores, active)


def _labels(latents: Array, starts: Array) -> Array:
    seen: dict[bytes, int] = {}
    narrow = latents.astype(np.int32)
    supports = (narrow[start:end].tobytes() for start, end in pairwise(starts))
    return np.array([seen.setdefault(support, len(seen)) for support in supports], dtype=np.int64)
