"""Figures that are computed, and the one of atoms."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

pytest.importorskip("matplotlib", reason="needs matplotlib: pip install -e '.[plot]'")

from matplotlib import pyplot as plt
from matplotlib.path import Path
from scipy.spatial import ConvexHull

from experiments import atoms
from experiments.geometry import Config
from paper_figures import __main__ as figures
from paper_figures import diagrams
from paper_figures.style import legend_below, lettered, styled
from splinterp.geometry import PowerDiagram


@pytest.mark.parametrize("name", ["partitions", "orders", "plane_slice"])
def test_computed_figures_need_no_results(name, tmp_path):
    assert figures.main([name, "--out", str(tmp_path)]) == 0
    assert f"Computed by: python -m paper_figures {name}." in (tmp_path / f"{name}.txt").read_text()
    assert (tmp_path / f"{name}.png").stat().st_size > 1_000


def test_the_cutting_plane_shows_the_cells_of_space():
    sites, _ = diagrams._sites()
    assert len(sites) == diagrams.N_SITES
    space = np.random.default_rng(0).uniform(-1, 1, (30, 3))
    basis = np.linalg.qr(np.random.default_rng(1).standard_normal((3, 2)))[0].T
    y = np.random.default_rng(2).uniform(-1, 1, (200, 2))
    flat = PowerDiagram(space, np.zeros(30)).restrict(np.zeros(3), basis)
    nearest = ((y @ basis)[:, None] - space[None]).__pow__(2).sum(2).argmin(1)
    assert np.array_equal(np.asarray(flat.assign(y)).ravel(), nearest)


def test_a_cell_s_number_stands_inside_it_away_from_points():
    for seed in range(20):
        rng = np.random.default_rng(seed)
        corners = rng.uniform(-1, 1, (12, 2))
        polygon = corners[ConvexHull(corners).vertices]
        points = rng.uniform(-1, 1, (3, 2))
        at = diagrams._label_place(polygon, points)
        assert at is not None
        assert Path(polygon).contains_point(at)
        assert np.linalg.norm(points - at, axis=1).min() > 0.1


def test_panels_in_three_dimensions_have_letters():
    figure, _ = diagrams.plane_slice({})
    lettered(figure)
    assert [[text.get_text() for text in axes.texts if text.get_text().startswith("(")] for axes in figure.axes] == [
        ["(a)"],
        ["(b)"],
    ]


def test_images_survive_packing():
    images = torch.linspace(-1, 1, 12).view(3, 4)
    back = atoms.unpack(atoms.pack(images, -1.0, 1.0), 4) / 255 * 2 - 1
    np.testing.assert_allclose(back, images.numpy(), atol=1 / 255)


def test_atoms_from_training_to_figure(tmp_path, monkeypatch):
    small = dataclasses.replace(Config(), data="digits", n_train=100, epochs=1, n_latents=16, k=2)
    monkeypatch.setattr(atoms, "Config", lambda: small)
    path = atoms.command(["--out", str(tmp_path)])
    assert figures.main(["atoms", "--results", str(path), "--out", str(tmp_path)]) == 0
    assert (tmp_path / "atoms.png").stat().st_size > 1_000


def test_a_legend_has_the_columns_that_fit():
    columns = []
    for width in (3.4, 7.0, 30.0):
        with styled():
            figure, axes = plt.subplots(figsize=(width, 2))
            for n in range(5):
                axes.plot([0, 1], label=f"a method with a name of its own, {n}")
            legend_below(figure, 5)
            figure.canvas.draw()
            (legend,) = figure.legends
            box = legend.get_window_extent()
            assert figure.bbox.x0 <= box.x0 < box.x1 <= figure.bbox.x1
            columns.append(len({round(text.get_window_extent().x0) for text in legend.get_texts()}))
            plt.close(figure)
    assert columns[0] < columns[1] < columns[2] == 5
