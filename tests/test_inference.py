"""Pursuits against scikit-learn, SciPy and their definitions; the dictionary that they train."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import nnls
from sklearn.linear_model import orthogonal_mp

from splinterp import SAE, AbsTopK, ReLU, TopK
from splinterp.data import SparseFeatures
from splinterp.inference import (
    PURSUITS,
    Dictionary,
    gradient_pursuit,
    learn_dictionary,
    least_squares_codes,
    matching_pursuit,
    orthogonal_matching_pursuit,
)
from splinterp.metrics import evaluate, fvu, match_features
from splinterp.protocol import dense
from tests.helpers import make_sae, rng, samples

SIGNS = pytest.mark.parametrize("nonnegative", [False, True])


def problem(n=20, m=14, d=8, seed=0):
    g = rng(seed)
    W = torch.randn(m, d, generator=g, dtype=torch.float64) * (0.5 + torch.rand(m, 1, generator=g, dtype=torch.float64))
    return torch.randn(n, d, generator=g, dtype=torch.float64), W, torch.randn(d, generator=g, dtype=torch.float64)


@given(m=st.integers(1, 16), k=st.integers(1, 6), seed=st.integers(0, 10**6))
def test_omp_is_scikit_learns(m, k, seed):
    x, W, b = problem(6, m, 8, seed)
    k = min(k, m)
    found = dense(orthogonal_matching_pursuit(x, W, b, k), m)
    unit = (W / W.norm(dim=1, keepdim=True)).numpy()
    expected = orthogonal_mp(unit.T, (x - b).numpy().T, n_nonzero_coefs=k).reshape(m, -1).T / W.norm(dim=1).numpy()
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-7)


@given(k=st.integers(1, 8), m=st.integers(8, 14), seed=st.integers(0, 10**6), twice=st.booleans())
def test_values_on_a_support_are_least_squares(k, m, seed, twice):
    x, W, b = problem(5, m, 6, seed)
    support = torch.stack([torch.randperm(m, generator=rng(seed + i))[:k] for i in range(5)])
    if twice and k > 1:
        support[:, 1] = support[:, 0]  # a row that is there twice
    free = least_squares_codes(x, W, b, support)
    positive = least_squares_codes(x, W, b, support, nonnegative=True)
    assert (positive >= 0).all()
    for row in range(5):
        A, y = W[support[row]].T.numpy(), (x[row] - b).numpy()
        best = np.linalg.lstsq(A, y, rcond=None)[0]
        assert np.linalg.norm(A @ free[row].numpy() - y) <= np.linalg.norm(A @ best - y) + 1e-6
        assert np.linalg.norm(A @ positive[row].numpy() - y) <= nnls(A, y)[1] + 1e-6


@SIGNS
@pytest.mark.parametrize("pursuit", PURSUITS)
def test_orthonormal_rows_make_every_pursuit_a_topk(pursuit, nonnegative):
    Q = torch.linalg.qr(torch.randn(8, 8, generator=rng(3), dtype=torch.float64)).Q
    x, _, b = problem(30)
    found = dense(PURSUITS[pursuit](x, Q, b, 3, nonnegative=nonnegative), 8)
    activation = TopK(3) if nonnegative else AbsTopK(3)
    torch.testing.assert_close(found, activation((x - b) @ Q.T))


@SIGNS
@given(seed=st.integers(0, 10**6), k=st.integers(1, 5))
def test_matching_pursuit_is_its_definition(nonnegative, seed, k):
    x, W, b = problem(4, 9, 6, seed)
    found = dense(matching_pursuit(x, W, b, k, nonnegative=nonnegative), 9)
    for row in range(4):
        residual, code = x[row] - b, torch.zeros(9, dtype=torch.float64)
        for _ in range(k):
            correlation = W @ residual / W.norm(dim=1)
            best = int((correlation if nonnegative else correlation.abs()).argmax())
            value = correlation[best] / W[best].norm()
            if nonnegative and value <= 0:
                break
            code[best] += value
            residual = residual - value * W[best]
        torch.testing.assert_close(found[row], code)


@SIGNS
@given(seed=st.integers(0, 10**6), pursuit=st.sampled_from(list(PURSUITS)))
def test_errors_fall_with_every_step_and_signs_are_kept(nonnegative, seed, pursuit):
    x, W, b = problem(12, 14, 8, seed)
    errors = [(x - b).square().sum(1)]
    for k in range(1, 7):
        code = PURSUITS[pursuit](x, W, b, k, nonnegative=nonnegative)
        assert not nonnegative or (code.top_acts >= 0).all()
        assert all(len(set(row.tolist())) == k for row in code.top_indices)
        errors.append((x - b - dense(code, 14) @ W).square().sum(1))
    for before, after in itertools.pairwise(errors):
        # clipping after a line step may undo some of it; without signs every step descends
        assert (after <= before + 1e-9).all() or (nonnegative and pursuit == "gradient")
    if pursuit == "omp":
        assert (
            errors[-1] <= (x - b - dense(matching_pursuit(x, W, b, 1, nonnegative=nonnegative), 14) @ W).square().sum(1) + 1e-9
        ).all()


def test_the_published_order_on_a_random_dictionary():
    """OMP below gradient pursuit below MP, in sums over samples."""
    g = rng(0)
    W = torch.nn.functional.normalize(torch.randn(64, 24, generator=g, dtype=torch.float64), dim=1)
    x, b = torch.randn(300, 24, generator=g, dtype=torch.float64), torch.zeros(24, dtype=torch.float64)
    errors = [
        float((x - dense(f(x, W, b, 6), 64) @ W).square().sum())
        for f in (orthogonal_matching_pursuit, gradient_pursuit, matching_pursuit)
    ]
    assert errors == sorted(errors)


@SIGNS
def test_rows_of_zeros_and_samples_at_the_bias_have_no_code(nonnegative):
    x, W, b = problem()
    W[3:] = 0.0
    x[0] = b
    for pursuit in PURSUITS.values():
        code = pursuit(x, W, b, 5, nonnegative=nonnegative)
        full = dense(code, 14)
        assert torch.isfinite(full).all()
        assert (full[:, 3:] == 0).all()
        assert (full[0] == 0).all()
    values = least_squares_codes(x, W, b, torch.tensor([[1, 5]] * 20), nonnegative=nonnegative)
    assert (values[:, 1] == 0).all()


@given(st.integers(3, 30), st.integers(1, 12), st.integers(0, 10**6), st.booleans())
def test_omps_values_are_the_best_on_its_support(m, k, seed, twice):
    """Each fit begins where the last one ended, and ends where one from scratch does."""
    k = min(k, m)
    W = torch.randn(m, 6, generator=rng(seed), dtype=torch.float64)
    if twice:
        W[m // 2 :] = W[: m - m // 2].clone()  # rows that repeat
    x, b = torch.randn(20, 6, generator=rng(seed + 1), dtype=torch.float64), torch.zeros(6, dtype=torch.float64)
    for nonnegative in (False, True):
        code = orthogonal_matching_pursuit(x, W, b, k, nonnegative=nonnegative)
        best = least_squares_codes(x, W, b, code.top_indices, nonnegative=nonnegative)
        errors = [(x - (values[:, None] @ W[code.top_indices])[:, 0]).square().sum(1) for values in (code.top_acts, best)]
        torch.testing.assert_close(*errors, atol=1e-6, rtol=1e-6)
        assert not nonnegative or bool((code.top_acts >= 0).all())


def test_fewer_usable_rows_than_steps():
    W = torch.zeros(6, 4, dtype=torch.float64)
    W[0, 0], W[1, 1] = 1.0, 2.0
    x, b = torch.tensor([[3.0, 2.0, 0.5, 0.0]], dtype=torch.float64), torch.zeros(4, dtype=torch.float64)
    for pursuit in PURSUITS.values():
        for nonnegative in (False, True):
            torch.testing.assert_close(dense(pursuit(x, W, b, 4, nonnegative=nonnegative), 6)[0, :2].tolist(), [3.0, 1.0])
    assert least_squares_codes(x, W, b, torch.zeros(1, 0, dtype=torch.int64)).shape == (1, 0)


def test_blocks_change_nothing(monkeypatch):
    x, W, b = problem(50)
    for pursuit in PURSUITS.values():
        whole = dense(pursuit(x, W, b, 4), 14)
        monkeypatch.setattr("splinterp.inference.least_squares.NUMBERS", 7 * 4 * 8)
        torch.testing.assert_close(dense(pursuit(x, W, b, 4), 14), whole)
        monkeypatch.undo()
        assert pursuit(x[:0], W, b, 4).top_acts.shape == (0, 4)


def test_a_better_search_for_an_saes_codes():
    from splinterp import SGD, fit

    x = samples(600)
    sae = SAE(8, 32, TopK(3), "free", generator=rng(1))
    fit(sae, x, SGD(lr=1e-2), epochs=20, generator=0)
    code = sae.encode_top(x)
    refitted = least_squares_codes(x, sae.W_dec.detach(), sae.b_dec.detach(), code.top_indices, nonnegative=True)
    errors = [
        evaluate(sae, x).fvu,
        fvu(x, sae.decode(code.with_values(refitted)).detach()),
        evaluate(Dictionary.of(sae), x).fvu,
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[2] < 0.9 * errors[0]
    assert Dictionary.of(sae).kept == 3
    assert Dictionary.of(sae, k=2).encode(x).count_nonzero(1).max() == 2
    assert (Dictionary.of(make_sae("AbsTopK")).encode(x) < 0).any()


def test_known_features_are_learned_without_gradients():
    model = SparseFeatures(16, 16, 2, features="orthogonal", values="uniform", signs=True)
    x = model.sample(600, rng(0)).x
    found = learn_dictionary(x, 24, 2, iterations=15, nonnegative=False, generator=1)
    assert match_features(found.W_dec, model.features, signed=False).recovery(0.95) > 0.8
    again = learn_dictionary(x, 24, 2, iterations=15, nonnegative=False, generator=1)
    assert torch.equal(found.W_dec, again.W_dec)
    torch.testing.assert_close(found.W_dec.norm(dim=1), torch.ones(24))
    few = learn_dictionary(x, 24, 2, iterations=1, nonnegative=False, generator=1)
    assert evaluate(found, x).fvu < 0.7 * evaluate(few, x).fvu


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda x, W, b: orthogonal_matching_pursuit(x, W, b, 15), "k=15 is larger than n_latents=14"),
        (lambda x, W, b: matching_pursuit(x, W, b, 0), "k=0"),
        (lambda x, W, b: Dictionary(W, b, 3, "lasso"), "lasso"),
        (lambda x, W, b: Dictionary(W, b, 15), "k=15"),
        (lambda x, W, b: least_squares_codes(x, W, b, torch.zeros(3, 2, dtype=torch.int64)), "20 samples"),
        (lambda x, W, b: Dictionary.of(SAE(8, 14, ReLU())), "pass k"),
        (lambda x, W, b: learn_dictionary(x, 30, 2), "one for each latent"),
        (lambda x, W, b: gradient_pursuit(x[:, :5], W, b, 2), "5"),
    ],
)
def test_what_cannot_be_is_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call(*problem())


def test_every_option_of_learning_changes_the_dictionary():
    x = samples(200, dtype=torch.float64)
    plain = {"iterations": 3, "generator": 1}
    rows = learn_dictionary(x, 12, 2, **plain).W_dec
    for option in ({"pursuit": "mp"}, {"ridge": 50.0}, {"nonnegative": False}, {"generator": 2}, {"iterations": 4}):
        assert not torch.equal(learn_dictionary(x, 12, 2, **{**plain, **option}).W_dec, rows), option
