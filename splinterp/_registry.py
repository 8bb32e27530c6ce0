"""Classes by name, so that what is saved can be loaded."""

from __future__ import annotations

from typing import Any

PACKAGE = "splinterp."


def register(registry: dict[str, Any], cls: type) -> None:
    """Add a class under its name. Raises TypeError where that is the name of one of this package's, which files go by."""
    known = registry.get(cls.__name__)
    if known is not None and known.__module__.startswith(PACKAGE) and not cls.__module__.startswith(PACKAGE):
        raise TypeError(
            f"{cls.__name__} is the name of {known.__module__}.{known.__qualname__}, by which files are read: choose another"
        )
    registry[cls.__name__] = cls


def said(kind: type, option: str, makers: tuple[str, ...]) -> Any:
    """What a class says of `option`, and None where a class below has overridden one of the methods `makers` without saying it anew."""
    for cls in kind.__mro__:
        if option in cls.__dict__:
            return cls.__dict__[option]
        if any(name in cls.__dict__ for name in makers):
            return None
    return None
