"""Learning curves, and steps and starts of the bias, small."""

from __future__ import annotations

import dataclasses
import json

import pytest

from experiments import biases, digits, learning, mnist, tables
from experiments.errors import UsageError
from experiments.runs import DEFAULT
from paper_figures import __main__ as figures

BIASES = biases.Config(
    "digits", k=3, n_latents=96, n_train=160, epochs=3, batch_size=16, lrs=(4e-3, 8e-3), sizes=(32,),
    settings=(*biases.STEPS[:2], biases.STARTS[0]),
)  # fmt: skip
CURVES = learning.Config("digits", k=3, n_latents=16, results="second", sizes=(60, 120), seeds=(0, 1))


@pytest.fixture(scope="module")
def second(tmp_path_factory):
    """A comparison that chose step sizes."""
    out = tmp_path_factory.mktemp("second")
    config = dataclasses.replace(
        digits.CONFIG, ours=DEFAULT, options=(("b_pre", "fixed"),), k=3, n_latents=16, activations=("TopK",), shares=(0.05, 0.1),
        full_from=2.0, early_epochs=1, long_steps=20, seeds=(0, 1), grid=(4e-3, 8e-3), parts=("sizes", "sgd-decoder_lr-0.3"),
    )  # fmt: skip
    args = mnist.arguments(["--out", str(out)])
    args.parts = config.parts
    mnist.main(config, args, "second")
    return out


def test_curves_against_steps_and_seconds(second, capsys, tmp_path):
    path = learning.main(CURVES, second)
    results = json.loads(path.read_text())
    assert {(c["n_train"], c["method"]) for c in results["curves"]} == {(n, m) for n in (60, 120) for m in learning.METHODS}
    rows = {
        (r["n_train"], r["method"]): r
        for r in json.loads((second / "second.json").read_text())["rows"]
        if r["budget"] == "long"
    }
    for c in results["curves"]:
        assert c["step"] == sorted(c["step"])
        assert c["step"][-1] == rows[c["n_train"], c["method"]]["steps"]
        assert c["seconds"] == sorted(c["seconds"])
        assert len(c["val_fvu"]) == len(c["step"])
        assert all(len(several) == 2 for several in c["val_fvu"])
    records = json.loads((second / "learning-digits-runs.json").read_text())["records"]
    assert not any("test_last" in record for record in records)
    for record in records:
        assert record["run"]["lr"] == rows[record["run"]["n_train"], record["run"]["method"]]["lr"]
    assert "steps to the best control's error" in tables._renderer(results, short=False)(results, False)
    assert figures.main(["learning", "--results", str(path), "--out", str(tmp_path)]) == 0
    before = path.read_bytes()
    learning.main(CURVES, second)
    assert path.read_bytes() == before


def test_without_a_comparison_it_says_what_to_run(tmp_path):
    with pytest.raises(UsageError, match="run that comparison first"):
        learning.main(CURVES, tmp_path)


def test_every_method_at_every_setting_of_the_bias(tmp_path):
    results = json.loads(biases.main(BIASES, tmp_path).read_text())
    rows = results["biases"]
    assert len(rows) == 4 * (3 + 1) * 2
    found = [tuple(r["val_best"]) for r in rows]
    assert len(set(found)) == len(found)  # no method, setting or size is another's
    assert {r["n_latents"] for r in rows if not r["setting"]} == {32, 96}
    text = tables._renderer(results, short=False)(results, False)
    for said in ("bias_lr 4", "init_bias -1", "PAM-SGD, hold 0.5", " 32 "):
        assert said in text
