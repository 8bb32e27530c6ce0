"""The grid of variants: every composition trains by both optimizers, comparisons at equal l0, one command that resumes."""

from __future__ import annotations

import importlib.util
import json
import math
from dataclasses import replace

import pytest
import torch

from experiments import variants
from experiments.compositions import VARIANTS, Setting
from experiments.tables import command as tables
from experiments.variant_runs import MOD, N_TREE, OPTIMIZERS, TREE, VariantRun, execute_variant, run_of, tree, tree_samples
from experiments.variants import CONFIGS, Config, against_limits, main

KNOBS = {"k": 4.0, "tanh": 3e-3, "p": 3e-3, "gate": 3e-3, "l0": 3e-3}
QUICK = Config(
    data="digits", n_latents=32, n_train=300, steps=30, batch_size=64, limit_k=(2, 4, 8), limit_l1=(1e-3, 3e-3, 1e-2), grid=(4e-3,),
    seeds=(0, 1),
    knobs=tuple((name, (knob / 2, knob) if name != "k" else (2.0, 4.0)) for name, knob in KNOBS.items()),
    variants=("TopK", "HierarchicalTopK", "ReLU, L1", "Gated"),
)  # fmt: skip


@pytest.fixture(autouse=True)
def small_tree(monkeypatch):
    for name, n in {"x": 1_200, "x_val": 400, "x_test": 1_000}.items():
        monkeypatch.setitem(N_TREE, name, n)


def quick_run(variant, optimizer, **fields):
    knob = KNOBS.get(VARIANTS[variant].knob, 3e-3) if variant in VARIANTS else 4.0
    return VariantRun(TREE, variant, optimizer, knob, 4e-3, 0, 64, 600, 24, 64, **fields)


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_trains(variant, optimizer):
    record = execute_variant(quick_run(variant, optimizer))
    assert record["test"]["fvu"] < 1
    assert record["test"]["l0"] > 0
    assert record["read"]["fvu"] < 1
    assert 0 <= record["test"]["recovery"] <= 1
    assert run_of(json.loads(json.dumps(record))) == quick_run(variant, optimizer)
    if VARIANTS[variant].family == "TopK" and VARIANTS[variant].knob == "k" and variant != "AdaptiveK":
        assert record["test"]["l0"] <= 4


def test_feature_choice_is_made_for_every_k_that_fits():
    for k in (1, 8, 32, 200, 256):
        made = VARIANTS["Feature Choice"].make(Setting(k, 784, 256, 100)).activation
        assert made.bind(256, torch.float32, torch.device("cpu")).k == k
    assert VARIANTS["Feature Choice"].make(Setting(8, 784, 256, 100)).activation.shift == 0


def test_a_dictionary_of_pursuits_is_measured_alike():
    assert execute_variant(quick_run(MOD, "exact"))["test"]["fvu"] < 1


def test_tuning_leaves_the_test_split_unread():
    assert set(execute_variant(variants.tuning(quick_run("TopK", "SGD"), 2e-3, 5))) == {"key", "run", "seconds", "val"}


def test_names_of_runs_follow_what_they_mean():
    run = quick_run("Gated", "SGD")
    assert run.recipe() != replace(run, knob=1.0).recipe()
    assert run.recipe() != replace(run, optimizer="PAM-SGD").recipe()
    assert run.recipe() != quick_run("ReLU, L1", "SGD").recipe()
    assert run.key != replace(run, seed=1).key


def test_every_limit_and_knob_is_there():
    for config in CONFIGS.values():
        for name, variant in VARIANTS.items():
            assert variant.limit in VARIANTS
            assert variant.family == VARIANTS[variant.limit].family
            assert len(config.knobs_of(name)) >= 2


def test_verdicts_are_of_paired_seeds():
    def point(variant, knob, fvu, l0):
        return {"variant": variant, "entry": "SGD", "knob": knob, "fvu": fvu, "l0": l0}

    limit = [point("TopK", k, [1 / k, 2 / k, 3 / k], [k, k, k]) for k in (2, 4, 8)]
    better = [point("AuxK", 4, [0.9 / 4, 1.8 / 4, 2.7 / 4], [4, 4, 4])]
    (row,) = against_limits([*limit, *better])
    assert row["log_ratio"] == pytest.approx([math.log(0.9), 0.0], abs=1e-9)
    assert row["verdict"] == "better"
    (row,) = against_limits([*limit, point("AuxK", 4, [0.2, 0.2, 0.2], [50, 50, 50])])
    assert row["verdict"] == "no equal l0"
    (row,) = against_limits([*limit, *better, point("AuxK", 8, [math.inf, 0.2, 0.2], [math.nan, 8, 8])])
    assert row["verdict"] == "diverged"  # and is not left out of a mean
    (row,) = against_limits([*limit, *better, point("AuxK", 8, [0.01, 0.2, 0.2], [50, 8, 8])])
    assert (row["compared"], row["of"]) == (1, 2)  # knobs that every seed can be compared at


def test_the_tree_has_one_truth_and_training_samples_by_seed():
    (x, x_val, x_test), truth = tree_samples(0)
    (other, _, _), _ = tree_samples(1)
    assert not (x[:10] == other[:10]).all()
    assert len(truth) == len(x_test)
    assert float(truth.double().sum(1).mean()) == pytest.approx(float(tree().frequencies.sum()), rel=0.06)
    assert x_val.shape[1] == 64


def test_one_command_makes_keeps_and_prints_the_tables(tmp_path, capsys):
    path = main(QUICK, tmp_path)
    said = capsys.readouterr().out
    assert "one SAE for several k" in said
    assert "Gated" in said
    before = path.read_bytes()
    assert main(QUICK, tmp_path) == path
    assert path.read_bytes() == before
    assert "0 of" in capsys.readouterr().out
    tables([str(path)])
    assert "other codes for its decoder" in capsys.readouterr().out
    if importlib.util.find_spec("matplotlib"):
        from paper_figures import __main__ as figures

        assert figures.main(["families", "--results", str(path), "--out", str(tmp_path)]) == 0
        assert (tmp_path / "families.png").stat().st_size > 10_000
    results = json.loads(path.read_text())
    entries = {(p["variant"], p["entry"]) for p in results["variants"]}
    assert {(v, e) for v in QUICK.variants for e in variants.ENTRIES} <= entries
    read = [
        p["fvu"] for p in results["variants"] if p["variant"] == "TopK" and p["entry"] == "SGD, read out" and p["knob"] == 4
    ]
    plain = [p["fvu"] for p in results["variants"] if p["variant"] == "TopK" and p["entry"] == "SGD" and p["knob"] == 4]
    assert sum(read[0]) < sum(plain[0])
