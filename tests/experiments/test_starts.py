"""Runs with dense codes have the start and the hold of today's defaults, and say so; the first comparison's have what was default then."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from experiments import digits, llm
from experiments.grid import Config
from experiments.runs import DEFAULT, METHODS, build, width_of
from experiments.tuning import Cell
from splinterp import PAMSGD, SAE, TopK
from splinterp.protocol import as_model
from tests.helpers import rng

CENTRED = dataclasses.replace(digits.CONFIG, ours=DEFAULT, options=(("b_pre", "fixed"),), n_latents=96)


@pytest.mark.parametrize(("k", "activation", "n_latents", "start", "hold", "decoder_lr"), [
    (16, "TopK", 96, -1.0, 0.5, 1.0), (8, "TopK", 96, 0.0, 0.0, 0.3), (16, "AbsTopK", 96, 0.0, 0.5, 1.0), (16, "TopK", 64, 0.0, 0.5, 1.0),
    (16, "BatchTopK", 96, -1.0, 0.5, 1.0), (16, "ReLU", 96, 0.0, 0.0, 1.0), (8, "AbsTopK", 96, 0.0, 0.0, 1.0),
    (8, "BatchTopK", 96, 0.0, 0.0, 1.0),
])  # fmt: skip
def test_the_second_comparison_is_at_the_defaults(k, activation, n_latents, start, hold, decoder_lr):
    run = dataclasses.replace(CENTRED, k=k, n_latents=n_latents).run(activation, 0.1, "early")
    for name in METHODS:
        sae, method = build(dataclasses.replace(run, method=name, lr=8e-3), 64)
        assert sae.config()["init_bias"] == start
        if name == DEFAULT:
            assert dataclasses.replace(method, decoder_lr=None) == PAMSGD(lr=8e-3, hold=hold)
            assert method.decoder_lr == pytest.approx(decoder_lr)
            assert PAMSGD(lr=8e-3).decoder_rate(as_model(sae)) == method.decoder_lr
    assert dict(run.options).get("init_bias", 0.0) == start
    if activation == "TopK":
        own = SAE(64, n_latents, TopK(k), "tied_residual", generator=rng(10_000))
        ours, method = build(dataclasses.replace(run, method=DEFAULT, lr=1e-3), 64)
        assert torch.equal(own.b_enc, ours.b_enc)
        assert PAMSGD().init(own, torch.zeros(300, 64), total_steps=9).hold == method.hold == hold


def test_the_first_one_has_what_was_default_then():
    run = dataclasses.replace(digits.CONFIG, k=16, n_latents=96).run("TopK", 0.1, "early")
    for name in METHODS:
        sae, _ = build(dataclasses.replace(run, method=name, lr=1e-3), 64)
        assert sae.config()["init_bias"] == 0.0
    method = build(dataclasses.replace(run, method="PAM", lr=1e-3), 64)[1]
    assert (method.hold, method.decoder_lr) == (0.0, 1.0)


def test_a_variant_that_is_the_default_has_its_runs():
    """So that no training is done twice, and every variant has a row in every cell."""
    for k, activation, same in (
        (8, "TopK", {"hold 0", "decoder_lr 0.3"}), (16, "TopK", {"decoder_lr 1"}), (8, "AbsTopK", {"hold 0", "decoder_lr 1"}),
    ):  # fmt: skip
        run = dataclasses.replace(CENTRED, k=k).run(activation, 0.1, "early")
        cell = Cell(run, "val_last", (), ())
        found = {name for name in METHODS if cell.run(name, 8e-3, 0).method == DEFAULT}
        assert found == {DEFAULT, *(f"{DEFAULT}, {variant}" for variant in same)}
        assert cell.run(f"{DEFAULT}, decoder_lr 1", 1e-3, 0).method == DEFAULT  # whose steps are small anyway
        assert cell.run("SGD tied", 1e-3, 0) == dataclasses.replace(run, method="SGD tied", lr=1e-3)


def test_widths_are_those_of_the_data():
    assert {name: width_of(f"{name}-3") for name in ("minilm", "small-gpt2", "google/gemma-2-2b")} == {
        "minilm": 384, "small-gpt2": 128, "google/gemma-2-2b": 0
    }  # fmt: skip
    assert isinstance(llm.CENTRED, Config)
    sparse = llm.CENTRED.run("TopK", 0.1, "early")
    dense = dataclasses.replace(llm.CENTRED, data="small-gpt2-1").run("TopK", 0.1, "early")
    assert "init_bias" not in dict(sparse.options)
    assert dict(dense.options)["init_bias"] == -1.0
