from __future__ import annotations

import pytest
import torch
from sklearn.metrics import r2_score

from splinterp import SAE, AbsTopK, TopK, metrics
from splinterp.metrics import evaluate, explained_variance, firing_frequencies, frac_dead, fvu, l0
from tests.helpers import ACTIVATIONS, make_sae, rng, samples


def test_fvu_is_one_minus_r2_weighted_by_variance():
    x, noise = samples(50), torch.randn(50, 8, generator=rng(1))
    expected = 1 - r2_score(x.numpy(), (x + noise).numpy(), multioutput="variance_weighted")
    assert fvu(x, x + noise) == pytest.approx(expected, rel=1e-5)
    assert explained_variance(x, x + noise) == pytest.approx(1 - expected, rel=1e-5)
    assert fvu(x, x) == 0
    assert fvu(x.double(), x.double().mean(0).expand(50, 8)) == pytest.approx(1)


def test_counts_include_negative_codes():
    acts = torch.tensor([[1.0, 0.0, -2.0, 0.0], [0.0, 0.0, -1.0, 0.0]])
    assert l0(acts) == 1.5
    assert frac_dead(acts) == 0.5
    assert firing_frequencies(acts).tolist() == [0.5, 0.0, 1.0, 0.0]


@pytest.mark.parametrize("activation", [a for a in ACTIVATIONS if a not in ("BatchTopK", "FeatureChoice")])
def test_evaluate_equals_the_metrics_on_the_whole_split(activation):
    sae, x = make_sae(activation), samples(301)
    whole = sae(x)
    for batch_size in (7, 4096):
        found = evaluate(sae, x, batch_size=batch_size)
        assert found.fvu == pytest.approx(fvu(x, whole.x_hat.detach()), rel=1e-5)
        assert found.l0 == pytest.approx(l0(whole.acts.detach()))
        assert found.frac_dead == frac_dead(whole.acts.detach())
        torch.testing.assert_close(found.frequencies, firing_frequencies(whole.acts.detach()))


def test_evaluate_is_in_inference_mode_and_restores_training():
    sae = make_sae("BatchTopK")
    with pytest.raises(RuntimeError, match="no threshold"):
        evaluate(sae, samples())
    assert sae.training
    sae.calibrate(samples())
    assert sae.activation.threshold > 0
    assert evaluate(sae, samples()).l0 == pytest.approx(3)
    assert sae.training


def test_errors():
    x = samples(5)
    with pytest.raises(ValueError, match="all equal"):
        fvu(torch.ones(4, 2), torch.zeros(4, 2))
    with pytest.raises(ValueError, match="at least 2 samples"):
        fvu(x[:1], x[:1])
    with pytest.raises(ValueError, match="all equal"):
        fvu(torch.full((7, 3), 0.1, dtype=torch.float64), torch.zeros(7, 3))
    with pytest.raises(ValueError, match="x_hat has 4"):
        fvu(x, x[1:])
    with pytest.raises(ValueError, match="acts has no samples"):
        l0(x[:0])
    with pytest.raises(ValueError, match="at least 2 samples, got 1"):
        evaluate(make_sae(), x[:1])
    with pytest.raises(ValueError, match="all equal"):
        evaluate(make_sae(), torch.ones(4, 8))
    with pytest.raises(ValueError, match="batch_size=0"):
        evaluate(make_sae(), x, batch_size=0)
    assert metrics.Evaluation._fields == ("fvu", "l0", "frac_dead", "frequencies")


@pytest.mark.parametrize("activation", [TopK(2), AbsTopK(2)])
def test_evaluation_by_sparse_codes_equals_the_dense_one(activation, monkeypatch):
    sae = SAE(5, 32, activation, generator=torch.Generator().manual_seed(1))
    sae.b_enc.data.fill_(-1.5)  # some kept scores of TopK are below 0: their codes are not active
    x = torch.randn(300, 5, generator=torch.Generator().manual_seed(2))
    sparse = evaluate(sae, x, batch_size=128)
    assert sae.trains_sparse
    monkeypatch.setattr(SAE, "trains_sparse", False)
    dense = evaluate(sae, x, batch_size=128)
    assert sparse.fvu == pytest.approx(dense.fvu, rel=1e-5)
    assert (sparse.l0, sparse.frac_dead) == (dense.l0, dense.frac_dead)
    assert sparse.l0 < 2 or isinstance(activation, AbsTopK)
    assert torch.equal(sparse.frequencies, dense.frequencies)
