"""What `help()` says of options and results."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import subprocess
import sys

import pytest

import splinterp
from splinterp import PAMSGD, SGD
from splinterp._documented import documented
from splinterp.losses import L1, AuxK, Term
from splinterp.training import GradientOptions


def exported():
    for part in ["splinterp", *(f"splinterp.{name}" for name in splinterp._PARTS)]:
        module = importlib.import_module(part)
        for name in getattr(module, "__all__", []):
            kind = getattr(module, name)
            if inspect.isclass(kind) and dataclasses.is_dataclass(kind) and issubclass(kind, GradientOptions | Term):
                yield kind


@pytest.mark.parametrize("kind", sorted(set(exported()), key=lambda kind: kind.__name__), ids=lambda kind: kind.__name__)
def test_every_option_of_a_method_or_a_term_is_described(kind):
    missing = [field.name for field in dataclasses.fields(kind) if field.init and f"    {field.name}" not in kind.__doc__]
    assert not missing


def test_options_are_inherited_with_their_defaults():
    for kind in (SGD, PAMSGD):
        assert "weight_decay (default 0.0): The optimizer's weight decay" in kind.__doc__
    assert "unit_norm_decoder (default False)" in SGD.__doc__
    assert "unit_norm_decoder" not in PAMSGD.__doc__
    assert L1.__doc__.count("weight (default 1.0)") == 1
    assert "weight (default 0.03125)" in AuxK.__doc__


def test_results_say_what_their_fields_are():
    from splinterp.metrics import Bipolarity

    documented_fields = [name for name in Bipolarity._fields if f"\n    {name}: " in Bipolarity.__doc__]
    assert documented_fields
    for name in documented_fields:
        assert not getattr(Bipolarity, name).__doc__.startswith("Alias")


def test_without_sources_nothing_breaks():
    code = (
        "import dataclasses; from splinterp._documented import documented\n"
        "@documented\n@dataclasses.dataclass\nclass Mine:\n    '''Doc.'''\n    x: int = 0\n    '''Not of this package.'''\n"
        "assert Mine.__doc__ == 'Doc.'"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    subprocess.run([sys.executable, "-OO", "-c", "import splinterp; splinterp.PAMSGD()"], check=True, timeout=120)


def test_fields_described_under_args_are_not_said_twice():
    @documented
    @dataclasses.dataclass
    class Own:
        """One.

        Args:
            x: by hand.
        """

        x: int = 0
        """By its own."""

    assert "By its own" not in Own.__doc__
