"""Matching dictionaries: oracles by brute force, signs, blocks, errors."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from splinterp.metrics import features, match_features, mean_max_cosine
from tests.helpers import rng


def dictionaries(n_learned: int, n_true: int, d: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    g = rng(seed)
    return torch.randn(n_learned, d, generator=g), torch.randn(n_true, d, generator=g)


@given(st.integers(1, 5), st.integers(1, 5), st.integers(1, 4), st.integers(0, 10_000), st.booleans())
def test_matching_is_the_best_of_all(n_learned, n_true, d, seed, signed):
    learned, true = dictionaries(n_learned, n_true, d, seed)
    a, b = true.double().numpy(), learned.double().numpy()
    table = (a @ b.T) / np.linalg.norm(a, axis=1)[:, None] / np.linalg.norm(b, axis=1)
    table = table if signed else np.abs(table)
    match = match_features(learned, true, signed)
    np.testing.assert_allclose(match.cosine, table.max(axis=1), atol=1e-6)
    np.testing.assert_allclose(
        np.take_along_axis(table, match.nearest.numpy()[:, None], 1)[:, 0], table.max(axis=1), rtol=1e-12
    )
    clear = (table > table.max(axis=1, keepdims=True) - 1e-12).sum(axis=1) == 1  # in d = 1 every cosine is 1 or -1
    np.testing.assert_array_equal(match.nearest[clear], table.argmax(axis=1)[clear])
    assert mean_max_cosine(true, learned, signed) == pytest.approx(table.max(axis=1).mean(), abs=1e-6)
    short, long = min(n_true, n_learned), max(n_true, n_learned)
    wide = table if n_true <= n_learned else table.T
    best = max(sum(wide[i, p[i]] for i in range(short)) for p in permutations(range(long), short))
    assert float(match.assigned_cosine.sum()) == pytest.approx(best, abs=1e-6)
    matched = match.assignment[match.assignment >= 0]
    assert len(matched) == len(set(matched.tolist())) == short
    assert (match.assigned_cosine[match.assignment < 0] == 0).all()


def test_a_shuffled_scaled_dictionary_is_recovered():
    true = torch.randn(30, 12, generator=rng(0))
    order = torch.randperm(30, generator=rng(1))
    learned = 3 * true[order]
    match = match_features(learned, true)
    assert torch.equal(order[match.assignment], torch.arange(30))
    assert match.recovery(0.999) == match.recovery(0.999, one_to_one=True) == 1.0
    flipped = match_features(-learned, true)
    assert flipped.recovery(0.999) == 0.0
    assert match_features(-learned, true, signed=False).recovery(0.999) == 1.0


def test_one_learned_feature_serves_two_true_ones_in_one_count_only():
    true = torch.tensor([[1.0, 0.0], [1.0, 0.01]])
    learned = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 0.0]])
    match = match_features(learned, true)
    assert match.recovery(0.9) == 1.0
    assert match.recovery(0.9, one_to_one=True) == 0.5
    assert match_features(torch.zeros(2, 2), true).cosine.tolist() == [0.0, 0.0]


def test_blocks_do_not_change_the_result(monkeypatch):
    learned, true = dictionaries(40, 30, 6, 0)
    whole = match_features(learned, true)
    monkeypatch.setattr(features, "BLOCK_ENTRIES", 1)
    np.testing.assert_allclose(match_features(learned, true).cosine, whole.cosine, rtol=1e-12)


def test_errors():
    with pytest.raises(ValueError, match="learned has 3 columns but 4 are expected"):
        match_features(torch.randn(2, 3), torch.randn(2, 4))
    with pytest.raises(ValueError, match="rows of true"):
        match_features(torch.randn(2, 3), torch.zeros(0, 3))
