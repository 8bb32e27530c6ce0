"""The exact solve of every reconstruction, and of sums of them, is stacked weighted least squares."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from splinterp import PAMSGD
from splinterp.losses import HierarchicalTopK, Matryoshka, SquaredError, Tilted
from tests.helpers import samples
from tests.losses.cases import make

X = samples(240, dtype=torch.float64)


def largest(z, j):
    ranks = np.argsort(np.argsort(-np.abs(z), axis=1), axis=1)
    return np.where(ranks < j, z, 0.0)


def parts_of(term, sae):
    """(weights (n,), dense codes) of a term by hand."""
    with torch.no_grad():
        z, error = sae.encode(X).numpy(), (X - sae(X).x_hat).numpy()
    n, m = z.shape
    ones = np.ones(n)
    match term:
        case SquaredError():
            found = [(ones, z)]
        case Matryoshka():
            widths = [*([0] if term.empty else []), *term.widths, m]
            shares = term.weights or [1 / len(widths)] * len(widths)
            found = [
                (share * ones, np.where(np.arange(m) < width, z, 0.0)) for share, width in zip(shares, widths, strict=True)
            ]
        case HierarchicalTopK():
            shares = term.weights or [1 / len(term.levels)] * len(term.levels)
            found = [(share * ones, largest(z, j)) for share, j in zip(shares, term.levels, strict=True)]
        case Tilted():
            losses = (error**2).mean(1)
            weights = np.exp(term.tilt * losses)
            found = [(n * weights / weights.sum(), z)]
    return [(term.weight * weights, z) for weights, z in found]


def stacked(terms, sae):
    parts = [part for term in terms for part in parts_of(term, sae)]
    weights, z = np.concatenate([w for w, _ in parts]), np.concatenate([z for _, z in parts])
    return weights, z, np.tile(X.numpy(), (len(parts), 1))


CASES = {
    "squared": (SquaredError(),),
    "squared, weighted": (SquaredError(weight=0.3),),
    "matryoshka": (Matryoshka(widths=(4, 13)),),
    "matryoshka, empty": (Matryoshka(widths=(7,), empty=True),),
    "matryoshka, weights": (Matryoshka(widths=(4, 13), weights=(3.0, 0.5, 0.1)),),
    "hierarchical": (HierarchicalTopK(levels=(1, 2, 3)),),
    "multi": (HierarchicalTopK(levels=(1, 3), weights=(1.0, 0.125)),),
    "tilted": (Tilted(tilt=0.4),),
    "tilted down": (Tilted(tilt=-0.7),),
    "two": (SquaredError(weight=0.7), Matryoshka(widths=(5,), weight=2.5)),
    "two others": (HierarchicalTopK(levels=(1, 2), weight=0.3), Tilted(tilt=0.5, weight=1.7)),
}


@pytest.mark.parametrize("activation", ["TopK", "AbsTopK"])
@pytest.mark.parametrize("terms", CASES.values(), ids=CASES)
def test_free_decoder_without_a_ridge(terms, activation):
    sae = make(activation)
    weights, z, x = stacked(terms, sae)
    share = weights / weights.sum()
    mean_z, mean_x, root = share @ z, share @ x, np.sqrt(weights)[:, None]
    W = np.linalg.lstsq(root * (z - mean_z), root * (x - mean_x), rcond=1e-7)[0]  # least norm, as the solve's
    method = PAMSGD(terms=terms, ridge=0.0)
    method.decoder_step(sae, method.init(sae, X), [X])
    np.testing.assert_allclose(sae.W_dec.detach().numpy(), W, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(sae.b_dec.detach().numpy(), mean_x - mean_z @ W, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("activation", ["TopK", "AbsTopK"])
@pytest.mark.parametrize("terms", CASES.values(), ids=CASES)
def test_tied_residual_with_a_ridge_to_the_prior(terms, activation):
    sae, ridge = make(activation, "tied_residual"), 1.3
    weights, z, x = stacked(terms, sae)
    root, m = np.sqrt(weights)[:, None], sae.n_latents
    prior = sae.W_enc.detach().T.numpy().copy()
    rows = np.block([[root * z, root], [np.sqrt(ridge) * np.eye(m), np.zeros((m, 1))]])
    solution = np.linalg.lstsq(rows, np.concatenate([root * x, np.sqrt(ridge) * prior]), rcond=None)[0]
    method = PAMSGD(terms=terms, ridge=ridge)
    state = method.init(sae, X)
    method.decoder_step(sae, state, [X])
    assert state.residual < 1e-9
    np.testing.assert_allclose(sae.W_dec.detach().numpy(), solution[:-1], rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(sae.b_dec.detach().numpy(), solution[-1], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["matryoshka", "hierarchical", "two"])
def test_a_solve_without_a_ridge_minimises_the_loss(name):
    """No small step of the decoder lowers what the gradient phase minimises: its gradient there is 0."""
    terms = CASES[name]
    sae = make()
    method = PAMSGD(terms=terms, ridge=0.0)
    method.decoder_step(sae, method.init(sae, X), X.split(50))
    method.loss(sae, X).backward()
    for p in (sae.W_dec, sae.b_dec):
        assert p.grad.abs().max() < 1e-12


def test_tilting_down_never_raises_the_value():
    """Its weights are those of a linear bound from above."""
    method = PAMSGD(terms=(Tilted(tilt=-1.5),), ridge=0.0)
    sae = make()
    state = method.init(sae, X)
    values = [method.loss(sae, X).item()]
    for _ in range(6):
        method.decoder_step(sae, state, [X])
        values.append(method.loss(sae, X).item())
    assert all(b <= a + 1e-12 for a, b in itertools.pairwise(values))
    assert values[-1] < values[0]
