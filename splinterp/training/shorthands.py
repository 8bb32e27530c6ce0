"""The shorthands of PAM-SGD: single options in place of `solver` and `when`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from splinterp._checks import one_of
from splinterp.training.named import Named
from splinterp.training.rules import GCV, NAMES, Auto, HeldOut
from splinterp.training.solver import DecoderSolver
from splinterp.training.when import GAP, NEVER, AtEnd, EveryEpoch, EverySteps, When

SOLVER_SHORTHANDS = {"bias": "bias", "bias_ridge": "bias_ridge", "prox_dec": "prox", "bias_prox": "bias_prox", "scale": "scale",
                     "stats_dtype": "dtype"}  # fmt: skip
"""Shorthands for options of `solver`, beside `ridge` and `gcv_inflation`."""
WHEN_SHORTHANDS = ("solve_gap", "solve_parts", "decoder_every", "solve_first")
"""Shorthands for `when`."""


class Shorthands(Named):
    """Constructor calls with shorthands become calls with `solver` and `when`."""

    shorthands = ("ridge", "gcv_inflation", *SOLVER_SHORTHANDS, *WHEN_SHORTHANDS)

    def __call__(cls, *values: Any, **options: Any) -> Any:  # noqa: N805
        return super().__call__(*values, **expanded(options))


def expanded(options: dict[str, Any]) -> dict[str, Any]:
    """Options with `solver` and `when` in place of their shorthands, which change those that are given."""
    if any(name in options for name in ("ridge", "gcv_inflation", *SOLVER_SHORTHANDS)):
        solver = options.get("solver", DecoderSolver())
        chosen = {SOLVER_SHORTHANDS[name]: options.pop(name) for name in SOLVER_SHORTHANDS if name in options}
        rule = _rule(options.pop("ridge", solver.ridge), options.pop("gcv_inflation", None))
        options["solver"] = replace(solver, ridge=rule, **chosen)
    timed = {name: options.pop(name) for name in WHEN_SHORTHANDS if name in options}
    if timed:
        options["when"] = _timed(options.get("when", EveryEpoch()), timed)
    return options


def _rule(ridge: Any, inflation: float | None) -> Any:
    if isinstance(ridge, str):
        one_of("ridge", ridge, tuple(NAMES))
        ridge = NAMES[ridge]
    if inflation is None or (inflation == 1 and not isinstance(ridge, GCV)):
        return ridge
    if isinstance(ridge, GCV | Auto):
        return GCV(inflation=inflation)
    if isinstance(ridge, HeldOut):
        raise ValueError("ridge='held_out' takes no prox_dec and no gcv_inflation")
    raise ValueError(f"gcv_inflation={inflation} acts only with ridge='gcv', not ridge={ridge}")


def _timed(when: When, timed: dict[str, Any]) -> When:
    name = next(iter(timed))
    if when.streams:
        raise ValueError(f"{name}={timed[name]}: {', '.join(WHEN_SHORTHANDS)} do not act on a stream, when={when}")
    every = timed.get("decoder_every")
    if every is not None:
        if timed.get("solve_first"):
            raise ValueError("solve_first=True and decoder_every exclude each other: drop one")
        for name in ("solve_gap", "solve_parts"):
            if timed.get(name) is not None:
                raise ValueError(f"{name}={timed[name]} changes nothing beside decoder_every={every}: drop one")
        return EverySteps(n=every)
    epoch = when if isinstance(when, EveryEpoch) else EveryEpoch()
    return EveryEpoch(
        gap=timed.get("solve_gap", epoch.gap),
        parts=timed.get("solve_parts", epoch.parts),
        first=timed.get("solve_first", epoch.first),
    )


def gap_of(when: When) -> int | None:
    """`when` as the shorthand solve_gap."""
    if isinstance(when, AtEnd):
        return NEVER
    return when.gap if isinstance(when, EveryEpoch) and not when.first else GAP  # where it does not act, what it always was
