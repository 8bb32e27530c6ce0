"""Imports inside the package go downwards and in no circle, and the older names of moved modules still work."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import pytest

import splinterp

ORDER = [
    "pipeline",
    "aliases",
    "training",
    "losses",
    "jacobian_sae",
    "language",
    "metrics",
    "interop",
    "plotting",
    "ensembles",
    "inference",
    "baselines",
    "geometry",
    "archetypal",
    "decoder",
    "transcoder",
    "sae",
    "sae_start",
    "sae_parts",
    "sae_files",
    "encoders",
    "protocol",
    "activations",
    "data",
    "sparse_kernels",
    "helpers",
]
"""The parts of the package from the top down; a module imports from its own part and from those below. The package's own
`__init__` is above all."""
ALIASES = {
    "splinterp.contexts": "splinterp.language.contexts",
    "splinterp.interventions": "splinterp.language.interventions",
    "splinterp.matrix_free": "splinterp.decoder.matrix_free",
}
KNOWN = {
    ("splinterp.data.store", "splinterp.data.standardizer"),  # the type of an argument; the standardizer reads stores
}
"""Imports, of names for annotations alone, that are allowed although they go up or close a circle."""


def _modules() -> dict[str, Path]:
    root = Path(splinterp.__file__).parent
    found = {}
    for path in sorted(root.rglob("*.py")):
        parts = ["splinterp", *path.relative_to(root).with_suffix("").parts]
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = _modules()


def _imports(name: str, path: Path) -> set[str]:
    """The modules of the package that this one imports anywhere in its text."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}, line {node.lineno}: an import relative to the package"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {each if each in MODULES else str(node.module) for each in names}
    found = {each for each in found if each.split(".")[0] == "splinterp"}
    assert found <= set(MODULES), f"{name} imports {found - set(MODULES)}"
    return found


EDGES = {(name, other) for name, path in MODULES.items() for other in _imports(name, path)}


def _part(name: str) -> str:
    part = name.split(".")[1]
    if name in ALIASES:
        return "aliases"
    if part == "__main__":
        return "pipeline"
    return "helpers" if part.startswith("_") else part


def _level(name: str) -> int:
    return -1 if name == "splinterp" else ORDER.index(_part(name))


def _circle(edges: set[tuple[str, str]]) -> list[str]:
    """Modules of which each imports the next, and the last the first; empty where there are none."""
    below: dict[str, list[str]] = {}
    for name, other in sorted(edges):
        below.setdefault(name, []).append(other)
    done: set[str] = set()

    def walk(name: str, path: list[str]) -> list[str]:
        if name in path:
            return path[path.index(name) :]
        if name in done:
            return []
        for other in below.get(name, []):
            if circle := walk(other, [*path, name]):
                return circle
        done.add(name)
        return []

    return next((circle for name in sorted(below) if (circle := walk(name, []))), [])


def test_every_module_has_a_place():
    assert len(EDGES) > len(MODULES) > 60
    assert {_part(name) for name in MODULES if name != "splinterp"} <= set(ORDER)


def test_no_import_goes_up():
    assert {edge for edge in EDGES - KNOWN if _level(edge[0]) > _level(edge[1])} == set()


def test_imports_form_no_circle():
    assert _circle(EDGES - KNOWN) == []
    assert _circle({("a", "b"), ("b", "c"), ("c", "b")}) == ["b", "c"]


def test_known_exceptions_are_still_needed():
    assert KNOWN <= EDGES
    for edge in KNOWN:
        assert _level(edge[0]) > _level(edge[1]) or _circle((EDGES - KNOWN) | {edge}), f"{edge} is no exception any more"


@pytest.mark.parametrize(("old", "new"), ALIASES.items())
def test_older_names_give_the_same_objects(old, new):
    old_module, new_module = importlib.import_module(old), importlib.import_module(new)
    public = {
        name
        for name, value in vars(new_module).items()
        if not name.startswith("_") and getattr(value, "__module__", None) == new  # defined there
    }
    assert public <= set(old_module.__all__)
    for name in old_module.__all__:
        assert getattr(old_module, name) is getattr(new_module, name)


MODELS = ("sae", "model", "module", "state", "self.state", "method", "self.method", "activation", "self.activation")
"""What the package calls what it is given."""


def test_nothing_above_the_sae_asks_what_class_a_model_is():
    """Models and activations say what they can do; only geometry's boundary wants this package's own SAE."""
    asked = {}
    for name, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)):
                continue
            said = ast.unparse(node)
            by_class = said.startswith("isinstance(") and said.endswith((", SAE)", "| SAE)"))
            by_name = said.startswith(("hasattr(", "getattr(")) and said.split("(")[1].split(",")[0] in MODELS
            if by_class or by_name:
                asked.setdefault(name, []).append(said)
    boundaries = {  # to what others write
        "splinterp.geometry._encoder", "splinterp.protocol.foreign", "splinterp.interop.saelens", "splinterp.interop.affine",
        "splinterp.interop.foreign",
        "splinterp.interop.dictionary_learning", "splinterp.data._architectures",
        "splinterp.data.language_model",
    }  # fmt: skip
    assert set(asked) <= boundaries, asked
