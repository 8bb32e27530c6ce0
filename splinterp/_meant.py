"""Answers to names of options that do not exist."""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeVar

Constructor = TypeVar("Constructor", bound=Callable[..., None])


def _meant(name: str, known: Collection[str], others: Mapping[str, str]) -> str:
    """The end of a message: what the option is called here, or which there are; `others`: names elsewhere, and what to pass for them."""
    if name in others:
        return f": did you mean {others[name]}?"
    found = difflib.get_close_matches(name, sorted(known), n=1)
    return f": did you mean {found[0]}?" if found else f"; it has {', '.join(sorted(known))}"


def refuse_unknown(label: str, options: Collection[str], known: Collection[str], others: Mapping[str, str]) -> None:
    """Raise TypeError for an option of `label` that is not known."""
    for name in options:
        if name not in known:
            raise TypeError(f"{label} has no option {name}{_meant(name, known, others)}")


def answers(others: Mapping[str, str]) -> Callable[[Constructor], Constructor]:
    """Decorates an `__init__`: an unknown option is refused with what was meant. Raises TypeError."""

    def decorate(init: Constructor) -> Constructor:
        known = [p.name for p in inspect.signature(init).parameters.values() if p.kind is not p.VAR_KEYWORD][1:]

        @functools.wraps(init)
        def checked(self: Any, *values: Any, **options: Any) -> None:
            refuse_unknown(type(self).__name__, options, known, others)
            init(self, *values, **options)

        return checked  # type: ignore[return-value]

    return decorate
