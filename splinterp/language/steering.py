"""Changing what latents say inside a model: for one pass, or while it writes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from splinterp._checks import one_of, whole
from splinterp._typing import Float, Tensor
from splinterp.data.language_model import LanguageModel
from splinterp.data.standardizer import Standardizer
from splinterp.language.provenance import check_provenance
from splinterp.protocol import as_model, dense

MODES = ("add", "clamp", "scale")


@contextmanager
def steered(
    model: LanguageModel, sae: Any, changes: Mapping[int, float], layer: int, site: str = "residual", *, mode: str = "clamp",
    standardizer: Standardizer | None = None,
) -> Iterator[None]:  # fmt: skip
    """Inside, the model runs with some latents changed at every position: `model.model.generate(...)`, or `written`.

    The SAE's error is kept: only the latents' own contributions to the activations change.

    Args:
        changes: a number for each latent.
        mode: "clamp" sets its code to the number (0 ablates it); "scale" multiplies its code by it (0 ablates, -1 turns an AbsTopK latent
            round); "add" adds the number times its row of W_dec whatever its code is (in units of the code; a negative number steers an
            AbsTopK latent to its other pole).
        standardizer: what the SAE's input was normalised by.

    Raises:
        TypeError: an SAE that does not decode by acts @ W_dec + b_dec.
        ValueError: an unknown mode, a latent that is not there, an SAE of another place (`check_provenance`).
    """
    check_provenance(sae, model, layer, site, standardizer)
    with model.edited(layer, site, latent_edit(sae, changes, mode, standardizer)):
        yield


def latent_edit(
    sae: Any, changes: Mapping[int, float], mode: str, standardizer: Standardizer | None
) -> Callable[[Tensor], Tensor]:
    """What `steered` does to activations (..., d_in). Raises as it does."""
    one_of("mode", mode, MODES)
    found = as_model(sae)
    found.check_linear()
    n_latents, b_dec = found.shape[1], found.b_dec
    for latent in changes:
        if not 0 <= latent < n_latents:
            raise ValueError(f"latent={latent} is not one of 0 to {n_latents - 1}")
    chosen = torch.tensor(list(changes), dtype=torch.int64, device=b_dec.device)
    numbers = torch.tensor(list(changes.values()), dtype=b_dec.dtype, device=b_dec.device)

    @torch.no_grad()
    def edit(x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1]).to(b_dec)
        if mode == "add":
            move = numbers.expand(len(rows), -1)
        else:
            seen = rows if standardizer is None else standardizer.transform(rows)
            codes = dense(found.code(seen), n_latents)[:, chosen]
            move = numbers - codes if mode == "clamp" else (numbers - 1) * codes
        return (x + mapped_back(move @ found.W_dec[chosen], standardizer).reshape(x.shape).to(x)).to(x)

    return edit


def mapped_back(change: Float[Tensor, "n d_in"], standardizer: Standardizer | None) -> Float[Tensor, "n d_in"]:
    """Differences of standardised activations as differences of the model's own: the mean drops out."""
    if standardizer is None:
        return change
    return standardizer.inverse(change) - standardizer.inverse(torch.zeros_like(change))


@torch.no_grad()
def written(model: LanguageModel, prompt: str, n_tokens: int = 40, **options: Any) -> str:
    """What a causal model writes after a prompt, the likeliest token each time unless `options` of `generate` say otherwise.

    Raises:
        TypeError: a model that does not generate (`LanguageModel.load(..., causal=True)` does).
        ValueError: an empty prompt.
    """
    whole("n_tokens", n_tokens, 1)
    if not hasattr(model.model, "generate") or (getattr(model.model, "lm_head", None) is None and model.trunk is model.model):
        raise TypeError(f"{type(model.model).__name__} writes no text: load it with causal=True")
    ids = model.tokenizer(prompt, return_tensors="pt")["input_ids"].to(model.device)
    if not ids.shape[1]:
        raise ValueError("the prompt has no tokens")
    ends = (model.tokenizer.pad_token_id, model.tokenizer.eos_token_id)
    pad = next((end for end in ends if end is not None), 0)
    given = {"do_sample": False, "pad_token_id": pad, **options}
    out = model.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=n_tokens, **given)
    return model.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)
