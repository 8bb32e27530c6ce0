"""Regions of samples: batches, sparse form, margins of wide dictionaries, statistics, linear programs."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from splinterp import SAE, AbsTopK, BatchTopK, ReLU, TopK
from splinterp.geometry import (
    PowerDiagram,
    _arrays,
    _swaps,
    chebyshev_centre,
    count_cells,
    growth,
    is_empty,
    region_of,
    region_statistics,
    regions_of,
)
from tests.helpers import rng, samples
from tests.properties.geometry_cases import normal_points, random_sae

KINDS = ("TopK", "AbsTopK", "ReLU", "JumpReLU")


def brute_force_margin(sae: SAE, x: np.ndarray) -> float:
    """The least distance over all pairs of sites, one in the cell and one outside (null sites for scores cut at 0)."""
    W, b = sae.W_enc.detach().numpy().T, sae.b_enc.detach().numpy()
    scores, k = W @ x + b, getattr(sae.activation, "k", 0)
    active = np.nonzero(sae.encode(x[None])[0].detach().numpy())[0]
    if isinstance(sae.activation, AbsTopK):
        inside = [(i, np.sign(scores[i])) for i in active]
        outside = [(j, s) for j in range(len(b)) if j not in active for s in (1, -1)]
        pairs = [(s * scores[i] - t * scores[j], s * W[i] - t * W[j]) for i, s in inside for j, t in outside]
    elif isinstance(sae.activation, TopK):
        others = [j for j in range(len(b)) if j not in active]
        pairs = [(scores[i] - scores[j], W[i] - W[j]) for i in active for j in others]
        pairs += [(scores[i], W[i]) for i in active]
        pairs += [(-scores[j], W[j]) for j in others if len(active) < k]
    else:
        threshold = getattr(sae.activation, "threshold", torch.zeros(len(b))).detach().numpy()
        pairs = [(abs(scores[i] - threshold[i]), W[i]) for i in range(len(b))]
    return min((gap / np.linalg.norm(n) for gap, n in pairs if np.linalg.norm(n) > 0), default=np.inf)


@pytest.mark.parametrize("kind", KINDS)
def test_margins_are_those_of_all_pairs(kind, monkeypatch):
    for seed, dead in ((0, 0), (1, 4)):
        sae = random_sae(kind, 5, 16, 4, seed, dead=dead if kind != "AbsTopK" else 0)
        x = normal_points(seed, 40, 5)
        margins = regions_of(sae, x).margins
        np.testing.assert_allclose(margins, [brute_force_margin(sae, row) for row in x], rtol=1e-9)
        monkeypatch.setattr(_swaps, "TABLE", 0)  # distances pair by pair, as for wide dictionaries
        np.testing.assert_allclose(regions_of(sae, x).margins, margins, rtol=1e-12)
        monkeypatch.undo()


def test_near_equal_sites_have_exact_margins():
    sae = random_sae("TopK", 5, 8, 3, 0)
    with torch.no_grad():
        sae.W_enc[:, 4:] = sae.W_enc[:, :4] + 1e-9 * torch.randn(5, 4, generator=rng(0), dtype=torch.float64)
        sae.b_enc[4:] = sae.b_enc[:4] - 1e-10
    x = normal_points(0, 30, 5)
    np.testing.assert_allclose(regions_of(sae, x).margins, [brute_force_margin(sae, row) for row in x], rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_is_its_samples(kind, monkeypatch):
    sae, x = random_sae(kind, 6, 12, 3, 2, b_pre=True), normal_points(3, 30, 6)
    together = regions_of(sae, x)
    assert len(together) == 30
    for row in range(30):
        alone = region_of(sae, x[row])
        np.testing.assert_array_equal(alone.support, together.support(row))
        np.testing.assert_array_equal(alone.signs, together.signs[together.starts[row] : together.starts[row + 1]])
        # Products of one row and of many may be rounded differently, by some 1e-15 of scores of about 1.
        assert alone.margin == pytest.approx(together.margins[row], rel=1e-12, abs=1e-14)
        assert (alone.entering, alone.leaving) == (together.entering[row], together.leaving[row])
    monkeypatch.setattr(_arrays, "BLOCK_BYTES", 1)
    np.testing.assert_allclose(regions_of(sae, x).margins, together.margins, rtol=1e-12, atol=1e-14)
    assert regions_of(sae, x, margins=False).margins is None
    assert len(regions_of(sae, x[:0])) == 0


def test_labels_number_supports_and_signed_labels_their_signs():
    sae = random_sae("AbsTopK", 2, 3, 1, 0)
    with torch.no_grad():
        sae.W_enc.copy_(torch.eye(2, 3))
        sae.b_enc.zero_()
    x = np.array([[1.0, 0.1], [-1.0, 0.1], [0.1, 1.0], [2.0, 0.0]])
    regions = regions_of(sae, x)
    assert regions.labels.tolist() == [0, 0, 1, 0]
    assert regions.signed_labels().tolist() == [0, 1, 2, 0]


def test_what_enters_and_leaves():
    sae = SAE(2, 3, TopK(1), dtype=torch.float64)
    with torch.no_grad():
        sae.W_enc.copy_(torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]))
        sae.b_enc[2] = -1.0
    swap = region_of(sae, np.array([1.0, 0.9]))
    assert (swap.support.tolist(), swap.entering, swap.leaving) == ([0], 1, 0)
    assert swap.margin == pytest.approx(0.1 / np.sqrt(2))
    fade = region_of(sae, np.array([0.1, -1.0]))  # towards x = 0 the code reaches 0 first
    assert (fade.support.tolist(), fade.entering, fade.leaving, fade.margin) == ([0], -1, 0, pytest.approx(0.1))
    sae.activation.k = 2
    rise = region_of(sae, np.array([1.0, -0.2]))  # a place is free
    assert (rise.support.tolist(), rise.entering, rise.leaving, rise.margin) == ([0], 1, -1, pytest.approx(0.2))


def test_regions_take_float32_models_and_vectors():
    sae = SAE(6, 12, TopK(3), generator=rng(0))
    x = samples(4, 6)
    assert region_of(sae, x[0]).matrix.dtype == np.float64
    np.testing.assert_array_equal(region_of(sae, x[0]).support, region_of(sae, x[:1].numpy()).support)
    with pytest.raises(ValueError, match="use regions_of"):
        region_of(sae, x)
    with pytest.raises(ValueError, match="6 are expected"):
        region_of(sae, x[0, :4])
    batch = SAE(6, 12, BatchTopK(3), generator=rng(0))
    batch.activation.threshold.fill_(0.5)
    region = region_of(batch.eval(), x[0])
    np.testing.assert_array_equal(region.support, np.nonzero(batch.encode(x[:1])[0].detach().numpy())[0])


def test_statistics_of_a_known_partition():
    sae = SAE(1, 2, ReLU(), dtype=torch.float64)
    with torch.no_grad():
        sae.W_enc.copy_(torch.tensor([[1.0, -1.0]]))
        sae.b_enc.copy_(torch.tensor([-1.0, -1.0]))  # regions x < -1, [-1, 1], x > 1
    x = torch.tensor([[-3.0], [0.0], [0.5], [0.25], [2.0], [3.0]], dtype=torch.float64)
    s = region_statistics(sae, x)
    assert (s.n_samples, s.n_regions, s.n_signed_regions, s.n_singletons) == (6, 3, 3, 1)
    assert s.unseen == pytest.approx(1 / 6)
    p = np.array([1, 3, 2]) / 6
    assert s.entropy == pytest.approx(-(p * np.log(p)).sum())
    assert s.largest == 0.5
    assert s.mean_l0 == 0.5
    assert s.margins.tolist() == [0.5, 0.75, 1.0, 2.0, 2.0]  # of 2, 1, 0.5, 0.75, 1, 2
    assert s.growth[-1].tolist() == [6, 3]
    other = region_statistics(sae, x, generator=rng(5)).growth
    assert other[:, 0].tolist() == [1, 2, 4, 6]
    assert any(not np.array_equal(region_statistics(sae, x, generator=rng(i)).growth, s.growth) for i in range(9))
    with pytest.raises(ValueError, match="at least one sample"):
        region_statistics(sae, x[:0])


def test_growth_counts_first_appearances():
    assert growth(np.array([0, 0, 1, 0, 2, 2, 2])).tolist() == [[1, 1], [2, 1], [4, 2], [7, 3]]
    assert growth(np.array([4])).tolist() == [[1, 1]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("m", "k"), [(24, 3), (24, 10), (300, 5), (300, 41)])
@pytest.mark.parametrize("kind", ["TopK", "AbsTopK"])
def test_of_twins_region_and_code_have_the_same(kind, m, k, dtype):
    """Every column stands four times, and k cuts through the copies; weights and samples are small integers, so ties are exact."""
    sae = SAE(6, m, TopK(k) if kind == "TopK" else AbsTopK(k), "free", dtype=dtype, generator=1)
    g = rng(3)
    with torch.no_grad():
        sae.W_enc.copy_(torch.randint(-3, 4, (6, m // 4), generator=g).repeat(1, 4))
        if kind == "AbsTopK":
            sae.W_enc[:, m // 2 :] *= -1
        sae.b_enc.copy_(torch.randint(-1, 2, (m // 4,), generator=g).repeat(4) if kind == "TopK" else torch.zeros(m))
    x = torch.randint(-4, 5, (40, 6), generator=g).to(dtype)
    regions = regions_of(sae, x)
    for sae_mode in (sae.train(), sae.eval()):
        acts = sae_mode.encode(x).detach()
        sparse = sae_mode.encode_top(x) if not sae_mode.training else None
        for row in range(len(x)):
            np.testing.assert_array_equal(regions.support(row), acts[row].nonzero().flatten().numpy())
            if sparse is not None:
                kept = sparse.top_indices[row][sparse.top_acts[row] != 0]
                np.testing.assert_array_equal(regions.support(row), kept.sort().values.numpy())
    assert (regions.margins == 0).any()  # k does cut through copies


def test_chebyshev_centres_of_known_regions():
    square = PowerDiagram(np.array([[0.0, 0.0], [2.0, 0.0], [-2.0, 0.0], [0.0, 2.0], [0.0, -2.0]]))
    ball = chebyshev_centre(square, np.array([0]))
    np.testing.assert_allclose(ball.centre, 0, atol=1e-7)
    assert ball.radius == pytest.approx(1.0)
    outer = chebyshev_centre(square, np.array([1]))
    assert outer.radius == np.inf
    assert square.assign(outer.centre[None])[0, 0] == 1
    hidden = PowerDiagram(np.array([[-1.0, 0.0], [0.0, 0.0], [1.0, 0.0]]), np.array([0.0, -2.0, 0.0]))
    assert chebyshev_centre(hidden, np.array([1])).radius < 0
    assert is_empty(hidden, np.array([1]))
    assert not is_empty(hidden, np.array([0]))
    twins = PowerDiagram(np.zeros((2, 2)), np.array([1.0, 0.0]))
    assert chebyshev_centre(twins, np.array([1])).radius == -np.inf
    assert is_empty(twins, np.array([1]))
    assert chebyshev_centre(PowerDiagram(np.zeros((2, 3)), order=2), np.array([0, 1])).radius == np.inf


@pytest.mark.parametrize("kind", KINDS)
def test_chebyshev_centres_of_an_sae_are_centres(kind):
    sae = random_sae(kind, 4, 9, 3, 5)
    for x in normal_points(5, 10, 4):
        region = region_of(sae, x)
        signs = region.signs if kind == "AbsTopK" else None
        assert not is_empty(sae, region.support, signs)
        ball = chebyshev_centre(sae, region.support, signs)
        assert ball.radius >= region.margin - 1e-6
        there = region_of(sae, ball.centre)
        np.testing.assert_array_equal(there.support, region.support)
        if np.isfinite(ball.radius):
            assert there.margin == pytest.approx(ball.radius, abs=1e-6)


def test_linear_programs_refuse_what_is_no_cell():
    diagram = PowerDiagram(np.random.default_rng(0).normal(size=(5, 2)), order=2)
    with pytest.raises(ValueError, match="a set of 2 sites"):
        is_empty(diagram, np.array([0]))
    with pytest.raises(ValueError, match=r"must lie in \[0, 5\)"):
        is_empty(diagram, np.array([0, 5]))
    with pytest.raises(ValueError, match="names a site twice"):
        chebyshev_centre(diagram, np.array([1, 1]))
    with pytest.raises(ValueError, match="k=3 are active at most"):
        is_empty(random_sae("TopK", 2, 6, 3, 0), np.arange(4))
    with pytest.raises(ValueError, match="pass region.signs"):
        is_empty(random_sae("AbsTopK", 2, 6, 3, 0), np.arange(3))


def test_counting_needs_a_plane():
    with pytest.raises(ValueError, match="d=3"):
        count_cells(PowerDiagram(np.zeros((2, 3))))
    assert count_cells(PowerDiagram(np.random.default_rng(0).normal(size=(4, 2)), order=4)) == 1
