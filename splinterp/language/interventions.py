"""An SAE inside its language model: what its reconstruction costs, and what one latent does.

Cross-entropies are in nats a token, of predicting the next token, over all positions whose next token is in the same sequence and is
no special token. The SAE acts on the tokens that it was trained on: not on special ones, nor on others that rules leave out.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch.nn import functional as F

from splinterp._checks import one_of
from splinterp._documented import documented
from splinterp._typing import Float, Int, Tensor
from splinterp.data._passes import padded
from splinterp.data.language_model import LanguageModel
from splinterp.data.standardizer import Standardizer
from splinterp.data.text import TokenSequences
from splinterp.data.token_rules import TokenRules
from splinterp.language._batches import Batch, Edit, at_real, batches_of
from splinterp.language.provenance import check_provenance, rules_of
from splinterp.language.steering import latent_edit
from splinterp.protocol import as_model


@documented
class LossRecovered(NamedTuple):
    """Cross-entropy of the model, and with the activations at one site replaced."""

    clean: float
    """Of the model itself."""
    patched: float
    """With the SAE's reconstruction."""
    zero: float
    """With zeros."""
    mean: float
    """With the mean activation."""
    kl: float
    """Mean KL divergence of the patched next-token distribution from the clean one, nats."""
    n_tokens: int
    """Predictions averaged over."""

    def loss_recovered(self, ablation: str = "zero") -> float:
        """(ablated - patched) / (ablated - clean): 1 is a perfect reconstruction, 0 no better than the ablation ("zero" or "mean")."""
        one_of("ablation", ablation, ("zero", "mean"))
        ablated = self.zero if ablation == "zero" else self.mean
        return (ablated - self.patched) / (ablated - self.clean)


def measure_loss(
    model: LanguageModel, sae: Any, sequences: TokenSequences, layer: int, site: str = "residual", *,
    standardizer: Standardizer | None = None, mean: Float[Tensor, " d_in"] | None = None, batch_tokens: int | None = None,
    rules: TokenRules | None = None,
) -> LossRecovered:  # fmt: skip
    """Cross-entropy and KL when the SAE's reconstruction replaces the activations at a site of a causal model.

    Args:
        model: with a language-modelling head (`LanguageModel.load(..., causal=True)`).
        sequences: from `pack_tokens`.
        standardizer: what the SAE's input is normalised by; its reconstruction is mapped back.
        mean: activation of the mean ablation; None takes the mean over these sequences.
        batch_tokens: tokens a forward pass; None fits the memory of `extract_activations`.
        rules: which tokens are replaced; None: those that a saved SAE says it was trained on. Rules that go by norms are not applied.

    Raises:
        TypeError: a model that predicts no tokens.
        ValueError: sequences without a prediction, a site that is not there; an SAE that says that it is of another model, layer, site or
            standardizer (`check_provenance`).
    """
    check_provenance(sae, model, layer, site, standardizer)
    batches = list(batches_of(model, sequences, batch_tokens, rules or rules_of(sae)))
    if mean is None:
        mean = _mean_activation(model, batches, layer, site)
    edits: dict[str, Edit] = {
        "patched": lambda x: _reconstructed(sae, x, standardizer), "zero": torch.zeros_like, "mean": lambda x: mean.to(x).expand_as(x),
    }  # fmt: skip
    totals = dict.fromkeys(("clean", "patched", "zero", "mean", "kl"), 0.0)
    n_tokens = 0
    for ids, mask, real, taken in batches:
        clean = model.logits(ids, mask)
        scored = real[:, 1:]  # predicted from the token before, which is in the same sequence
        n_tokens += int(scored.sum())
        totals["clean"] += _cross_entropy(clean, ids, scored)
        for name, edit in edits.items():
            with model.edited(layer, site, at_real(taken, edit)):
                logits = model.logits(ids, mask)
            totals[name] += _cross_entropy(logits, ids, scored)
            if name == "patched":
                totals["kl"] += _kl(clean, logits, scored)
    if not n_tokens:
        raise ValueError("no sequence has two tokens that follow each other, so there is nothing to predict")
    return LossRecovered(**{name: total / n_tokens for name, total in totals.items()}, n_tokens=n_tokens)


@documented
class LatentEffect(NamedTuple):
    """What setting one latent does to the prediction of the token after the last one."""

    before: Float[Tensor, " vocabulary"]
    """Log probabilities of the model with the SAE's reconstruction plus its error, which is the model itself."""
    after: Float[Tensor, " vocabulary"]
    """The same with the latent set."""
    kl: float
    """KL(before, after), nats."""

    def largest(self, n: int = 10) -> tuple[Int[Tensor, " n"], Int[Tensor, " n"]]:
        """Token ids whose log probability rises most, and falls most."""
        change = self.after - self.before
        return change.topk(n).indices, (-change).topk(n).indices


def latent_effect(
    model: LanguageModel, sae: Any, ids: list[int], layer: int, latent: int, value: float = 0.0, site: str = "residual", *,
    standardizer: Standardizer | None = None, special: list[int] | None = None,
) -> LatentEffect:  # fmt: skip
    """Effect on the next-token distribution of setting a latent to `value` at every position (0 ablates it).

    The SAE's error is kept: only the latent's own contribution changes.

    Args:
        ids: token ids of one sequence. special: 1 where its activation is left alone; None leaves none.

    Raises:
        TypeError: a model that predicts no tokens, an SAE that does not decode by acts @ W_dec + b_dec.
        ValueError: no tokens, a latent that is not there.
    """
    check_provenance(sae, model, layer, site, standardizer)
    edit = latent_edit(sae, {latent: value}, "clamp", standardizer)
    if not ids:
        raise ValueError("ids is empty: pass the tokens of one sequence")
    tokens, mask = padded([ids])
    real = torch.ones_like(tokens, dtype=torch.bool) if special is None else ~torch.tensor([special], dtype=torch.bool)
    before = F.log_softmax(model.logits(tokens, mask)[0, -1].float(), dim=0)
    with model.edited(layer, site, at_real(real, edit)):
        after = F.log_softmax(model.logits(tokens, mask)[0, -1].float(), dim=0)
    return LatentEffect(before, after, float((before.exp() * (before - after)).sum()))


@torch.no_grad()
def _reconstructed(sae: Any, x: Tensor, standardizer: Standardizer | None) -> Tensor:
    rows = x.to(device=sae.b_dec.device, dtype=sae.b_dec.dtype)
    if standardizer is not None:
        rows = standardizer.transform(rows)
    x_hat = as_model(sae).run(rows)[0]
    return (x_hat if standardizer is None else standardizer.inverse(x_hat)).to(x)


def _mean_activation(model: LanguageModel, batches: list[Batch], layer: int, site: str) -> Tensor:
    total, n = torch.zeros((), dtype=torch.float64, device=model.device), 0
    for ids, mask, _, taken in batches:
        total = total + model.hidden(ids, mask, layer, site)[taken].double().sum(0)
        n += int(taken.sum())
    return (total / max(1, n)).float()


def _cross_entropy(logits: Tensor, ids: Tensor, scored: Tensor) -> float:
    return float(F.cross_entropy(logits[:, :-1][scored].float(), ids[:, 1:][scored], reduction="sum"))


def _kl(clean: Tensor, other: Tensor, scored: Tensor) -> float:
    p, q = (F.log_softmax(logits[:, :-1][scored].float(), dim=1) for logits in (clean, other))
    return float(F.kl_div(q, p, log_target=True, reduction="sum"))
