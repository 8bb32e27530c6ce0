"""Training is shift-equivariant: on x + c it gives what it gives on x, with centre and b_dec moved by c."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from splinterp import PAMSGD, SAE, SGD, BiasAdaptation, ReLU, TopK, fit
from splinterp.baselines import PCAAutoencoder
from splinterp.geometry import region_of
from splinterp.interop import load_saelens, save_saelens
from splinterp.losses import AuxK, Matryoshka, SquaredError
from splinterp.training import Refresh, start_at_mean
from tests.helpers import ACTIVATIONS, DECODERS, NO_BIAS, rng

METHODS = {
    "SGD": SGD(lr=1e-2),
    "AdamW": SGD(lr=1e-2, optimizer="adamw", weight_decay=0.1),
    "AdamW on biases": SGD(lr=1e-2, optimizer="adamw", weight_decay=0.1, decay_biases=True),
    "PAM-SGD": PAMSGD(lr=1e-2, solve_gap=1),
    "held": PAMSGD(lr=1e-2, hold=0.5, solve_gap=1),
    "a stream": PAMSGD(lr=1e-2, when=Refresh(every=3)),
    "terms": PAMSGD(lr=1e-2, terms=(Matryoshka(widths=(4,)), AuxK(dead_after=50))),
    "bias adaptation": BiasAdaptation(base=SGD(lr=1e-2), groups=2, every=3, gain=1.0),
    "squared error alone": SGD(lr=1e-2, terms=(SquaredError(),), clip=0.1),
}


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("activation", ["ReLU", "TopK", "JumpReLU", "BatchTopK", "AbsTopK", "FeatureChoice"])
@pytest.mark.parametrize("name", METHODS)
def test_a_shift_of_the_data_moves_centre_and_bias(name, activation, decoder):
    if (name == "bias adaptation" and activation in NO_BIAS) or (name == "held" and decoder != "tied_residual"):
        return
    x = torch.randn(120, 6, generator=rng(2), dtype=torch.float64)
    for b_pre in ("fixed", True):
        for size in (1e-2, 30.0, 1e4):
            c = size * torch.randn(6, generator=rng(3), dtype=torch.float64)
            found = []
            for data in (x, x + c):
                sae = SAE(6, 16, ACTIVATIONS[activation], decoder, b_pre=b_pre, dtype=torch.float64, generator=1)
                row = fit(sae, data, METHODS[name], epochs=4, batch_size=30, generator=5).history[-1]
                found.append((sae, row))
            (plain, row), (shifted, shifted_row) = found
            tolerance = {"rtol": 1e-6, "atol": 1e-9 * max(1.0, size)}
            for parameter in ("W_enc", "b_enc", "W_dec"):
                torch.testing.assert_close(getattr(shifted, parameter), getattr(plain, parameter), **tolerance)
            torch.testing.assert_close(shifted.b_dec - c, plain.b_dec, **tolerance)
            torch.testing.assert_close(shifted.b_pre - c, plain.b_pre, **tolerance)
            assert shifted_row["train_fvu"] == pytest.approx(row["train_fvu"], rel=1e-6)
            assert shifted_row["l0"] == row["l0"]


@given(st.integers(0, 10**6), st.integers(1, 6), st.integers(2, 12), st.floats(0.0, 1e3))
def test_a_shift_of_any_small_problem(seed, d, m, size):
    g = rng(seed)
    x = torch.randn(24, d, generator=g, dtype=torch.float64)
    c = size * torch.randn(d, generator=g, dtype=torch.float64)
    fvus = [
        fit(SAE(d, m, TopK(1), dtype=torch.float64, generator=seed), data, SGD(), epochs=2, batch_size=8, generator=0).history[
            -1
        ]
        for data in (x, x + c)
    ]
    assert fvus[1]["train_fvu"] == pytest.approx(fvus[0]["train_fvu"], rel=1e-6)


def test_far_data_kill_no_latents():
    g = rng(4)
    x = torch.randn(1_000, 16, generator=g)
    direction = torch.nn.functional.normalize(torch.randn(16, generator=g), dim=0)
    dead = {}
    for b_pre in ("fixed", True, False):
        for offset in (0.0, 30.0):
            sae = SAE(16, 64, TopK(4), "tied_residual", b_pre=b_pre, generator=0)
            data = x + offset * x.norm(dim=1).mean() * direction
            if b_pre is False and offset:
                with pytest.warns(UserWarning, match=r"the mean of x is (29|3\d)\.\d times as long.*b_pre=.fixed"):
                    row = fit(sae, data, PAMSGD(), epochs=5, generator=0).history[-1]
            else:
                row = fit(sae, data, PAMSGD(), epochs=5, generator=0).history[-1]
            dead[b_pre, offset] = row["frac_dead"]
    assert dead["fixed", 0.0] == dead["fixed", 30.0] < 0.1
    assert dead[True, 30.0] < 0.1
    assert dead[False, 30.0] > 0.5


@pytest.mark.parametrize("b_pre", [False, True, "fixed"])
def test_the_centre_is_saved_loaded_exported_and_read_by_geometry(b_pre, tmp_path):
    x = 5 + torch.randn(200, 6, generator=rng(1))
    sae = SAE(6, 12, TopK(2), b_pre=b_pre, generator=2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit(sae, x, PAMSGD(), epochs=2, generator=3)
    if b_pre == "fixed":
        torch.testing.assert_close(sae.b_pre, x.mean(0))
    sae.save(tmp_path / "ours")
    loaded = SAE.load(tmp_path / "ours")
    assert torch.equal(loaded(x).x_hat, sae(x).x_hat)
    assert loaded.config() == sae.config()
    assert {name for name, _ in loaded.named_parameters()} == {name for name, _ in sae.named_parameters()}
    save_saelens(sae, tmp_path / "theirs")
    torch.testing.assert_close(load_saelens(tmp_path / "theirs")[0](x).x_hat, sae(x).x_hat, rtol=1e-4, atol=1e-4)
    region = region_of(sae, x[0])
    np.testing.assert_allclose(x[0].numpy() @ region.matrix + region.offset, sae(x[:1]).x_hat[0].detach(), rtol=1e-4, atol=1e-4)


def test_a_pca_as_an_sae_is_not_centred_twice():
    x = torch.randn(600, 16, generator=rng()) + 3
    sae = PCAAutoencoder(8).fit(x.numpy()).to_sae()
    before = sae(x).x_hat
    start_at_mean(sae, x)
    torch.testing.assert_close(sae(x).x_hat, before, rtol=1e-4, atol=1e-4)


def test_a_foreign_centre_may_be_a_buffer():
    class Foreign(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.W_enc = torch.nn.Parameter(torch.randn(6, 12, generator=rng()))
            self.W_dec = torch.nn.Parameter(torch.randn(12, 6, generator=rng(1)))
            self.b_enc, self.b_dec = (torch.nn.Parameter(torch.zeros(n)) for n in (12, 6))
            self.register_buffer("b_pre", torch.zeros(6))

        def encode(self, x):
            return torch.relu((x - self.b_pre) @ self.W_enc + self.b_enc)

    x = 30 + torch.randn(100, 6, generator=rng(2))
    sae = Foreign()
    fit(sae, x, SGD(), epochs=1)
    torch.testing.assert_close(sae.b_pre, x.mean(0))


def test_unknown_centres_are_refused():
    assert "b_pre" not in repr(SAE(4, 8, ReLU()))
    assert "b_pre=False" in repr(SAE(4, 8, ReLU(), b_pre=False))
    with pytest.raises(ValueError, match="b_pre='mean' is unknown"):
        SAE(4, 8, ReLU(), b_pre="mean")
