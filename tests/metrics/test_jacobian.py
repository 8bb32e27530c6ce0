"""The Jacobian between codes against autograd."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from splinterp import SAE, AbsTopK, ReLU, TopK
from splinterp.metrics import MLP, active_jacobian
from tests.helpers import DECODERS, rng, samples

X = samples(5, dtype=torch.float64)


def mlp(activation=torch.nn.functional.gelu, d_out=6, seed=3):
    g = rng(seed)

    def drawn(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    return MLP(drawn(8, 10), drawn(10), drawn(10, d_out), drawn(d_out), activation)


def pair(first=TopK, second=TopK, decoder="free", seed=1):
    return (
        SAE(8, 12, first(3), decoder, dtype=torch.float64, generator=seed),
        SAE(6, 14, second(4), dtype=torch.float64, generator=seed + 1),
    )


@given(
    first=st.sampled_from([TopK, AbsTopK]), second=st.sampled_from([TopK, AbsTopK]), decoder=st.sampled_from(DECODERS),
    seed=st.integers(0, 10**6), activation=st.sampled_from([torch.tanh, torch.nn.functional.gelu, torch.relu]),
)  # fmt: skip
def test_it_is_autograds(first, second, decoder, seed, activation):
    a, b = pair(first, second, decoder, seed)
    between = mlp(activation, seed=seed)
    found = active_jacobian(a, between, b, X)
    for row, x in enumerate(X):
        whole = torch.autograd.functional.jacobian(
            lambda z: b.encode(between(a.decode(z[None])))[0], a.encode(x[None])[0].detach()
        )
        expected = whole.T[found.before[row]][:, found.after[row]]
        torch.testing.assert_close(found.values[row].detach(), expected, atol=1e-9, rtol=1e-7)


def test_a_linear_mlp_has_one_jacobian_for_given_supports():
    a, b = pair()
    found = active_jacobian(a, mlp(lambda h: h), b, X.repeat(2, 1) * torch.tensor([1.0] * 5 + [1.0001] * 5)[:, None])
    whole = a.W_dec @ mlp().W_in @ mlp().W_out @ b.W_enc
    for row in range(10):
        torch.testing.assert_close(found.values[row], whole[found.before[row]][:, found.after[row]])


def test_its_size_can_be_penalised():
    a, b = pair()
    active_jacobian(a, mlp(), b, X).values.abs().mean().backward()
    assert a.W_dec.grad.abs().max() > 0
    assert b.W_enc.grad.abs().max() > 0
    with torch.no_grad():
        assert not active_jacobian(a, mlp(), b, X).values.requires_grad


def test_what_cannot_be_is_refused():
    a, b = pair()
    with pytest.raises(ValueError, match="maps 8 to 5"):
        active_jacobian(a, mlp(d_out=5), b, X)
    with pytest.raises(TypeError, match="ReLU has no fixed number"):
        active_jacobian(SAE(8, 12, ReLU(), dtype=torch.float64), mlp(), b, X)
