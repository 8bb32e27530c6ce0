"""Regions along segments against dense sampling, brute force over all pairs, and the SAE itself."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from splinterp import SAE, AbsTopK, BatchTopK, JumpReLU, ReLU, TopK
from splinterp.encoders import Gated
from splinterp.geometry import boundary_along, region_of, regions_of, segment_regions, segments_regions
from tests.helpers import rng

KINDS = ("ReLU", "JumpReLU", "TopK", "AbsTopK", "BatchTopK")


def sae_of(kind, d, m, k, seed, how="random"):
    """A float64 SAE away from its start; "grid": few different weights, so that scores tie; "repeated": equal and opposite columns, dead
    ones too."""
    activation = {
        "ReLU": ReLU, "JumpReLU": JumpReLU, "TopK": lambda: TopK(k), "AbsTopK": lambda: AbsTopK(k), "BatchTopK": lambda: BatchTopK(k),
    }[kind]()  # fmt: skip
    g = rng(seed)
    sae = SAE(d, m, activation, dtype=torch.float64, generator=g)
    with torch.no_grad():
        for p in (*sae.parameters(), sae.b_pre):
            p.add_(0.3 * torch.randn(p.shape, generator=g, dtype=torch.float64))
        if how == "grid":
            sae.W_enc.copy_((2 * sae.W_enc).round())
            sae.b_enc.copy_((2 * sae.b_enc).round() / 2)
            sae.b_pre.zero_()
        if how == "repeated" and m >= 4:
            sae.W_enc[:, 1], sae.b_enc[1] = sae.W_enc[:, 0], sae.b_enc[0]
            sae.W_enc[:, 2], sae.b_enc[2] = -sae.W_enc[:, 0], -sae.b_enc[0]
            sae.W_enc[:, 3], sae.b_enc[3] = 0.0, 0.0
        if kind == "JumpReLU":
            sae.activation.set_threshold(torch.rand(m, generator=g, dtype=torch.float64) + 0.1)
        if kind == "BatchTopK":
            sae.activation.threshold.fill_(0.4)
    return sae.eval()


def crossings_by_force(sae, a, b):
    """Every t in (0, 1) at which two signed scores, or a score and 0 or its threshold, are equal."""
    centre = sae.b_pre.numpy()
    alpha = ((a - centre) @ sae.W_enc.detach().numpy()) + sae.b_enc.detach().numpy()
    beta = (b - a) @ sae.W_enc.detach().numpy()
    lines = [(x, y) for x, y in zip(alpha, beta, strict=True)] + [(-x, -y) for x, y in zip(alpha, beta, strict=True)]
    if isinstance(sae.activation, JumpReLU | BatchTopK):
        levels = np.broadcast_to(sae.activation.threshold.detach().numpy(), alpha.shape)
        pairs = [((x, y), (level, 0.0)) for x, y, level in zip(alpha, beta, levels, strict=True)]
    else:
        pairs = list(itertools.combinations([*lines, (0.0, 0.0)], 2))
    found = [(p[0] - q[0]) / (q[1] - p[1]) for p, q in pairs if abs(q[1] - p[1]) > 1e-14]
    return np.unique([t for t in found if 0 < t < 1])


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(KINDS), st.integers(1, 4), st.integers(1, 9), st.integers(1, 9), st.integers(0, 10**6),
    st.sampled_from(["random", "grid", "repeated"]), st.sampled_from([1.0, 30.0]),
)  # fmt: skip
def test_supports_are_those_of_the_sae_between_all_crossings_there_can_be(kind, d, m, k, seed, how, reach):
    sae = sae_of(kind, d, m, min(k, m), seed, how)
    a, b = reach * torch.randn(2, d, generator=rng(seed + 1), dtype=torch.float64)
    found = segment_regions(sae, a, b)
    supports, bounds = list(found.supports()), found.bounds
    assert len(supports) == len(found) == len(bounds) - 1
    assert (np.diff(bounds) > 0).all()
    every = np.concatenate([[0.0], crossings_by_force(sae, a.numpy(), b.numpy()), [1.0]])
    middles = (every[1:] + every[:-1])[np.diff(every) > 1e-9] / 2  # strictly inside regions, away from rounding
    middles = middles[np.abs(middles[:, None] - bounds).min(axis=1) > 1e-10]
    points = a.numpy() + middles[:, None] * (b - a).numpy()
    regions = regions_of(sae, points, margins=True)
    piece = np.searchsorted(bounds, middles) - 1
    for i, at in enumerate(piece):
        if regions.margins[i] > 1e-9:
            assert supports[at].tolist() == regions.support(i).tolist()


@settings(max_examples=120, deadline=None)
@given(
    st.sampled_from(["TopK", "AbsTopK"]), st.integers(1, 6), st.integers(2, 24), st.integers(1, 6), st.integers(0, 10**6),
    st.sampled_from(["through", "from", "beside"]), st.sampled_from(["plain", "copies", "opposites"]),
)  # fmt: skip
def test_all_scores_meeting_at_a_point_and_equal_lines_end_with_the_right_supports(kind, d, m, k, seed, where, how):
    """Without biases every score is 0 at the centre; copies and opposites of columns are equal throughout."""
    sae = sae_of(kind, d, m, min(k, m), seed)
    with torch.no_grad():
        if where != "beside":
            sae.b_enc.zero_()
        half = m // 2
        if how != "plain":
            sign = 1.0 if how == "copies" else -1.0
            sae.W_enc[:, half : 2 * half] = sign * sae.W_enc[:, :half]
            sae.b_enc[half : 2 * half] = sign * sae.b_enc[:half]
    step = torch.randn(d, generator=rng(seed + 1), dtype=torch.float64)
    centre = sae.b_pre.clone()
    a, b = (centre, centre + 2 * step) if where == "from" else (centre - step, centre + 2 * step)
    found = segment_regions(sae, a, b)
    for piece in found.pieces():
        if piece.stop - piece.start < 1e-9:
            continue
        middle = a + (piece.start + piece.stop) / 2 * (b - a)
        region = region_of(sae, middle)
        if how == "copies" or region.margin > 1e-9:
            assert piece.support.tolist() == region.support.tolist()
            expected = middle.numpy() @ region.matrix + region.offset
            np.testing.assert_allclose(piece.ends.mean(axis=0), expected, rtol=1e-7, atol=1e-7)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(KINDS), st.integers(2, 5), st.integers(4, 12), st.integers(1, 4), st.integers(0, 10**6))
def test_neighbouring_pieces_differ_by_what_enters_and_leaves_and_reconstruct_as_the_sae(kind, d, m, k, seed):
    sae = sae_of(kind, d, m, k, seed)
    a, b = 3 * torch.randn(2, d, generator=rng(seed + 1), dtype=torch.float64)
    found = segment_regions(sae, a, b)
    supports = [set(support.tolist()) for support in found.supports()]
    assert len(supports) == 1 + len(found.at)  # in general position one change at a time
    for before, after, enters, leaves in zip(supports, supports[1:], found.entering, found.leaving, strict=False):
        assert after - before == ({int(enters)} - {-1})
        assert before - after == ({int(leaves)} - {-1})
    inside = 0.0
    for piece in found.pieces():
        middle = a + (piece.start + piece.stop) / 2 * (b - a)
        if region_of(sae, middle).margin > 1e-9:
            with torch.no_grad():
                torch.testing.assert_close(
                    torch.from_numpy(piece.ends.mean(axis=0)), sae(middle[None]).x_hat[0], rtol=1e-7, atol=1e-8
                )
        inside += float(np.linalg.norm(piece.ends[1] - piece.ends[0]))
    lengths = found.lengths()
    assert lengths[0] == pytest.approx(inside)
    assert (lengths[1] > 0) == (len(found) > 1 and kind != "ReLU") or lengths[1] < 1e-9


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(KINDS), st.integers(1, 4), st.integers(1, 10), st.integers(1, 10), st.integers(0, 10**6))
def test_the_boundary_along_a_direction_is_the_first_crossing(kind, d, m, k, seed):
    sae = sae_of(kind, d, m, min(k, m), seed)
    x, direction = torch.randn(2, d, generator=rng(seed + 1), dtype=torch.float64)
    distance, entering, leaving = boundary_along(sae, x, 5 * direction)
    unit = direction / direction.norm()
    if not np.isfinite(distance):
        assert (entering, leaving) == (-1, -1)
        assert len(segment_regions(sae, x, x + 1e6 * unit)) == 1
        return
    found = segment_regions(sae, x, x + (1.5 * distance + 1e-3) * unit)
    assert found.at[0] * (1.5 * distance + 1e-3) == pytest.approx(distance, rel=1e-9, abs=1e-9)
    assert (int(found.entering[0]), int(found.leaving[0])) == (entering, leaving)
    assert distance >= region_of(sae, x).margin - 1e-9


def test_a_segment_backwards_has_the_same_regions():
    sae = sae_of("TopK", 6, 40, 5, 3)
    a, b = 4 * torch.randn(2, 6, generator=rng(1), dtype=torch.float64)
    there, back = segment_regions(sae, a, b), segment_regions(sae, b, a)
    assert len(there) == len(back) > 5
    np.testing.assert_allclose(there.bounds, 1 - back.bounds[::-1], atol=1e-12)
    for one, other in zip(there.supports(), reversed(list(back.supports())), strict=True):
        assert one.tolist() == other.tolist()
    many = segments_regions(sae, torch.stack([a, b]), torch.stack([b, a]))
    assert [found.at.tolist() for found in many] == [there.at.tolist(), back.at.tolist()]


def test_a_segment_of_no_length_has_one_region_and_bad_input_is_named():
    sae = sae_of("TopK", 3, 8, 2, 0)
    x = torch.ones(3)
    found = segment_regions(sae, x, x)
    assert len(found) == 1
    assert next(found.supports()).tolist() == region_of(sae, x).support.tolist()
    assert found.lengths() == (0.0, 0.0)
    for call, error, message in (
        (lambda: segment_regions(sae, x[:2], x), ValueError, "a"),
        (lambda: segments_regions(sae, torch.ones(2, 3), torch.ones(1, 3)), ValueError, "2 rows and b has 1"),
        (lambda: boundary_along(sae, x, 0 * x), ValueError, "direction is 0"),
        (lambda: segment_regions(SAE(3, 4, ReLU(), encoder=Gated()), x, x), TypeError, "Gated"),
    ):
        with pytest.raises(error, match=message):
            call()


def test_a_large_dictionary_ends_where_it_should():
    sae = SAE(128, 4_096, TopK(32), generator=0)
    a, b = torch.randn(2, 128, generator=rng(1))
    found = segment_regions(sae, a, b)
    assert len(found) > 50
    supports = list(found.supports())
    assert [supports[i].tolist() for i in (0, -1)] == [region_of(sae, x).support.tolist() for x in (a, b)]
