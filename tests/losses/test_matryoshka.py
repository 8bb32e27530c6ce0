"""Matryoshka: prefixes, weights, limits."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from splinterp.losses import Forward, Matryoshka, RandomMatryoshka, SquaredError
from splinterp.protocol import as_model
from tests.helpers import DECODERS, rng, samples
from tests.losses.cases import codes_of, make, value_and_gradients

X = samples(40, dtype=torch.float64)


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("activation", ["TopK", "AbsTopK", "ReLU"])
def test_one_prefix_of_all_latents_is_the_squared_error(activation, decoder):
    sae = make(activation, decoder)
    one, plain = (value_and_gradients(term, sae, X) for term in (Matryoshka(widths=(32,)), SquaredError()))
    torch.testing.assert_close(one, plain, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("activation", ["TopK", "ReLU"])
@pytest.mark.parametrize("empty", [False, True])
def test_value_is_that_of_its_definition(empty, activation):
    sae = make(activation)
    term = Matryoshka(widths=(4, 13), empty=empty)
    widths = (*((0,) if empty else ()), 4, 13, 32)
    assert term.sizes(as_model(sae)) == widths
    z = sae.encode(X)
    errors = [(X - z[:, :p] @ sae.W_dec[:p] - sae.b_dec).square().mean() for p in widths]
    torch.testing.assert_close(term(Forward(sae, X), {}), sum(errors) / len(errors))
    weighted = Matryoshka(widths=(4, 13), empty=empty, weights=tuple(range(1, len(widths) + 1)))
    torch.testing.assert_close(weighted(Forward(sae, X), {}), sum(i * e for i, e in enumerate(errors, 1)))


def test_order_inside_a_group_does_not_matter():
    sae, term = make(), Matryoshka(widths=(8,))
    before = term(Forward(sae, X), {})
    order = torch.cat([torch.arange(8).flip(0), 8 + torch.arange(24).flip(0)])
    with torch.no_grad():
        sae.W_enc.copy_(sae.W_enc[:, order].clone())
        sae.b_enc.copy_(sae.b_enc[order].clone())
        sae.W_dec.copy_(sae.W_dec[order].clone())
    torch.testing.assert_close(term(Forward(sae, X), {}), before)


def test_the_last_part_is_the_whole_code():
    out = Forward(make(), X)
    parts = codes_of(Matryoshka(widths=(4,)), make(), X)
    assert torch.equal(parts[-1][1], out.acts)
    assert [weight for weight, _ in parts] == [0.5, 0.5]


@given(m=st.integers(1, 40), n=st.integers(1, 12), shape=st.sampled_from([0.2, 0.5, 1.0]), seed=st.integers(0, 10**6))
def test_random_prefixes_are_one_of_each_part_and_the_whole(m, n, shape, seed):
    term = RandomMatryoshka(n_prefixes=n, shape=shape)
    u = torch.rand(n, generator=rng(seed), dtype=torch.float64)
    widths, shares = term._widths(m, u)
    expected = sorted([min(m, max(1, math.ceil(m * ((j + float(u[j])) / n) ** (1 / shape)))) for j in range(n)] + [m])
    assert widths == sorted(set(expected))
    assert shares == pytest.approx([expected.count(width) / (n + 1) for width in widths])


def test_random_prefixes_differ_by_batch_and_repeat_by_state():
    sae = make("TopK")
    out, term = Forward(sae, X), RandomMatryoshka(n_prefixes=3)
    state = term.init(sae)
    values = [float(term(out, state).detach()) for _ in range(4)]
    assert len(set(values)) == 4
    again = term.init(sae)
    assert [float(term(out, again).detach()) for _ in range(4)] == values
    other = RandomMatryoshka(n_prefixes=3, seed=1)
    assert float(other(out, other.init(sae)).detach()) not in values
    middle, n_latents = sum(w * float((X - out.decode(c)).square().mean().detach()) for w, c in term.codes(out)), sae.n_latents
    assert middle == pytest.approx(sum(values) / 4, rel=0.2)
    one = RandomMatryoshka(n_prefixes=1, shape=1e-9)  # the first latent and the whole
    fixed = Matryoshka(widths=(1,), weights=(0.5, 0.5))
    assert n_latents > 1
    torch.testing.assert_close(one(out, one.init(sae)), fixed(out, {}))


@pytest.mark.parametrize(("options", "words"), [({"n_prefixes": 0}, "n_prefixes=0"), ({"shape": 0.0}, "shape=0")])
def test_random_prefixes_out_of_range_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        RandomMatryoshka(**options)
