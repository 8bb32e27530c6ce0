"""Batches of a stream of activations, each row seen once."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import torch

from splinterp._typing import Tensor
from splinterp._warned import outside
from splinterp.data.stream import ActivationStream
from splinterp.training.method import PassesOverData

LOOKED_AT = 10_000
"""Rows of a stream that stand for its training samples, at least."""


def looked_at(stream: ActivationStream, n: int) -> Tensor:
    """Its next rows, at least n, which stay the next ones."""
    return stream.peek(max(n, LOOKED_AT))


class StreamBatches:
    """What `Batches` is for samples that are there: `shuffled` mixes and gives the next buffer of a stream.

    The rows of a buffer that do not fill a batch are mixed into the next one; the text's last ones are left.
    """

    def __init__(self, stream: ActivationStream, batch_size: int, device: torch.device, dtype: torch.dtype) -> None:
        self.stream, self.batch_size, self.device, self.dtype = stream, batch_size, device, dtype
        if stream.buffer < batch_size:
            raise ValueError(f"buffer={stream.buffer} of the stream must hold a batch of {batch_size}")
        self.rest = torch.empty(0, stream.d_in)

    def __len__(self) -> int:
        """Batches of a buffer."""
        return self.stream.buffer // self.batch_size

    def budget(self, steps: int | None) -> int:
        """The number of batches: as asked for, or what `max_tokens` of the stream makes. Raises ValueError where neither says."""
        most = self.stream.max_tokens
        left = None if most is None else (most - self.stream.n_given) // self.batch_size
        if steps is None and left is None:
            raise ValueError("a stream has no end of its own here: pass steps=, or max_tokens to the stream")
        if steps is not None and left is not None and steps > left:
            raise ValueError(
                f"steps={steps} of {self.batch_size} are more than the {most} rows of the stream's max_tokens: {left} fit"
            )
        if left == 0:
            raise ValueError(f"max_tokens={most} of the stream leaves no batch of {self.batch_size}")
        return steps if steps is not None else left or 0

    def __iter__(self) -> Iterator[Tensor]:
        raise TypeError(
            "a stream's rows are seen once, and this method passes over all of them: take SGD or StreamingPAMSGD, or write a store "
            "(extract_activations(..., folder=...)) and train on that"
        )

    def shuffled(self, generator: torch.Generator) -> Iterator[Tensor]:
        """The next buffer, in an order drawn from a CPU generator; no batch where the text ends before one is full."""
        rows = self.stream.take(self.stream.buffer - len(self.rest))
        rows = torch.cat([self.rest, rows]) if len(self.rest) else rows
        n = len(rows) // self.batch_size * self.batch_size
        order = torch.randperm(len(rows), device="cpu", generator=generator)
        self.rest = rows[order[n:]]
        for chosen in order[:n].split(self.batch_size) if n else ():
            yield rows[chosen].to(device=self.device, dtype=self.dtype)

    def state_dict(self) -> dict[str, Any]:
        """Where the stream is, and the rows that are left of its last buffer."""
        return {"stream": self.stream.state_dict(), "rest": self.rest.clone()}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Go on where `state_dict` was. Raises ValueError: another text, rows of another width."""
        if saved["rest"].ndim != 2 or saved["rest"].shape[1] != self.stream.d_in:
            raise ValueError(f"the saved rows have shape {tuple(saved['rest'].shape)}, not (n, {self.stream.d_in})")
        self.stream.load_state_dict(saved["stream"])
        self.rest = saved["rest"].clone()


def warn_ended(batches: Any, step: int, total: int) -> None:
    """Warn that a stream's text has ended before the budget."""
    warnings.warn(
        f"the text has ended after {batches.stream.n_given:,} activations, at step {step} of {total}, and training with it: with "
        "more of it, or from a checkpoint, the same call goes on; repeat=True reads it again",
        stacklevel=outside(),
    )


def check_streams(method: Any, epochs: int | None, processes: Any, x_val: Any) -> None:
    """Raises TypeError, ValueError: what cannot train on a stream."""
    if epochs is not None:
        raise ValueError(f"epochs={epochs}: a stream has no passes; pass steps=, or max_tokens of the stream")
    if processes is not None:
        raise ValueError("a stream is trained in one process: write a store, and pass that to all of them")
    if method.wants_x_val and x_val is None:
        raise ValueError(
            f"{type(method).__name__} chooses by held-out samples: pass x_val=stream.take(5_000), before the training"
        )
    if isinstance(method, PassesOverData) and method.passes_over_data:
        raise TypeError(
            f"{type(method).__name__} solves by passes over all of the data, and a stream's rows are seen once: take StreamingPAMSGD, or "
            "write a store (extract_activations(..., folder=...)) and train on that"
        )
