"""The README's Python examples run, in order, as one program."""

from __future__ import annotations

import argparse
import re
import shlex
from pathlib import Path

import pytest
import torch

from experiments import __main__ as experiments
from paper_figures import __main__ as figures
from splinterp.data import LanguageModel
from splinterp.pipeline import commands

README = Path(__file__).resolve().parent.parent / "README.md"


def blocks_of(path):
    return re.findall(r"```python\n(.*?)```", path.read_text(), flags=re.DOTALL)


def run(path, model):
    """The names that a page's examples leave; without those that name the model where it cannot be loaded."""
    blocks = blocks_of(path)
    try:
        LanguageModel.load("minilm")
    except ImportError:
        blocks = [block for block in blocks if model not in block]
    names: dict[str, object] = {}
    before = torch.random.get_rng_state()
    for block in blocks:
        exec(compile(block, str(path), "exec"), names)
    torch.random.set_rng_state(before)
    return names


def test_the_example_prints_what_the_readme_says(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (block,) = blocks_of(README)
    exec(compile(block, str(README), "exec"), {})
    printed = dict(line.split() for line in capsys.readouterr().out.splitlines())
    said = dict(re.findall(r"^    (SGD|PAMSGD) (\d\.\d+)$", README.read_text(), flags=re.MULTILINE))
    assert list(printed) == list(said) == ["SGD", "PAMSGD"]
    for method, fvu in said.items():  # other machines round otherwise, which training makes larger
        assert float(printed[method]) == pytest.approx(float(fvu), abs=0.004)
    assert (tmp_path / "my_sae" / "sae.safetensors").exists()


def test_the_readme_can_be_read():
    assert len(README.read_text().splitlines()) <= 110


DOCS = sorted(path for path in (README.parent / "docs").rglob("*.md") if path.parent.name != "reference")
GENERATED = ("results.md", "contributing.md", "changelog.md", "figures/")
"""Pages and images that `docs/hooks.py` makes of files elsewhere; `make docs` checks the links to them."""


@pytest.mark.parametrize("path", DOCS, ids=lambda path: path.stem)
def test_examples_of_the_docs_run(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = run(path, "minilm")
    if "outcome" in names:
        assert 0 < names["outcome"].metrics["fvu"] < 0.5
        assert names["stream"].n_given > 60 * 256
    if path.stem == "variants":
        assert {"Matryoshka", "AuxK"} <= set(names["history"][0])
        assert 0 < float(names["frequencies"].min()) < float(names["frequencies"].max()) < 0.5
    if path.stem == "pam_sgd":
        assert names["found"].score <= names["found"].unsolved
        assert names["W_dec"].shape == (64, 32)
    if path.stem == "resume":
        for key in ("loss", "seconds"):  # a run that is found is not made again
            assert [row[key] for row in names["again"].history] == [row[key] for row in names["first"].history]
        assert names["longer"].history[-1]["epoch"] == 8
    for link in re.findall(r"\]\(((?!http)[^)#]+)[^)]*\)", path.read_text()):
        assert (path.parent / link).exists() or any(name in link for name in GENERATED), link


def test_documented_commands_of_the_package_are_accepted(monkeypatch, tmp_path):
    """Their options are known; nothing is carried out."""
    found = {
        command.split("#")[0].strip()
        for path in (README, *DOCS)
        for command in re.findall(
            r"python -m splinterp ((?:train|evaluate|contexts|dashboard|export) [^`\n]+)", path.read_text()
        )
    }
    assert len(found) >= 5
    carried_out = []
    for name in ("_train", "_evaluate", "_contexts", "_dashboard", "_export"):
        monkeypatch.setattr(commands, name, carried_out.append)
    for command in sorted(found):
        if "--help" not in command and "..." not in command:
            commands.main(shlex.split(command))
    assert len(carried_out) >= 5


def test_commands_exist():
    text = README.read_text()
    makefile = (README.parent / "Makefile").read_text()
    for target in re.findall(r"^    make (\w+)", text, flags=re.MULTILINE):
        assert f"\n{target}:" in makefile
    for path in re.findall(r"\]\(((?!http)[^)]+)\)", text):
        assert (README.parent / path).exists(), path


class Accepted(Exception):  # noqa: N818
    """A command line was parsed to the end."""


COMMANDS = sorted({
    command
    for document in (README, *DOCS, README.parent / "experiments" / "RESULTS.md")
    for command in re.findall(r"python -m (?:experiments|paper_figures) [^`#;\n]+", document.read_text())
})  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_documented_commands_are_accepted(command, monkeypatch, tmp_path):
    command = command.replace("FOLDER", str(tmp_path))
    parse = argparse.ArgumentParser.parse_args

    def parsed(self, argv):
        parse(self, argv)
        raise Accepted

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parsed)
    if not torch.cuda.is_available():
        command = command.replace("--device cuda", "--device cpu")
    module, *arguments = shlex.split(command.rstrip(" .,):"))[2:]
    if "NAME" in arguments or "..." in arguments:
        pytest.skip("a pattern")
    main = {"experiments": experiments.main, "paper_figures": figures.main}[module]
    with pytest.raises(Accepted):
        main(arguments)


@pytest.mark.slow
def test_every_figure_is_drawn_from_the_committed_results(tmp_path):
    assert figures.main(["--all", "--out", str(tmp_path)]) == 0
    committed = Path(figures.__file__).parent / "figures"
    assert {path.name for path in committed.iterdir()} == {path.name for path in tmp_path.iterdir()}


def test_documented_commands_are_found():
    assert len(COMMANDS) > 15
