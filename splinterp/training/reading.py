"""Readouts in training: on held-out samples, with the training left as it is."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from splinterp._typing import Tensor
from splinterp.decoder import DecoderStats, Readout, readout
from splinterp.protocol import as_model
from splinterp.training.batches import Batches, evenly_spaced
from splinterp.training.method import ReadsOut
from splinterp.training.solver import held_out_stats
from splinterp.training.when import PRICE, factor_cost

BLOCK = 1_024
"""Samples coded at a time."""
CODED = 0.4
"""What a sample's code and its share of the sums cost, in samples that a gradient step goes by."""
ABOVE = 3.0
"""The readout's ridge, in those of the last solve: for the combination of solutions a larger one is as good or better (1,000 to 36,000
tokens of MiniLM; on MNIST it makes no difference)."""
PRODUCTS = 5
"""Of a matrix of n_latents^2 and the decoder's weights, beyond the triangular solves of one solution."""


@torch.no_grad()
def readout_of(method: Any, sae: Any, state: Any, most: int | None = None) -> Readout:
    """The readout of the encoder as it is, from at most so many training samples (evenly spaced), the SAE left as it is. An
    optimizer of two modes has to be in that of evaluation."""
    block = state.model.decoder_block()
    b_dec = state.model.b_dec
    data = state.data if most is None else evenly_spaced(state.data, most)
    batches = Batches(data, BLOCK, b_dec.device, b_dec.dtype)
    stats = method.solver.statistics(state.model, len(data))

    def gather(found: DecoderStats, several: Iterable[Tensor]) -> None:
        method.gather(sae, state, found, several)

    buffers = {name: b.clone() for name, b in sae.named_buffers()}  # the threshold of a BatchTopK
    with torch.autocast(b_dec.device.type, enabled=False):
        gather(stats, batches)
        held_out = held_out_stats(state, stats, gather)
    for name, b in sae.named_buffers():
        b.copy_(buffers[name])
    return readout(
        stats,
        held_out,
        state.model.W_dec,
        state.model.b_dec,
        block.prior,
        ridge=None if state.ridge is None else ABOVE * state.ridge,
    )


def read_is_paid(state: Any, most: int) -> bool:
    """Whether the steps since the last readout cost ten times as much as another one of so many training samples."""
    assert state.held_out is not None
    coded = min(most, len(state.data)) + len(state.held_out)
    d_in, n_latents = state.model.shape
    cost = CODED * coded + factor_cost(d_in, n_latents) + PRODUCTS * n_latents
    return PRICE * (state.step - state.read_at) * state.batch_size >= cost


@contextmanager
def read_out_decoder(method: Any, sae: Any, state: Any) -> Iterator[None]:
    """Inside, the SAE has the decoder that `method.read_out` finds, if it has such a thing; afterwards, bit for bit, its own."""
    found = method.read_out(sae, state) if isinstance(method, ReadsOut) else None
    if found is None:
        yield
        return
    block = as_model(sae).decoder_block()
    moved = (*block.weights, *block.bias)
    before = [p.detach().clone() for p in moved]
    write(sae, found)
    try:
        yield
    finally:
        with torch.no_grad():
            for p, value in zip(moved, before, strict=True):
                p.copy_(value)


@torch.no_grad()
def write(sae: Any, found: Readout) -> None:
    """Make a readout the SAE's decoder; nothing where it is the one that the SAE has."""
    if not math.isnan(found.ridge):
        as_model(sae).decoder_block().write(found.W_dec, found.b_dec)
