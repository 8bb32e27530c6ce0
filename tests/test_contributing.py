"""The recipes of CONTRIBUTING.md run, each is one file in its place, and what the page names exists."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from splinterp import encoders, sae
from splinterp.activations import base
from tests.test_layout import MODULES, ORDER, _level, _part

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
RECIPES = {part.splitlines()[0]: part for part in re.split(r"^### How to add an? ", TEXT, flags=re.MULTILINE)[1:]}
REGISTRIES = (base.REGISTRY, encoders.REGISTRY, sae.KINDS)


def block_of(recipe: str) -> str:
    (block,) = re.findall(r"^```python\n(.*?)^```$", recipe, flags=re.DOTALL | re.MULTILINE)
    return block


def run(source: str, names: dict[str, object]) -> None:
    exec(compile(source, "CONTRIBUTING.md", "exec", dont_inherit=True), names)


@pytest.fixture(autouse=True)
def registries():
    """What a recipe registers is forgotten after it."""
    before = [dict(registry) for registry in REGISTRIES]
    yield
    for registry, content in zip(REGISTRIES, before, strict=True):
        registry.clear()
        registry.update(content)


def test_there_are_five_recipes():
    assert list(RECIPES) == ["activation", "encoder", "loss term", "method", "format"]
    assert TEXT.count("```python") == 5


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_recipe_runs(recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    block = block_of(recipe)
    assert block.count("\n# in use\n") == 1
    assert "assert " in block.split("\n# in use\n")[1]
    run(block, {"__name__": "recipe"})


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_recipe_is_one_file_in_its_place(recipe):
    block = block_of(recipe)
    (path,) = re.findall(r"`(splinterp/[\w/]+\.py)`", recipe)
    assert block.startswith(f"# {path}\n")
    assert (ROOT / path).parent.joinpath("__init__.py").exists()
    assert not (ROOT / path).exists(), "the package has it now: choose another example"
    file = block.split("\n# in use\n")[0]
    run(file, {"__name__": "recipe"})  # the file needs nothing of its use
    name = path.removesuffix(".py").replace("/", ".")
    imports = {
        node.module
        for node in ast.walk(ast.parse(file))
        if isinstance(node, ast.ImportFrom) and "splinterp" in str(node.module)
    }
    assert imports <= set(MODULES)
    assert all(_level(module) >= _level(name) for module in imports)
    assert max(map(len, block.splitlines())) <= 128


def test_what_recipes_register_is_forgotten():
    assert "SoftThreshold" not in base.REGISTRY


def test_commands_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    named = set(re.findall(r"(?:^    |`)make ([\w-]+)", TEXT, flags=re.MULTILINE))
    assert {"test", "test-all", "test-other-machine", "lint", "types"} <= named
    for target in named:
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


def test_names_exist():
    (parts,) = re.findall(r"^\| part \|.*?\n\n", TEXT, flags=re.DOTALL | re.MULTILINE)
    rows = [row.split("|")[1] for row in parts.strip().splitlines()[2:]]
    listed = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    assert listed == set(ORDER) - {"aliases", "helpers"}
    assert listed <= {_part(name) for name in MODULES if name != "splinterp"}
    examples = {path for recipe in RECIPES.values() for path in re.findall(r"`(splinterp/[\w/]+\.py)`", recipe)}
    paths = set(re.findall(r"`((?:tests|splinterp|experiments|paper_figures|\.ci)/[\w/.]*)", TEXT)) - examples
    assert len(paths) > 5
    for path in paths:
        assert (ROOT / path).exists(), path
    read = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").glob("*.py") if path != Path(__file__))
    for variable in re.findall(r"SPLINTERP_\w+", TEXT):
        assert f'"{variable}"' in read, variable
    markers = re.findall(r'^    "(\w+): ', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert all(f"`{marker}`" in TEXT for marker in markers)
