"""The geometry experiment and the bench from end to end, small, and the settings they claim."""

from __future__ import annotations

import argparse
import dataclasses

import numpy as np
import pytest

from experiments import __main__ as command_line
from experiments import bench, geometry
from experiments.benches import geometry as bench_geometry
from experiments.benches import timing
from experiments.files import COMMITTED, read_results
from paper_figures import __main__ as figures
from splinterp.geometry import slice_cells

SMALL = dataclasses.replace(
    geometry.Config(), data="digits", n_train=100, epochs=1, k=3, n_latents=20, slice_samples=256, seeds=(0, 1),
    trained=tuple((a, m, 4e-3, 1e-3 if a == "ReLU" else 0.0) for a in ("TopK", "AbsTopK", "ReLU") for m in ("SGD tied", "PAM")),
)  # fmt: skip


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return geometry.main(SMALL, argparse.Namespace(out=tmp_path_factory.mktemp("geometry"), jobs=1, device="cpu"))


def test_every_kind_has_a_row_and_a_slice(small, capsys):
    results = read_results(small)
    assert len(results["rows"]) == len(results["slices"]) == 6
    for row, cut in zip(results["rows"], results["slices"], strict=True):
        assert len(row["fvu"]) == 2
        assert row["growth"][-1] == [360, row["regions"][0]]
        assert row["slice_found"][0] <= row["slice_cells"][0]
        flat = geometry.flat_sae(cut["sites"], cut["biases"], cut["activation"])
        cells = slice_cells(flat, geometry.FLAT, tuple(cut["bounds"]))
        assert len(cells) == cut["n_cells"] == len(cut["errors"])
    table = geometry.render(results)
    assert table.count("AbsTopK") == 2
    assert command_line.main(["tables", str(small)]) == 0
    assert capsys.readouterr().out.strip() == table


def test_figures_are_drawn_from_it(small, tmp_path):
    names = ["slices", "slice_errors", "region_growth"]
    assert figures.main([*names, "--results", str(small), "--out", str(tmp_path)]) == 0
    for name in names:
        assert (tmp_path / f"{name}.png").stat().st_size > 10_000
        assert "made by: python -m experiments" in (tmp_path / f"{name}.txt").read_text()


def test_step_sizes_are_those_the_controlled_comparison_chose():
    chosen = {}
    for row in read_results(COMMITTED / "mnist-controlled.json")["rows"]:
        if row["n_train"] == 13_750 and row["budget"] in ("long", "penalised") and row["part"] in ("sizes", "relu"):
            chosen[row["activation"], row["method"], row["options"].get("l1", 0.0)] = row["lr"], row["l0"]
    for activation, method, lr, l1 in geometry.Config().trained:
        assert chosen[activation, method, l1][0] == lr
        others = [l0 for (a, m, _), (_, l0) in chosen.items() if (a, m) == (activation, method)]
        assert abs(chosen[activation, method, l1][1] - 60) == min(abs(l0 - 60) for l0 in others)


def test_exponents_are_slopes():
    sizes = np.array([10.0, 100.0, 1000.0])
    assert timing.exponent(sizes, 3e-6 * sizes**1.5) == pytest.approx(1.5)


def test_the_bench_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bench_geometry, "GEOMETRY_SIZES", {1: (50, 100, 200), 2: (20, 40, 60)})
    monkeypatch.setattr(bench_geometry, "TIMED", 20)
    path = bench.command(["geometry", "--out", str(tmp_path)])
    results = read_results(path)
    assert [row["sites"] for row in results["rows"]] == [50, 100, 200, 20, 40, 60]
    assert all(row["raster_over_exact"] > 0 for row in results["rows"])
    assert {fit["order"] for fit in results["fits"]} == {1, 2}
    assert "exponent in cells" in capsys.readouterr().out
