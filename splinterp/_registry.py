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
