"""Bias adaptation against what it promises: targets met, bounds kept, counts exact, no gradient on the bias."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from splinterp import PAMSGD, SAE, SGD, BatchTopK, BiasAdaptation, JumpReLU, ReLU, TopK
from splinterp.metrics import firing_frequencies
from splinterp.training import FiringCounter
from tests.helpers import rng

ADAPTED = {"ReLU": ReLU(), "JumpReLU": JumpReLU(0.1)}


def normal_sae(activation, d=9, m=6, seed=0, decoder="tied", **options):
    return SAE(d, m, activation, decoder, generator=rng(seed), dtype=torch.float64, **options)


def normal(n, d=9, seed=0):
    return torch.randn(n, d, generator=rng(seed), dtype=torch.float64)


def share_above(threshold):
    """Of a standard normal: the score of a unit column on standard normal samples."""
    return 0.5 * torch.special.erfc(threshold / math.sqrt(2))


def settled(method, sae, seed, n=10_000, updates=120):
    """Bias updates on fresh samples of one distribution, with frozen weights."""
    state = method.init(sae, normal(n, sae.d_in, seed), total_steps=None)
    for update in range(updates):
        state.counter.update(sae.encode(normal(n, sae.d_in, seed + 1 + update)))
        method.adapt(sae, state)
    return state


@pytest.mark.parametrize("kind", ADAPTED)
@pytest.mark.parametrize("groups", [1, 3])
def test_step_rule_meets_every_target_with_frozen_weights(kind, groups):
    n, gamma, sae = 10_000, 0.02, normal_sae(ADAPTED[kind])
    frequencies = (0.2, 0.05, 0.01)[-groups:]
    method = BiasAdaptation(gain=1.0, target_frequencies=frequencies, gamma_down=gamma, gamma_up=gamma)
    state = settled(method, sae, seed=3, n=n)
    bias, target = sae.bias.value, state.targets
    error = (target * (1 - target) / n).sqrt()
    assert (share_above(-bias) < target + 4 * error).all()  # at or below the target, but for the error of the last count
    one_step_higher = -(bias + gamma * 5.5)  # no peak over 10,000 samples reaches 5.5
    assert (share_above(one_step_higher) > target - 5 * error).all()  # and no more than one step below
    assert (state.frequency - share_above(-bias)).abs().max() < 0.05


@given(st.integers(1, 12), st.integers(2, 300), st.sampled_from(list(ADAPTED)), st.integers(0, 10_000), st.booleans())
def test_quantile_rule_meets_every_reachable_target_exactly(m, n, kind, seed, center):
    sae = normal_sae(ADAPTED[kind], 5, m, seed, b_pre=center)
    offset = torch.zeros(5, dtype=torch.float64)
    if center:
        offset = normal(1, 5, seed + 2)[0]
        with torch.no_grad():
            sae.b_pre.copy_(offset)
    x = normal(n, 5, seed + 1)
    target = float(torch.rand((), generator=rng(seed)))
    method = BiasAdaptation(gain=1.0, target_frequencies=max(target, 1e-3), rule="quantile", bounds=(-100.0, 0.0))
    method.init(sae, x)
    wanted = min(max(round(max(target, 1e-3) * n), 1), n)
    positive = ((x - offset) @ sae.W_enc > 0).sum(0)
    counted = (sae.encode(x) != 0).sum(0)
    assert torch.equal(counted, positive.clamp_max(wanted))  # a bias of at most 0 cannot let negative scores fire


@given(st.integers(0, 10_000), st.integers(1, 6), st.integers(1, 5), st.integers(1, 40))
def test_quantile_rule_with_ties_takes_the_nearest_count_that_is_not_zero(seed, distinct, repeats, wanted):
    g = rng(seed)
    values = torch.randn(distinct, 4, generator=g, dtype=torch.float64)
    x = values[torch.randint(distinct, (distinct * repeats,), generator=g)]
    x = torch.cat([values, x])
    n = len(x)
    wanted = min(wanted, n)
    sae = normal_sae(ReLU(), 4, 5, seed)
    BiasAdaptation(gain=1.0, target_frequencies=wanted / n, rule="quantile", bounds=(-100.0, 0.0)).init(sae, x)
    counted = (sae.encode(x) != 0).sum(0)
    scores = x @ sae.W_enc.detach()
    for latent in range(5):
        positive = [v for v in scores[:, latent].unique() if v > 0]
        possible = [int((scores[:, latent] >= v - 1e-9).sum()) for v in positive]
        nearest = min((abs(c - wanted) for c in possible), default=0)
        if max(possible, default=0) < wanted:  # every positive score fires, or a level among the negative ones was nearer
            assert int(counted[latent]) == max(possible, default=0)
        else:
            assert abs(int(counted[latent]) - wanted) == nearest


def test_quantile_frequencies_hold_on_new_samples():
    sae, n = normal_sae(ReLU()), 20_000
    method = BiasAdaptation(gain=1.0, groups=3, highest=0.3, lowest=0.01, rule="quantile")
    state = method.init(sae, normal(n, seed=1))
    error = (state.targets * (1 - state.targets) / n).sqrt()
    assert ((share_above(-sae.bias.value) - state.targets).abs() < 4 * error).all()


@given(st.integers(0, 10_000), st.sampled_from(list(ADAPTED)), st.floats(0, 5), st.floats(0, 5), st.floats(1e-3, 1e3))
def test_biases_stay_in_their_bounds(seed, kind, up, down, size):
    g = rng(seed)
    d, m = (int(torch.randint(1, 8, (), generator=g)) for _ in range(2))
    sae = SAE(d, m, ADAPTED[kind], "tied", b_pre=True, generator=g)
    x = size * torch.randn(40, d, generator=g)
    bounds = (-0.3, -0.01) if seed % 2 else (-1.0, 0.0)
    method = BiasAdaptation(
        gain=1.0, base=SGD(lr=0.1), groups=1, highest=0.2, gamma_up=up, gamma_down=down, every=1, bounds=bounds
    )
    state = method.init(sae, x)
    for part in x.split(10) * 3:
        method.step(sae, state, part)
        bias = sae.bias.value
        assert (bias >= bounds[0] * state.scale * (1 + 1e-5)).all()
        assert (bias <= bounds[1] * state.scale * (1 - 1e-5)).all()


BASES = {
    "SGD": SGD(weight_decay=0.1, decay_biases=True),
    "SGD clipped": SGD(clip=0.1),
    "AdamW": SGD(optimizer="adamw", weight_decay=0.1, decay_biases=True),
    "PAM": PAMSGD(weight_decay=0.1, decay_biases=True),
    "PAM encoder only, proximal": PAMSGD(gradient="encoder", prox_enc=1.0, encoder_updates=2),
}


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("activation", [ReLU(), JumpReLU(0.2), TopK(2), BatchTopK(2)], ids=lambda a: type(a).__name__)
def test_gradients_never_move_the_bias(base, activation):
    def moved(method):
        sae = SAE(6, 8, activation, "tied_residual", b_pre=True, generator=rng(1))
        x = torch.randn(64, 6, generator=rng(2)) + 1
        state = method.init(sae, x)
        bias = {"b_enc": sae.b_enc, "b_pre": sae.b_pre}
        if isinstance(activation, JumpReLU):
            bias["threshold"] = sae.activation.log_threshold
        before = {name: p.detach().clone() for name, p in bias.items()}
        weights = sae.W_enc.detach().clone()
        for part in x.split(16):
            method.step(sae, state, part)
        method.end_epoch(sae, state, x.split(16))
        assert not torch.equal(weights, sae.W_enc)
        assert all(p.requires_grad for p in sae.parameters())
        return {name for name, p in bias.items() if not torch.equal(before[name], p)}

    assert moved(BiasAdaptation(gain=1.0, base=BASES[base], every=1_000, groups=2)) == set()
    alone = moved(BASES[base])
    assert alone >= {"b_enc", "b_pre"}  # the base alone moves them
    assert ("threshold" in alone) == isinstance(activation, JumpReLU)


@given(st.integers(0, 10_000), st.integers(2, 12), st.integers(1, 4))
def test_groups_and_order_do_not_matter(seed, m, groups):
    """Latents changing places inside their group carry their biases along; the order of samples changes nothing."""
    groups = min(groups, m)
    method = BiasAdaptation(gain=1.0, target_frequencies=(0.3, 0.2, 0.1, 0.05)[:groups], gamma_up=0.1, gamma_down=0.1)
    g = rng(seed)
    x = torch.randn(200, 6, generator=g, dtype=torch.float64)
    sae, other = normal_sae(ReLU(), 6, m, seed), normal_sae(ReLU(), 6, m, seed)
    group = method.init(sae, x).group
    places = torch.cat(
        [torch.where(group == k)[0][torch.randperm(int((group == k).sum()), generator=g)] for k in range(groups)]
    )
    with torch.no_grad():
        other.W_enc.copy_(sae.W_enc[:, places])
    biases = []
    for model, order in ((sae, torch.arange(200)), (other, torch.randperm(200, generator=g))):
        state = method.init(model, x)
        for _ in range(4):
            for part in x[order].split(30):
                state.counter.update(model.encode(part))
            method.adapt(model, state)
        biases.append(model.bias.value)
    torch.testing.assert_close(biases[0][places], biases[1], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_any_assignment_of_latents_to_groups_meets_the_targets(seed):
    n, targets = 10_000, (0.2, 0.02)
    order = torch.randperm(6, generator=rng(seed)).tolist()
    per_latent = tuple(targets[i % 2] for i in order)
    sae = normal_sae(ReLU())
    settled(BiasAdaptation(gain=1.0, target_frequencies=per_latent, gamma_down=0.02), sae, seed=50 * seed, n=n)
    wanted = torch.tensor(per_latent, dtype=torch.float64)
    found = share_above(-sae.bias.value)
    assert (found < wanted + 4 * (wanted / n).sqrt()).all()
    assert (found > 0.6 * wanted).all()


@given(st.integers(0, 10_000), st.lists(st.integers(0, 20), min_size=1, max_size=8), st.integers(1, 10))
def test_streamed_firing_equals_the_exact_count(seed, sizes, m):
    if not sum(sizes):
        sizes = [1]
    g = rng(seed)
    acts = torch.randn(sum(sizes), m, generator=g).clamp_min(0) * (torch.rand(m, generator=g) < 0.8)
    counter = FiringCounter(m)
    for part in acts.split(sizes):
        counter.update(part)
    frequency, peak = counter.firing()
    assert torch.equal(frequency, firing_frequencies(acts))
    assert torch.equal(peak, acts.amax(0))
    threshold = torch.full((m,), 0.5)
    assert torch.equal(counter.firing(threshold).peak, (acts.amax(0) - 0.5).clamp_min(0))
