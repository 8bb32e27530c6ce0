"""Nested parts of a code: one decoding gives what decoding each part gives."""

from __future__ import annotations

import pytest
import torch

from splinterp import SAE, ReLU, TopK
from splinterp.activations import GroupedActs, TopActs
from splinterp.losses import Forward, HierarchicalTopK, Matryoshka, SquaredError
from splinterp.protocol import SparseModel
from splinterp.sparse_kernels import decode_nested
from tests.helpers import DECODERS, rng, samples
from tests.losses.cases import make

X = samples(40, dtype=torch.float64)


def results(sae, decode, by_latent=True, sorted_depth=False):
    """Parts and gradients of a fixed random function of them."""
    sae.zero_grad()
    code = sae.code(X)
    if isinstance(code, GroupedActs) and not by_latent:
        code = TopActs(*code)
    shape = code.top_acts.shape if isinstance(code, TopActs) else code.shape[1:]
    depth = torch.randint(0, 5, shape, generator=rng(3))  # 4 is in no part, and some parts of a sample are empty
    depth = depth.sort().values if sorted_depth else depth
    parts = torch.stack(list(decode(code, depth, 4)))
    (parts * torch.randn(parts.shape, dtype=parts.dtype, generator=rng(5))).sum().backward()
    return parts.detach(), {name: p.grad.clone() for name, p in sae.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize(
    ("activation", "options"),
    [
        ("TopK", {}),
        ("TopK", {"by_latent": False}),
        ("AbsTopK", {}),
        ("ReLU", {}),
        ("ReLU", {"sorted_depth": True}),
        ("JumpReLU", {"sorted_depth": True}),
    ],
)
def test_parts_are_those_of_the_definition(activation, options, decoder):
    sae = make(activation, decoder)
    found = results(sae, sae.decode_nested, **options)
    expected = results(sae, lambda *args: SparseModel.decode_nested(sae, *args), **options)
    torch.testing.assert_close(found, expected)


def test_a_decode_of_ones_own_decodes_every_part():
    class Doubled(SAE):
        def decode(self, acts):
            return 2 * super().decode(acts)

    for activation in (TopK(2), ReLU()):
        sae = Doubled(6, 40, activation, dtype=torch.float64, generator=0)
        term = Matryoshka(widths=(10, 20))
        out = Forward(sae, X[:, :6])
        z = sae.encode(X[:, :6])
        errors = [(X[:, :6] - 2 * (z[:, :p] @ sae.W_dec[:p] + sae.b_dec)).square().mean() for p in (10, 20, 40)]
        torch.testing.assert_close(term(out, {}), sum(errors) / 3)


def test_frozen_blocks_get_no_gradient():
    sae = make("TopK")
    sae.W_dec.requires_grad_(False)
    HierarchicalTopK(levels=(1, 3))(Forward(sae, X), {}).backward()
    assert sae.W_dec.grad is None
    assert sae.W_enc.grad.abs().sum() > 0
    for p in (sae.W_enc, sae.b_enc):
        p.requires_grad_(False)
    sae.W_dec.requires_grad_(True)
    sae.zero_grad()
    HierarchicalTopK(levels=(1, 3))(Forward(sae, X), {}).backward()
    assert sae.W_enc.grad is None
    assert sae.W_dec.grad.abs().sum() > 0


def test_no_sample_and_no_latent():
    W_dec, b_dec = torch.randn(5, 3, generator=rng()), torch.randn(3, generator=rng(1))
    none = torch.zeros(0, 2, dtype=torch.int64)
    assert decode_nested(none.float(), none, none, 3, W_dec, b_dec).shape == (3, 0, 3)
    only = decode_nested(torch.ones(1, 2), torch.tensor([[0, 1]]), torch.tensor([[9, 9]]), 2, W_dec, b_dec)
    torch.testing.assert_close(only, b_dec.expand(2, 1, 3))
    with pytest.raises(ValueError, match="has the index 5"):
        decode_nested(torch.ones(1, 2), torch.tensor([[0, 5]]), torch.tensor([[0, 1]]), 2, W_dec, b_dec)


def test_codes_of_ones_own_are_what_gradients_see():
    class Whole(Matryoshka):
        def codes(self, out):
            yield 1.0, out.code

    sae = make("TopK")
    torch.testing.assert_close(Whole(widths=(4,))(Forward(sae, X), {}), SquaredError()(Forward(sae, X), {}))
