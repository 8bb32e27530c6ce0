"""Every activation is the proximal map of its penalty: rho(u) minimises 1/2 |z - u|^2 + R(z)."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from splinterp import SAE, AbsTopK, BatchTopK, JumpReLU, ReLU, TopK
from splinterp.activations import Activation

values = st.sampled_from([-2.0, -1.0, -0.5, 0.0, 0.3, 0.5, 0.5, 1.0, 2.5])  # ties and zeros on purpose
scores = st.lists(values, min_size=1, max_size=6)


def penalties(m: int, k: int) -> list[Activation]:
    k = min(k, m)
    return [ReLU(), JumpReLU(threshold=0.5), JumpReLU(threshold=1.2), TopK(k), AbsTopK(k), BatchTopK(k)]


def cost(activation: Activation, z: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    return (0.5 * (z - u).square().sum() + activation.regularizer(z).max()).detach()


@given(u=scores, k=st.integers(1, 6), seed=st.integers(0, 10**6))
def test_beats_every_other_point(u, k, seed):
    u = torch.tensor([u], dtype=torch.float64)
    g = torch.Generator().manual_seed(seed)
    others = [u, u.relu(), torch.zeros_like(u), u.abs(), *(u + torch.randn(u.shape, generator=g) for _ in range(5))]
    others += [o * (torch.rand(u.shape, generator=g) < 0.5) for o in list(others)]
    for activation in penalties(u.shape[1], k):
        ours = cost(activation, activation(u), u)
        assert torch.isfinite(ours)
        for other in others:
            assert float(ours) <= float(cost(activation, other, u)) + 1e-9


@given(u=scores, k=st.integers(1, 6))
def test_equals_brute_force_over_supports(u, k):
    """For a fixed support the minimiser is u (clipped at 0 where codes must be non-negative): try all supports."""
    u = torch.tensor([u], dtype=torch.float64)
    m = u.shape[1]
    for activation in penalties(m, k):
        best = min(
            float(cost(activation, candidate, u))
            for support in itertools.product([0.0, 1.0], repeat=m)
            for candidate in (u * torch.tensor(support), u.relu() * torch.tensor(support))
        )
        assert float(cost(activation, activation(u), u)) == pytest.approx(best, abs=1e-9)


@given(st.lists(scores.filter(lambda s: len(s) == 3), min_size=1, max_size=3), st.integers(1, 3))
def test_batch_topk_is_the_projection_of_the_whole_batch(rows, k):
    u = torch.tensor(rows, dtype=torch.float64)
    acts = BatchTopK(k)(u)
    gain = u.relu().square().flatten().sort(descending=True).values[: k * len(u)].sum()
    assert float((acts != 0).sum()) <= k * len(u)
    assert float((u - acts).square().sum()) == pytest.approx(float((u - 0).square().sum() - gain), abs=1e-9)


@given(u=scores, k=st.integers(1, 6))
def test_sparse_form_scatters_to_the_dense_one(u, k):
    u = torch.tensor([u], dtype=torch.float64)
    for activation in (TopK(min(k, u.shape[1])), AbsTopK(min(k, u.shape[1]))):
        top = activation.top(u)
        assert top.top_acts.shape == (1, activation.k)
        assert len(set(top.top_indices[0].tolist())) == activation.k
        dense = torch.zeros_like(u).scatter(1, top.top_indices, top.top_acts)
        assert cost(activation, dense, u) == cost(activation, activation(u), u)


@given(u=scores)
def test_encoder_is_a_proximal_gradient_step_from_zero(u):
    """The code of a tied SAE minimises 1/2 |z - z1|^2 + R(z), z1 = a gradient step on 1/2 |x - z W|^2 from z = 0."""
    x = torch.tensor([u], dtype=torch.float64)
    W = torch.randn(4, x.shape[1], generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    z = torch.zeros(1, 4, dtype=torch.float64, requires_grad=True)
    (0.5 * (x - z @ W).square().sum()).backward()
    step = z.detach() - z.grad
    for activation in penalties(4, 2):
        sae = SAE(x.shape[1], 4, activation, decoder="tied", init_bias=0.0, dtype=torch.float64)
        with torch.no_grad():
            sae.W_enc.copy_(W.T)
        best = min(
            float(cost(activation, candidate, step))
            for support in itertools.product([0.0, 1.0], repeat=4)
            for candidate in (step * torch.tensor(support), step.relu() * torch.tensor(support))
        )
        assert float(cost(activation, sae.encode(x).detach(), step)) == pytest.approx(best, abs=1e-9)
