"""Contrast scores by hand, on codes whose difference is known, and on pairs made from text."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from splinterp import PAMSGD, SAE, ReLU, TopK, fit
from splinterp.data import LanguageModel, extract_activations, text_from_files
from splinterp.data.store_writer import StoreWriter
from splinterp.data.text import WIKITEXT_HEADING
from splinterp.metrics import contrast_scores
from tests.helpers import rng


def identity(d):
    """Codes that are the positive part of the input."""
    sae = SAE(d, d, ReLU(), decoder="tied", b_pre=False)
    with torch.no_grad():
        sae.W_enc.copy_(torch.eye(d))
    return sae


def stored(x, folder):
    writer = StoreWriter(folder, x.shape[1], "float32", {"model": "none"})
    writer.append(x, torch.zeros(len(x), 3, dtype=torch.int64))
    return writer.finish()


def by_hand(codes, stories):
    """The three scores and their latents, pair by pair."""
    pairs = sorted({s // 2 for s in stories})
    means = [[codes[[i for i, s in enumerate(stories) if s == 2 * p + q]].mean(0) for q in (0, 1)] for p in pairs]
    subjects = [codes[[i for i, s in enumerate(stories) if s // 2 == p]].mean(0) for p in pairs]
    found = []
    for (first, second), subject in zip(means, subjects, strict=True):
        apart, own = np.abs(first - second), np.abs(subject - np.mean(subjects, axis=0))
        scores = [(v - v.mean()) / v.std(ddof=1) for v in (apart, own, apart + own)]
        found.append([(s.max(), s.argmax()) for s in scores])
    return np.array(found)


@pytest.mark.parametrize("as_store", [False, True])
def test_they_are_the_formulas(as_store, tmp_path, monkeypatch):
    monkeypatch.setattr("splinterp.metrics.contrast.ROWS", 7)
    x = torch.randn(60, 6, generator=rng(0))
    stories = torch.randint(8, (60,), generator=rng(1))
    stories[:8] = torch.arange(8)  # none is empty, and their lengths differ
    sae = SAE(6, 20, TopK(3), generator=rng(2))
    data = stored(x, tmp_path) if as_store else x.numpy()
    found = contrast_scores(sae, data, stories)
    codes = sae.encode(x).detach().double().numpy()
    expected = by_hand(codes, stories.tolist())
    for column, scores in enumerate((found.contrast, found.independence, found.interpretability)):
        np.testing.assert_allclose(scores, expected[:, column, 0], rtol=1e-6)
    np.testing.assert_array_equal(found.latents, expected[:, :, 1])


def test_a_latent_of_its_own_is_found_and_scores_most():
    d, n = 12, 40  # pair p differs in feature p, and has the subject 6 + p
    pairs = 4
    x = torch.zeros(pairs, 2, n, d)
    for p in range(pairs):
        x[p, 1, ::2, p] = 3.0
        x[p, :, :, 6 + p] = 2.0
    found = contrast_scores(identity(d), x.reshape(-1, d), torch.arange(2 * pairs).repeat_interleave(n))
    most = (d - 1) / math.sqrt(d)
    torch.testing.assert_close(found.contrast, torch.full((pairs,), most, dtype=torch.float64))
    assert found.latents[:, 0].tolist() == list(range(pairs))
    assert found.latents[:, 1].tolist() == [6 + p for p in range(pairs)]
    assert bool((found.independence < most - 0.1).all())  # the others' subjects are absent, which is told apart too


@given(st.integers(2, 9), st.integers(1, 4), st.integers(0, 10**6), st.sampled_from([1e-3, 1.0, 1e4]))
def test_bounds_and_what_does_not_matter(d, pairs, seed, scale):
    x = torch.randn(2 * pairs * 3, d, generator=rng(seed)) * scale
    stories = torch.arange(2 * pairs).repeat_interleave(3)
    sae = identity(d)
    found = contrast_scores(sae, x, stories)
    for scores in found[:3]:
        assert bool((scores >= 0).all())
        assert bool((scores <= (d - 1) / math.sqrt(d) + 1e-9).all())
    if pairs == 1:
        assert found.independence.tolist() == [0.0]  # the mean over all pairs is the pair's own
    swapped = contrast_scores(sae, x, stories ^ 1)  # first and second story of each pair
    order = torch.randperm(len(x), generator=rng(seed))
    shuffled = contrast_scores(sae, x[order], stories[order])
    scaled = contrast_scores(sae, 7 * x, stories)
    for other in (swapped, shuffled, scaled):
        for mine, theirs in zip(found[:3], other[:3], strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


def test_equal_stories_have_no_contrast():
    x = torch.randn(5, 4, generator=rng(0))
    found = contrast_scores(identity(4), torch.cat([x, x]), torch.arange(2).repeat_interleave(5))
    assert found.contrast.tolist() == [0.0]


def test_rounding_is_no_difference():
    sae = SAE(16, 256, TopK(8), generator=rng(0))
    x = torch.randn(20, 16, generator=rng(1))
    for pairs in (3, 6, 7):  # equal pairs: no subject is told from the others
        found = contrast_scores(sae, x.repeat(2 * pairs, 1), torch.arange(2 * pairs).repeat_interleave(20))
        assert not bool(found.contrast.any())
        assert not bool(found.independence.any())
        assert not bool(found.interpretability.any())
    for d in range(2, 30):
        for value in (0.1, 0.3, 0.7):  # latents that all differ alike
            x = torch.stack([torch.zeros(d), torch.full((d,), value)])
            assert contrast_scores(identity(d), x, torch.arange(2)).contrast.tolist() == [0.0]


def test_labels_of_any_kind():
    x = torch.rand(4, 3, generator=rng(0))
    expected = contrast_scores(identity(3), x, torch.tensor([3, 2, 1, 0]))
    for labels in (np.arange(4)[::-1], np.array([3, 2, 1, 0], dtype=np.uint16), np.array([3, 2, 1, 0], dtype=np.uint64)):
        assert torch.equal(contrast_scores(identity(3), x, labels).contrast, expected.contrast)


@pytest.mark.parametrize(("stories", "error", "words"), [
    ([0, 1, 10**13], ValueError, "story 2, of pair 1"),
    ([0, 1, 2], ValueError, "story 3, of pair 1, has no tokens"),
    ([0, 3, 2], ValueError, "story 1, of pair 0"),
    ([0, 1], ValueError, r"shape \(2,\).*\(3,\)"),
    ([0, 1, -1], ValueError, "-1.*begin with 0"),
    ([0.0, 1.0, 1.0], TypeError, "float32.*whole numbers"),
    ([True, False, True], TypeError, "bool"),
])  # fmt: skip
def test_stories_that_are_none(stories, error, words):
    with pytest.raises(error, match=words):
        contrast_scores(identity(2), torch.rand(3, 2), torch.tensor(stories))


def test_one_latent_has_no_z_score():
    with pytest.raises(ValueError, match="latents"):
        contrast_scores(identity(1), torch.rand(2, 1), torch.arange(2))


@pytest.mark.slow
def test_pairs_made_from_text(data_dir):
    """A change of tense is one latent's in many pairs; an article is told from the others by latents that shuffled tokens do not give."""
    pytest.importorskip("transformers")
    model = LanguageModel.load("minilm")
    articles = [
        text for text in text_from_files(data_dir / "wikitext2" / "valid.txt", heading=WIKITEXT_HEADING) if len(text) > 4_000
    ][:24]
    assert len(articles) == 24
    sae = SAE(model.d_model, 1_536, TopK(32), generator=rng(0))
    fit(sae, extract_activations(model, articles, 3, max_tokens=20_000).x, PAMSGD(lr=2e-3), epochs=3, generator=0)

    def stories(pairs):
        found = extract_activations(model, [story for pair in pairs for story in pair], 3)
        return found.x, found.tokens[:, 1]

    tense = contrast_scores(
        sae, *stories([(a[:1_500], a[:1_500].replace(" was ", " is ").replace(" were ", " are ")) for a in articles])
    )
    x, labels = stories([(a[:1_500], a[2_000:3_500]) for a in articles])
    parts = contrast_scores(sae, x, labels)
    assert int(tense.latents[:, 0].bincount().max()) >= 8
    assert int(parts.latents[:, 0].bincount().max()) <= 6
    shuffled = contrast_scores(sae, x, labels[torch.randperm(len(labels), generator=rng(1))])
    assert float(parts.independence.mean()) > float(shuffled.independence.mean()) + 1
