"""Sequences as batches of token ids, and edits of activations at their tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch

from splinterp._typing import Tensor
from splinterp.data._passes import batch_of, length_batches, padded
from splinterp.data.language_model import LanguageModel
from splinterp.data.text import TokenSequences
from splinterp.data.token_rules import TokenRules

Edit = Callable[[Tensor], Tensor]


class Batch(NamedTuple):
    """Padded sequences, each part (n, length), on the model's device."""

    ids: Tensor
    mask: Tensor
    real: Tensor
    """Neither padding nor special: what is predicted."""
    taken: Tensor
    """What the rules take: where an SAE acts."""


def batches_of(
    model: LanguageModel, sequences: TokenSequences, batch_tokens: int | None, rules: TokenRules | None = None
) -> Iterator[Batch]:
    """Sequences of like length together. The rules that go by norms are not applied."""
    if not len(sequences):
        raise ValueError("there are no sequences: pack some text first")
    batch_tokens = batch_of(model, sequences.ids, batch_tokens)
    rules = rules or TokenRules()
    for chosen in length_batches(sequences.ids, batch_tokens):
        ids, mask = padded([sequences.ids[i] for i in chosen])
        special, _ = padded([sequences.special[i] for i in chosen])
        taken = torch.zeros_like(mask, dtype=torch.bool)
        for row, i in enumerate(chosen):
            taken[row, rules.places(sequences.ids[i], sequences.special[i])[0]] = True
        yield Batch(*(t.to(model.device) for t in (ids, mask, (mask == 1) & (special == 0), taken)))


def at_real(real: Tensor, edit: Edit) -> Edit:
    """The edit at the real tokens only, as rows (n, width)."""

    def apply(x: Tensor) -> Tensor:
        chosen = real.to(x.device).reshape(x.shape[:-1])
        edited = x.clone()
        edited[chosen] = edit(x[chosen]).to(x)
        return edited

    return apply
