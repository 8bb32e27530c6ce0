"""By what the ridge of PAM-SGD's solve is chosen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from splinterp._checks import at_least
from splinterp._documented import documented

ENOUGH = 200
"""Held-out samples from which on they decide what was left open."""


@documented
@dataclass(frozen=True, kw_only=True)
class GCV:
    """The ridge by generalised cross-validation at each solve (`splinterp.decoder.gcv_ridge`). It takes samples for independent: where
    many are nearly copies of each other (tokens of a language model, above all in early layers) its ridge is too small."""

    inflation: float = 1.0
    """Factor on the decoder's degrees of freedom, at least 1; larger values choose larger ridges."""

    def __post_init__(self) -> None:
        at_least("gcv_inflation", self.inflation, 1.0)


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """The ridge by the error on samples that the encoder has not seen (`splinterp.decoder.held_out_ridge`): the x_val of `fit`, or
    `state.held_out`."""


@dataclass(frozen=True, kw_only=True)
class Auto:
    """HeldOut() where there are at least 200 held-out samples; GCV() elsewhere, and beside `prox_dec`."""


Rule = GCV | HeldOut | Auto
NAMES: dict[str, Rule] = {"auto": Auto(), "gcv": GCV(), "held_out": HeldOut()}
"""The rules as shorthands."""


def named(ridge: float | Rule) -> Any:
    """A ridge as its shorthand."""
    return next((name for name, rule in NAMES.items() if isinstance(ridge, type(rule))), ridge)
