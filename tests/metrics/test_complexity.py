"""Bits of codes, and what is linear in an SAE's error, against counts and least squares by hand."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from splinterp import SAE, TopK
from splinterp.metrics import description_length, error_predictability
from tests.helpers import ACTIVATIONS, make_sae, rng, samples


def entropy(counts):
    total = sum(counts)
    return -sum(c / total * math.log2(c / total) for c in counts if c)


@given(activation=st.sampled_from(list(ACTIVATIONS)), precision=st.sampled_from([0.05, 0.5, 5.0]), n=st.integers(1, 60))
def test_bits_are_the_entropies_of_counts(activation, precision, n):
    sae = make_sae(activation, dtype=torch.float64)
    x = samples(n, dtype=torch.float64)
    sae.calibrate(samples(100, dtype=torch.float64))
    found = description_length(sae, x, precision)
    acts = sae.eval().encode(x) * sae.W_dec.norm(dim=1)
    for latent in range(12):
        fired = acts[:, latent][acts[:, latent] != 0].tolist()
        bits = entropy([len(fired), n - len(fired)])
        if fired:
            bits += len(fired) / n * entropy(Counter(math.floor(z / precision) for z in fired).values())
        assert float(found.by_latent[latent]) == pytest.approx(bits, abs=1e-9)
    assert found.bits == pytest.approx(float(found.by_latent.sum()))


def test_folding_and_blocks_change_no_bits(monkeypatch):
    sae, x = make_sae("ReLU", dtype=torch.float64), samples(100, dtype=torch.float64)
    before = description_length(sae, x, 0.3).bits
    monkeypatch.setattr("splinterp.metrics.complexity.ROWS", 7)
    assert description_length(sae, x, 0.3).bits == pytest.approx(before)
    with torch.no_grad():
        sae.W_enc.mul_(4.0)
        sae.b_enc.mul_(4.0)
        sae.W_dec.div_(4.0)
    assert description_length(sae, x, 0.3).bits == pytest.approx(before)
    assert description_length(sae, x, 0.03).bits > before
    with pytest.raises(ValueError, match="precision=0"):
        description_length(sae, x, 0.0)


def test_sparse_codes_have_the_bits_of_dense_ones(monkeypatch):
    sae = SAE(8, 64, TopK(2), generator=rng(1))
    assert sae.trains_sparse
    sparse = description_length(sae, samples(), 0.2).bits
    monkeypatch.setattr(SAE, "trains_sparse", property(lambda self: False))
    assert description_length(sae, samples(), 0.2).bits == pytest.approx(sparse)


def test_an_error_that_is_linear_in_x_is_told():
    x, held_out = samples(400, dtype=torch.float64), samples(300, seed=5, dtype=torch.float64)
    sae = SAE(8, 12, TopK(3), dtype=torch.float64, generator=0)
    with torch.no_grad():
        sae.W_dec.zero_()
    found = error_predictability(sae, x, held_out)
    assert found.error == pytest.approx(1.0, abs=1e-4)
    assert found.squared_norm < 0.9


def test_r2_is_that_of_least_squares():
    x, held_out = samples(2_000, dtype=torch.float64), samples(500, seed=5, dtype=torch.float64)
    sae = make_sae("TopK", dtype=torch.float64)
    found = error_predictability(sae, x, held_out)

    def r2(target):
        ones = torch.ones(len(x), 1, dtype=torch.float64)
        solution = torch.linalg.lstsq(torch.cat([x, ones], 1), target(x)).solution
        truth = target(held_out)
        guess = torch.cat([held_out, ones[:500]], 1) @ solution
        return 1 - float((truth - guess).square().sum() / (truth - truth.mean(0)).square().sum())

    with torch.no_grad():
        assert found.error == pytest.approx(r2(lambda x: x - sae(x).x_hat), abs=0.01)
        assert found.squared_norm == pytest.approx(r2(lambda x: (x - sae(x).x_hat).square().sum(1, keepdim=True)), abs=0.01)


def test_too_few_samples_are_refused():
    with pytest.raises(ValueError, match="samples of x_held_out"):
        error_predictability(make_sae(), samples(), samples(1))
