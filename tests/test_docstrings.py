"""The examples in docstrings run and print what they say."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import splinterp

MODULES = [
    importlib.import_module(found.name)
    for found in pkgutil.walk_packages(splinterp.__path__, "splinterp.")
    if not found.name.endswith(("_triton", "plotting"))
]
EXAMPLES = [
    example for module in MODULES for example in doctest.DocTestFinder(exclude_empty=True).find(module) if example.examples
]


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.name)
def test_example(example, capsys):
    assert doctest.DocTestRunner().run(example).failed == 0, capsys.readouterr().out


def test_examples_are_found():
    assert len(EXAMPLES) >= 12
