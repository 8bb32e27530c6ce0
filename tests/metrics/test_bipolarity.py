"""Bipolarity against brute force, and on dictionaries whose answer is known."""

from __future__ import annotations

import math
import sys

import pytest
import torch

from splinterp import SAE, AbsTopK, TopK
from splinterp.metrics import anti_parallel_share, bipolarity
from tests.helpers import make_sae, rng, samples


def test_counts_and_masses_equal_brute_force():
    sae, x = make_sae("AbsTopK", seed=2), samples(203)
    found = bipolarity(sae, x, batch_size=17)
    acts = sae.encode(x).detach().double()
    for m in range(12):
        column = acts[:, m]
        assert int(found.positive[m]) == sum(a > 0 for a in column)
        assert int(found.negative[m]) == sum(a < 0 for a in column)
        assert float(found.positive_mass[m]) == pytest.approx(float(sum(a for a in column if a > 0)), rel=1e-6)
        assert float(found.negative_mass[m]) == pytest.approx(float(sum(-a for a in column if a < 0)), rel=1e-6)


def test_minority_shares_by_hand():
    sae = SAE(2, 3, AbsTopK(1), generator=rng())
    with torch.no_grad():
        sae.W_enc.copy_(torch.tensor([[1.0, 0.0, 0.1], [0.0, 1.0, 0.0]]))
    x = torch.tensor([[1.0, 0.0]] * 3 + [[-5.0, 0.0]] + [[0.0, 2.0]] * 2)
    found = bipolarity(sae, x)
    assert found.minority_shares(1).tolist() == pytest.approx([0.25, 0.0])  # the third latent never fires
    assert found.minority_shares(1, weighted=True).tolist() == pytest.approx([3 / 8, 0.0])
    assert found.minority_shares(3).tolist() == pytest.approx([0.25])
    summary = found.summary(1)
    assert summary["n_latents"] == 2
    assert summary["q50"] == pytest.approx(0.125)
    assert (summary["above_10"], summary["above_25"]) == (0.5, 0.0)
    silent = found.summary(100)
    assert silent["n_latents"] == 0
    assert math.isnan(silent["q50"])
    with pytest.raises(ValueError, match="min_firings=0"):
        found.minority_shares(0)


def test_an_untrained_dictionary_has_shares_near_one_half_and_non_negative_codes_none():
    x = torch.randn(20_000, 16, generator=rng(1))
    shares = bipolarity(SAE(16, 64, AbsTopK(4), generator=rng(2)), x).minority_shares()
    assert len(shares) > 50
    assert float(shares.min()) > 0.4
    assert float(shares.median()) > 0.48
    assert float(bipolarity(SAE(16, 64, TopK(4), generator=rng(2)), x).minority_shares().max()) == 0.0


def test_twins_are_live_rows_that_point_the_other_way():
    rows = torch.eye(4)[[0, 1, 2, 0, 3]] * torch.tensor([[1.0], [2.0], [3.0], [-7.0], [1.0]])
    assert anti_parallel_share(rows) == pytest.approx(2 / 5)
    live = torch.tensor([True, True, True, False, True])
    assert anti_parallel_share(rows, live) == 0.0
    tilted = torch.tensor([[1.0, 0.0], [-0.85, math.sqrt(1 - 0.85**2)]])
    assert anti_parallel_share(tilted) == 0.0
    assert anti_parallel_share(tilted, threshold=-0.8) == 1.0
    assert math.isnan(anti_parallel_share(rows, torch.zeros(5, dtype=torch.bool)))


def test_twins_are_compared_in_blocks(monkeypatch):
    rows = torch.randn(50, 3, generator=rng(4))
    whole = anti_parallel_share(rows)
    module = sys.modules["splinterp.metrics.bipolarity"]  # the package has the function under that name
    monkeypatch.setattr(module, "BLOCK_ENTRIES", 64)
    assert 0 < anti_parallel_share(rows) == whole < 1


def test_bad_input():
    with pytest.raises(ValueError, match="number of samples=0"):
        bipolarity(make_sae("AbsTopK"), torch.zeros(0, 8))
    with pytest.raises(ValueError, match="opposite"):
        anti_parallel_share(torch.eye(2), threshold=0.5)
    with pytest.raises(ValueError, match="pass 2 booleans"):
        anti_parallel_share(torch.eye(2), torch.ones(2))


def test_training_mode_is_restored():
    sae = make_sae("AbsTopK").train()
    bipolarity(sae, samples())
    assert sae.training
