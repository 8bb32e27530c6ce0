"""The baselines and the bridge from end to end, small, and what their tables rest on."""

from __future__ import annotations

import argparse
import dataclasses

import numpy as np
import pytest
import torch

from experiments import __main__ as command_line
from experiments import baselines, bridge
from experiments.baseline_fits import Fit
from experiments.files import read_results
from experiments.sources import source_of
from experiments.store import RecordStore
from paper_figures import __main__ as figures
from splinterp import SAE, TopK
from splinterp.geometry import PowerDiagram

SMALL = dataclasses.replace(
    baselines.DIGITS, n_train=150, epochs=2, settings=((16, 1), (16, 2), (8, 2)), priced=((16, 1), (8, 2)), l1=(1e-2,),
    ranks=(1, 8), regions=(8,), local=((8, 1),), seeds=(0, 1), grid=(4e-3, 8e-3),
)  # fmt: skip
SHORT = dataclasses.replace(
    bridge.Config(), published=(("hard", 1, 10, 5, 1e-2), ("soft", 1, 10, 40, 1e-2), ("hard", 3, 12, 5, 1e-2), ("soft", 3, 12, 40, 1e-2)),
    epochs=20, seeds=(0, 1),
)  # fmt: skip


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return baselines.main(SMALL, argparse.Namespace(out=tmp_path_factory.mktemp("baselines"), jobs=1, device="cpu"))


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    return bridge.main(SHORT, tmp_path_factory.mktemp("bridge"), SHORT.seeds)


def test_baseline_rows_are_complete_and_consistent(small, capsys):
    results = read_results(small)
    saes = [row for row in results["rows"] if "SAE" in row["model"]]
    assert len(saes) == len(results["prices"]) == 2 * (3 + 3 + 1) + 2 * 2  # two methods, two variants of one of them
    assert len(results["beside"]) == 5 * 2
    for p in results["prices"]:
        assert np.array(p["price"]) == pytest.approx(np.array(p["error"]) - np.array(p["bound"]), abs=1e-6)
        assert (np.array(p["price"]) >= -1e-6).all()
        assert np.array(p["error"]) == pytest.approx(np.array(p["train_fvu"]), rel=1e-4)  # two ways to the same number
    by_model = {(row["model"], row.get("rank")): row for row in results["rows"]}
    assert by_model["ICA", 8]["test_fvu"] == pytest.approx(by_model["PCA", 8]["test_fvu"], rel=1e-2)
    assert np.mean(by_model["NMF", 8]["train_fvu"]) > np.mean(by_model["PCA", 8]["train_fvu"])
    assert command_line.main(["tables", str(small)]) == 0
    text = capsys.readouterr().out
    assert "Prices of SAEs" in text
    assert "parameters and active numbers" in text


def test_nothing_is_fitted_twice(small, monkeypatch):
    store = RecordStore(small.parent, "baselines-digits-runs", baselines.parse, source_of("digits"))
    monkeypatch.setattr(baselines, "measure", None)  # would fail if anything were missing
    again = baselines.collect(dataclasses.replace(SMALL, source=source_of("digits").key), store)
    assert len(again["rows"]) == len(read_results(small)["rows"])


def test_parameters_are_counted_as_they_are():
    for decoder in ("tied", "tied_residual"):
        sae = SAE(64, 16, TopK(2), decoder=decoder)
        assert baselines.sae_parameters(16, 64, decoder) == sum(p.numel() for p in sae.parameters())
    for what, model, n, rank in baselines.matched(baselines.DIGITS, 64, 2):
        parameters, active = Fit("digits", model, n, rank, 100, 0).size
        budget = baselines.sae_parameters(64, 64, "tied_residual")
        assert 0.8 * budget <= parameters <= budget
        assert active <= 4
        assert what == "parameters" or active == 4
    fit = Fit("digits", "local PCA power", 4, 2, 100, 0)
    model = fit.estimator().fit(np.random.default_rng(0).normal(size=(60, 64)))
    held = model.means_.size + model.components_.size + model.sites_.size + model.biases_.size
    assert fit.size == (held, 3)


def test_figures_of_baselines_and_bridge(small, short, tmp_path):
    assert figures.main(["price", "baselines", "--results", str(small), "--out", str(tmp_path)]) == 0
    names = {name.replace("40", "10").replace("80", "12") for name in sum(figures_rows(), ())}
    assert names <= set(read_results(short)["models"])
    for name in ("price", "baselines"):
        assert (tmp_path / f"{name}.pdf").stat().st_size > 5_000


def figures_rows():
    from paper_figures.bridge import ROWS

    return ROWS


def test_the_bridge_figure_is_drawn_from_the_committed_results(tmp_path):
    assert figures.main(["bridge", "--out", str(tmp_path)]) == 0
    assert (tmp_path / "bridge.png").stat().st_size > 10_000


def test_the_bridge_table(short, capsys):
    results = read_results(short)
    assert all(len(values) == 2 for values in results["fvu"].values())
    errors = {name: np.array(values) for name, values in results["fvu"].items()}
    assert (errors["TopK SAE, 3 latents"] >= errors["its bound: local PCA on its regions"] - 1e-6).all()
    assert (errors["local PCA, residual"] <= errors["local PCA, centroid"] + 1e-6).all()
    assert (errors["local PCA, power"] <= errors["local PCA, centroid"] + 1e-6).all()
    assert (errors["local PCA, centroid"] <= errors["k-means"]).all()
    assert command_line.main(["tables", str(short)]) == 0
    assert "published, soft, k = 3" in capsys.readouterr().out


def test_bridge_points_and_published_models():
    x = bridge.points(100, 0)
    assert x.shape == (100, 2)
    assert torch.equal(x, bridge.points(100, 0))
    assert not torch.equal(x, bridge.points(100, 1))
    diagram, hard = bridge.published(x, "hard", 3, 12, 0, 1e-2, 0.3, 0)
    trained, _ = bridge.published(x, "hard", 3, 12, 30, 1e-2, 0.3, 0)
    np.testing.assert_array_equal(diagram.sites, trained.sites)  # no gradient reaches a hard encoder
    soft, _ = bridge.published(x, "soft", 3, 12, 30, 1e-2, 0.3, 0)
    assert not np.array_equal(soft.sites, diagram.sites)
    np.testing.assert_allclose(np.linalg.norm(diagram.sites, axis=1), 1.0, atol=1e-6)
    assert isinstance(diagram, PowerDiagram)
    assert diagram.order == 3
    assert hard.norm(dim=1).max() <= 1.0 + 1e-6  # a mean of unit vectors
