"""Data and settings that go wrong: refused before the first step, reported as divergence, or trained to finite numbers.

Every hazard meets every method, activation and decoder.
"""

from __future__ import annotations

import math
import re
import warnings

import numpy as np
import pytest
import torch

from splinterp import PAMSGD, SAE, SGD, BiasAdaptation, DivergenceError, JumpReLU, fit
from splinterp._checks import as_samples, whole
from splinterp.metrics import evaluate
from splinterp.training import Refresh
from tests.helpers import ACTIVATIONS, DECODERS, NO_BIAS, make_sae, rng, samples

METHODS = {
    "SGD": lambda **o: SGD(**o),
    "PAM-SGD": lambda **o: PAMSGD(solve_gap=1, **o),
    "published": lambda **o: PAMSGD.published(**o),
    "a stream": lambda **o: PAMSGD(when=Refresh(every=2), **o),
    "bias adaptation": lambda **o: BiasAdaptation(base=SGD(**o), groups=2, every=2, gain=1),
}
X = samples(90)
NAN, INFINITE, OUTLIER, CONSTANT_COLUMN = X.clone(), X.clone(), X.clone(), X.clone()
NAN[7, 3], INFINITE[80, 0], OUTLIER[5], CONSTANT_COLUMN[:, 2] = math.nan, -math.inf, 1e5 * X[5], 1.0

REFUSED = {
    "NaN": ({"x": NAN}, "1 non-finite entries, the first at index \\(7, 3\\)"),
    "infinity": ({"x": INFINITE}, "non-finite entries, the first at index \\(80, 0\\)"),
    "NaN in x_val": ({"x_val": NAN}, "x_val has 1 non-finite"),
    "all rows equal": ({"x": X[:1].expand(90, -1)}, "the 90 rows of x are all equal.*nothing to train on"),
    "first rows equal": ({"x": torch.cat([X[:1].expand(40, -1), X]), "train_eval_samples": 40}, "first 40 rows of x are all equal.*raise"),
    "x_val all equal": ({"x_val": X[:1].expand(9, -1)}, "the 9 rows of x_val are all equal"),
    "zeros": ({"x": torch.zeros(90, 8)}, "rows of x are all equal"),
    "entries of 1e-30": ({"x": 1e-30 * X}, "by the order of .*e-3.*range of float32: standardise"),
    "entries of 1e30": ({"x": 1e25 * X}, "by the order of .*e.2[45].*range of float32: standardise"),
    "one row": ({"x": X[:1]}, "at least 2 samples, got 1"),
    "one row of x_val": ({"x_val": X[:1]}, "x_val has 1 samples"),
    "another width": ({"x": X[:, :7]}, "7 columns but 8 are expected"),
    "sequences": ({"x": X.reshape(9, 10, 8)}, r"x.reshape\(90, 8\) gives \(90, 8\)"),
    "one sample": ({"x": X[0]}, r"x.reshape\(1, 8\) gives \(1, 8\)"),
    "integers": ({"x": X.long()}, "convert it first"),
}  # fmt: skip


@pytest.mark.parametrize("hazard", REFUSED)
@pytest.mark.parametrize("name", METHODS)
def test_what_cannot_be_trained_on_is_refused_before_the_first_step(name, hazard, monkeypatch):
    options, message = REFUSED[hazard]
    monkeypatch.setattr(SGD, "gradient_update", lambda *args: pytest.fail("trained"))
    for activation in ACTIVATIONS:
        if name == "bias adaptation" and activation in NO_BIAS:
            continue
        sae = make_sae(activation)
        before = {key: value.clone() for key, value in sae.state_dict().items()}
        with pytest.raises((TypeError, ValueError), match=message):
            fit(sae, **{"x": X, "x_val": X[:20], "epochs": 2, "method": METHODS[name](), **options})
        assert all(torch.equal(value, before[key]) or torch.isnan(value).all() for key, value in sae.state_dict().items())


TRAINED = {
    "few samples": {"x": X[:2]},
    "fewer than latents": {"x": X[:7]},
    "repeated rows": {"x": X[:5].repeat(20, 1)},
    "a constant column": {"x": CONSTANT_COLUMN},
    "an outlier": {"x": OUTLIER},
    "small units": {"x": 1e-4 * X},
    "large units": {"x": 1e5 * X},
    "far from the origin": {"x": X + 1e4},
    "float64 data": {"x": X.double()},
    "half data": {"x": X.half()},
    "a batch of one": {"batch_size": 1, "x": X[:12]},
    "a huge batch": {"batch_size": 10_000},
    "a large step": {"lr": 1.0},
    "a huge step": {"lr": 1e3},
    "an absurd step": {"lr": 1e15},
}


@pytest.mark.parametrize("hazard", TRAINED)
@pytest.mark.parametrize("name", METHODS)
def test_what_is_trained_is_finite_or_reported(name, hazard):
    options = dict(TRAINED[hazard])
    x, lr = options.pop("x", X), options.pop("lr", 3e-3)
    for activation in ACTIVATIONS:
        for decoder in DECODERS:
            if name == "bias adaptation" and activation in NO_BIAS:
                continue
            if (
                hazard == "a batch of one" and activation == "FeatureChoice"
            ):  # every latent keeps at least one sample: codes are dense
                continue
            sae = make_sae(activation, decoder, tie_scale=decoder != "free")
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                try:
                    row = fit(sae, x, METHODS[name](lr=lr), epochs=4, generator=0, **options).history[-1]
                except DivergenceError:
                    shrunk = name == "published" and hazard == "far from the origin"  # its ridge pulls b_dec to 0
                    assert lr > 0.1 or hazard == "small units" or shrunk, "diverges at a usual step size"
                    continue
            assert all(torch.isfinite(p).all() for p in sae.parameters()), (activation, decoder)
            assert math.isfinite(row["train_fvu"])
            assert row["train_fvu"] == evaluate(sae, x.to(torch.float32) if x.dtype == torch.float16 else x).fvu


@pytest.mark.parametrize("method", [SGD(lr=1e4), PAMSGD(lr=1e4, solve_gap=1)])
def test_divergence_that_stays_finite_is_an_error(method):
    with pytest.raises(DivergenceError, match=r"_fvu is .*, from .* at the start at step .*lower lr"):
        fit(make_sae("ReLU"), X, method, epochs=4, batch_size=20, log_every_steps=3, generator=0)


def test_held_out_samples_of_another_law_are_no_divergence():
    x = torch.randn(600, 8, generator=rng())
    row = fit(make_sae("ReLU"), x, SGD(), epochs=2, x_val=x[:50] * 0.01 + 3).history[-1]
    assert row["val_fvu"] > 1e3
    assert row["train_fvu"] < 2


def test_rows_that_begin_equal_train():
    x = torch.randn(3_000, 8, generator=rng())
    x[:2_500] = x[0]
    assert fit(make_sae("BatchTopK"), x, SGD(), epochs=1).history[-1]["train_fvu"] < 2


def test_counts_of_numpy_are_ints():
    assert type(whole("epochs", np.int64(3), 1)) is int  # a checkpoint that held NumPy's could not be read


def test_a_start_that_overshoots_is_not_divergence():
    x = torch.randn(200, 8, generator=rng())
    sae = make_sae("ReLU", "tied", m=600)
    with torch.no_grad():
        sae.W_enc.mul_(8)
    row = fit(sae, x, SGD(lr=1e-5), epochs=1).history[-1]
    assert row["train_fvu"] > 100


@pytest.mark.parametrize("value", [math.inf, math.nan, 1e4])
def test_thresholds_that_are_not_finite_are_an_error(value):
    sae = SAE(8, 12, JumpReLU(), generator=1)

    class Ruined(SGD):
        def end_epoch(self, sae, state, batches):
            with torch.no_grad():
                sae.activation.log_threshold[3] = value

    with pytest.raises(DivergenceError, match="log_threshold is not finite|1 thresholds are infinite"):
        fit(sae, X, Ruined(), epochs=1)


def test_the_start_of_a_run_is_remembered_by_its_checkpoint(tmp_path):
    path = tmp_path / "run.pt"
    sae = make_sae("ReLU", "tied", m=600)
    with torch.no_grad():
        sae.W_enc.mul_(8)
    options = {"checkpoint": path, "resume": True, "generator": 0}
    fit(sae, X, SGD(lr=1e-5), epochs=1, **options)
    assert fit(make_sae("ReLU", "tied", m=600), X, SGD(lr=1e-5), epochs=2, **options).history[-1]["train_fvu"] > 10


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("activation", ["ReLU", "TopK"])
def test_float16_is_refused_and_bfloat16_trains(activation, decoder):
    with pytest.raises(ValueError, match="the SAE is in float16.*train it in float32"):
        fit(make_sae(activation, decoder, dtype=torch.float16), X, SGD())
    fvu = {}
    for dtype in (torch.float32, torch.bfloat16):
        sae = make_sae(activation, decoder, dtype=dtype)
        fvu[dtype] = fit(sae, X, PAMSGD(lr=1e-2), epochs=30, batch_size=30, generator=0).history[-1]["train_fvu"]
    assert fvu[torch.bfloat16] < 1.3 * fvu[torch.float32] + 0.02


def test_units_far_from_one_are_warned_of():
    for factor in (1e-3, 1e7):
        with pytest.warns(UserWarning, match="for data of order 1; standardise"):
            fit(make_sae(), factor * X, SGD(lr=1e-6), epochs=1)


@pytest.mark.parametrize("value", [2.5, math.inf, math.nan, True, "3", None])
def test_counts_are_whole_numbers(value):
    for name in ("epochs", "steps", "batch_size", "log_every", "train_eval_samples"):
        close = ", e.g. 2" if value == 2.5 else ""
        with pytest.raises(TypeError, match=re.escape(f"{name}={value!r} must be an int{close}")):
            whole(name, value, 1)
    whole("epochs", np.int64(3), 1)
    with pytest.raises(ValueError, match="epochs=0 must be at least 1"):
        whole("epochs", 0, 1)


@pytest.mark.parametrize(
    ("shape", "width", "hint"),
    [
        ((2, 3, 16), 16, "x.reshape(6, 16) gives (6, 16)"),
        ((16,), 16, "x.reshape(1, 16) gives (1, 16)"),
        ((4, 2, 4), 8, "reshape to (4, 8) if"),
        ((5, 7, 3), 8, "105 entries are no whole number of rows of 8"),
        ((), 8, "1 entries are no whole number"),
        ((2, 3, 4), None, "x.reshape(6, 4) gives (6, 4)"),
        ((500,), None, "reshape to (n, d_in)"),
        ((0, 3, 8), 8, "x.reshape(0, 8) gives (0, 8)"),
    ],
)
def test_a_hint_is_a_reshape_that_works(shape, width, hint):
    x = torch.zeros(shape)
    with pytest.raises(ValueError, match=re.escape(hint)):
        as_samples(x, width)
    if found := re.search(r"reshape\((\d+), (\d+)\)|reshape to \((\d+), (\d+)\)", hint):
        rows = [int(n) for n in found.groups() if n is not None]
        assert as_samples(x.reshape(rows), width).shape == tuple(rows)


def test_silence_is_warned_of():
    sae = make_sae("ReLU")
    with torch.no_grad():
        sae.b_enc.fill_(-1e3)
    with pytest.warns(UserWarning, match="no latent fires"):
        fit(sae, X, SGD(), epochs=1)
