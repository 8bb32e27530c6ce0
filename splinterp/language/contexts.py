"""The tokens that a latent fires on most, in their context."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch

from splinterp._checks import as_samples, chosen_latents, one_of, whole
from splinterp._documented import documented
from splinterp._typing import ArrayLike, Float, Int, Tensor
from splinterp.data.store import ActivationStore
from splinterp.language._windows import common, window
from splinterp.protocol import SAELike, as_model, dense, inference_mode_of

SIGNS = ("positive", "negative", "magnitude")


@documented
class TopActivating(NamedTuple):
    """The samples on which each latent's code is largest, in falling order."""

    acts: Float[Tensor, "n_latents n"]
    """The codes; 0 where a latent fired on fewer than n samples."""
    rows: Int[Tensor, "n_latents n"]
    """Their rows in the data; -1 likewise."""


@torch.no_grad()
def top_activating(
    sae: SAELike, x: ArrayLike | ActivationStore, n: int = 10, latents: Sequence[int] | ArrayLike | None = None, sign: str = "positive",
    batch_size: int = 4096,
) -> TopActivating:  # fmt: skip
    """The n samples of x (N, d_in) on which each latent fires most, in one pass; memory n numbers a latent and one batch.

    Args:
        latents: which: positions, or a mask (n_latents,); None takes all, in order.
        sign: "positive", "negative" (codes below 0, the most negative first) or "magnitude".

    Equal codes are in no particular order. The module's training mode is restored.

    Raises:
        TypeError, ValueError: bad input, an unknown sign, a latent that is not there.
        IndexError: a mask of latents of another length.
    """
    whole("n", n, 1)
    whole("batch_size", batch_size, 1)
    one_of("sign", sign, SIGNS)
    model = as_model(sae)
    n_latents = model.shape[1]
    chosen = chosen_latents(latents, n_latents)
    device, dtype = model.b_dec.device, model.b_dec.dtype
    chosen = chosen.to(device)
    best = torch.zeros(len(chosen), n, dtype=dtype, device=device)
    rows = torch.full((len(chosen), n), -1, dtype=torch.int64, device=device)
    acts = torch.zeros_like(best)
    with inference_mode_of(sae):
        for start, part in _parts(sae, x, batch_size):
            codes = dense(model.code(part.to(device=device, dtype=dtype)), n_latents)[:, chosen].T  # (latents, batch)
            strength = {"positive": codes, "negative": -codes, "magnitude": codes.abs()}[sign].clamp_min(0)
            found = strength.topk(min(n, strength.shape[1]), dim=1)
            merged = torch.cat([best, found.values], dim=1).topk(n, dim=1)
            where = torch.where(found.values > 0, found.indices + start, -1)
            rows = torch.cat([rows, where], dim=1).gather(1, merged.indices)
            acts = torch.cat([acts, codes.gather(1, found.indices) * (found.values > 0)], dim=1).gather(1, merged.indices)
            best = merged.values
    return TopActivating(acts.cpu(), rows.cpu())


def _parts(sae: SAELike, x: ArrayLike | ActivationStore, batch_size: int) -> Iterator[tuple[int, Tensor]]:
    d_in = len(sae.b_dec)
    data = x.of_width(d_in) if isinstance(x, ActivationStore) else as_samples(x, d_in)
    for i, part in enumerate(data.split(batch_size)):
        yield i * batch_size, part


def context_of(
    tokens: Int[Tensor, "N 3"] | ActivationStore, row: int, tokenizer: Any, before: int = 12, after: int = 6, mark: str = "«{}»",
    newline: str = "⏎",
) -> str:  # fmt: skip
    """The text around the token of a row, that token marked; never beyond its own sequence.

    The text is as the tokenizer decodes it in one piece, so tokens inside a word stay in it. Of a character that is several tokens the
    whole is marked.

    Args:
        tokens: (token id, document, index of the sequence) of each row, as `extract_activations` gives them, or its store.
        tokenizer: decodes token ids.
        newline: what line ends are shown as.

    Raises:
        IndexError: no such row.
    """
    rows, ids = window(tokens, row, before, after)
    at = rows.index(row)
    whole = tokenizer.decode(ids)
    start, stop = (common(whole, tokenizer.decode(ids[:n])) for n in (at, at + 1))
    while stop > start and whole[stop - 1].isspace():
        stop -= 1
    while start < stop and whole[start].isspace():  # the mark is at the word
        start += 1
    if start == stop:  # nothing but white space, or a part of a character that a later token completes
        start, stop = (common(whole, tokenizer.decode(ids[:n])) for n in (at, at + 1))
        stop = max(stop, min(start + 1, len(whole)))
    return (whole[:start] + mark.format(whole[start:stop]) + whole[stop:]).replace("\n", newline)
