"""Where random numbers come from."""

from __future__ import annotations

import torch


def as_generator(generator: torch.Generator | int | None) -> torch.Generator:
    """A CPU generator: the one given, one seeded by an int, or, for None, one seeded by a draw from torch's global generator.

    Raises TypeError: something else.
    """
    if generator is None:
        return torch.Generator().manual_seed(int(torch.randint(2**63 - 1, ())))
    if isinstance(generator, bool) or not isinstance(generator, int | torch.Generator):
        raise TypeError(
            f"generator={generator!r} must be a torch.Generator, an int (a seed) or None (torch's global generator)"
        )
    return torch.Generator().manual_seed(generator) if isinstance(generator, int) else generator
