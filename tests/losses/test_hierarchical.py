"""HierarchicalTopK: ranks of unordered codes, limits, ties of zeros."""

from __future__ import annotations

import pytest
import torch

from splinterp.losses import Forward, HierarchicalTopK, SquaredError
from tests.helpers import DECODERS, samples
from tests.losses.cases import as_dense, codes_of, make, no_sparse_training, value_and_gradients

X = samples(60, dtype=torch.float64)


@pytest.mark.parametrize("sparse", [True, False])
@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("activation", ["TopK", "AbsTopK"])
def test_the_one_level_k_is_the_squared_error(activation, decoder, sparse, monkeypatch):
    if not sparse:
        no_sparse_training(monkeypatch)
    sae = make(activation, decoder)
    one, plain = (value_and_gradients(term, sae, X) for term in (HierarchicalTopK(levels=(3,)), SquaredError()))
    assert torch.equal(one[0], plain[0])
    assert all(torch.equal(one[1][name], plain[1][name]) for name in plain[1])


@pytest.mark.parametrize("sparse", [True, False])
@pytest.mark.parametrize("activation", ["TopK", "AbsTopK"])
def test_levels_keep_the_largest_codes(activation, sparse, monkeypatch):
    if not sparse:
        no_sparse_training(monkeypatch)
    sae = make(activation)
    z = sae.encode(X).detach()
    for level, (weight, code) in zip((1, 2), codes_of(HierarchicalTopK(levels=(1, 2)), sae, X), strict=True):
        kept = z.abs().topk(level, dim=1).indices
        expected = torch.zeros_like(z).scatter(1, kept, z.gather(1, kept))
        assert weight == 0.5
        torch.testing.assert_close(code, expected)
        assert (code < 0).any() == (activation == "AbsTopK")


def test_kept_codes_come_in_no_order():
    """Else the test above would not see that they are ranked."""
    values = Forward(make(), X).values()
    assert (values[:, 1:] > values[:, :-1]).any()


@pytest.mark.parametrize("sparse", [True, False])
def test_zeros_that_tie_do_not_matter(sparse, monkeypatch):
    """Where fewer than k scores are positive, the kept zeros rank somewhere among themselves."""
    if not sparse:
        no_sparse_training(monkeypatch)
    sae = make()
    with torch.no_grad():
        sae.b_enc -= 2.0
    out = Forward(sae, X)
    assert (out.acts != 0).sum(1).min() < 2
    term = HierarchicalTopK(levels=(1, 2, 3))
    parts = [as_dense(code, sae) for _, code in term.codes(out)]
    assert torch.equal(parts[2], out.acts)
    for level, part in zip((1, 2), parts, strict=False):
        assert torch.equal((part != 0).sum(1), (out.acts != 0).sum(1).clamp_max(level))
    assert torch.isfinite(value_and_gradients(term, sae, X)[0])


def test_weights():
    sae = make()
    values = [HierarchicalTopK(levels=levels)(Forward(sae, X), {}) for levels in ((1,), (3,))]
    both = HierarchicalTopK(levels=(1, 3), weights=(1.0, 0.125))(Forward(sae, X), {})
    torch.testing.assert_close(both, values[0] + 0.125 * values[1])
