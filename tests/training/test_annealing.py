"""k that falls to its own value over the first steps."""

from __future__ import annotations

import pytest
import torch

from splinterp import PAMSGD, SAE, SGD, AbsTopK, BatchTopK, DivergenceError, ReLU, TopK, fit
from splinterp.metrics import evaluate
from splinterp.training.schedules import annealed
from tests.helpers import make_sae, rng, samples

METHODS = [SGD, PAMSGD]


def spied(kind, k=2, n_latents=64):
    """An SAE, and a list of (training phase, k) of every code that is made."""
    seen = []

    class Spied(kind):
        def select(self, pre_acts):
            seen.append((torch.is_grad_enabled(), self.k))
            return super().select(pre_acts)

        keep, keep_backward = kind.keep, kind.keep_backward

    return SAE(8, n_latents, Spied(k), generator=rng(1)), seen


def test_k_by_step():
    assert [annealed(10, 2, 0.5, step, 16) for step in range(16)] == [10, 9, 8, 7, 6, 5, 4, 3] + 8 * [2]
    assert [annealed(5, 2, 1.0, step, 6) for step in range(6)] == [5, 5, 4, 4, 3, 3]  # 5, 4.5, 4, 3.5, ...: halves go up
    assert [annealed(9, 3, 0.1, step, 5) for step in range(3)] == [9, 3, 3]


@pytest.mark.parametrize("method", METHODS)
def test_gradients_see_the_annealed_k_and_nothing_else_does(method):
    seen = []

    class Spied(TopK):
        def forward(self, pre_acts):
            seen.append((torch.is_grad_enabled(), self.k))
            return super().forward(pre_acts)

    sae = SAE(8, 12, Spied(2), generator=rng(1))
    result = fit(sae, samples(), method(k_start=10, k_share=0.5), epochs=4, batch_size=50, generator=0)
    assert [k for grad, k in seen if grad] == [10, 9, 8, 7, 6, 5, 4, 3] + 8 * [2]
    assert {k for grad, k in seen if not grad} == {2}
    assert sae.activation.k == 2
    assert result.history[0]["l0"] <= 2


@pytest.mark.parametrize("kind", [TopK, AbsTopK])
def test_sparse_training_of_few_latents_sees_it(kind):
    """The fused kernel takes the annealed k; a k too large for it is trained dense."""
    sae, seen = spied(kind)
    fit(sae, samples(), SGD(k_start=20, k_share=0.25), steps=8, batch_size=50, generator=0, log_every=8)
    counted = [k for _, k in seen][1:]  # the first is the evaluation at the start
    assert counted[:8] == [20, 11, 2, 2, 2, 2, 2, 2]
    assert set(counted[8:]) <= {2}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("activation", ["TopK", "AbsTopK", "BatchTopK", "FeatureChoice"])
def test_it_changes_the_result_and_evaluation_keeps_k(method, activation):
    runs = []
    for options in ({}, {"k_start": 9}, {"k_start": 9, "k_share": 0.8}, {"k_start": 5, "k_share": 0.8}):
        sae = make_sae(activation)
        fit(sae, samples(), method(**options), epochs=4, batch_size=50, generator=0)
        assert evaluate(sae, samples()).l0 <= 3.2
        assert sae.activation.config()["k"] == 3
        runs.append(sae.W_enc.detach())
    assert not any(torch.equal(runs[i], runs[j]) for i in range(4) for j in range(i))


def test_k_is_restored_when_a_step_fails():
    sae, method = make_sae(), SGD(k_start=9)
    state = method.init(sae, samples(), total_steps=10)
    with torch.no_grad():
        sae.W_dec.fill_(torch.nan)
    with pytest.raises(DivergenceError):
        method.step(sae, state, samples())
    assert sae.activation.k == 3
    with sae.keeping(7):
        assert sae.kept == sae.activation.k == 7
    assert sae.kept == 3


@pytest.mark.parametrize("method", METHODS)
def test_resumed_runs_give_the_same_bits(method, tmp_path):
    whole, parted = make_sae(), make_sae()
    method = method(k_start=9, k_share=0.9)
    fit(whole, samples(), method, epochs=6, batch_size=50, generator=0)

    def stop(row):
        if row["epoch"] == 3:
            raise KeyboardInterrupt

    options = {"epochs": 6, "batch_size": 50, "generator": 0, "checkpoint": tmp_path / "checkpoint"}
    with pytest.raises(KeyboardInterrupt):
        fit(parted, samples(), method, callback=stop, **options)
    assert parted.activation.k == 3
    fit(parted := make_sae(), samples(), method, resume=True, **options)
    assert torch.equal(whole.W_enc, parted.W_enc)


def test_what_would_change_nothing_is_refused():
    x = samples()
    with pytest.raises(ValueError, match="k_share=0.2 changes nothing without k_start"):
        SGD(k_share=0.2)
    with pytest.raises(ValueError, match="k_share=0.0 must be greater than 0"):
        SGD(k_start=9, k_share=0.0)
    with pytest.raises(ValueError, match="k_share=1.5 is a share of the steps"):
        SGD(k_start=9, k_share=1.5)
    with pytest.raises(TypeError, match="k_start"):
        SGD(k_start=4.5)
    for k_start in (3, 2, 13):
        with pytest.raises(ValueError, match=f"k_start={k_start} must be more than k=3 and at most n_latents=12"):
            fit(make_sae(), x, SGD(k_start=k_start))
    with pytest.raises(ValueError, match="k_start=9 needs an activation with a fixed k, not ReLU"):
        fit(make_sae("ReLU"), x, SGD(k_start=9))
    with pytest.raises(ValueError, match="k_share=0.1 is a share of the steps, whose number is not known"):
        SGD(k_start=9).init(make_sae(), x)
    with pytest.raises(TypeError, match="ReLU has no fixed number"):
        make_sae("ReLU").keeping(3)
    assert ReLU().kept is None
    assert BatchTopK(4).kept == 4
