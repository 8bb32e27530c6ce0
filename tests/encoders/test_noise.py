"""Noise is in gradient steps alone, of the size that is said, and repeats with the state."""

from __future__ import annotations

import pytest
import torch

from splinterp import PAMSGD, SAE, SGD, AbsTopK, ReLU, TopK, fit
from splinterp.encoders import InputNoise, Variational
from splinterp.losses import GaussianPrior, SquaredError
from splinterp.metrics import evaluate
from tests.encoders.cases import make
from tests.helpers import rng, samples

X = samples(200, dtype=torch.float64)
NAMES = pytest.mark.parametrize("name", ["InputNoise", "Variational"])


@NAMES
def test_noise_is_drawn_anew_in_gradient_steps_and_nowhere_else(name):
    sae = make(name).train()
    first, second = sae(X).x_hat, sae(X).x_hat
    assert not torch.equal(first, second)
    with torch.no_grad():
        assert torch.equal(sae(X).x_hat, sae(X).x_hat)
    sae.eval()
    assert torch.equal(sae(X).x_hat, sae(X).x_hat)


@NAMES
def test_the_state_says_what_comes(name):
    sae, other = make(name).train(), make(name).train()
    sae(X)
    other.load_state_dict(sae.state_dict())
    assert torch.equal(sae(X).x_hat, other(X).x_hat)
    before = torch.random.get_rng_state()
    sae(X)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_noise_has_its_size():
    x = torch.zeros(4_000, 8, dtype=torch.float64)
    sae = SAE(8, 8, ReLU(), encoder=InputNoise(0.3), dtype=torch.float64, generator=0).train()
    with torch.no_grad():
        sae.W_enc.copy_(torch.eye(8))
    assert float(sae.pre_acts(x).detach().std()) == pytest.approx(0.3, rel=0.02)
    sae = SAE(8, 8, AbsTopK(8), encoder=Variational(0.3), dtype=torch.float64, generator=0).train()
    assert float(sae.encode(x).detach().std()) == pytest.approx(0.3, rel=0.02)
    assert not torch.equal(
        SAE(8, 8, ReLU(), encoder=InputNoise(0.3, seed=1), generator=0).train().pre_acts(x), sae.pre_acts(x).float()
    )


def test_little_noise_is_none():
    plain = SAE(8, 12, TopK(3), dtype=torch.float64, generator=0)
    for encoder in (InputNoise(1e-9), Variational(1e-9)):
        sae = SAE(8, 12, TopK(3), encoder=encoder, dtype=torch.float64, generator=0).train()
        torch.testing.assert_close(sae.encode(X), plain.encode(X), atol=1e-7, rtol=0)


@pytest.mark.parametrize("method", [SGD, PAMSGD])
def test_a_variational_sae_trains_and_is_worse_than_its_limit(method):
    errors = []
    for encoder, terms in ((None, (SquaredError(),)), (Variational(1.0), (SquaredError(), GaussianPrior(weight=1e-2)))):
        sae = SAE(8, 32, AbsTopK(3), "tied_residual", encoder=encoder, generator=rng(1))
        fit(sae, X.float(), method(lr=1e-2, terms=terms), epochs=20, batch_size=32, x_val=samples(60, seed=3), generator=0)
        errors.append(evaluate(sae, X.float()).fvu)
    assert errors[0] < errors[1] < 1


@pytest.mark.parametrize("make_encoder", [lambda: InputNoise(0.0), lambda: Variational(-1.0)])
def test_noise_of_no_size_is_refused(make_encoder):
    with pytest.raises(ValueError, match="must be greater than 0"):
        make_encoder()
