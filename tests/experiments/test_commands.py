"""The commands from end to end, small: tables, results files, figures, errors."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest
from matplotlib import pyplot as plt

from experiments import __main__ as command_line
from experiments import digits, mnist
from experiments.files import read_results
from experiments.grid import ALL_CONTROLS, CONTROLS, IN_EVERY_CELL
from experiments.paper import PaperConfig
from experiments.report import render
from experiments.runs import DEFAULT, HOLDS, OPEN, SLOWER, SMALLER_CONTROLS, STEPS
from experiments.verdicts import verdicts
from paper_figures import __main__ as figures
from paper_figures import verdicts as verdicts_figure

SMALL = dataclasses.replace(
    digits.CONFIG, n_latents=16, k=2, shares=(0.05, 0.1, 0.2), full_from=0.2, activations=("TopK",), early_epochs=1, long_steps=3,
    seeds=(0, 1), seeds_full=(0, 1), grid=(4e-3, 8e-3), relu_shares=(0.1,), relu_l1=(1e-3, 1e-2), variant_shares=(0.1,),
    variant_activations=("TopK",), part_seeds=(0, 1), ridges=(0.0, 10.0), cause_cells=(("TopK", 0.05, "long"), ("AbsTopK", 0.05, "early")),
)  # fmt: skip
PAPER = dataclasses.replace(
    PaperConfig(), data="digits", n_latents=16, k=2, epochs=1, shares=(0.05, 0.1), ablation_shares=(0.1,), seeds=(0, 1)
)


def run(config, name, out, parts=None):
    args = mnist.arguments(["--out", str(out)])
    args.parts = parts
    return mnist.main(config, args, name)


@pytest.fixture(scope="module")
def controlled(tmp_path_factory):
    return run(SMALL, "mnist-controlled", tmp_path_factory.mktemp("controlled"))


@pytest.fixture(scope="module")
def centred(tmp_path_factory):
    second = dataclasses.replace(
        SMALL, ours=DEFAULT, options=(("b_pre", "fixed"),), parts=mnist.CENTRED.parts, relu_methods=mnist.CENTRED.relu_methods
    )
    return run(second, "mnist-centred", tmp_path_factory.mktemp("centred"))


@pytest.fixture(scope="module")
def paper(tmp_path_factory):
    return run(PAPER, "mnist-paper", tmp_path_factory.mktemp("paper"))


def test_controlled_table_is_complete(controlled, capsys):
    results, before = read_results(controlled), controlled.read_bytes()
    sizes = [row for row in results["rows"] if row["part"] == "sizes"]
    assert len(sizes) == 5 * 3 * 2  # methods, sizes, budgets
    assert len(results["verdicts"]) == 3 * 2
    assert all(v["verdict"] in ("worse", "better", "not worse", "undecided") for v in results["verdicts"])
    assert all(set(v["against"]) == {row["method"] for row in sizes} - {"PAM"} for v in results["verdicts"])
    assert [len(found) for found in results["apart"].values()] == [3 * 2] * 2
    for part in ("final", "held", "causes", "relu", "variants", "ridge"):
        assert any(row["part"] == part for row in results["rows"])
    text, markdown = render(results), render(results, markdown=True)
    assert "PAM against it" in text
    assert "| images" in markdown
    assert "ReLU at matched l0" in text
    assert command_line.main(["tables", str(controlled), "--summary"]) == 0
    assert capsys.readouterr().out.count("SGD") == 3 * 2 * 3  # PAM's table and those of its two variants
    with pytest.raises(SystemExit):
        command_line.main(["tables", "no-such-results"])
    run(SMALL, "mnist-controlled", controlled.parent, parts=("ridge",))  # a part alone keeps the others
    kept = read_results(controlled)
    assert sorted(map(str, kept["rows"])) == sorted(map(str, results["rows"]))
    assert kept["verdicts"] == results["verdicts"]
    run(SMALL, "mnist-controlled", controlled.parent)  # a rerun skips everything and changes no byte
    assert controlled.read_bytes() == before
    assert "0 of" in capsys.readouterr().out.splitlines()[-2]


def test_paper_table_has_its_ablations(paper):
    results = read_results(paper)
    parts = {row["part"] for row in results["rows"]}
    assert parts == {"sizes", "encoder_updates", "weight_decay", "mu_nu", "mu_nu_pull"}
    assert "encoder_updates" in render(results)
    for activation in ("AbsTopK", "ReLU"):
        for part in parts - {"sizes"}:
            assert {row["activation"] for row in results["rows"] if row["part"] == part} == {"AbsTopK", "ReLU"}
        updates = [row for row in results["rows"] if (row["part"], row["activation"]) == ("encoder_updates", activation)]
        assert len({tuple(row["fvu"]) for row in updates}) == 4


def test_every_figure_of_the_comparison_is_drawn(controlled, centred, paper, tmp_path, capsys):
    drawn, sources = 0, {path.stem: path for path in (controlled, centred, paper)}
    for name, (_, source) in figures._figures().items():
        file = source[0]
        if not isinstance(file, str) or not file.startswith("mnist-"):
            continue
        assert figures.main([name, "--results", str(sources[Path(file).stem]), "--out", str(tmp_path)]) == 0
        for kind in ("png", "pdf", "txt", "tex"):
            assert (tmp_path / f"{name}.{kind}").stat().st_size > 100
        assert "made by: python -m experiments" in (tmp_path / f"{name}.txt").read_text()
        drawn += 1
    assert drawn == 14
    caption = (tmp_path / "verdicts_centred.tex").read_text()
    assert r"\texttt{PAM-SGD, hold 1}" in caption
    assert r"95 \% t interval" in caption
    assert "`" not in caption
    assert (
        "PAM-SGD, hold 1: the residual stays at 0 for a share 1 of the steps" in (tmp_path / "verdicts_centred.txt").read_text()
    )


def test_verdicts_are_against_every_control_that_was_run(centred):
    results = read_results(centred)
    here = {}
    for row in results["rows"]:
        if row["part"] in IN_EVERY_CELL:
            here.setdefault((row["activation"], row["budget"], row["n_train"]), {})[row["method"]] = row
    assert {(v["activation"], v["budget"], v["n_train"]) for v in results["verdicts"]} == set(here)
    for found in results["verdicts"]:
        cell = here[found["activation"], found["budget"], found["n_train"]]
        assert set(found["against"]) == set(ALL_CONTROLS)
        assert found["control"] == min(ALL_CONTROLS, key=lambda method, cell=cell: cell[method]["val"])
    without = [row for row in results["rows"] if row["method"] not in SMALLER_CONTROLS]
    assert all(set(v["against"]) == set(CONTROLS) for v in verdicts(without, DEFAULT))
    sides = {
        "the better of decoder_lr 1 and 0.3 against the best control": (STEPS, ALL_CONTROLS),
        "the default against the better of decoder_lr 1 and 0.3": ((DEFAULT,), STEPS),
        "the default against the best of the first four controls": ((DEFAULT,), CONTROLS),
        "the best of hold 0, 0.1 and 1 against the best control": (HOLDS, ALL_CONTROLS),
        "the default against the best of hold 0, 0.1 and 1": ((DEFAULT,), HOLDS),
    }
    assert set(sides) == {title for title in results["contests"] if "more steps" not in title}
    for title, (ours, theirs) in sides.items():
        assert len(results["contests"][title]) == len(here)
        for contest in results["contests"][title]:
            cell = here[contest["activation"], contest["budget"], contest["n_train"]]
            for side, methods in (("ours", ours), ("theirs", theirs)):
                assert contest[side] == min(methods, key=lambda method, cell=cell: cell[method]["val"])
    default, variant = (
        {(key, row["lr"]): row["fvu"] for key, cell in here.items() for name, row in cell.items() if name == method}
        for method in (DEFAULT, f"{DEFAULT}, decoder_lr 0.3")
    )
    common = {key for key in default.keys() & variant.keys() if key[1] == 8e-3}
    assert all(default[key] == variant[key] for key in common)  # a variant that is the default has its records


def test_parts_that_were_not_asked_for_are_shown_as_far_as_they_go(tmp_path):
    """Further controls that were run for one activation stand in its cells, and nowhere else."""
    both = dataclasses.replace(
        SMALL, ours=DEFAULT, options=(("b_pre", "fixed"),), shares=(0.05, 0.1), full_from=2.0, activations=("TopK", "AbsTopK"),
        parts=("sizes", "sgd-decoder_lr-0.3", "sgd-decoder_lr-0.1"),
    )  # fmt: skip
    run(both, "both", tmp_path, ["sizes"])
    run(dataclasses.replace(both, activations=("TopK",)), "both", tmp_path, ["sgd-decoder_lr-0.3", "sgd-decoder_lr-0.1"])
    results = read_results(run(both, "both", tmp_path, ["sizes"]))
    assert {(v["activation"], len(v["against"])) for v in results["verdicts"]} == {("TopK", 6), ("AbsTopK", 4)}
    assert len(results["verdicts"]) == 8
    found = verdicts_figure.verdicts({**results, "apart": {}})
    plt.close(found[0])
    assert "four or six SGD controls" in found[1]


def test_sweeps_along_a_penalty_are_judged_at_equal_l0(centred):
    results = read_results(centred)
    assert len(results["matched"]) == 2 * (2 + 4)  # default and hold 0, strengths of ReLU and JumpReLU
    for part, activation in (("relu", "ReLU"), ("jumprelu", "JumpReLU")):
        rows = [row for row in results["rows"] if row["part"] == part]
        assert {row["method"] for row in rows} == {*CONTROLS, SLOWER, DEFAULT, OPEN}
        assert {row["activation"] for row in rows} == {activation}
        assert all(len(row["by_seed"][split]) == len(row["seeds"]) for row in rows for split in ("val", "test"))
        assert f"{activation} at matched l0" in render(results)
    strong, weak = (
        next(r for r in results["rows"] if r["part"] == "jumprelu" and r["options"]["l0"] == s) for s in (1.6e-2, 2.5e-4)
    )
    assert strong["val"] > weak["val"]  # the penalty acts


def test_the_headline_is_of_several_files(centred, tmp_path):
    source = figures._figures()["headline"][1]
    for file, _ in source:
        shutil.copy(centred, tmp_path / file)
    assert figures.main(["headline", "--results", str(tmp_path), "--out", str(tmp_path)]) == 0
    results = read_results(centred)
    n = len(source) * len(results["verdicts"])
    better = len(source) * sum(v["verdict"] == "better" for v in results["verdicts"])
    caption = (tmp_path / "headline.txt").read_text()
    assert f"better in {better} of {n} cells" in caption
    assert caption.count("Results: ") == len(source)
    (tmp_path / source[-1][0]).unlink()
    assert figures.main(["headline", "--results", str(tmp_path), "--out", str(tmp_path)]) == 1


def test_controls_with_more_time_are_the_same_runs_for_longer(centred):
    results = read_results(centred)
    long = {
        (r["activation"], r["n_train"], r["method"]): r
        for r in results["rows"]
        if r["part"] in IN_EVERY_CELL and r["budget"] == "long"
    }
    longer = [row for row in results["rows"] if row["part"] == "longer"]
    sizes = {row["n_train"] for row in longer}
    assert sizes == {key[1] for key in long if key[1] < max(key[1] for key in long)}  # the whole pool is tuned in another way
    assert {row["method"] for row in longer} == set(ALL_CONTROLS)
    assert len(longer) == 6 * len(sizes)
    for row in longer:
        same = long[row["activation"], row["n_train"], row["method"]]
        assert row["lr"] == same["lr"]
        assert row["seeds"] == same["seeds"]
        assert 1.25 * same["steps"] <= row["steps"] < 1.25 * same["steps"] + same["steps"] / same["epochs"] + 1
    contests = results["contests"]["the default against the best control, which has a quarter more steps"]
    assert len(contests) == len(longer) // 6
    assert all(c["ours"] == DEFAULT and c["theirs"].startswith("SGD") for c in contests)


def test_figures_name_what_is_missing(tmp_path, capsys):
    assert figures.main(["sparsity", "--results", str(tmp_path), "--out", str(tmp_path)]) == 1  # a folder without it
    assert "make it with: python -m experiments mnist" in capsys.readouterr().err
    assert figures.main(["--list"]) == 0
    assert "sample_efficiency" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        figures.main(["no_such_figure"])


def test_command_line_lists_and_refuses(capsys):
    assert command_line.main([]) == 2
    assert "mnist" in capsys.readouterr().out
    assert command_line.main(["mnits"]) == 2
    assert "unknown experiment 'mnits'" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        mnist.arguments(["--device", "quantum"])
    assert "not available" in capsys.readouterr().err
