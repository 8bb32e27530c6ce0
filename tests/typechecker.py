"""The type checker that the test run puts on every annotated function of the package: shapes, and int where float is due.

jaxtyping's own wrapper binds the arguments of every call and opens a table of sizes. That is most of the time of a test that
trains something small, so here only functions whose annotations name shapes get it; for the others beartype is enough.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import CodeType, FunctionType, SimpleNamespace
from typing import Any, get_type_hints

import jaxtyping
from beartype import BeartypeConf, beartype
from beartype.door import is_bearable
from jaxtyping import install_import_hook

CONF = BeartypeConf(is_pep484_tower=True, violation_type=TypeError)
check = beartype(conf=CONF)
with_shapes = jaxtyping.jaxtyped
_hints: dict[CodeType, dict[str, Any]] = {}


def install(package: str) -> None:
    """Check what is imported from `package` from now on."""
    jaxtyping.jaxtyped = jaxtyped  # which the hook puts on every function
    install_import_hook(package, "tests.typechecker.check")


def jaxtyped(fn: Any = None, *, typechecker: Any) -> Any:
    """jaxtyping's decorator, but for functions without shapes."""
    if fn is None:
        return functools.partial(jaxtyped, typechecker=typechecker)
    if not isinstance(fn, FunctionType) or any(map(_names_shapes, fn.__annotations__.values())):
        return with_shapes(fn, typechecker=typechecker)
    if fn.__code__ not in _hints:
        hints = {name: _evaluated(hint, fn.__globals__) for name, hint in fn.__annotations__.items()}
        _hints[fn.__code__] = {name: hint for name, hint in hints.items() if hint is not Any}
    hints = _hints[fn.__code__]
    if not hints:
        return fn
    if "<locals>" in fn.__qualname__:
        return _checked(fn, hints)
    fn.__annotations__ = hints
    return check(fn)


def _names_shapes(hint: Any) -> bool:
    return not isinstance(hint, str) or "Float[" in hint or "Int[" in hint


def _evaluated(hint: Any, names: dict[str, Any]) -> Any:
    try:
        return get_type_hints(SimpleNamespace(__annotations__={"hint": hint}), names)["hint"]
    except NameError:  # imported for type checkers alone, or defined further down: mypy checks those
        return Any


def _checked(fn: Callable[..., Any], hints: dict[str, Any]) -> Callable[..., Any]:
    """As by beartype, which would compile a new wrapper each time that the outer function is called."""
    names = fn.__code__.co_varnames[: fn.__code__.co_argcount]

    @functools.wraps(fn)
    def called(*args: Any, **kwargs: Any) -> Any:
        for name, value in [*zip(names, args, strict=False), *kwargs.items()]:
            if name in hints and not is_bearable(value, hints[name], conf=CONF):
                raise TypeError(f"{fn.__qualname__}: {name}={value!r} is not {hints[name]}")
        result = fn(*args, **kwargs)
        if "return" in hints and not is_bearable(result, hints["return"], conf=CONF):
            raise TypeError(f"{fn.__qualname__} returned {result!r}, which is not {hints['return']}")
        return result

    return called
