"""The lazy forward pass: what is computed, how often, and in which form."""

from __future__ import annotations

import pytest
import torch

from splinterp import SAE, SGD, TopK
from splinterp.activations import GroupedActs, TopActs
from splinterp.losses import L0, AuxK, Forward, Matryoshka, OrtSAE, SquaredError, Term
from tests.helpers import rng, samples
from tests.losses.cases import as_dense, make, no_sparse_training


@pytest.fixture
def calls(monkeypatch):
    """How often an SAE was asked for codes, scores and reconstructions."""
    found = {}
    for name in ("code", "pre_acts", "code_from", "decode", "decode_nested"):
        original = getattr(SAE, name)

        def counted(self, *args, name=name, original=original):
            found[name] = found.get(name, 0) + 1
            return original(self, *args)

        monkeypatch.setattr(SAE, name, counted)
    return found


def test_nothing_is_computed_before_it_is_read(calls):
    out = Forward(make(), samples(20, dtype=torch.float64))
    assert out.target is out.x
    assert calls == {}
    _ = out.fired(), out.values(), out.latents()
    assert calls == {"code": 1}
    _ = out.x_hat, out.error, out.error
    assert calls == {"code": 1, "decode": 1}


def test_scores_make_the_code_where_a_term_reads_them(calls):
    sae, x = make("JumpReLU"), samples(20, dtype=torch.float64)
    out = Forward(sae, x, scores=True)
    _ = out.pre_acts, out.code, out.acts, out.x_hat
    assert calls == {"pre_acts": 1, "code_from": 1, "decode": 1}
    plain = Forward(sae, x)
    assert torch.equal(plain.code, out.code)


@pytest.mark.parametrize(
    ("terms", "expected"),
    [
        ((SquaredError(), OrtSAE()), {"code": 1, "decode": 1}),
        ((SquaredError(), AuxK()), {"code": 1, "decode": 1}),  # no latent is dead: no scores
        ((SquaredError(), Matryoshka(widths=(4, 8))), {"code": 1, "decode": 1, "decode_nested": 1}),
    ],
    ids=lambda value: "-".join(t.name for t in value) if isinstance(value, tuple) else "",
)
def test_a_loss_computes_each_thing_once(terms: tuple[Term, ...], expected, calls):
    SGD(terms=terms).loss(make(), samples(20, dtype=torch.float64)).backward()
    assert calls == expected


def test_a_term_that_reads_scores_takes_one_product(calls):
    SGD(terms=(SquaredError(), L0())).loss(make("JumpReLU"), samples(20, dtype=torch.float64)).backward()
    assert (calls["pre_acts"], calls["code_from"], calls["decode"]) == (1, 1, 1)
    assert "code" not in calls


@pytest.mark.parametrize("activation", ["TopK", "AbsTopK"])
def test_sparse_and_dense_forms_agree(activation, monkeypatch):
    sae, x = make(activation), samples(30, dtype=torch.float64)

    def keep(values, latents):
        assert values.shape == latents.shape
        return (latents % 2 == 0) & (values.abs() > 0.3)

    sparse = Forward(sae, x)
    assert isinstance(sparse.code, TopActs)
    few = sparse.where(keep)
    assert isinstance(few, GroupedActs)  # products with it need not group it again
    assert few.by_latent is sparse.code.by_latent
    no_sparse_training(monkeypatch)
    full = Forward(sae, x)
    assert full.latents().tolist() == list(range(sae.n_latents))
    torch.testing.assert_close(sparse.acts, full.code)
    torch.testing.assert_close(as_dense(few, sae), full.where(keep))
    torch.testing.assert_close(sparse.decode(few), full.decode(full.where(keep)))
    torch.testing.assert_close(sparse.error, full.error)
    assert torch.equal(sparse.fired(), full.fired())
    assert 0 < as_dense(few, sae).count_nonzero() < full.code.count_nonzero()


def test_a_kept_zero_has_not_fired():
    sae = SAE(4, 32, TopK(2), generator=rng(0))
    with torch.no_grad():
        sae.b_enc.fill_(-100.0)
    out = Forward(sae, torch.randn(5, 4, generator=rng(1)))
    assert out.latents().shape == out.values().shape
    assert not out.fired().any()
