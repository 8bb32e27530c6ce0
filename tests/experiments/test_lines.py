"""Segments between images, small: what is counted is what the geometry says, and the figure is drawn from it."""

from __future__ import annotations

import argparse
import dataclasses

import numpy as np
import pytest
import torch

from experiments import __main__ as command_line
from experiments import lines
from experiments.files import COMMITTED, read_results
from experiments.runs import build, digit_labels, split, train
from paper_figures import __main__ as figures
from splinterp.geometry import regions_of

SMALL = dataclasses.replace(
    lines.Config(), data="digits", n_train=100, epochs=1, k=3, n_latents=20, seeds=(0, 1), pairs=5,
    trained=tuple((activation, method, 4e-3) for activation in ("TopK", "AbsTopK", "ReLU") for method in lines.METHODS),
)  # fmt: skip


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return lines.main(SMALL, argparse.Namespace(out=tmp_path_factory.mktemp("lines"), jobs=1, device="cpu"))


def test_rows_and_figure(small, tmp_path, capsys):
    results = read_results(small)
    assert len(results["lines"]) == 9
    table = lines.render(results)
    assert table.count("AbsTopK") == 3
    assert command_line.main(["tables", str(small)]) == 0
    assert capsys.readouterr().out.strip() == table
    assert figures.main(["lines", "--results", str(small), "--out", str(tmp_path)]) == 0
    assert "5 pairs of images of one digit" in (tmp_path / "lines.txt").read_text()
    before = small.read_bytes()
    lines.main(SMALL, argparse.Namespace(out=small.parent, jobs=1, device="cpu"))
    assert small.read_bytes() == before


def test_crossings_are_those_that_dense_points_find(small):
    run = SMALL.runs()[0]
    data = split(run)
    sae, method = build(run, 64)
    train(run, data, sae, method)
    record = lines.measure(SMALL, run)
    i, j = lines.segments(digit_labels("digits"), 5)["two digits"][0]
    a, b = data.x_test[i].double().numpy(), data.x_test[j].double().numpy()
    t = np.linspace(0, 1, 20_001)
    labels = regions_of(sae.eval(), (1 - t[:, None]) * a + t[:, None] * b, margins=False).labels
    found = (t[1:] + t[:-1])[labels[1:] != labels[:-1]] / 2
    np.testing.assert_allclose(record["drawn"]["crossings"], found, atol=1e-4)
    x = torch.as_tensor(0.5 * (a + b))[None].float()
    middle = float((sae(x).x_hat.detach() - x).square().sum())
    assert np.interp(0.5, record["drawn"]["at"], record["drawn"]["error"]) == pytest.approx(middle, rel=0.02)


def test_pairs_are_of_the_kind_they_say():
    labels = digit_labels("digits")
    for kind, pairs in lines.segments(labels, 20).items():
        same = labels[pairs[:, 0]] == labels[pairs[:, 1]]
        assert same.all() if kind == "one digit" else not same.any()
        assert (pairs[:, 0] != pairs[:, 1]).all()


def test_step_sizes_are_those_the_second_comparison_chose():
    chosen = {
        (row["activation"], row["method"]): row["lr"] for row in read_results(COMMITTED / "mnist-centred.json")["rows"]
        if row["n_train"] == 13_750 and row["budget"] == "long" and row["part"] == "sizes"
    }  # fmt: skip
    assert all(lr == chosen[activation, method] for activation, method, lr in lines.Config().trained if activation != "ReLU")
