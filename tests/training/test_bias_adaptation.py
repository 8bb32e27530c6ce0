"""Bias adaptation: the published rule step by step, options, errors, and that it runs in any loop."""

from __future__ import annotations

import copy
import functools
import pickle
from dataclasses import replace

import pytest
import torch
from torch import nn

from splinterp import PAMSGD, SAE, SGD, AbsTopK, BiasAdaptation, DivergenceError, JumpReLU, ReLU, TopK, fit
from splinterp.data import SparseFeatures
from splinterp.encoders import Gated
from splinterp.metrics import evaluate, match_features
from splinterp.protocol import inference_mode_of
from splinterp.training import BiasState, FiringCounter
from splinterp.training.bias_block import _levels, fitting_gain
from tests.helpers import DECODERS, make_sae, rng, samples


def tied(activation=None, m=12, **options):
    return SAE(8, m, activation or ReLU(), "tied", tie_scale=True, b_pre=True, generator=rng(1), **options)


def trained(method, activation=None, epochs=4, **options):
    sae = tied(activation, **options)
    return fit(sae, samples(), method, epochs=epochs, batch_size=25, generator=rng(3))


def same(a, b):
    return all(torch.equal(p, q) for p, q in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_one_update_is_the_published_one():
    """Two groups of three latents: too frequent, between, silent; by hand."""
    method = BiasAdaptation(target_frequencies=(0.5, 0.1), gamma_up=0.2, gamma_down=0.1, bounds=(-1.0, 0.0))
    sae = SAE(4, 6, ReLU(), generator=rng())
    state = method.init(sae, samples(d=4))
    state.scale = 1.0
    start = torch.tensor([-0.3, -0.3, -0.3, -0.3, -0.3, -0.02])
    with torch.no_grad():
        sae.b_enc.copy_(start)
    acts = torch.zeros(10, 6)
    acts[:6, 0] = torch.linspace(0.5, 1.0, 6)  # 0.6 > 0.5: lowered by 0.1 * 1
    acts[:5, 1] = 0.4  # 0.5 is not above 0.5: stays
    acts[:2, 3] = 3.0  # 0.2 > 0.1: lowered by 0.1 * 3
    state.counter.update(acts)
    method.adapt(sae, state)
    raised = 0.2 * (1.0 + 0.4) / 2  # by the mean positive peak of the first group, silent latents left out
    expected = start + torch.tensor([-0.1, 0.0, raised, -0.3, 0.6, 0.6])
    torch.testing.assert_close(sae.b_enc.detach(), expected.clamp(-1.0, 0.0))
    assert state.counter.n_samples == 0
    torch.testing.assert_close(state.frequency, torch.tensor([0.6, 0.5, 0, 0.2, 0, 0], dtype=torch.float64))


def test_silent_group_is_raised_by_the_mean_peak_of_all():
    method = BiasAdaptation(target_frequencies=(0.9, 0.1), gamma_up=0.2)
    sae = SAE(4, 4, ReLU(), generator=rng())
    state = method.init(sae, samples(d=4))
    with torch.no_grad():
        sae.b_enc.fill_(-0.5)
    state.counter.update(torch.tensor([[1.0, 3.0, 0.0, 0.0]]).repeat(2, 1) * torch.tensor([[1.0], [0.0]]))
    method.adapt(sae, state)
    torch.testing.assert_close(sae.b_enc.detach(), torch.tensor([-0.5, -0.5, -0.1, -0.1]))


@pytest.mark.parametrize("activation", [ReLU(), JumpReLU(50.0)], ids=["ReLU", "JumpReLU"])
def test_a_silent_dictionary_comes_back(activation):
    sae, x = tied(activation), samples()
    with torch.no_grad():
        sae.b_enc.fill_(-50.0 if isinstance(activation, ReLU) else 0.0)
    method = BiasAdaptation(groups=1, highest=0.2, gamma_up=0.1, gamma_down=0.1, every=2, bounds=(-4.0, 0.0))
    state = method.init(sae, x)
    assert not bool((sae.encode(x) != 0).any())
    fit(sae, x, method, epochs=10, batch_size=25, generator=rng(3))
    assert bool((sae.encode(x) != 0).any())
    assert float(sae.bias.value.amax()) > -2 * state.scale


def test_jumprelu_moves_its_threshold_and_keeps_b_enc_at_zero():
    sae = tied(JumpReLU(0.3))
    with torch.no_grad():
        sae.b_enc.fill_(0.2)
    method = BiasAdaptation(groups=1, highest=0.05, gamma_down=0.1, every=2)
    state = method.init(sae, samples())
    assert torch.equal(sae.b_enc, torch.zeros(12))
    before = sae.activation.threshold.detach().clone()
    x = samples(n=50)
    peak = (sae.encode(x).detach().amax(0) - before).clamp_min(0)
    state.counter.update(sae.encode(x))
    method.adapt(sae, state)
    frequent = state.frequency > 0.05
    assert frequent.any()
    torch.testing.assert_close(sae.activation.threshold[frequent].detach(), (before + 0.1 * peak)[frequent], rtol=1e-5, atol=0)


def test_encoder_columns_stay_unit_and_bounds_scale_with_the_data():
    for size in (1.0, 50.0):
        sae, x = tied(), size * samples()
        method = BiasAdaptation(base=SGD(lr=0.05), every=3, gamma_down=0.5, groups=1, highest=1e-3)
        result = fit(sae, x, method, epochs=20, batch_size=25, generator=rng(3))
        torch.testing.assert_close(sae.W_enc.detach().norm(dim=0), torch.ones(12))
        centred = x - x.mean(0)
        assert result.state.scale == pytest.approx(float(centred.square().sum(1).mean().sqrt()), rel=1e-5)
        assert float(sae.bias.value.amin()) < -0.3 * result.state.scale


@pytest.mark.parametrize("n_latents", [1, 2, 9])
def test_small_dictionaries_have_fewer_groups_by_default(n_latents):
    state = BiasAdaptation(highest=0.4, lowest=0.1).init(tied(m=n_latents), samples())
    targets = state.targets.tolist()
    assert targets[0] == pytest.approx(0.4)
    assert len(set(targets)) == n_latents
    assert targets[-1] == pytest.approx(0.1 if n_latents > 1 else 0.4)


def test_targets_are_cut_into_groups_of_neighbours():
    assert BiasAdaptation(groups=3, highest=0.4, lowest=0.1).group_targets() == pytest.approx([0.4, 0.2, 0.1])
    assert BiasAdaptation(groups=1, highest=1e-4).group_targets() == [1e-4]
    state = BiasAdaptation(target_frequencies=[0.4, 0.1]).init(make_sae("ReLU", m=5), samples())
    assert state.targets.tolist() == pytest.approx([0.4, 0.4, 0.4, 0.1, 0.1])
    assert BiasAdaptation(target_frequencies=0.3).group_targets() == [0.3]


OPTIONS = {
    "base": SGD(lr=1e-2), "lr": 1e-2, "target_frequencies": (0.1, 0.3), "groups": 3, "highest": 0.3, "lowest": 0.1, "gamma_up": 0.5,
    "gamma_down": 0.5, "every": 3, "eps": 0.2, "bounds": (-0.5, -0.2), "rule": "quantile", "gain": 0.5,
}  # fmt: skip


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_changes_the_result(name):
    method = BiasAdaptation(every=4)
    if name in ("gamma_up", "eps"):  # with latents that fall silent
        method = BiasAdaptation(every=4, gamma_down=1.0, target_frequencies=1e-3)
    assert not same(trained(replace(method, **{name: OPTIONS[name]})).sae, trained(method).sae)


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("activation", ["ReLU", "JumpReLU", "TopK", "BatchTopK"])
def test_output_starts_where_it_fits_best(activation, decoder):
    x, found = samples(300), {}
    for gain in (None, 1.0, 0.25):
        sae = make_sae(activation, decoder, m=40, tie_scale=decoder != "free")
        with torch.no_grad():
            sae.b_dec.copy_(x.mean(0))
        BiasAdaptation(gain=gain).init(sae, x)
        with torch.no_grad(), inference_mode_of(sae, training=True):
            found[gain] = sae.decode(sae.encode(x)) - x.mean(0)
    y = (x - x.mean(0)).double()
    plain = found[1.0].double()
    best = float((plain * y).sum() / plain.square().sum())
    assert 0 < best < 0.9  # 40 unit rows overshoot
    torch.testing.assert_close(found[None].double(), best * plain, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found[0.25], 0.25 * found[1.0])


@pytest.mark.parametrize("activation", ["ReLU", "JumpReLU"])
def test_output_starts_by_the_codes_that_the_quantile_rule_makes(activation):
    sae, x = make_sae(activation, "tied", m=64, tie_scale=True), samples(600)
    with torch.no_grad():
        sae.b_dec.copy_(x.mean(0))
    BiasAdaptation(rule="quantile").init(sae, x)
    assert fitting_gain(sae, x) == pytest.approx(1.0, abs=1e-4)


def test_a_frozen_decoder_is_not_rescaled():
    sae = make_sae("ReLU", "free")
    sae.W_dec.requires_grad_(False)
    before = sae.W_dec.clone()
    with pytest.raises(ValueError, match="frozen .*pass gain=1"):
        BiasAdaptation().init(sae, samples())
    BiasAdaptation(gain=1).init(sae, samples())
    assert torch.equal(sae.W_dec, before)


def test_output_scales_are_asked_for():
    for decoder in ("tied", "tied_residual"):
        with pytest.raises(ValueError, match="tie_scale=True, or pass gain=1"):
            BiasAdaptation().init(make_sae("ReLU", decoder), samples())
        BiasAdaptation(gain=1).init(make_sae("ReLU", decoder), samples())
    with pytest.raises(ValueError, match="gain=0.0 must be greater"):
        BiasAdaptation(gain=0.0)
    silent = make_sae("JumpReLU", "free")
    with torch.no_grad():
        silent.W_enc.zero_()
    before = silent.W_dec.detach().clone()
    BiasAdaptation().init(silent, samples())  # nothing to fit: left as it is
    assert torch.equal(silent.W_dec, before)


@pytest.mark.slow
def test_defaults_find_features_of_a_model_that_they_were_not_chosen_on():
    """100 features in 40 dimensions, sums of 3 or 12: the published values find none."""
    g = rng(5)
    model = SparseFeatures(100, 40, [3, 12], generator=g)
    published = BiasAdaptation(lr=3e-3, highest=0.5, gamma_up=0.01, gamma_down=0.01, every=50, gain=1.0)
    x, shares = model.sample(12_000, g).x, {}
    for name, method in {"defaults": BiasAdaptation(), "published": published}.items():
        sae = SAE(40, 512, JumpReLU(), "tied", tie_scale=True, generator=rng(6))
        fit(sae, x, method, epochs=60, batch_size=512, generator=7, log_every=60)
        shares[name] = match_features(sae.W_dec.detach(), model.features).recovery(0.8)
    assert shares["defaults"] > 0.9
    assert shares["published"] < 0.1


def test_quantile_samples_change_the_result():
    method = BiasAdaptation(every=4, rule="quantile")
    assert not same(trained(replace(method, quantile_samples=20)).sae, trained(method).sae)
    assert same(trained(replace(method, quantile_samples=10**6)).sae, trained(method).sae)


def test_lr_is_shorthand_for_the_bases():
    assert BiasAdaptation(lr=0.1) == BiasAdaptation(base=SGD(lr=0.1))
    assert BiasAdaptation(base=PAMSGD(), lr=0.1).base == PAMSGD(lr=0.1)
    assert replace(BiasAdaptation(lr=0.1), every=7).base.lr == 0.1


@pytest.mark.parametrize(("options", "message"), [
    ({"groups": 0}, "groups=0"),
    ({"highest": 0.1, "lowest": 0.2}, "lowest <= highest"),
    ({"highest": 1.5}, "highest=1.5"),
    ({"target_frequencies": (0.1, 0.0)}, r"in \(0, 1\]"),
    ({"target_frequencies": ()}, "at least one"),
    ({"target_frequencies": 0.1, "groups": 4}, "groups=4 changes nothing"),
    ({"gamma_up": -0.1}, "gamma_up=-0.1"),
    ({"gamma_down": float("nan")}, "gamma_down=nan"),
    ({"every": 0}, "every=0"),
    ({"bounds": (0.0, 0.0)}, "low < high"),
    ({"bounds": (-1.0, 0.5)}, "positive bias"),
    ({"rule": "newton"}, "known: 'step', 'quantile'"),
    ({"rule": "quantile", "gamma_up": 0.1}, "gamma_up=0.1 changes nothing"),
    ({"rule": "quantile", "quantile_samples": 0}, "quantile_samples=0"),
    ({"quantile_samples": 10}, "changes nothing with rule='step'"),
    ({"base": SGD(l0=0.1)}, "l0=0.1"),
    ({"lr": 0.0}, "lr=0.0"),
    ({"groups": 1, "lowest": 0.3}, "lowest=0.3 changes nothing with one group"),
    ({"base": PAMSGD(decoder_every=5)}, "use solve_gap"),
])  # fmt: skip
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        BiasAdaptation(**options)


def test_bases_and_modules_that_do_not_fit():
    with pytest.raises(TypeError, match="pass SGD"):
        BiasAdaptation(base="adam")
    with pytest.raises(ValueError, match="AbsTopK"):
        BiasAdaptation().init(tied(AbsTopK(2)), samples())
    with pytest.raises(ValueError, match="not TopK"):
        BiasAdaptation(rule="quantile").init(tied(TopK(2)), samples())
    with pytest.raises(ValueError, match="5 groups for n_latents=4"):
        BiasAdaptation(groups=5).init(tied(m=4), samples())
    with pytest.raises(ValueError, match="not what the encoder Gated.. makes of them: take rule='step'"):
        BiasAdaptation(rule="quantile").init(SAE(8, 12, ReLU(), encoder=Gated()), samples())
    with pytest.raises(ValueError, match="data that varies"):
        BiasAdaptation().init(SAE(8, 12, ReLU()), torch.zeros(4, 8))
    with pytest.raises(ValueError, match="call update"):
        FiringCounter(3).firing()


@pytest.mark.parametrize("base", [SGD(lr=0.01), PAMSGD(lr=0.01, solve_gap=1)], ids=["SGD", "PAM"])
@pytest.mark.parametrize("activation", [ReLU(), JumpReLU(0.1)], ids=["ReLU", "JumpReLU"])
def test_a_resumed_run_equals_an_undisturbed_one(tmp_path, base, activation):
    def run(epochs, resume, path):
        method = BiasAdaptation(base=replace(base, schedule="constant"), every=3, gamma_down=0.1)
        sae = tied(activation)
        return fit(sae, samples(), method, epochs=6, batch_size=25, generator=rng(3), checkpoint=path, resume=resume,
                   callback=lambda row: (_ for _ in ()).throw(KeyboardInterrupt) if row["epoch"] == epochs else None)  # fmt: skip

    whole = run(99, False, tmp_path / "a")
    with pytest.raises(KeyboardInterrupt):
        run(4, False, tmp_path / "b")
    resumed = run(99, True, tmp_path / "b")
    assert same(whole.sae, resumed.sae)
    assert torch.equal(whole.state.frequency, resumed.state.frequency)


def test_state_passes_for_the_bases_and_can_be_copied():
    method = BiasAdaptation(base=PAMSGD())
    sae = SAE(8, 12, JumpReLU(0.1), "tied_residual", tie_scale=True, generator=rng(1))
    state = fit(sae, samples(), method, epochs=4, batch_size=25, generator=rng(3)).state
    assert state.step == 32
    assert state.ridge == state.base.ridge
    assert state.ridge is not None
    with pytest.raises(AttributeError):
        state.nonsense  # noqa: B018
    assert torch.equal(copy.deepcopy(state).targets, state.targets)
    assert torch.equal(pickle.loads(pickle.dumps(state)).targets, state.targets)


def test_divergence_is_reported_with_the_state():
    with pytest.raises(DivergenceError) as caught:
        trained(BiasAdaptation(base=SGD(lr=1e30, optimizer="sgd")), epochs=30)
    assert isinstance(caught.value.state, BiasState)
    assert caught.value.step == caught.value.state.step > 0


def test_prox_pulls_to_the_rescaled_encoder():
    sae = tied()
    with torch.no_grad():
        sae.W_enc.mul_(20.0)
    state = BiasAdaptation(base=PAMSGD(prox_enc=1.0)).init(sae, samples())
    torch.testing.assert_close(state.anchor[0].norm(dim=0), torch.ones(12))


class Mine(nn.Module):
    """Somebody's own SAE: linear layers, non-negative codes."""

    def __init__(self, d=8, m=12):
        super().__init__()
        torch.manual_seed(0)
        self.encoder, self.decoder = nn.Linear(d, m), nn.Linear(m, d)

    W_enc = property(lambda self: self.encoder.weight.T)
    b_enc = property(lambda self: self.encoder.bias)
    W_dec = property(lambda self: self.decoder.weight.T)
    b_dec = property(lambda self: self.decoder.bias)

    def encode(self, x):
        return torch.relu(self.encoder(x))


def test_somebodys_own_module_in_somebodys_own_loop():
    sae, x = Mine(), samples()
    method = BiasAdaptation(base=PAMSGD(lr=0.01), groups=2, highest=0.2, lowest=0.05, gamma_down=0.1, every=5)
    state = method.init(sae, x)
    for _ in range(30):
        for part in x.split(25):
            method.encoder_step(sae, state, part)
    method.end_epoch(sae, state, x.split(50))
    frequencies = evaluate(sae, x).frequencies
    assert (frequencies[:6] < 0.5).all()
    assert float(frequencies[6:].mean()) < float(frequencies[:6].mean())


class Computed(Mine):
    b_enc = property(lambda self: 2 * self.encoder.bias)


def test_a_bias_that_is_computed_is_refused():
    with pytest.raises(TypeError, match="Computed computes"):
        BiasAdaptation().init(Computed(), samples())


@functools.cache  # a base alone is compared with both rules
def found(method):
    model = SparseFeatures(32, 32, 2, generator=rng(5))
    x = model.sample(4_000, rng(6)).x
    sae = SAE(32, 128, JumpReLU(0.1), "tied", tie_scale=True, b_pre=True, generator=rng(7))
    with torch.no_grad():
        sae.scale.fill_(0.1)
    fit(sae, x, method, epochs=40, batch_size=128, log_every=40, generator=rng(8))
    recovery = match_features(sae.W_dec.detach(), model.features).recovery(0.8)
    return recovery, evaluate(sae, model.sample(1_000, rng(9)).x).l0


@pytest.mark.parametrize(("base", "rule"), [
    pytest.param(SGD(lr=0.03), "step", id="step-SGD"),
    pytest.param(SGD(lr=0.03), "quantile", id="quantile-SGD", marks=pytest.mark.slow),
    pytest.param(PAMSGD(lr=0.03), "step", id="step-PAM", marks=pytest.mark.slow),
    pytest.param(PAMSGD(lr=0.03), "quantile", id="quantile-PAM", marks=pytest.mark.slow),
])  # fmt: skip
def test_known_features_are_found_with_sparse_codes(base, rule):
    gammas = {"gamma_up": 0.1, "gamma_down": 0.1} if rule == "step" else {}
    recovery, l0 = found(BiasAdaptation(base=base, groups=1, highest=0.06, every=25, rule=rule, **gammas))
    assert recovery > 0.85
    assert l0 < 10
    alone, dense = found(base)
    assert alone < 0.3
    assert dense > 20


def test_scores_that_only_rounding_tells_apart_tie():
    """Equal samples may get scores that differ in their last bits, by their place in a product: no level comes between."""
    for dtype in (torch.float32, torch.float64):
        least = torch.nextafter(torch.tensor(0.16, dtype=dtype), torch.tensor(1.0, dtype=dtype))
        scores = torch.stack([torch.tensor(0.16, dtype=dtype), least]).repeat(3)
        scores = torch.cat([scores, torch.tensor([-1.0, -1.5, 2.0], dtype=dtype)])[None]
        for above, counted in ((1, 1), (2, 1), (4, 1), (5, 7), (6, 7), (7, 7), (8, 8)):  # 1 above, 6 equal, 2 below
            level = _levels(scores, torch.tensor([above]))
            assert int((scores > level).sum()) == counted
            assert float((scores - level).abs().min()) > 0.2
