"""OrtSAE: limits, its definition, chunks, signs."""

from __future__ import annotations

import pytest
import torch

from splinterp import SAE, SGD, AbsTopK, ReLU
from splinterp.losses import Forward, OrtSAE
from tests.helpers import DECODERS, rng, samples
from tests.losses.cases import make, value_and_gradients

X = samples(20, dtype=torch.float64)


def with_rows(rows, activation=None):
    m, d = rows.shape
    sae = SAE(d, m, activation or ReLU(), dtype=torch.float64, generator=rng(0))
    with torch.no_grad():
        sae.W_dec.copy_(rows)
    return Forward(sae, torch.zeros(2, d, dtype=torch.float64)), sae


def value(rows, activation=None, **options):
    out, sae = with_rows(rows, activation)
    term = OrtSAE(**options)
    return float(term(out, term.init(sae)).detach())


def test_orthonormal_rows_give_0_and_duplicates_1():
    basis = torch.linalg.qr(torch.randn(8, 8, generator=rng(1), dtype=torch.float64)).Q
    assert value(basis) == pytest.approx(0.0, abs=1e-25)
    assert value(torch.cat([basis, 3 * basis])) == pytest.approx(1.0)


def test_opposite_rows_are_duplicates_for_signed_codes_only():
    basis = torch.eye(3, dtype=torch.float64)
    rows = torch.cat([basis, -basis])
    assert value(rows) == 0.0
    assert value(rows, AbsTopK(2)) == 1.0


def test_one_chunk_is_its_definition():
    rows = torch.randn(9, 5, generator=rng(2), dtype=torch.float64)
    unit = rows / rows.norm(dim=1, keepdim=True)
    cosines = unit @ unit.T
    largest = [max(float(cosines[i, j]) for j in range(9) if j != i) for i in range(9)]
    assert value(rows) == pytest.approx(sum(c**2 for c in largest) / 9)


@pytest.mark.parametrize(("m", "chunk"), [(9, 4), (3, 2), (5, 2), (8, 8), (10, 3)])
def test_chunks_deal_every_row_once_and_none_alone(m, chunk, monkeypatch):
    seen = []

    def spy(rows, signed):
        seen.append(rows)
        return rows.sum(1)

    monkeypatch.setattr("splinterp.losses.orthogonality._largest_cosines", spy)
    rows = torch.randn(m, 4, generator=rng(3), dtype=torch.float64)
    value(rows, chunk=chunk)
    assert all(2 <= len(part) <= chunk + 1 for part in seen)
    assert torch.equal(torch.cat(seen).sum(1).sort().values, rows.sum(1).sort().values)


def test_rows_are_dealt_anew_by_the_state():
    out, sae = with_rows(torch.randn(32, 4, generator=rng(4), dtype=torch.float64))
    term = OrtSAE(chunk=4)
    state = term.init(sae)
    first = [term(out, state).item() for _ in range(4)]
    assert len(set(first)) == 4
    other = term.init(sae)
    assert [term(out, other).item() for _ in range(4)] == first
    other["generator"].copy_(state["generator"])
    assert term(out, other).item() == term(out, state).item()
    assert OrtSAE(chunk=4, seed=1)(out, OrtSAE(seed=1).init(sae)).item() not in first


def test_rows_of_zeros_stay_finite():
    out, sae = with_rows(torch.cat([torch.eye(3), torch.zeros(2, 3)]).double())
    found = OrtSAE()(out, OrtSAE().init(sae))
    found.backward()
    assert found == 0
    assert torch.isfinite(sae.W_dec.grad).all()
    assert sae.W_dec.grad.abs().max() < 10


@pytest.mark.parametrize("decoder", DECODERS)
def test_gradients_reach_what_the_decoder_is_made_of(decoder):
    sae = make("TopK", decoder)
    _, gradients = value_and_gradients(OrtSAE(), sae, X)
    moved = {name for name, gradient in gradients.items() if gradient.abs().max() > 0}
    assert moved == {"free": {"W_dec"}, "tied": {"W_enc"}, "tied_residual": {"W_enc", "residual"}}[decoder]


def test_gradient_steps_spread_the_rows():
    sae = make("TopK", "tied")
    term = OrtSAE(weight=5.0)
    before = float(value_and_gradients(term, sae, X)[0])
    method = SGD(terms=(*SGD().terms, term), lr=1e-2)
    state = method.init(sae, X)
    for _ in range(30):
        method.step(sae, state, X)
    assert float(value_and_gradients(term, sae, X)[0]) < 0.7 * before


def test_one_latent_is_refused():
    with pytest.raises(ValueError, match="n_latents=1 must be at least 2"):
        SGD(terms=(*SGD().terms, OrtSAE())).init(SAE(2, 1, ReLU()), torch.randn(4, 2))
