"""Docstrings of attributes where `help()` and IPython look for them: in the docstring of the class."""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import sys
from typing import TypeVar

Class = TypeVar("Class", bound=type)


def documented(cls: Class) -> Class:
    """Add what the source says of each field, inherited ones too, to the docstring of a dataclass or named tuple.

    A decorator, above `dataclass`. Fields that the docstring describes under "Args:" already, and those without a docstring of their own,
    are left out. Without sources, or under `python -OO`, nothing is added.
    """
    if not cls.__doc__:
        return cls
    names = getattr(cls, "_fields", None) or [field.name for field in dataclasses.fields(cls) if field.init]
    found = {name: doc for name in names if (doc := _said(cls, name)) and f"    {name}: " not in cls.__doc__}
    for name, doc in found.items():
        if hasattr(cls, "_fields"):
            getattr(cls, name).__doc__ = doc
    if found:
        header = "Attributes:" if hasattr(cls, "_fields") else "Options:"
        lines = [_entry(f"{name}{_default(cls, name)}", doc) for name, doc in found.items()]
        cls.__doc__ = f"{inspect.cleandoc(cls.__doc__)}\n\n{header}\n" + "\n".join(lines)
    return cls


def _entry(name: str, doc: str) -> str:
    first, *rest = doc.splitlines()
    return "\n".join([f"    {name}: {first}", *(f"        {line}".rstrip() for line in rest)])


def _default(cls: type, name: str) -> str:
    field = getattr(cls, "__dataclass_fields__", {}).get(name)
    if field is None or field.default is dataclasses.MISSING:
        return ""
    return f" (default {field.default!r})"


def _said(cls: type, name: str) -> str:
    """The docstring of a field, of the nearest class that has one."""
    for base in cls.__mro__:
        doc = _docstrings(base.__module__).get(f"{base.__qualname__}.{name}", "")
        if doc:
            return doc
    return ""


@functools.cache
def _docstrings(module: str) -> dict[str, str]:
    """Of attributes of a module's classes, by "Class.attribute"."""
    path = getattr(sys.modules.get(module), "__file__", None)
    if not path or not module.startswith("splinterp."):
        return {}
    try:
        with open(path, encoding="utf-8") as file:
            tree = ast.parse(file.read())
    except (OSError, ValueError, SyntaxError):  # there is bytecode alone
        return {}
    found = {}
    for kind in (node for node in tree.body if isinstance(node, ast.ClassDef)):
        for field, doc in zip(kind.body, kind.body[1:], strict=False):
            text = doc.value.value if isinstance(doc, ast.Expr) and isinstance(doc.value, ast.Constant) else None
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(text, str):
                found[f"{kind.name}.{field.target.id}"] = inspect.cleandoc(text)
    return found
