"""What every term keeps to: sparse and dense gradients, errors, the history, weights, training and checkpoints."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from splinterp import PAMSGD, SAE, SGD, ReLU, fit
from splinterp.losses import (
    L0,
    L1,
    AuxK,
    HierarchicalTopK,
    Matryoshka,
    OrtSAE,
    PAnneal,
    PreActs,
    RowNormL1,
    SquaredError,
    Tanh,
    Tilted,
)  # fmt: skip
from splinterp.metrics import evaluate
from tests.helpers import DECODERS, rng, samples
from tests.losses.cases import TERMS, make, no_sparse_training, value_and_gradients

OF_RELU = (L1, RowNormL1, Tanh, PAnneal, PreActs)

BY_NAME = {"ids": lambda term: term.name}


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("activation", ["TopK", "AbsTopK"])
@pytest.mark.parametrize("term", TERMS.values(), **BY_NAME)
def test_sparse_gradients_equal_dense_ones(term, activation, decoder, monkeypatch):
    sae, x = make(activation, decoder), samples(40, dtype=torch.float64)
    assert sae.trains_sparse
    sparse = value_and_gradients(term, sae, x)
    no_sparse_training(monkeypatch)
    value, gradients = value_and_gradients(term, sae, x)
    torch.testing.assert_close(sparse[0], value, rtol=1e-12, atol=1e-12)
    assert value > 0
    assert any(gradient.abs().max() > 0 for gradient in gradients.values())
    for name, gradient in gradients.items():
        torch.testing.assert_close(
            sparse[1][name], gradient, rtol=1e-12, atol=1e-12, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("term", TERMS.values(), **BY_NAME)
def test_gradients_are_those_of_the_value(term, decoder):
    """By central differences along one direction, away from changes of the support."""
    activation = "ReLU" if isinstance(term, OF_RELU) else "TopK"
    sae, x = make(activation, decoder), samples(40, dtype=torch.float64)
    _, gradients = value_and_gradients(term, sae, x)
    if isinstance(term, AuxK):  # its residual is held still
        return
    g = rng(7)
    direction = {name: torch.randn(p.shape, generator=g, dtype=torch.float64) for name, p in sae.named_parameters()}
    values = []
    for step in (1e-6, -1e-6):
        with torch.no_grad():
            for name, p in sae.named_parameters():
                p += step * direction[name]
        values.append(float(value_and_gradients(term, sae, x)[0]))
        with torch.no_grad():
            for name, p in sae.named_parameters():
                p -= step * direction[name]
    slope = sum(float((gradients[name] * direction[name]).sum()) for name in gradients)
    assert (values[0] - values[1]) / 2e-6 == pytest.approx(slope, rel=1e-5, abs=1e-8)


@pytest.mark.parametrize("method", [SGD, PAMSGD])
@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("term", TERMS.values(), **BY_NAME)
def test_every_term_trains(term, decoder, method):
    x = samples(300)
    activation = "ReLU" if isinstance(term, OF_RELU) else "TopK"
    sae = make(activation, decoder, dtype=torch.float32)
    start = evaluate(sae, x).fvu
    main = (
        ()
        if term.name in ("SquaredError", "Matryoshka", "RandomMatryoshka", "HierarchicalTopK", "Tilted")
        else (SquaredError(),)
    )
    result = fit(sae, x, method(terms=(*main, term)), epochs=4, batch_size=50, generator=0)
    last = result.history[-1]
    assert math.isfinite(last["loss"])
    assert last["train_fvu"] < start


def test_history_has_the_values_by_name():
    x = samples(200)
    terms = (SquaredError(weight=0.5), Matryoshka(widths=(4,)), OrtSAE())
    result = fit(make(dtype=torch.float32), x, SGD(terms=terms), epochs=1, generator=0)
    row = result.history[-1]
    total = 0.5 * row["SquaredError"] + row["Matryoshka"] + 0.25 * row["OrtSAE"]
    assert row["loss"] == pytest.approx(total, rel=1e-6)
    alone = fit(make(dtype=torch.float32), x, SGD(terms=(Matryoshka(widths=(4,)),)), epochs=1, generator=0).history[-1]
    assert alone["loss"] == alone.get("Matryoshka", alone["loss"])


def test_weights_multiply_terms():
    sae, x = make(), samples(30, dtype=torch.float64)
    losses = [SGD(terms=(SquaredError(weight=w), Tilted(weight=v))).loss(sae, x) for w, v in ((1, 0), (0, 1), (0.25, 3.0))]
    torch.testing.assert_close(losses[2], 0.25 * losses[0] + 3 * losses[1])


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: SquaredError(weight=-1.0), "weight=-1.0"),
        (lambda: Matryoshka(widths=()), "widths is empty"),
        (lambda: Matryoshka(widths=(0, 4)), "first of widths"),
        (lambda: Matryoshka(widths=(8, 8)), "must increase"),
        (lambda: Matryoshka(widths=(4,), weights=(1.0, -1.0)), "each of weights"),
        (lambda: Matryoshka(widths=(4,), weights=(0.0, 0.0)), "nothing to reconstruct"),
        (lambda: HierarchicalTopK(levels=(4, 2)), "must increase"),
        (lambda: HierarchicalTopK(levels=(2, 4), weights=(1.0,)), "1 weights for the 2 parts"),
        (lambda: Tilted(tilt=0.0), "use SquaredError"),
        (lambda: Tilted(tilt=math.inf), "finite"),
        (lambda: AuxK(k_aux=0), "k_aux=0"),
        (lambda: AuxK(dead_after=0), "dead_after=0"),
        (lambda: OrtSAE(chunk=1), "chunk=1"),
        (lambda: Tanh(steepness=0.0), "steepness=0.0"),
    ],
)
def test_options_out_of_range_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize(
    ("term", "activation", "error", "message"),
    [
        (Matryoshka(widths=(4, 33)), "TopK", ValueError, "beyond n_latents=32"),
        (Matryoshka(widths=(4,), weights=(1.0,)), "TopK", ValueError, "1 weights for the 2 parts"),
        (HierarchicalTopK(levels=(1, 4)), "TopK", ValueError, "beyond k=3"),
        (HierarchicalTopK(levels=(1, 3)), "ReLU", TypeError, "ReLU has no fixed k"),
        (RowNormL1(), "TopK", ValueError, "sparsity of TopK"),
        (Tanh(), "AbsTopK", ValueError, "sparsity of AbsTopK"),
        (L1(), "TopK", ValueError, "sparsity of TopK"),
        (L0(), "ReLU", ValueError, "needs JumpReLU"),
    ],
)
def test_models_that_do_not_fit_are_refused(term, activation, error, message):
    with pytest.raises(error, match=message):
        SGD(terms=(SquaredError(), term)).init(make(activation), samples(20, dtype=torch.float64))


def test_foreign_modules_take_what_needs_only_codes():
    class Module(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.W_enc, self.b_enc = (
                torch.nn.Parameter(torch.randn(8, 12, generator=rng(3))),
                torch.nn.Parameter(torch.zeros(12)),
            )
            self.W_dec, self.b_dec = torch.nn.Parameter(self.W_enc.detach().T.clone()), torch.nn.Parameter(torch.zeros(8))

        def encode(self, x):
            return torch.relu(x @ self.W_enc + self.b_enc)

        def forward(self, x):
            return self.encode(x) @ self.W_dec + self.b_dec

    terms = (Matryoshka(widths=(4,)), Tilted(), OrtSAE(), RowNormL1(weight=1e-3), Tanh(weight=1e-3))
    for method in (SGD(terms=terms), PAMSGD(terms=terms)):
        assert math.isfinite(fit(Module(), samples(100), method, epochs=1, generator=0).history[-1]["loss"])
    for term in (AuxK(), HierarchicalTopK(levels=(1,))):
        with pytest.raises(TypeError, match=term.name):
            SGD(terms=(SquaredError(), term)).init(Module(), samples(20))


@pytest.mark.parametrize("method", [SGD, PAMSGD])
def test_a_run_whose_terms_keep_a_state_resumes_to_the_same_bits(method, tmp_path):
    """AuxK's latents die between the checkpoint and the end, and OrtSAE deals rows by a generator."""
    x, path = samples(300), tmp_path / "run.pt"
    terms = (SquaredError(), AuxK(k_aux=2, dead_after=700), OrtSAE(chunk=8))

    def run(**options):
        sae = make(dtype=torch.float32)
        return fit(sae, x, method(terms=terms), epochs=5, batch_size=50, generator=3, **options)

    def stop(row):
        if row["epoch"] == 3:
            raise KeyboardInterrupt

    whole = run()
    with pytest.raises(KeyboardInterrupt):
        run(checkpoint=path, callback=stop)
    resumed = run(checkpoint=path, resume=True)
    for name, value in whole.sae.state_dict().items():
        assert torch.equal(value, resumed.sae.state_dict()[name]), name
    for ours, theirs in zip(whole.state.terms, resumed.state.terms, strict=True):
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert whole.history[-1]["AuxK"] == resumed.history[-1]["AuxK"] > 0


def test_terms_are_values():
    assert Matryoshka(widths=(4, 8)) == Matryoshka(widths=(4, 8))
    assert len(set(TERMS.values())) == len(TERMS)
    for term in TERMS.values():
        with pytest.raises(dataclasses.FrozenInstanceError):
            term.weight = 2.0


def test_stateful_terms_are_for_one_process():
    assert AuxK().couples_samples
    assert Tilted().couples_samples
    assert OrtSAE().init(SAE(2, 4, ReLU()))
