"""The regions along a straight line between two inputs, exactly and in order."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from splinterp._documented import documented
from splinterp._typing import Array, ArrayLike, Float, Int
from splinterp.geometry._arrays import as_float64, as_vector
from splinterp.geometry._encoder import Encoder, decoder_of, encoder_of
from splinterp.geometry.regions import active_latents_of

NULL = -1
"""In place of a latent: the score 0, which a latent of a TopK has to exceed."""
MOST = 100
"""Newton steps to a crossing, at most; a handful do."""
TIED = 1e-14
"""Of the largest scores: differences that are rounding."""
STEP = 1e-13
"""Of the segment: how far to go on where nothing but rounding differs."""


@documented
class Piece(NamedTuple):
    """A part of the segment inside one region."""

    start: float
    stop: float
    """Between 0 at a and 1 at b."""
    support: Int[Array, " n_active"]
    """Active latents inside it, sorted."""
    ends: Float[Array, "2 d_out"]
    """Reconstructions at its two ends, by its own affine map: between them the reconstruction is a straight line."""


@documented
@dataclass(frozen=True, eq=False)
class SegmentRegions:
    """The regions of an SAE along x(t) = a + t (b - a), 0 < t < 1.

    Supports are those inside the pieces; at a crossing, and where a or b lies on a boundary, the SAE itself chooses one side.
    """

    at: Float[Array, " n_crossings"]
    """Where supports change, rising; several changes may be at one t."""
    entering: Int[Array, " n_crossings"]
    """The latent that becomes active there, -1 if one only becomes inactive."""
    leaving: Int[Array, " n_crossings"]
    """The latent that becomes inactive there, -1 if one only becomes active."""
    first: Int[Array, " n_active"]
    """Active latents at the beginning, sorted."""
    encoder: Encoder
    decoder: tuple[Array, Array]
    a: Float[Array, " d_in"]
    b: Float[Array, " d_in"]

    @property
    def bounds(self) -> Float[Array, " n_pieces_plus_1"]:
        """0, the different crossings inside the segment, and 1."""
        inside = self.at[(self.at > 0) & (self.at < 1)]
        return np.concatenate([[0.0], np.unique(inside), [1.0]])

    def __len__(self) -> int:
        """Pieces: regions that the segment runs through, a region counted each time it is entered."""
        return len(self.bounds) - 1

    def supports(self) -> Iterator[Int[Array, " n_active"]]:
        """The active latents of each piece, in order."""
        active = set(self.first.tolist())
        event = 0
        for start in self.bounds[:-1]:
            while event < len(self.at) and self.at[event] <= start:
                active.discard(int(self.leaving[event]))
                if self.entering[event] != NULL:
                    active.add(int(self.entering[event]))
                event += 1
            yield np.array(sorted(active), dtype=np.int64)

    def pieces(self) -> Iterator[Piece]:
        """The pieces, each with the ends of its reconstruction: O(n_active d) each."""
        W_dec, b_dec = self.decoder
        points = self.bounds
        step = self.b - self.a
        for start, stop, support in zip(points[:-1], points[1:], self.supports(), strict=True):
            at_ends = np.stack([self.a + start * step, self.a + stop * step]) - self.encoder.centre
            codes = at_ends @ self.encoder.weights[support].T + self.encoder.biases[support]
            yield Piece(float(start), float(stop), support, codes @ W_dec[support] + b_dec)

    def lengths(self) -> tuple[float, float]:
        """(length of the reconstruction's path inside the pieces, sum of the lengths of its jumps between them)."""
        inside, jumps, last = 0.0, 0.0, None
        for piece in self.pieces():
            inside += float(np.linalg.norm(piece.ends[1] - piece.ends[0]))
            if last is not None:
                jumps += float(np.linalg.norm(piece.ends[0] - last))
            last = piece.ends[1]
        return inside, jumps


def segment_regions(sae: Any, a: ArrayLike, b: ArrayLike) -> SegmentRegions:
    """The regions of an SAE between the inputs a and b (d_in,), in float64 and in order.

    Along the segment scores are straight lines. Where every latent has a threshold, each crosses it once at most. The k largest of
    them change where the lowest score inside meets the highest outside: the difference of the two is concave as long as the support
    stays, so that a Newton method from the right end finds its next zero, in a few steps of O(n_latents). Where several scores meet, or
    are equal throughout, the support that follows is told by their slopes and indices.

    Raises:
        TypeError, ValueError, RuntimeError: as `region_of`.
        ArithmeticError: scores that differ by rounding alone.

    Examples:
        >>> import torch
        >>> from splinterp import SAE, TopK
        >>> sae = SAE(4, 16, TopK(3), generator=0)
        >>> found = segment_regions(sae, torch.zeros(4), torch.ones(4))
        >>> len(found) == len(list(found.supports()))
        True
    """
    encoder = encoder_of(sae)
    width = encoder.weights.shape[1]
    return _segment(encoder, decoder_of(sae), as_vector(a, width, "a"), as_vector(b, width, "b"))


def segments_regions(sae: Any, a: ArrayLike, b: ArrayLike) -> list[SegmentRegions]:
    """`segment_regions` for each row of a and b (n, d_in). Raises ValueError: other shapes; otherwise as it does."""
    encoder = encoder_of(sae)
    decoder, width = decoder_of(sae), encoder.weights.shape[1]
    begins, ends = as_float64(a, width, "a"), as_float64(b, width, "b")
    if len(begins) != len(ends):
        raise ValueError(f"a has {len(begins)} rows and b has {len(ends)}: a segment takes one of each")
    return [_segment(encoder, decoder, begin, end) for begin, end in zip(begins, ends, strict=True)]


def boundary_along(sae: Any, x: ArrayLike, direction: ArrayLike) -> tuple[float, int, int]:
    """(distance, entering, leaving): how far from x (d_in,) the support first changes in a direction (d_in,), in units of the input, and
    what changes there (-1 for none); inf where it never does.

    Raises ValueError: a direction of 0; otherwise as `region_of`.
    """
    encoder = encoder_of(sae)
    width = encoder.weights.shape[1]
    x, direction = as_vector(x, width, "x"), as_vector(direction, width, "direction")
    size = float(np.linalg.norm(direction))
    if size == 0:
        raise ValueError("direction is 0: pass a direction to look in")
    alpha, beta = _lines(encoder, x, direction / size)
    active = active_latents_of(encoder, alpha[None])[0]
    if encoder.kind == "threshold":
        with np.errstate(divide="ignore", invalid="ignore"):
            t = (encoder.threshold - alpha) / beta
        toward = np.where(active, beta < 0, beta > 0)
        t = np.where(toward, np.maximum(t, 0.0), np.inf)
        nearest = int(t.argmin())
        if not np.isfinite(t[nearest]):
            return np.inf, NULL, NULL
        return (float(t[nearest]), NULL, nearest) if active[nearest] else (float(t[nearest]), nearest, NULL)
    best = (np.inf, NULL, NULL)
    inside, outside = _sites(encoder, alpha, beta, active)
    for latent, value, slope in inside:
        others, values, slopes = outside
        with np.errstate(divide="ignore", invalid="ignore"):
            t = np.where(slopes > slope, np.maximum((value - values) / (slopes - slope), 0.0), np.inf)
        nearest = int(t.argmin()) if len(t) else -1
        if nearest >= 0 and t[nearest] < best[0]:
            best = (float(t[nearest]), int(others[nearest]), latent)
    return best


def _lines(encoder: Encoder, origin: Array, step: Array) -> tuple[Array, Array]:
    """(scores at the origin, their slopes along the step), each (n_latents,)."""
    scored = encoder.scored()
    return scored.scores(origin[None])[0], scored.columns(step[None])[0]


def _sites(
    encoder: Encoder, alpha: Array, beta: Array, active: Array
) -> tuple[list[tuple[int, float, float]], tuple[Array, Array, Array]]:
    """What is inside, (latent, score, slope) each, and what is outside, as arrays: signed where signs do not matter, the null score on
    the side where it is."""
    room = active.sum() < encoder.k
    sign = np.where(active & (alpha < 0), -1.0, 1.0) if encoder.kind == "abstopk" else np.ones(len(alpha))
    inside = [(int(i), float(sign[i] * alpha[i]), float(sign[i] * beta[i])) for i in np.nonzero(active)[0]]
    idle = np.nonzero(~active & ((encoder.weights != 0).any(axis=1) | (encoder.biases != 0)))[0]
    if encoder.kind == "abstopk":
        return inside, (
            np.concatenate([idle, idle]),
            np.concatenate([alpha[idle], -alpha[idle]]),
            np.concatenate([beta[idle], -beta[idle]]),
        )
    if room:
        inside.append((NULL, 0.0, 0.0))
    return inside, (np.append(idle, NULL), np.append(alpha[idle], 0.0), np.append(beta[idle], 0.0))


def _segment(encoder: Encoder, decoder: tuple[Array, Array], a: Array, b: Array) -> SegmentRegions:
    alpha, beta = _lines(encoder, a, b - a)
    walk = _thresholds if encoder.kind == "threshold" else _swaps
    first, events = walk(encoder, alpha, beta)
    at, entering, leaving = (np.array(part) for part in zip(*events, strict=True)) if events else (np.empty(0),) * 3
    return SegmentRegions(
        at.astype(np.float64), entering.astype(np.int64), leaving.astype(np.int64), np.nonzero(first)[0], encoder, decoder, a, b
    )


Event = tuple[float, int, int]
"""(t, entering, leaving)."""


def _thresholds(encoder: Encoder, alpha: Array, beta: Array) -> tuple[Array, list[Event]]:
    active, end = alpha > encoder.threshold, alpha + beta > encoder.threshold
    changed = np.nonzero(active != end)[0]
    t = np.clip((encoder.threshold[changed] - alpha[changed]) / beta[changed], 0.0, 1.0)
    events = [
        (float(t[i]), int(changed[i]), NULL) if end[changed[i]] else (float(t[i]), NULL, int(changed[i]))
        for i in np.argsort(t, kind="stable")
    ]
    return active, events


def _swaps(encoder: Encoder, alpha: Array, beta: Array) -> tuple[Array, list[Event]]:
    """Supports of the k largest, from crossing to crossing; at each what follows is told anew, whatever meets there."""
    lines = _Lines(alpha, beta, encoder)
    t, active, stalled = 0.0, lines.after(0.0), 0
    first, events = active, list[Event]()
    while (found := lines.crossing(active, t)) is not None:
        t = max(t, found)
        following = lines.after(t)
        enters, leaves = np.nonzero(following & ~active)[0].tolist(), np.nonzero(active & ~following)[0].tolist()
        n = max(len(enters), len(leaves))
        if n == 0:  # a difference of rounding: what there is of it lies behind
            t, stalled = t + STEP, stalled + 1
            if stalled > MOST:
                raise ArithmeticError("scores along the segment differ by rounding alone: merge latents that are nearly equal")
            continue
        pad = [NULL] * n
        events += [(t, j, i) for j, i in zip((enters + pad)[:n], (leaves + pad)[:n], strict=True)]
        active, stalled = following, 0
    return first, events


class _Lines:
    """Scores alpha + t beta of a TopK or AbsTopK along a segment."""

    def __init__(self, alpha: Array, beta: Array, encoder: Encoder) -> None:
        self.alpha, self.beta, self.k = alpha, beta, encoder.k
        self.signed = encoder.kind == "abstopk"
        self.idle = ~((encoder.weights != 0).any(axis=1) | (encoder.biases != 0))
        self.tied = TIED * float((np.abs(alpha) + np.abs(beta)).max(initial=0.0))

    def after(self, t: float) -> Array:
        """The support just after t, (n_latents,) bool: of scores that are equal to rounding the steeper ones are larger, of lines that are
        equal throughout the lower index."""
        scores, slopes = self.alpha + t * self.beta, self.beta
        if self.signed:
            side = np.where(np.abs(scores) > self.tied, np.sign(scores), np.sign(slopes))
            scores, slopes = np.abs(scores), side * slopes
        rising = (scores > self.tied) | ((scores >= -self.tied) & (slopes > 0))
        able = ~self.idle & (rising if not self.signed else True)
        if able.sum() <= self.k:
            return able
        scores = np.where(able, scores, -np.inf)
        last = np.partition(scores, len(scores) - self.k)[len(scores) - self.k]
        chosen = scores > last + self.tied
        level = np.nonzero(able & ~chosen & (scores >= last - self.tied))[0]
        order = np.lexsort((level, -slopes[level]))
        chosen[level[order[: self.k - int(chosen.sum())]]] = True
        return chosen

    def crossing(self, active: Array, begin: float) -> float | None:
        """The first t after `begin` at which a score outside reaches one inside, or one that matters reaches 0."""
        members = np.nonzero(active)[0]
        middle = self.alpha[members] + begin * self.beta[members]
        side = np.where(np.abs(middle) > self.tied, np.sign(middle), np.sign(self.beta[members])) if self.signed else 1.0
        inner_alpha, inner_beta = side * self.alpha[members], side * self.beta[members]
        hidden = active | self.idle
        room = not self.signed and len(members) < self.k
        t = 1.0
        for _ in range(MOST):
            scores = self.alpha + t * self.beta
            outer = np.where(hidden, -np.inf, np.abs(scores) if self.signed else scores)
            inner = inner_alpha + t * inner_beta
            low, i = (float(inner.min()), int(inner.argmin())) if len(members) else (np.inf, NULL)
            high, j = float(outer.max()), int(outer.argmax())
            if room:  # one enters when its score rises above 0, one leaves when its score falls to 0
                gap = min(low, -high)
                i, j = (i, NULL) if low < -high else (NULL, j)
            else:
                high, j = (0.0, NULL) if not self.signed and high <= 0 else (high, j)
                gap = low - high
            if not gap < -self.tied:
                break
            out = (0.0, 0.0) if i == NULL else (inner_alpha[i], inner_beta[i])
            turn = -1.0 if self.signed and j != NULL and scores[j] < 0 else 1.0
            into = (0.0, 0.0) if j == NULL else (turn * self.alpha[j], turn * self.beta[j])
            earlier = float(np.clip((out[0] - into[0]) / (into[1] - out[1]), begin, t))
            if earlier >= t:
                break
            t = earlier
        return None if t >= 1.0 else t
