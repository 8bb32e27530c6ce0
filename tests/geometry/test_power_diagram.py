"""PowerDiagram: its contract, conversions and errors. Claims are in tests/properties."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from splinterp import SAE, AbsTopK, BatchTopK, JumpReLU, ReLU, TopK
from splinterp.geometry import PowerDiagram, _arrays
from tests.helpers import make_sae, samples


def random_diagram(n: int = 12, d: int = 3, order: int = 2, seed: int = 0) -> PowerDiagram:
    rng = np.random.default_rng(seed)
    return PowerDiagram(rng.normal(size=(n, d)), rng.normal(size=n), order)


def test_takes_arrays_and_tensors_and_returns_numpy():
    sites, weights = samples(6, 3), torch.rand(6)
    one = PowerDiagram(sites, weights, order=2)
    two = PowerDiagram(sites.numpy(), weights.numpy(), order=np.int64(2))
    x = samples(20, 3, seed=1)
    np.testing.assert_array_equal(one.assign(x), two.assign(x.numpy()))
    assert one.assign(x).dtype == np.int64
    assert one.assign(x).shape == (20, 2)
    assert one.power(x).dtype == np.float64
    assert one.assign(x.half()).shape == (20, 2)


def test_a_diagram_keeps_its_own_copy():
    sites = np.random.default_rng(0).normal(size=(5, 2))
    diagram = PowerDiagram(sites)
    sites[:] = 0
    assert (diagram.sites != 0).all()
    sae = make_sae("TopK", dtype=torch.float64)
    of_sae = PowerDiagram.from_sae(sae)
    before = of_sae.sites.copy()
    with torch.no_grad():
        sae.W_enc.zero_()
    np.testing.assert_array_equal(of_sae.sites, before)


def test_blocks_do_not_change_the_assignment(monkeypatch):
    diagram, x = random_diagram(40, 4, 5), np.random.default_rng(1).normal(size=(100, 4))
    whole = diagram.assign(x)
    monkeypatch.setattr(_arrays, "BLOCK_BYTES", 1)  # one row at a time
    np.testing.assert_array_equal(diagram.assign(x), whole)
    assert diagram.assign(x[:0]).shape == (0, 5)


def test_equal_sites_go_to_the_lowest_index_in_any_dimension():
    rng = np.random.default_rng(0)
    sites = rng.normal(size=(30, 50))[rng.integers(0, 30, size=200)]
    diagram = PowerDiagram(sites, order=1)
    chosen = diagram.assign(rng.normal(size=(300, 50)))[:, 0]
    first = np.array([np.nonzero((sites == sites[c]).all(axis=1))[0][0] for c in chosen])
    np.testing.assert_array_equal(chosen, first)
    plane = diagram.restrict(np.zeros(50), np.eye(50)[:2])
    chosen = plane.assign(rng.normal(size=(300, 2)))[:, 0]
    first = np.array([np.nonzero((sites == sites[c]).all(axis=1))[0][0] for c in chosen])
    np.testing.assert_array_equal(chosen, first)


def test_from_sae_uses_the_input_centre():
    sae = SAE(4, 9, TopK(2), b_pre=True, dtype=torch.float64)
    with torch.no_grad():
        sae.b_pre.copy_(torch.tensor([3.0, -1.0, 0.5, 2.0]))
    x = samples(100, 4, dtype=torch.float64)
    kept = np.sort(sae.pre_acts(x).topk(2, dim=1).indices.numpy(), axis=1)
    np.testing.assert_array_equal(PowerDiagram.from_sae(sae).assign(x), kept)


def test_abs_top_k_has_signed_sites():
    sae = make_sae("AbsTopK", dtype=torch.float64)
    diagram = PowerDiagram.from_sae(sae)
    assert diagram.n_sites == 2 * sae.n_latents
    np.testing.assert_array_equal(diagram.sites[sae.n_latents :], -diagram.sites[: sae.n_latents])
    W_enc, b_enc = diagram.to_encoder()
    assert W_enc.shape == (sae.d_in, 2 * sae.n_latents)
    np.testing.assert_array_equal(W_enc[:, : sae.n_latents], sae.W_enc.detach().numpy())
    np.testing.assert_array_equal(b_enc[: sae.n_latents], sae.b_enc.detach().numpy())


@pytest.mark.parametrize("activation", [ReLU(), JumpReLU(), BatchTopK(2)])
def test_other_activations_are_sent_to_slice_cells(activation):
    sae = SAE(4, 6, activation).eval()
    if isinstance(activation, BatchTopK):
        sae.activation.threshold.fill_(0.1)
    with pytest.raises(TypeError, match="slice_cells"):
        PowerDiagram.from_sae(sae)


def test_errors_name_the_value_and_the_fix():
    sites = np.random.default_rng(0).normal(size=(5, 3))
    with pytest.raises(ValueError, match="order=6 must be between 1 and n_sites=5"):
        PowerDiagram(sites, order=6)
    with pytest.raises(ValueError, match="order=0"):
        PowerDiagram(sites, order=0)
    with pytest.raises(TypeError):
        PowerDiagram(sites, order=2.0)
    with pytest.raises(ValueError, match="4 columns|expected"):
        PowerDiagram(sites, np.zeros(4))
    with pytest.raises(TypeError, match="dtype int64"):
        PowerDiagram(np.zeros((3, 2), dtype=int))
    with pytest.raises(ValueError, match="non-finite"):
        PowerDiagram(np.array([[np.nan, 0.0]]))
    with pytest.raises(ValueError, match="at least one site"):
        PowerDiagram(np.zeros((0, 2)))
    with pytest.raises(ValueError, match="3 are expected"):
        PowerDiagram(sites).assign(np.zeros((4, 2)))
    with pytest.raises(ValueError, match=r"restrict\(origin, basis\)"):
        PowerDiagram(sites).cells((0, 1, 0, 1))
    with pytest.raises(ValueError, match="off by .*numpy.linalg.qr"):
        PowerDiagram(sites).restrict(np.zeros(3), np.array([[1.0, 0, 0], [0, 1.0 + 2e-6, 0]]))
    with pytest.raises(ValueError, match="352716 subsets"):
        PowerDiagram(np.random.default_rng(0).normal(size=(21, 2)), order=10).flatten()
    with pytest.raises(ValueError, match="factor=0"):
        PowerDiagram(sites).scale(0.0)
    with pytest.raises(ValueError, match="gain=-1"):
        PowerDiagram(sites).regauge(-1.0)


def test_restrict_takes_a_basis_orthonormal_to_1e_6():
    diagram = random_diagram()
    basis = np.eye(3)[:2] * (1 + 4e-7)
    assert diagram.restrict(np.zeros(3), basis).d == 2


def test_a_batch_top_k_needs_its_threshold():
    from splinterp.geometry import region_of

    sae = SAE(4, 6, BatchTopK(2))
    with pytest.raises(RuntimeError, match="inference threshold"):
        region_of(sae, torch.zeros(4))
    with pytest.raises(TypeError):
        region_of(torch.nn.Linear(2, 2), torch.zeros(2))


def test_repr_says_what_it_is():
    assert repr(random_diagram()) == "PowerDiagram(n_sites=12, d=3, order=2)"


def test_order_1_of_abs_top_k_is_a_voronoi_diagram_of_unit_directions():
    sae = SAE(3, 5, AbsTopK(1), dtype=torch.float64)
    with torch.no_grad():
        sae.W_enc /= sae.W_enc.norm(dim=0)
    diagram = PowerDiagram.from_sae(sae)
    x = samples(50, 3, dtype=torch.float64).numpy() - 0.5
    nearest = ((x[:, None] - diagram.sites) ** 2).sum(axis=2).argmin(axis=1)
    np.testing.assert_array_equal(diagram.assign(x)[:, 0], nearest)
