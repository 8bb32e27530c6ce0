"""Samples that carry a graph: taken from a model without `no_grad`, or leaves that want a gradient."""

from __future__ import annotations

import pytest
import torch

from splinterp import PAMSGD, SGD, BiasAdaptation, fit
from splinterp.metrics import evaluate
from tests.helpers import make_sae, rng, samples

METHODS = {
    "SGD": SGD(),
    "PAM": PAMSGD(lr=0.01, solve_gap=1),
    "GBA": BiasAdaptation(base=PAMSGD(lr=0.01), groups=2, every=3, gain=1.0),
}


@pytest.mark.parametrize("activation", ["ReLU", "TopK", "AbsTopK"])
@pytest.mark.parametrize("kind", ["graph", "leaf", "inference"])
@pytest.mark.parametrize("name", METHODS)
def test_nothing_is_trained_through_the_samples(name, kind, activation):
    """The SAE alone is trained, to the same weights as without the graph."""
    if name == "GBA" and activation != "ReLU":
        pytest.skip("moves biases of ReLU")
    method, layer, raw = METHODS[name], torch.nn.Linear(8, 8), samples(120)
    with torch.inference_mode(kind == "inference"):
        x = layer(raw) if kind != "leaf" else raw.clone().requires_grad_()
    trained = []
    for data in (x, x.detach().clone()):
        sae = make_sae(activation, seed=4)
        fit(sae, data, method, epochs=2, batch_size=32, x_val=data[:40], generator=rng(2))
        state = method.init(sae, data, total_steps=4)
        method.step(sae, state, data[:32])
        trained.append([p.detach() for p in sae.parameters()])
        evaluate(sae, data)
    assert all(torch.equal(a, b) for a, b in zip(*trained, strict=True))
    assert layer.weight.grad is None
    assert kind != "leaf" or x.grad is None
    with torch.no_grad():
        assert not sae.encode(x).requires_grad


def test_a_model_is_still_trained_through_the_sae():
    layer = torch.nn.Linear(8, 8)
    make_sae("TopK").encode(layer(samples(20))).sum().backward()
    assert layer.weight.grad is not None
