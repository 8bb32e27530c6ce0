"""The claims on power diagrams and affine pieces, each against brute force or a second method."""

from __future__ import annotations

from math import comb

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from splinterp import SAE, TopK
from splinterp.geometry import PowerDiagram, chebyshev_centre, count_cells, is_empty, region_of, regions_of
from tests.properties.geometry_cases import diagrams, normal_points, random_sae, saes, seeds


def by_sorting(values: np.ndarray, k: int) -> np.ndarray:
    """Indices of the k least values of each row, ties to the lowest index, by a stable sort."""
    return np.sort(values.argsort(axis=1, kind="stable")[:, :k], axis=1)


def lattice_points(seed: int, n: int, d: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(-6, 7, size=(n, d)) / 2.0


@given(diagrams(), seeds)
def test_claim_1_cells_are_the_least_powers_and_the_largest_scores(diagram, seed):
    x = lattice_points(seed, 60, diagram.d)  # on the lattice ties are exact
    power = ((x[:, None] - diagram.sites) ** 2).sum(axis=2) - diagram.weights
    np.testing.assert_allclose(diagram.power(x), power, atol=1e-9)
    W_enc, b_enc = diagram.to_encoder()
    if (diagram.sites == np.round(diagram.sites)).all():
        np.testing.assert_array_equal(diagram.assign(x), by_sorting(power, diagram.order))
        np.testing.assert_array_equal(diagram.assign(x), by_sorting(-(x @ W_enc + b_enc), diagram.order))
    x = normal_points(seed, 60, diagram.d)
    power = ((x[:, None] - diagram.sites) ** 2).sum(axis=2) - diagram.weights
    if len(np.unique(diagram.sites, axis=0)) == diagram.n_sites:
        np.testing.assert_array_equal(diagram.assign(x), by_sorting(power, diagram.order))


@given(saes(activations=("TopK", "AbsTopK")), seeds)
def test_claim_1_every_selection_is_a_cell_and_encoders_come_back(sae, seed):
    x = normal_points(seed, 50, sae.d_in)
    diagram = PowerDiagram.from_sae(sae)
    W_enc, b_enc = diagram.to_encoder()
    again = PowerDiagram.from_scores(W_enc.T, b_enc, diagram.order)
    np.testing.assert_array_equal(diagram.assign(x), again.assign(x))
    copy = SAE(sae.d_in, diagram.n_sites, TopK(diagram.order), dtype=torch.float64)
    with torch.no_grad():
        copy.W_enc.copy_(torch.from_numpy(W_enc))
        copy.b_enc.copy_(torch.from_numpy(b_enc))
    np.testing.assert_array_equal(PowerDiagram.from_sae(copy).assign(x), diagram.assign(x))
    if sae.activation.config()["name"] == "TopK":
        scores = sae.pre_acts(x).detach()
        kept = np.sort(scores.topk(diagram.order, dim=1).indices.numpy(), axis=1)
        np.testing.assert_array_equal(np.take_along_axis(scores.numpy(), kept, 1).sum(1),
                                      np.take_along_axis(scores.numpy(), diagram.assign(x), 1).sum(1))  # fmt: skip


@given(diagrams(kinds=("general",)), seeds)
def test_claim_2_an_order_k_diagram_is_the_order_1_diagram_of_the_subsets(diagram, seed):
    x = normal_points(seed, 50, diagram.d)
    flat = diagram.flatten()
    assert flat.order == 1
    assert flat.n_sites == comb(diagram.n_sites, diagram.order)
    np.testing.assert_array_equal(diagram.subsets()[flat.assign(x)[:, 0]], diagram.assign(x))
    subset = diagram.subsets()[0]
    mean = diagram.sites[subset].mean(axis=0)
    expected = (mean**2).sum() + 2 / diagram.order * diagram.biases[subset].sum()
    np.testing.assert_allclose(flat.weights[0], expected, atol=1e-12)


@given(diagrams(kinds=("general",)), seeds, st.floats(0.1, 10), st.floats(-5, 5))
def test_claim_3_cells_do_not_change_under_gain_tilt_and_offset(diagram, seed, gain, offset):
    x = normal_points(seed, 50, diagram.d)
    tilt = normal_points(seed + 1, 1, diagram.d)[0]
    np.testing.assert_array_equal(diagram.regauge(gain, tilt, offset).assign(x), diagram.assign(x))
    np.testing.assert_array_equal(diagram.translate(tilt).assign(x + tilt), diagram.assign(x))
    np.testing.assert_array_equal(diagram.scale(gain).assign(gain * x), diagram.assign(x))
    np.testing.assert_allclose(diagram.scale(gain).power(gain * x), gain**2 * diagram.power(x), atol=1e-8 * gain**2)
    np.testing.assert_allclose(diagram.translate(tilt).power(x + tilt), diagram.power(x), atol=1e-9)


def test_claim_3_abs_top_k_supports_survive_a_gain_only():
    sae = random_sae("AbsTopK", 3, 8, 3, seed=0)
    x = normal_points(1, 200, 3)
    before = regions_of(sae, x, margins=False)
    for change, same in (("gain", True), ("offset", False), ("tilt", False)):
        moved = random_sae("AbsTopK", 3, 8, 3, seed=0)
        with torch.no_grad():
            if change == "gain":
                moved.W_enc *= 3.0
                moved.b_enc *= 3.0
            elif change == "offset":
                moved.b_enc += 0.7
            else:
                moved.W_enc += torch.tensor([[0.5], [0.1], [-0.4]], dtype=torch.float64)
        after = regions_of(moved, x, margins=False)
        assert np.array_equal(before.latents, after.latents) == same, change


@given(saes(activations=("AbsTopK",)), seeds)
def test_claim_4_abs_top_k_is_the_diagram_of_the_signed_sites(sae, seed):
    x = normal_points(seed, 50, sae.d_in)
    diagram, n = PowerDiagram.from_sae(sae), sae.n_latents
    scores = sae.pre_acts(x).detach().numpy()
    live = np.abs(scores).max(axis=0) > 0
    assume(sae.activation.k <= live.sum())  # more places than live latents are filled with zeros of either sign
    chosen = diagram.assign(x)
    latents = np.sort(chosen % n, axis=1)
    assert (np.diff(latents, axis=1) > 0).all(), "both signs of a latent were chosen"
    np.testing.assert_array_equal(latents, by_sorting(-np.abs(scores), sae.activation.k))
    negative = np.take_along_axis(scores, chosen % n, 1) < 0
    np.testing.assert_array_equal(negative, chosen >= n)
    weights = (sae.W_enc.detach().numpy() ** 2).sum(axis=0)
    bias = diagram.biases[:n]
    np.testing.assert_allclose(diagram.weights, np.concatenate([weights + 2 * bias, weights - 2 * bias]), atol=1e-12)


@given(diagrams(), seeds)
def test_claim_5_restrict_commutes_with_assign(diagram, seed):
    rng = np.random.default_rng(seed)
    p = rng.integers(1, diagram.d + 1)
    basis = np.linalg.qr(rng.normal(size=(diagram.d, p)))[0].T
    origin = rng.normal(size=diagram.d)
    y = rng.normal(size=(50, p))
    cut = diagram.restrict(origin, basis)
    np.testing.assert_array_equal(cut.assign(y), diagram.assign(origin + y @ basis))
    np.testing.assert_allclose(cut.scores(y), diagram.scores(origin + y @ basis), atol=1e-10)


@given(st.integers(1, 3), st.integers(1, 6), seeds)
def test_claim_6_hyperplanes_in_general_position_cut_out_the_known_number_of_regions(d, n, seed):
    sae = random_sae("ReLU", d, n, 1, seed)
    supports = [np.nonzero([code >> i & 1 for i in range(n)])[0] for code in range(2**n)]
    regions = [s for s in supports if not is_empty(sae, s)]
    # Nearly parallel hyperplanes may meet beyond the tolerance of a linear program; half-spaces in d = 1 never do.
    assume(d == 1 or np.linalg.svd(sae.W_enc.detach().numpy())[1].min() > 0.05)
    assert len(regions) == sum(comb(n, j) for j in range(d + 1))


@given(diagrams(kinds=("general",), max_sites=6), seeds)
def test_claim_7_lifting_gives_the_same_emptiness_as_all_half_spaces(diagram, seed):
    visited = {tuple(row) for row in diagram.assign(normal_points(seed, 200, diagram.d, 3.0)).tolist()}
    for subset in diagram.subsets()[:12]:
        radius = chebyshev_centre(diagram, subset).radius
        assume(abs(radius) > 1e-5)
        assert is_empty(diagram, subset) == (radius < 0)
        assert not (tuple(subset.tolist()) in visited and is_empty(diagram, subset))


@given(saes(), seeds)
def test_claim_8_the_affine_piece_is_the_sae_and_its_jacobian(sae, seed):
    for row in torch.from_numpy(normal_points(seed, 4, sae.d_in)):
        region = region_of(sae, row)
        jacobian = torch.autograd.functional.jacobian(lambda x: sae(x[None]).x_hat[0], row)
        np.testing.assert_allclose(region.matrix.T, jacobian.numpy(), atol=1e-10)
        out = sae(row[None])
        np.testing.assert_allclose(row.numpy() @ region.matrix + region.offset, out.x_hat[0].detach().numpy(), atol=1e-9)
        active = np.nonzero(out.acts[0].detach().numpy())[0]
        np.testing.assert_array_equal(region.support, active)
        np.testing.assert_array_equal(region.signs, np.sign(out.acts[0, active].detach().numpy()))
        assert np.linalg.matrix_rank(region.matrix, tol=1e-9) <= len(region.support)


@given(st.integers(1, 8), st.integers(1, 8), seeds)
def test_claim_9_k_means_is_the_order_1_diagram_of_its_centroids(d, n, seed):
    centroids = normal_points(seed, n, d)
    x = normal_points(seed + 1, 60, d)
    nearest = ((x[:, None] - centroids) ** 2).sum(axis=2).argmin(axis=1)
    diagram = PowerDiagram(centroids)
    np.testing.assert_array_equal(diagram.assign(x)[:, 0], nearest)
    np.testing.assert_allclose(diagram.biases, -0.5 * (centroids**2).sum(axis=1))


@given(saes(activations=("TopK", "AbsTopK")), seeds)
def test_claim_9_no_sae_beats_local_pca_of_its_rank_on_its_own_partition(sae, seed):
    x = normal_points(seed, 120, sae.d_in)
    error = float(((sae(x).x_hat.detach().numpy() - x) ** 2).sum())
    labels, bound = regions_of(sae, x, margins=False).labels, 0.0
    for label in range(labels.max() + 1):
        part = x[labels == label]
        spectrum = np.linalg.svd(part - part.mean(axis=0), compute_uv=False)
        bound += float((spectrum[sae.activation.k :] ** 2).sum())
    assert error >= bound - 1e-9


@given(st.integers(2, 8), seeds, st.data())
def test_claim_10_the_count_is_that_of_all_subsets_that_own_a_cell(n, seed, data):
    rng = np.random.default_rng(seed)
    k = data.draw(st.integers(1, n))
    diagram = PowerDiagram(rng.normal(size=(n, 2)), data.draw(st.sampled_from([0.0, 1.0])) * rng.normal(size=n), k)
    radii = [chebyshev_centre(diagram, subset).radius for subset in diagram.subsets()]
    assume(min(abs(r) for r in radii) > 1e-6)
    assert count_cells(diagram) == sum(r > 0 for r in radii)


@given(st.integers(2, 25), seeds, st.data())
def test_claim_10_lees_bound_holds_for_equal_weights(n, seed, data):
    k = data.draw(st.integers(1, n - 1))
    diagram = PowerDiagram(np.random.default_rng(seed).normal(size=(n, 2)), None, k)
    assert 1 <= count_cells(diagram) <= (2 * k - 1) * n - (k * k - 1)


@pytest.mark.parametrize("activation", ["TopK", "AbsTopK", "ReLU", "JumpReLU"])
@given(data=st.data())
def test_margins_are_tight(activation, data):
    """One short of the margin the support never changes; one past it, towards the facet found, it does as announced."""
    sae = data.draw(saes(activations=(activation,), min_d=1))
    rng = np.random.default_rng(data.draw(seeds))
    x = rng.normal(size=sae.d_in)
    region = region_of(sae, x)
    if not np.isfinite(region.margin):
        assert region.entering == region.leaving == -1
        far = regions_of(sae, x + 1e3 * rng.normal(size=(50, sae.d_in)), margins=False)
        assert far.labels.max() == 0 or len(region.support) == 0
        return
    assume(region.margin > 1e-7)
    steps = rng.normal(size=(300, sae.d_in))
    steps /= np.linalg.norm(steps, axis=1, keepdims=True)
    short = regions_of(sae, np.concatenate([x[None], x + region.margin * (1 - 1e-6) * steps]), margins=False)
    assert short.labels.max() == 0
    W = sae.W_enc.detach().numpy().T
    grow = W[region.entering] if region.entering >= 0 else np.zeros(sae.d_in)
    shrink = W[region.leaving] if region.leaving >= 0 else np.zeros(sae.d_in)
    expected = set(region.support.tolist()) - {region.leaving} | ({region.entering} - {-1})
    signs = (1, -1) if activation == "AbsTopK" else (1,)
    reached = []
    for s in signs:
        for t in signs:
            direction = s * grow - t * shrink
            if np.linalg.norm(direction) > 0:
                past = x + region.margin * (1 + 1e-6) * direction / np.linalg.norm(direction)
                reached.append(set(region_of(sae, past).support.tolist()))
    assert expected in reached
