"""Tilted: limits, stability, weights."""

from __future__ import annotations

import pytest
import torch

from splinterp.losses import Forward, SquaredError, Tilted
from tests.helpers import samples
from tests.losses.cases import codes_of, make, value_and_gradients

X = samples(40, dtype=torch.float64)


@pytest.mark.parametrize("tilt", [1e-3, 1e-8, 1e-14, -1e-8])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_tiny_tilt_is_the_mean(tilt, dtype):
    sae, x = make(dtype=dtype), X.to(dtype)
    tilted, plain = (value_and_gradients(term, sae, x) for term in (Tilted(tilt=tilt), SquaredError()))
    eps = torch.finfo(dtype).eps
    tolerance = {"rtol": 30 * abs(tilt) + 1e3 * eps, "atol": abs(tilt) + 1e3 * eps}
    torch.testing.assert_close(tilted[0], plain[0], **tolerance)
    for name in plain[1]:
        torch.testing.assert_close(tilted[1][name], plain[1][name], **tolerance)


@pytest.mark.parametrize("tilt", [0.3, 2.0, -2.0])
def test_value_and_weights(tilt):
    sae = make()
    losses = (X - sae(X).x_hat).square().mean(1).detach()
    value = Tilted(tilt=tilt)(Forward(sae, X), {})
    torch.testing.assert_close(value.detach(), torch.exp(tilt * losses).mean().log() / tilt)
    [(weights, code)] = codes_of(Tilted(tilt=tilt), sae, X)
    torch.testing.assert_close(weights, 40 * torch.softmax(tilt * losses, 0))
    torch.testing.assert_close(code, sae.encode(X).detach())
    _, gradients = value_and_gradients(Tilted(tilt=tilt), sae, X)
    error = (X - sae(X).x_hat).square().mean(1)
    for p in sae.parameters():
        p.grad = None
    (error * weights / 40).sum().backward()
    torch.testing.assert_close(gradients["W_enc"], sae.W_enc.grad)


def test_large_tilts_are_the_extremes():
    sae = make()
    losses = (X - sae(X).x_hat).square().mean(1)
    for tilt, expected in ((1e5, losses.max()), (-1e5, losses.min())):
        value, gradients = value_and_gradients(Tilted(tilt=tilt), sae, X)
        torch.testing.assert_close(value, expected.detach(), rtol=1e-3, atol=1e-3)
        assert all(torch.isfinite(gradient).all() for gradient in gradients.values())
