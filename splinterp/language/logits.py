"""What a latent's row of W_dec says to the output, directly: the logit lens, and effects of latents on latents above."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from splinterp._checks import chosen_latents, whole
from splinterp._documented import documented
from splinterp._typing import ArrayLike, Float, Int, Tensor
from splinterp.data.language_model import LanguageModel
from splinterp.data.standardizer import Standardizer
from splinterp.data.text import TokenSequences
from splinterp.language._batches import at_real, batches_of
from splinterp.language._final import linear_parts
from splinterp.language.provenance import check_provenance, rules_of
from splinterp.language.steering import latent_edit, mapped_back
from splinterp.protocol import as_model, dense

ORDER = {"attention": 0, "mlp": 1, "residual": 2}
"""In which sites of one layer are reached."""


@documented
class TopTokens(NamedTuple):
    """The tokens that latents raise most and lower most, in falling order of the effect."""

    raised: Int[Tensor, "n_latents n"]
    lowered: Int[Tensor, "n_latents n"]
    up: Float[Tensor, "n_latents n"]
    """What each adds to the logit of the raised token for a code of 1, before the final norm's division."""
    down: Float[Tensor, "n_latents n"]


@torch.no_grad()
def logit_attribution(
    model: LanguageModel, sae: Any, latents: Sequence[int] | ArrayLike | None = None, *, standardizer: Standardizer | None = None,
) -> Float[Tensor, "n_latents vocabulary"]:  # fmt: skip
    """The direct effect on every logit of a latent's code of 1: its row of W_dec, through the final norm's gain, times the unembedding.

    The logit lens (nostalgebraist 2020; for dictionaries Cunningham et al., arXiv 2309.08600). What layers between do is left out, and
    so are the norm's division by the size of the stream and any scale of all logits: numbers compare tokens, and latents of one SAE. A
    LayerNorm's centring is applied. What lies between the last block and the unembedding is found in a forward pass.

    Args:
        latents: positions, or a mask (n_latents,); None takes all, whose logits are n_latents times the vocabulary.
        standardizer: what the SAE's input was normalised by; rows are scaled back.

    Raises:
        TypeError: a model without an unembedding (load it with causal=True), or with something else than norms and linear maps before it;
            an SAE that does not decode linearly.
        ValueError: an SAE of another width than the stream, of another model or standardizer (`check_provenance`); a latent that is not
            there.
    """
    found = as_model(sae)
    found.check_linear()
    n_latents = found.shape[1]
    chosen = chosen_latents(latents, n_latents)
    check_provenance(sae, model, None, None, standardizer)
    output = model.model.get_output_embeddings() if hasattr(model.model, "get_output_embeddings") else None
    if output is None:
        raise TypeError(f"{type(model.model).__name__} has no unembedding: load it with causal=True")
    weight = output.weight.float()
    rows = mapped_back(found.W_dec[chosen.to(found.b_dec.device)], standardizer).to(weight)
    if rows.shape[1] != model.d_model:
        raise ValueError(f"rows of W_dec have {rows.shape[1]} entries, the stream {model.d_model}")
    return linear_parts(model, rows, output) @ weight.T


@torch.no_grad()
def top_tokens(
    model: LanguageModel, sae: Any, latents: Sequence[int] | ArrayLike, n: int = 10, *, standardizer: Standardizer | None = None
) -> TopTokens:
    """The n tokens whose logits each latent raises most and lowers most, by `logit_attribution`. Errors as it has them."""
    logits = logit_attribution(model, sae, latents, standardizer=standardizer)
    n = min(whole("n", n, 1), logits.shape[1])
    raised, lowered = logits.topk(n, dim=1), (-logits).topk(n, dim=1)
    return TopTokens(raised.indices.cpu(), lowered.indices.cpu(), raised.values.cpu(), -lowered.values.cpu())


class Place(NamedTuple):
    """An SAE and where it is."""

    sae: Any
    layer: int
    site: str = "residual"
    standardizer: Standardizer | None = None


@torch.no_grad()
def ablation_graph(
    model: LanguageModel, lower: Place, upper: Place, sequences: TokenSequences, latents: Sequence[int], *, batch_tokens: int | None = None,
) -> Float[Tensor, "n n_latents"]:  # fmt: skip
    """How ablating latents of one SAE changes the codes of another one above: entry (i, j) is the mean over tokens of the upper
    latent j's code without the lower latent latents[i], less that with it (arXiv 2309.08600, section 5).

    Args:
        lower, upper: SAEs at two places; the lower one's error is kept.
        sequences: from `pack_tokens`; special tokens are left alone, and left out of the means.
        latents: of the lower SAE.

    Raises:
        TypeError: a lower SAE that does not decode linearly.
        ValueError: latents that are not there, places that do not fit the SAEs.
    """
    ranks = [(place.layer, ORDER.get(place.site, 0)) for place in (lower, upper)]
    if ranks[0] >= ranks[1] and {lower.site, upper.site} <= set(ORDER):
        raise ValueError(
            f"{lower.site} of layer {lower.layer} is not below {upper.site} of layer {upper.layer}: nothing there depends on it"
        )
    for place in (lower, upper):
        check_provenance(place.sae, model, place.layer, place.site, place.standardizer)
    edits = [latent_edit(lower.sae, {latent: 0.0}, "clamp", lower.standardizer) for latent in latents]
    found = as_model(upper.sae)
    n_latents = found.shape[1]
    total, n = torch.zeros(len(edits) + 1, n_latents, dtype=torch.float64), 0

    def codes(x: Tensor) -> Tensor:
        rows = x.to(found.b_dec)
        seen = rows if upper.standardizer is None else upper.standardizer.transform(rows)
        return dense(found.code(seen), n_latents).sum(0).double().cpu()

    for ids, mask, _, real in batches_of(model, sequences, batch_tokens, rules_of(lower.sae)):
        n += int(real.sum())
        total[-1] += codes(model.hidden(ids, mask, upper.layer, upper.site)[real])
        for i, edit in enumerate(edits):
            with model.edited(lower.layer, lower.site, at_real(real, edit)):
                total[i] += codes(model.hidden(ids, mask, upper.layer, upper.site)[real])
    return ((total[:-1] - total[-1]) / max(1, n)).float()
