"""The page of latents: what it shows against the same counted by hand, and that it is whole."""

from __future__ import annotations

import math
from html.parser import HTMLParser

import pytest
import torch

from splinterp import SAE, AbsTopK, ReLU, TopK
from splinterp.data import LanguageModel, extract_activations
from splinterp.encoders import Gated
from splinterp.geometry import region_of
from splinterp.language import dashboard, latent_cards, top_tokens
from splinterp.language._windows import pieces_of, window
from splinterp.language.page import curve, densities
from tests.data.tiny_models import BUILDERS, letters, word_tokenizer
from tests.helpers import rng


@pytest.fixture(scope="module")
def world():
    torch.manual_seed(3)
    lm = LanguageModel(BUILDERS["GPT-2 with head"](), word_tokenizer(False), "tiny")
    found = extract_activations(lm, [letters(26), "c b a z", letters(9), "<b> & m"], 2, context=8)
    return lm, found


def sae_of(activation):
    sae = SAE(16, 24, activation, generator=rng(0))
    with torch.no_grad():
        for p in sae.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=rng(1)))
    return sae.eval()


def firing(sae, x):
    return (sae.encode(x) != 0).sum(0).topk(3).indices.tolist()


@pytest.mark.parametrize("activation", [TopK(4), AbsTopK(4), ReLU()])
def test_cards_are_what_is_counted_by_hand(world, activation):
    lm, found = world
    sae = sae_of(activation)
    latents = firing(sae, found.x)
    codes = sae.encode(found.x).detach()
    cards = latent_cards(sae, found.x, found.tokens, lm.tokenizer, latents, n_contexts=3, before=3, after=2, model=lm)
    said = top_tokens(lm, sae, latents, 8)
    for i, card in enumerate(cards):
        mine = codes[:, card.latent]
        fires = mine[mine != 0]
        assert card.latent == latents[i]
        assert card.frequency == pytest.approx(len(fires) / len(mine))
        assert card.mean == pytest.approx(float(fires.abs().mean()), rel=1e-5)
        assert sum(n for _, _, n in card.bins) == len(fires)
        assert card.bins[0][0] <= float(fires.min())
        assert card.bins[-1][1] == pytest.approx(max(float(fires.max()), 0.0), rel=1e-5)
        assert [act for act, _ in card.contexts] == pytest.approx(mine[mine.abs().topk(3).indices].tolist(), rel=1e-5)
        for act, pieces in card.contexts:
            (here,) = [piece for piece in pieces if piece.here]
            assert here.act == pytest.approx(act, rel=1e-5)
            assert max(piece.strength for piece in pieces) <= 1 + 1e-5
        fired = codes != 0
        both = (fired & fired[:, card.latent, None]).sum(0)
        either = (fired | fired[:, card.latent, None]).sum(0)
        share = torch.where(either > 0, both / either.clamp_min(1), 0.0)
        share[card.latent] = -1
        assert [other.value for other in card.together] == pytest.approx(share.topk(6).values.tolist(), rel=1e-5)
        cosines = torch.cosine_similarity(sae.W_dec, sae.W_dec[card.latent, None], dim=1)
        cosines[card.latent] = -2
        assert [other.latent for other in card.alike] == cosines.topk(6).indices.tolist()
        assert [value for _, value in card.raised] == pytest.approx(said.up[i].tolist(), rel=1e-4, abs=1e-6)
        assert len(card.lowered) == 8


@pytest.mark.parametrize("activation", [TopK(4), AbsTopK(4), ReLU()])
def test_the_margin_is_that_of_the_regions_of_tokens_it_fires_on(world, activation):
    _, found = world
    sae = sae_of(activation)
    (latent, *_) = firing(sae, found.x)
    fires = found.x[(sae.encode(found.x)[:, latent] != 0)]
    margins = torch.tensor([region_of(sae, row).margin for row in fires])
    (card,) = latent_cards(sae, found.x, found.tokens, word_tokenizer(False), [latent])
    assert card.margin == pytest.approx((float(margins.median()), float(margins.quantile(0.1))), rel=1e-5)
    gated = SAE(16, 24, ReLU(), encoder=Gated(), generator=rng(0))
    assert latent_cards(gated, found.x, found.tokens, word_tokenizer(False), [0])[0].margin is None


class Balanced(HTMLParser):
    def __init__(self):
        super().__init__()
        self.open, self.links, self.ids, self.text = [], [], set(), []

    def handle_starttag(self, tag, attrs):
        about = dict(attrs)
        self.links += [about["href"]] if "href" in about else []
        self.ids |= {about["id"]} if "id" in about else set()
        assert not {"src", "onclick"} & set(about)
        assert tag != "script"
        if tag not in ("meta", "rect", "line", "polyline"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        if tag not in ("meta", "rect", "line", "polyline"):
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_the_page_is_whole_and_asks_nothing_of_a_network(world, tmp_path):
    lm, found = world
    sae = sae_of(TopK(4))
    dead = int((sae.encode(found.x) != 0).sum(0).argmin())
    latents = [*firing(sae, found.x), dead]
    path = dashboard(
        tmp_path / "deep" / "page.html", sae, found.x, found.tokens, lm.tokenizer, latents, title="<b>Ours</b> & theirs", model=lm,
        history=[{"step": 10, "train_fvu": 0.5, "val_fvu": 0.6}, {"step": 20, "train_fvu": 0.25, "val_fvu": 0.4}],
    )  # fmt: skip
    page = path.read_text()
    parser = Balanced()
    parser.feed(page)
    assert not parser.open
    assert {f"latent-{latent}" for latent in latents} <= parser.ids
    assert {link.removeprefix("#") for link in parser.links} <= parser.ids
    assert "http" not in page
    assert "<b>Ours" not in page
    assert "&lt;b&gt;Ours&lt;/b&gt; &amp; theirs" in page
    assert "It never fires here." in page or float((sae.encode(found.x)[:, dead] != 0).sum()) > 0
    other = dashboard(tmp_path / "other.html", sae, found.x, found.tokens, lm.tokenizer, latents[:1]).read_text()
    assert "Raises" in page
    assert "Raises" not in other
    assert "Learning curve" in page
    assert "Learning curve" not in other


def test_densities_and_curves_are_counted_by_hand():
    found, dead = densities(torch.tensor([0.0, 0.001, 0.1, 0.12, 1.0]))
    assert dead == 1
    assert sum(n for _, _, n in found) == 4
    assert found[0][0] == pytest.approx(-3, abs=1e-6)
    assert found[0][2] == found[-1][2] == 1
    assert next(n for a, b, n in found if a <= -1 < b) + next(n for a, b, n in found if a <= -0.92 < b) in (2, 4)
    assert densities(torch.zeros(3)) == ([], 3)
    history = [{"step": 10, "train_fvu": 0.5, "val_fvu": math.nan}, {"step": 20, "train_fvu": 0.25, "val_fvu": math.nan}]
    assert curve(history, "train_fvu") == "120.0,4.0 240.0,35.0"
    assert curve(history, "val_fvu") == ""


def test_pieces_are_the_text_and_windows_stay_in_their_sequence(world):
    _, found = world
    tokenizer = word_tokenizer(False)
    rows, ids = window(found.tokens, 9, 5, 5)
    assert 9 in rows
    assert len({int(found.tokens[row, 2]) for row in rows}) == 1
    assert "".join(pieces_of(ids, tokenizer)) == tokenizer.decode(ids)
    assert pieces_of([], tokenizer) == []
    with pytest.raises(IndexError, match="row=-1"):
        window(found.tokens, -1, 2, 2)
