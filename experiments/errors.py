"""Ends of a command that are told without a traceback."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

INTERRUPTED, BROKEN_PIPE = 130, 141
"""Exit statuses, as a shell gives them for SIGINT and SIGPIPE."""


class UsageError(ValueError):
    """Something that the command line must be changed for."""


def guarded(name: str, command: Callable[[], object]) -> int:
    """Carry out a command; what a user meets (an error of use, Ctrl-C, a closed pipe) ends it without a traceback."""
    try:
        command()
        sys.stdout.flush()
    except UsageError as error:
        print(f"{name}: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        print(f"\n{name}: interrupted; {str(stop) or 'nothing was written'}", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # what reads has enough: `tables NAME | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    return 0
