"""PAM-SGD on data seen once: statistics with forgetting, and a decoder refreshed every so many steps."""

from __future__ import annotations

from typing import Any

from splinterp.training.pam import PAMSGD
from splinterp.training.shorthands import WHEN_SHORTHANDS
from splinterp.training.when import Refresh


def StreamingPAMSGD(*, refresh_every: int = 100, keep: float = 0.5, **options: Any) -> PAMSGD:  # noqa: N802  (it was a class)
    """PAM-SGD for a stream: a name for `PAMSGD(when=Refresh(every=refresh_every, keep=keep), ...)`.

    Raises ValueError: an option out of range, or one of PAMSGD that says when to solve.
    """
    if any(name in options for name in (*WHEN_SHORTHANDS, "when")):
        raise ValueError(f"{', '.join(sorted(WHEN_SHORTHANDS))} and when do not act on a stream: set refresh_every")
    return PAMSGD(when=Refresh(every=refresh_every, keep=keep), **options)
