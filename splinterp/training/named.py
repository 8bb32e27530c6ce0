"""Constructor calls of methods: options by name, and answers to the mistakes that are made in them."""

from __future__ import annotations

import inspect
from abc import ABCMeta
from typing import Any, ClassVar

from splinterp._meant import refuse_unknown

OTHERS = {
    "learning_rate": "lr",
    "wd": "weight_decay",
    "l1_coefficient": "l1",
    "sparsity": "l1",
    "momentum": "betas",
    "lam": "l1",
}
"""What some options are called elsewhere."""


class Named(ABCMeta):
    """The class of methods. A call with values that are not named, or with unknown names, is refused with what would work.

    A subclass whose constructor is its own is left alone.
    """

    shorthands: ClassVar[tuple[str, ...]] = ()
    """Names that are taken besides those of the constructor."""

    @property
    def __signature__(cls) -> inspect.Signature:
        """What `help()` and IPython show."""
        signature = inspect.signature(cls.__init__)  # type: ignore[misc]
        return signature.replace(parameters=list(signature.parameters.values())[1:])

    def __call__(cls, *values: Any, **options: Any) -> Any:
        own = cls.__signature__.parameters.values()
        if all(parameter.kind is inspect.Parameter.KEYWORD_ONLY for parameter in own):
            known = {parameter.name for parameter in own} | set(cls.shorthands)
            if values:
                raise TypeError(f"{cls.__name__} takes options by name: {cls.__name__}(lr={values[0]!r}), say")
            others = {other: ours for other, ours in OTHERS.items() if ours in known}
            refuse_unknown(cls.__name__, options, known, others)
        return super().__call__(*values, **options)
