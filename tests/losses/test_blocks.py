"""Several SAEs in one: blocks are SAEs of their own, the solve is of all of them, mutual features."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from splinterp import PAMSGD, SAE, SGD, ReLU, TopK, fit
from splinterp.activations import BlockTopK
from splinterp.geometry import region_of
from splinterp.losses import Blocks, Forward, Mutual, SquaredError
from splinterp.metrics import mean_max_cosine
from tests.helpers import rng, samples
from tests.losses.cases import value_and_gradients

X = samples(60, dtype=torch.float64)


def make(m=36, k=6, blocks=3, seed=1, decoder="free", dtype=torch.float64):
    sae = SAE(8, m, BlockTopK(k, blocks), decoder, generator=rng(seed), dtype=dtype)
    with torch.no_grad():
        sae.b_enc.copy_(0.1 * torch.randn(m, generator=rng(2), dtype=torch.float64))
    return sae


@given(
    blocks=st.integers(1, 4), each=st.integers(1, 3), width=st.integers(3, 6), seed=st.integers(0, 10**6), ties=st.booleans()
)
def test_each_block_is_a_topk(blocks, each, width, seed, ties):
    u = torch.randn(7, blocks * width, generator=rng(seed), dtype=torch.float64)
    u = u.round() if ties else u
    found = BlockTopK(blocks * each, blocks)(u)
    assert torch.equal(found, torch.cat([TopK(each)(part) for part in u.split(width, 1)], 1))


def test_blocks_are_saes_of_their_own():
    sae, term = make(), Blocks(blocks=3)
    _, gradients = value_and_gradients(term, sae, X)
    for j in range(3):
        rows = slice(12 * j, 12 * j + 12)
        alone = SAE(8, 12, TopK(2), generator=0, dtype=torch.float64)
        with torch.no_grad():
            alone.W_enc.copy_(sae.W_enc[:, rows])
            alone.b_enc.copy_(sae.b_enc[rows])
            alone.W_dec.copy_(sae.W_dec[rows])
        _, own = value_and_gradients(SquaredError(), alone, X)
        torch.testing.assert_close(gradients["W_enc"][:, rows], own["W_enc"] / 3)
        torch.testing.assert_close(gradients["W_dec"][rows], own["W_dec"] / 3)


def test_one_block_is_the_squared_error():
    sae = make(blocks=1, k=3)
    ours, theirs = value_and_gradients(Blocks(blocks=1), sae, X), value_and_gradients(SquaredError(), sae, X)
    torch.testing.assert_close(ours, theirs)


def test_the_solve_is_least_squares_of_every_block():
    sae = make(m=12, k=6)
    method = PAMSGD(terms=(Blocks(blocks=3),), ridge=0.0)
    state = method.init(sae, X)
    z = sae.encode(X).detach()
    method.decoder_step(sae, state, X.split(20))
    one = torch.ones(60, 1, dtype=torch.float64)
    masks = [(torch.arange(12) // 4 == j) for j in range(3)]
    rows = torch.cat([torch.cat([z * mask, one], 1) for mask in masks])
    best = torch.linalg.lstsq(rows, X.repeat(3, 1), driver="gelsd").solution
    found = torch.cat([sae.W_dec.detach(), sae.b_dec.detach()[None]])
    left = [float((X.repeat(3, 1) - rows @ solution).square().sum()) for solution in (found, best)]
    assert left[0] == pytest.approx(left[1], rel=1e-9)


def test_mutual_features_are_by_definition_and_none_of_identical_blocks():
    sae, term = make(), Mutual(blocks=3)
    rows = sae.W_dec.detach().chunk(3)
    expected = sum(1 - mean_max_cosine(rows[a], rows[b]) for a in range(3) for b in range(3) if a != b) / 6
    value, gradients = value_and_gradients(term, sae, X)
    assert float(value) == pytest.approx(expected)
    assert gradients["W_dec"].abs().max() > 0
    with torch.no_grad():
        sae.W_dec.copy_(rows[0].repeat(3, 1))
    value, gradients = value_and_gradients(term, sae, X)
    assert float(value) == pytest.approx(0.0, abs=1e-12)
    assert gradients["W_dec"].abs().max() < 1e-12


def test_blocks_that_are_drawn_together_are_more_alike(tmp_path):
    alike = []
    for weight in (0.0, 0.3):
        terms = (Blocks(blocks=2), Mutual(blocks=2, weight=weight))
        sae = SAE(8, 64, BlockTopK(4, 2), generator=rng(1))
        assert sae.trains_sparse
        fit(sae, X.float(), SGD(terms=terms, lr=1e-2), epochs=30, batch_size=30, generator=0)
        a, b = sae.W_dec.detach().chunk(2)
        alike.append(mean_max_cosine(a, b))
    assert alike[1] > alike[0] + 0.05
    sae.save(tmp_path)
    assert torch.equal(SAE.load(tmp_path).encode(X.float()), sae.encode(X.float()))


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: BlockTopK(4, 3), ValueError, "k=4 is not a multiple of blocks=3"),
        (lambda: SAE(8, 10, BlockTopK(4, 4)), ValueError, "n_latents=10 is not a multiple"),
        (lambda: Blocks(blocks=0), ValueError, "blocks=0"),
        (lambda: Mutual(blocks=1), ValueError, "blocks=1"),
        (
            lambda: SGD(terms=(Blocks(blocks=5),)).init(SAE(8, 12, ReLU()), X.float()),
            ValueError,
            "does not divide n_latents=12",
        ),
        (lambda: region_of(make().eval(), X[0]), TypeError, "BlockTopK"),
    ],
)
def test_what_cannot_be_is_refused(call, error, words):
    with pytest.raises(error, match=words):
        call()


def test_k_may_fall_to_its_own_value():
    fit(make(dtype=torch.float32), X.float(), SGD(k_start=11, k_share=0.5), epochs=4, batch_size=20, generator=0)


def test_blocks_without_latents_that_fire_are_the_bias():
    sae = make()
    with torch.no_grad():
        sae.b_enc.fill_(-100.0)
    out = Forward(sae, X)
    torch.testing.assert_close(Blocks(blocks=3)(out, {}).detach(), (X - sae.b_dec).square().mean().detach())
