"""Where random numbers come from."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from splinterp._content import hash_of
from splinterp._typing import Tensor


def as_generator(generator: torch.Generator | int | None) -> torch.Generator:
    """A CPU generator: the one given, one seeded by an int, or, for None, one seeded by a draw from torch's global generator.

    Raises TypeError: something else.
    """
    if generator is None:
        return torch.Generator().manual_seed(int(torch.randint(2**63 - 1, (), device="cpu")))
    if isinstance(generator, np.integer):
        generator = int(generator)
    if isinstance(generator, bool) or not isinstance(generator, int | torch.Generator):
        raise TypeError(
            f"generator={generator!r} must be a torch.Generator, an int (a seed) or None (torch's global generator)"
        )
    return torch.Generator().manual_seed(generator) if isinstance(generator, int) else generator


def position_of(generator: torch.Generator) -> str:
    """Which draws come next, as 16 hexadecimal digits."""
    return hash_of(generator.get_state())


def seeded_state(seed: int) -> Tensor:
    """The state of a CPU generator, uint8: a tensor, so that checkpoints and files have it."""
    return torch.Generator().manual_seed(seed).get_state()


@contextmanager
def drawing_from(state: Tensor) -> Iterator[torch.Generator]:
    """A CPU generator in this state; afterwards `state`, in place, is where its draws have brought it."""
    generator = torch.Generator()
    generator.set_state(state.cpu())
    yield generator
    state.copy_(generator.get_state())
