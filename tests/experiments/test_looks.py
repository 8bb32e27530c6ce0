"""What the figures of training show, small: kept at the steps that are asked for, of the SAE as it then is."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from experiments import looks, tables
from experiments.atoms import unpack
from experiments.files import COMMITTED, read_results
from experiments.runs import DEFAULT
from paper_figures import __main__ as figures

SMALL = dataclasses.replace(looks.Config(), data="digits", n_train=200, k=3, n_latents=20, steps=(0, 4, 12, 20))


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return looks.main(SMALL, tmp_path_factory.mktemp("looks"))


def test_errors_fall_and_belong_to_the_images(small):
    results = read_results(small)
    images = unpack(results["images"], 64).astype(float)
    assert [model["method"] for model in results["looks"]] == [method for method, _ in SMALL.trained]
    for model in results["looks"]:
        assert len(model["progress"]) == len(model["errors"]) == 4
        shown = [((unpack(packed, 64) - images) ** 2).mean() for packed in model["progress"]]
        errors = [np.mean(several) for several in model["errors"]]
        assert errors[-1] < errors[0]
        assert shown[-1] < shown[0]
        assert all(np.count_nonzero(code) <= 3 for code in model["codes"])
        assert len(model["encoder_norms"]) == len(model["decoder_norms"]) == looks.FILTERS
        assert all(c == pytest.approx(1, abs=1e-5) for c in model["cosines"]) == (model["method"] == "SGD tied")
    assert "step 12" in " ".join(tables._renderer(results, short=False)(results, False).split())


def test_the_figures_are_drawn(small, tmp_path):
    names = ["reconstructions", "codes", "filters"]
    assert figures.main([*names, "--results", str(small), "--out", str(tmp_path)]) == 0
    for name in names:
        assert (tmp_path / f"{name}.png").stat().st_size > 10_000


def test_rows_are_at_the_steps_that_are_kept():
    assert looks._every(looks.STEPS) == 18
    assert looks._every((0, 4, 12, 20)) == 4


def test_step_sizes_are_those_the_second_comparison_chose():
    chosen = {
        row["method"]: row["lr"] for row in read_results(COMMITTED / "mnist-centred.json")["rows"]
        if (row["activation"], row["n_train"], row["budget"], row["part"]) == ("TopK", 13_750, "long", "sizes")
    }  # fmt: skip
    assert DEFAULT in chosen
    assert all(lr == chosen[method] for method, lr in looks.Config().trained)
