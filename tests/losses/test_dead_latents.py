"""AuxK: its formula, who gets gradients, when latents are dead."""

from __future__ import annotations

import pytest
import torch

from splinterp import SAE, SGD, TopK
from splinterp.losses import AuxK, Forward, SquaredError
from tests.helpers import DECODERS, rng, samples
from tests.losses.cases import make, value_and_gradients

X = samples(60, dtype=torch.float64)
TERM = AuxK(k_aux=2, dead_after=100)
DEAD = torch.arange(0, 32, 3)  # as `state_of` has it


def test_value_is_that_of_its_definition():
    sae = make()
    value, _ = value_and_gradients(TERM, sae, X)
    with torch.no_grad():
        out = sae(X)
        e = X - out.x_hat
        z = torch.zeros(60, 32, dtype=torch.float64)
        for r in range(60):
            best = sorted(DEAD.tolist(), key=lambda i: -float(out.pre_acts[r, i]))[:2]
            z[r, best] = out.pre_acts[r, best].relu()
        aux = (z @ sae.W_dec - e).square().mean()
        expected = aux * X.var(0, correction=0).mean() / e.var(0, correction=0).mean()
    torch.testing.assert_close(value, expected)


@pytest.mark.parametrize("activation", ["TopK", "AbsTopK", "ReLU"])
@pytest.mark.parametrize("decoder", DECODERS)
def test_gradients_reach_dead_latents_alone(decoder, activation):
    sae = make(activation, decoder)
    _, gradients = value_and_gradients(TERM, sae, X)
    live = torch.ones(32, dtype=torch.bool).index_fill(0, DEAD, False)
    own = {"free": "W_dec", "tied": "W_enc", "tied_residual": "residual"}[decoder]
    by_latent = {
        "W_enc": gradients["W_enc"].T,
        "b_enc": gradients["b_enc"],
        own: gradients[own] if own != "W_enc" else gradients[own].T,
    }
    for name, gradient in by_latent.items():
        assert gradient[live].abs().max() == 0, name
        assert gradient[~live].abs().max() > 0, name
    assert gradients["b_dec"].abs().max() == 0


def test_without_dead_latents_it_is_0():
    sae = make()
    out = Forward(sae, X)
    assert TERM(out, TERM.init(sae)) == 0
    assert "pre_acts" not in out.__dict__
    loss = SGD(terms=(AuxK(), SquaredError())).loss(sae, X)
    torch.testing.assert_close(loss, (X - sae(X).x_hat).square().mean())


def test_fewer_dead_latents_than_k_aux():
    sae, term = make(), AuxK(k_aux=20, dead_after=1)
    state = term.init(sae)
    state["silent"][5] = 1
    value = term(Forward(sae, X), state)
    assert torch.isfinite(value)
    value.backward()
    assert sae.b_enc.grad.count_nonzero() == 1


def test_a_residual_that_does_not_vary_gives_0():
    """Also one that is constant but for rounding."""
    sae = make(dtype=torch.float32)
    with torch.no_grad():
        for p in (sae.W_enc, sae.W_dec, sae.b_dec):
            p.zero_()
    for row in (torch.zeros(8), torch.full((8,), 0.1)):
        value, gradients = value_and_gradients(TERM, sae, row.expand(7, 8))
        assert value == 0
        assert all(torch.isfinite(gradient).all() for gradient in gradients.values())


def test_it_counts_samples_since_a_latent_fired():
    sae = SAE(2, 3, TopK(1), generator=rng(0))
    with torch.no_grad():
        sae.W_enc.copy_(torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]))
    term = AuxK(dead_after=5)
    method = SGD(terms=(SquaredError(), term), lr=1e-9)
    first, second = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    state = method.init(sae, torch.cat([first, second]))
    silent = state.terms[1]["silent"]
    assert silent.dtype == torch.int64
    for batch, expected in ((first.repeat(3, 1), [0, 3, 3]), (second.repeat(2, 1), [2, 0, 5]), (first, [0, 1, 6])):
        method.step(sae, state, batch)
        assert silent.tolist() == expected


def test_dead_latents_come_to_fire():
    """Latents whose scores are positive, and never among the largest, are left alone by the squared error alone."""
    x = samples(300, dtype=torch.float64)
    fired = {}
    for name, extra in (("without", ()), ("with", (AuxK(weight=1.0, dead_after=200),))):
        sae = make(init_bias=0.0)
        with torch.no_grad():
            sae.W_enc[:, :16] *= 0.01
            sae.b_enc[:16] = 0.01
        assert not Forward(sae, x).fired()[:16].any()
        method = SGD(terms=(SquaredError(), *extra), lr=0.01, schedule="constant")
        state = method.init(sae, x)
        for _ in range(30):
            for part in x.split(100):
                method.step(sae, state, part)
        fired[name] = int(Forward(sae, x).fired()[:16].sum())
    assert fired["without"] <= 1
    assert fired["with"] >= 4
