"""One page about some latents: where they fire, how strongly, what they say to the output, and which others they go with."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import torch

from splinterp._atomic import replace_file
from splinterp._checks import as_positions, whole
from splinterp._documented import documented
from splinterp._typing import ArrayLike, Float, Int, Tensor
from splinterp.data.language_model import LanguageModel
from splinterp.data.standardizer import Standardizer
from splinterp.data.store import ActivationStore
from splinterp.geometry import regions_of
from splinterp.geometry._encoder import encoder_of
from splinterp.language._windows import pieces_of, window
from splinterp.language.contexts import TopActivating, top_activating
from splinterp.language.logits import top_tokens
from splinterp.metrics import evaluate
from splinterp.protocol import as_model, dense, inference_mode_of

BINS = 24
NEIGHBOURS = 6
BATCH = 4_096
MARGIN_ROWS = 256
"""Tokens that margins are computed for."""
TEMPLATE = "dashboard.html"


@dataclass(frozen=True)
class Piece:
    """A token in its context."""

    text: str
    act: float
    """The latent's code there."""
    strength: float
    """|act| over the latent's largest, 0 to 1."""
    here: bool
    """Whether it is the token that the context is shown for."""

    @property
    def lead(self) -> str:
        """The white space that it begins with, which is not coloured; all of a piece that is nothing else."""
        return self.text[: len(self.text) - len(self.text.lstrip(" "))] if self.text.strip(" ") else ""


@dataclass(frozen=True)
class Neighbour:
    """Another latent."""

    latent: int
    value: float
    """The cosine of the rows of W_dec, or the share of tokens that either fires on on which both do."""


@documented
@dataclass
class LatentCard:
    """What the page shows of a latent."""

    latent: int
    frequency: float
    """Share of tokens that it fires on."""
    mean: float
    largest: float
    """Of |code| where it fires."""
    bins: list[tuple[float, float, int]]
    """(from, to, tokens) of its codes where it fires."""
    contexts: list[tuple[float, list[Piece]]] = field(default_factory=list)
    raised: list[tuple[str, float]] = field(default_factory=list)
    lowered: list[tuple[str, float]] = field(default_factory=list)
    alike: list[Neighbour] = field(default_factory=list)
    together: list[Neighbour] = field(default_factory=list)
    margin: tuple[float, float] | None = None
    """Median and tenth percentile, over some tokens that it fires on, of the distance of x to the nearest boundary of its region
    (`splinterp.geometry.regions_of`), in units of the SAE's input; None where the encoder is not affine."""

    @property
    def tallest(self) -> int:
        """Tokens of the fullest bin."""
        return max((count for _, _, count in self.bins), default=1)


@torch.no_grad()
def latent_cards(
    sae: Any, x: ArrayLike | ActivationStore, tokens: Int[Tensor, "N 3"] | ActivationStore, tokenizer: Any,
    latents: Sequence[int] | ArrayLike, *, n_contexts: int = 8, before: int = 14, after: int = 8, model: LanguageModel | None = None,
    standardizer: Standardizer | None = None,
) -> list[LatentCard]:  # fmt: skip
    """What `dashboard` shows, a card a latent.

    Args:
        x: activations (N, d_in) as the SAE sees them, in the order of the text.
        tokens: (token id, document, index of the sequence) of each row, or the store that has them.
        latents: which, in the order of the page.
        n_contexts: most contexts a latent.
        before, after: tokens of a context, of the same sequence.
        model: with a language-modelling head, for the tokens whose logits a latent raises and lowers; None leaves them out.
        standardizer: what the SAE's input was normalised by; needed with `model`, if there is one.

    Raises:
        TypeError, ValueError: as of `top_activating` and `top_tokens`.
    """
    whole("n_contexts", n_contexts, 1)
    if len(x) != len(tokens):
        raise ValueError(
            f"x has {len(x)} rows and tokens {len(tokens)}: pass the tokens of these rows (of a part of a store, that part)"
        )
    found = as_model(sae)
    n_latents = found.shape[1]
    chosen = as_positions(latents, n_latents, "latents").reshape(-1)
    top = top_activating(sae, x, n_contexts, chosen, sign="magnitude")
    data = x if isinstance(x, ActivationStore) else torch.as_tensor(x)
    codes, counts, both = _codes(sae, data, chosen)
    cards = [_card(int(latent), codes[:, i]) for i, latent in enumerate(chosen.tolist())]
    rows = found.W_dec.float().cpu()
    unit = rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-12)
    for i, card in enumerate(cards):
        cosines = unit @ unit[card.latent]
        either = counts + counts[card.latent] - both[i]
        card.alike = _nearest(cosines, card.latent)
        card.together = _nearest(torch.where(either > 0, both[i] / either.clamp_min(1), 0.0), card.latent)
        card.contexts = _contexts(sae, data, tokens, tokenizer, top, i, card, before, after)
        card.margin = _margin(sae, data, codes[:, i])
    if model is not None:
        said = top_tokens(model, sae, chosen, 8, standardizer=standardizer)
        for i, card in enumerate(cards):
            card.raised = [
                (tokenizer.decode([t]), v) for t, v in zip(said.raised[i].tolist(), said.up[i].tolist(), strict=True)
            ]
            card.lowered = [
                (tokenizer.decode([t]), v) for t, v in zip(said.lowered[i].tolist(), said.down[i].tolist(), strict=True)
            ]
    return cards


def dashboard(
    path: str | Path, sae: Any, x: ArrayLike | ActivationStore, tokens: Int[Tensor, "N 3"] | ActivationStore, tokenizer: Any,
    latents: Sequence[int] | ArrayLike, *, title: str = "Latents", history: Sequence[dict[str, float]] = (), **options: Any,
) -> Path:  # fmt: skip
    """Write one self-contained HTML page (no network, no scripts) about some latents. Returns its path.

    At the top: how often latents fire, all of them, and where a `history` of `fit` is given, its learning curve. Of each latent: its
    frequency, a histogram of its codes, the contexts in which it is largest with every token coloured by its code there, the tokens whose
    logits it raises and lowers, its neighbours by the cosine of rows of W_dec and by firing together, and how far samples are from the
    nearest boundary of their region. `options` and errors are those of `latent_cards`.
    """
    from jinja2 import Environment, StrictUndefined

    cards = latent_cards(sae, x, tokens, tokenizer, latents, **options)
    density, n_dead = densities(evaluate(sae, x).frequencies)
    curves = {name: curve(history, name) for name in ("train_fvu", "val_fvu")}
    template = resources.files("splinterp.language").joinpath("templates", TEMPLATE).read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    page = environment.from_string(template).render(
        title=title, cards=cards, n_rows=len(x), n_latents=as_model(sae).shape[1], density=density, n_dead=n_dead,
        curves={name: points for name, points in curves.items() if points}, last=history[-1] if len(history) else {},
    )  # fmt: skip
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, lambda temporary: temporary.write_text(page, encoding="utf-8"))
    return path


def densities(frequencies: Float[Tensor, " n_latents"]) -> tuple[list[tuple[float, float, int]], int]:
    """((log10 from, to, latents) of the frequencies of latents that fire, latents that do not)."""
    live = frequencies[frequencies > 0].double().log10()
    if not len(live):
        return [], len(frequencies)
    low = min(float(live.min()), -0.5)
    return _bins(live, low, 0.0), len(frequencies) - len(live)


def curve(history: Sequence[dict[str, float]], name: str) -> str:
    """A column of a history against its steps, as points of a picture of 240 x 62: fvu 0 at the bottom, its largest at the top."""
    rows = [(row["step"], row[name]) for row in history if name in row and math.isfinite(row[name])]
    if len(rows) < 2:
        return ""
    most = max(
        row.get(column, 0.0) for row in history for column in ("train_fvu", "val_fvu") if math.isfinite(row.get(column, 0.0))
    )
    last = rows[-1][0]
    return " ".join(f"{240 * step / last:.1f},{66 - 62 * value / most:.1f}" for step, value in rows)


def _codes(sae: Any, data: Any, chosen: Tensor) -> tuple[Float[Tensor, "N c"], Float[Tensor, " m"], Float[Tensor, "c m"]]:
    """(codes of chosen latents, on how many rows each latent fires, on how many both do)."""
    found = as_model(sae)
    n_latents = found.shape[1]
    parts, counts, both = [], torch.zeros(n_latents), torch.zeros(len(chosen), n_latents)
    with inference_mode_of(sae):
        for part in data.split(BATCH):
            code = dense(found.code(part.to(found.b_dec)), n_latents).float().cpu()
            fired = (code != 0).float()
            parts.append(code[:, chosen])
            counts += fired.sum(0)
            both += fired[:, chosen].T @ fired
    return torch.cat(parts), counts, both


def _card(latent: int, codes: Float[Tensor, " N"]) -> LatentCard:
    fires = codes[codes != 0]
    if not len(fires):
        return LatentCard(latent, 0.0, 0.0, 0.0, [])
    low, high = float(fires.min()), float(fires.max())
    low, high = (0.0, high) if low > 0 else (low, max(high, 0.0))
    size = fires.abs()
    return LatentCard(latent, len(fires) / len(codes), float(size.mean()), float(size.max()), _bins(fires, low, high))


def _bins(values: Float[Tensor, " n"], low: float, high: float) -> list[tuple[float, float, int]]:
    counts = torch.histc(values, BINS, low, high).tolist()
    edges = torch.linspace(low, high, BINS + 1).tolist()
    return [(a, b, int(n)) for a, b, n in zip(edges[:-1], edges[1:], counts, strict=True)]


def _nearest(values: Tensor, latent: int) -> list[Neighbour]:
    others = values.clone()
    others[latent] = -torch.inf
    best = others.topk(min(NEIGHBOURS, len(others) - 1))
    return [Neighbour(int(i), float(v)) for v, i in zip(best.values, best.indices, strict=True)]


def _contexts(
    sae: Any, data: Any, tokens: Any, tokenizer: Any, top: TopActivating, index: int, card: LatentCard, before: int, after: int
) -> list[tuple[float, list[Piece]]]:
    found, shown = as_model(sae), []
    for act, row in zip(top.acts[index].tolist(), top.rows[index].tolist(), strict=True):
        if row < 0:
            continue
        rows, ids = window(tokens, row, before, after)
        with inference_mode_of(sae):
            codes = dense(found.code(data[rows[0] : rows[-1] + 1].to(found.b_dec)), found.shape[1])[:, card.latent].tolist()
        pieces = [
            Piece(text, value, abs(value) / card.largest if card.largest else 0.0, at == row)
            for text, value, at in zip(pieces_of(ids, tokenizer), codes, rows, strict=True)
        ]
        shown.append((act, pieces))
    return shown


def _margin(sae: Any, data: Any, codes: Float[Tensor, " N"]) -> tuple[float, float] | None:
    try:
        encoder_of(sae)
    except (TypeError, ValueError, RuntimeError):  # not affine, on another device, a threshold that is not set
        return None
    rows = codes.nonzero()[:, 0][:MARGIN_ROWS]
    if not len(rows):
        return None
    margins = torch.from_numpy(regions_of(sae, data[rows]).margins)
    return float(margins.median()), float(margins.quantile(0.1))
