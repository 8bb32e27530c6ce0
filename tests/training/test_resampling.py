"""Latents that have fallen silent start again at what is left unexplained."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from splinterp import PAMSGD, SAE, SGD, BiasAdaptation, JumpReLU, ReLU, TopK, fit
from splinterp.metrics import evaluate
from splinterp.training import GradientOptions, ProcessGroup, Resampling, TrainState
from tests.helpers import DECODERS, make_sae, rng, samples

OFTEN = Resampling(every=10, dead_after=300, until=0.5)
METHODS = [SGD, PAMSGD]


def toy(n=600, d=16, seed=0):
    """Two of 32 directions a sample."""
    g = rng(seed)
    atoms = nn.functional.normalize(torch.randn(32, d, generator=rng(5)), dim=1)
    code = torch.zeros(n, 32).scatter(1, torch.rand(n, 32, generator=g).topk(2, dim=1).indices, 1.0)
    return (code * (0.5 + torch.rand(n, 32, generator=g))) @ atoms


def half_dead(decoder="free", activation=None, **options):
    sae = SAE(16, 32, TopK(2) if activation is None else activation, decoder, generator=rng(1), **options)
    with torch.no_grad():
        sae.b_enc[16:] = -100.0
    return sae


def same(a, b):
    return all(torch.equal(p, q) for p, q in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("decoder", DECODERS)
def test_it_revives_latents_and_lowers_the_error(method, decoder):
    x = toy()
    found = {}
    for resample in (None, OFTEN):
        sae = half_dead(decoder)
        result = fit(sae, x, method(lr=1e-2, resample=resample), epochs=30, batch_size=100, generator=0)
        found[resample] = evaluate(sae, x)
    assert found[None].frac_dead >= 0.5
    assert found[OFTEN].frac_dead < found[None].frac_dead - 0.05  # at a fifth of the norm not all win a place among k
    assert found[OFTEN].fvu < 0.95 * found[None].fvu
    assert result.history[-1]["revived"] >= 16


@pytest.mark.parametrize("activation", [ReLU(), JumpReLU(threshold=0.1), TopK(9)])
def test_it_revives_latents_of_dense_codes(activation):
    sae = half_dead(activation=activation, tie_scale=True, decoder="tied_residual")
    fit(sae, toy(), SGD(lr=1e-2, resample=OFTEN), epochs=20, batch_size=100, generator=0)
    assert evaluate(sae, toy()).frac_dead < 0.2


def prepared(method, sae, x, dead=(3, 7), step=10):
    """The state before a step in which the latents `dead` are due."""
    state = method.init(sae, x, total_steps=100)
    method.step(sae, state, x[:100])
    assert state.silence is not None
    state.silence.samples[:] = 0
    state.silence.samples[list(dead)] = 300
    state.step = step
    return state


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("decoder", DECODERS)
def test_new_latents_point_to_residuals_and_their_moments_are_forgotten(method, decoder):
    x, dead = toy(), [3, 7]
    sae = SAE(16, 32, TopK(2), decoder, tie_scale=decoder != "free", generator=rng(1))
    method = method(lr=1e-2, resample=OFTEN)
    state = prepared(method, sae, x, dead)
    residual = nn.functional.normalize((x - sae(x).x_hat).detach(), dim=1)
    living = [i for i in range(32) if i not in dead]
    length = 0.2 * sae.W_enc.detach()[:, living].norm(dim=0).mean()
    before = {name: p.detach().clone() for name, p in sae.named_parameters()}
    moments = {name: state.optimizer.state[p]["exp_avg_sq"].clone() for name, p in sae.named_parameters()}
    entries = method.resample.revive(state)
    columns = sae.W_enc.detach()[:, dead]
    torch.testing.assert_close(columns.norm(dim=0), length.expand(2))
    nearest = (nn.functional.normalize(columns.T, dim=1) @ residual.T).max(1)
    torch.testing.assert_close(nearest.values, torch.ones(2), rtol=1e-5, atol=1e-5)
    assert len(set(nearest.indices.tolist())) == 2
    assert not sae.b_enc.detach()[dead].any()
    if decoder == "free":
        torch.testing.assert_close(sae.W_dec.detach()[dead], residual[nearest.indices], rtol=1e-5, atol=1e-5)
    if decoder == "tied_residual":
        assert not sae.residual.detach()[dead].any()
    if sae.scale is not None:
        assert sae.scale.detach()[dead].tolist() == [1.0, 1.0]
    for name, p in sae.named_parameters():
        axis = 1 if name == "W_enc" else 0
        for kind in ("exp_avg", "exp_avg_sq"):
            kept = state.optimizer.state[p][kind]
            assert name == "b_dec" or not kept.index_select(axis, torch.tensor(dead)).any()
        rest = torch.arange(16) if name == "b_dec" else torch.tensor(living)
        assert torch.equal(p.detach().index_select(axis, rest), before[name].index_select(axis, rest))
        assert torch.equal(kept.index_select(axis, rest), moments[name].index_select(axis, rest))
    assert {id(p) for p, _ in entries} == {id(p) for name, p in sae.named_parameters() if name != "b_dec"}
    assert state.silence.samples[dead].tolist() == [0, 0]
    assert state.silence.revived == 2


def test_samples_are_drawn_by_their_squared_error_squared():
    """Of two samples with residuals of norms 1 and 2^(1/4), the second is drawn twice as often."""
    sae = SAE(2, 4, ReLU(), generator=rng(0))
    with torch.no_grad():
        sae.b_enc[:] = -100.0
    x = torch.tensor([[1.0, 0.0], [0.0, 2**0.25]])
    method = SGD(resample=Resampling(every=1, dead_after=1))
    state = method.init(sae, x, total_steps=10)
    second = 0
    for _ in range(600):
        state.silence.samples[:] = torch.tensor([1, 0, 0, 0])
        method.resample.revive(state)
        second += int(sae.W_dec[0, 1] > 0.5)
        with torch.no_grad():
            sae.b_enc[:] = -100.0
    assert abs(second / 600 - 2 / 3) < 4 * math.sqrt(2 / 9 / 600)


def test_thresholds_start_at_a_fifth_of_the_living():
    sae = half_dead(activation=JumpReLU(threshold=0.5))
    method = SGD(resample=OFTEN)
    state = prepared(method, sae, toy())
    method.resample.revive(state)
    torch.testing.assert_close(sae.activation.threshold.detach()[[3, 7]], torch.full((2,), 0.1), rtol=1e-3, atol=0)
    state = state.optimizer.state[sae.activation.log_threshold]
    assert not state["exp_avg_sq"][[3, 7]].any()


class Foreign(nn.Module):
    """A module with torch's layers: W_enc and W_dec are transposed views."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.up, self.down = nn.Linear(16, 32), nn.Linear(32, 16)

    W_enc = property(lambda self: self.up.weight.T)
    b_enc = property(lambda self: self.up.bias)
    W_dec = property(lambda self: self.down.weight.T)
    b_dec = property(lambda self: self.down.bias)

    def encode(self, x):
        return torch.relu(self.up(x))


def test_a_module_of_ones_own_whose_weights_are_views():
    module, method = Foreign(), SGD(resample=OFTEN, optimizer=torch.optim.AdamW)
    state = prepared(method, module, toy())
    method.resample.revive(state)
    torch.testing.assert_close(module.W_dec.detach()[[3, 7]].norm(dim=1), torch.ones(2))
    for p, axis in ((module.up.weight, 0), (module.up.bias, 0), (module.down.weight, 1)):
        zero = (state.optimizer.state[p]["exp_avg_sq"] == 0).reshape(p.shape)
        assert zero.index_select(axis, torch.tensor([3, 7])).all()
        assert not zero.all()
    fit(module, toy(), method, epochs=10, batch_size=100, generator=0)


def test_fewer_samples_with_an_error_than_dead_latents():
    sae = half_dead()
    method = SGD(resample=Resampling(every=1, dead_after=1))
    x = toy(6)
    state = method.init(sae, x, total_steps=10)
    state.silence.samples[:] = 1
    method.resample.revive(state)
    assert state.silence.revived == 6
    assert int((state.silence.samples == 0).sum()) == 6


@pytest.mark.parametrize("method", METHODS)
def test_resumed_runs_give_the_same_bits(method, tmp_path):
    x, path = toy(), tmp_path / "checkpoint"
    method = method(lr=1e-2, resample=Resampling(every=7, dead_after=150, until=0.9, samples=200, seed=4))
    whole, parted = half_dead(), half_dead()
    fit(whole, x, method, epochs=8, batch_size=100, generator=0)

    class Stopped(Exception):  # noqa: N818
        pass

    def stop(row):
        if row["epoch"] == 4:
            raise Stopped

    with pytest.raises(Stopped):
        fit(parted, x, method, epochs=8, batch_size=100, generator=0, checkpoint=path, callback=stop)
    fresh = half_dead()
    result = fit(fresh, x, method, epochs=8, batch_size=100, generator=0, checkpoint=path, resume=True)
    assert same(whole, fresh)
    assert result.state.silence.revived > 0
    saved = torch.load(path, weights_only=True)["state"]["silence"]
    assert saved["generator"].dtype == torch.uint8
    other = half_dead()
    fit(other, x, SGD(lr=1e-2, resample=Resampling(every=7, dead_after=150, seed=5)), epochs=8, batch_size=100, generator=0)
    assert not same(whole, other)


@pytest.mark.parametrize("change", [{"every": 20}, {"dead_after": 700}, {"until": 0.1}, {"samples": 100}, {"seed": 1}])
def test_every_option_changes_the_result(change):
    options = {"every": 5, "dead_after": 200, "until": 0.6}
    runs = []
    for more in ({}, change):
        sae = half_dead()
        fit(sae, toy(), SGD(lr=1e-2, resample=Resampling(**{**options, **more})), epochs=10, batch_size=100, generator=0)
        runs.append(sae)
    assert not same(*runs)


def test_the_fused_kernel_rests_until_the_last_resampling_only(monkeypatch):
    steps, method, sae, x = [], SGD(resample=Resampling(every=4, dead_after=50, until=0.5)), half_dead(), toy()
    fused = SAE.squared_error_gradients

    def seen(self, x, moved):
        steps.append(state.step)
        return fused(self, x, moved)

    monkeypatch.setattr(SAE, "squared_error_gradients", seen)
    state = method.init(sae, x, total_steps=20)
    for step in range(20):
        method.step(sae, state, x[30 * step : 30 * step + 30])
    assert steps == list(range(8, 20))
    assert state.silence.done == 8


def test_the_code_stays_sparse(monkeypatch):
    sae = half_dead()
    monkeypatch.setattr(
        sae, "encoder", SimpleNamespace(plain=True, by_latents=True, of_latents=dict)
    )  # has no way to make a dense code
    method = SGD(resample=OFTEN)
    state = method.init(sae, toy(), total_steps=100)
    for start in range(0, 600, 50):
        method.step(sae, state, toy()[start : start + 50])
    assert state.silence.done == 10
    assert state.silence.revived > 0


def test_a_loss_of_ones_own_is_counted_too():
    class Huber(SGD):
        def loss(self, sae, x, observer=None):
            return nn.functional.huber_loss(sae(x).x_hat, x)

    sae = half_dead()
    result = fit(sae, toy(), Huber(lr=1e-2, resample=OFTEN), epochs=20, batch_size=100, generator=0)
    assert result.state.silence.revived >= 16
    assert evaluate(sae, toy()).frac_dead < 0.5


def test_counting_by_hand():
    sae, method, x = half_dead(), SGD(lr=1e-9, resample=Resampling(every=5, dead_after=200, until=1.0)), toy()
    state = method.init(sae, x, total_steps=20)
    last = torch.zeros(32, dtype=torch.int64)
    for step in range(4):
        batch = x[60 * step : 60 * step + 60]
        fired = (sae.encode(batch) != 0).any(0)
        last = torch.where(fired, 0, last + 60)
        method.step(sae, state, batch)
        assert torch.equal(state.silence.samples, last)
    assert int(last.max()) == 240


def test_prox_enc_pulls_new_columns_to_where_they_start():
    sae, method = half_dead(), PAMSGD(lr=1e-2, prox_enc=1e3, resample=OFTEN)
    state = prepared(method, sae, toy())
    stale = [a.clone() for a in state.anchor]
    method.adjust_resampled(state, method.resample.revive(state))
    assert torch.equal(state.anchor[0][:, [3, 7]], sae.W_enc.detach()[:, [3, 7]])
    assert state.anchor[1][[3, 7]].tolist() == [0.0, 0.0]
    living = [i for i in range(32) if i not in (3, 7)]
    assert torch.equal(state.anchor[0][:, living], stale[0][:, living])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"every": 0}, ValueError, "every=0 must be at least 1"),
        ({"every": 2.5}, TypeError, "every"),
        ({"dead_after": 0}, ValueError, "dead_after=0"),
        ({"until": 0.0}, ValueError, "until=0.0 must be greater than 0"),
        ({"until": 1.5}, ValueError, "until=1.5 is a share of the steps"),
        ({"samples": 0}, ValueError, "samples=0"),
        ({"samples": 2**25}, ValueError, "more than can be drawn from"),
        ({"seed": -1}, ValueError, "seed=-1"),
    ],
)
def test_bad_options(options, error, message):
    with pytest.raises(error, match=message):
        Resampling(**{"every": 10, "dead_after": 100, **options})


def test_what_cannot_be_resampled_is_refused():
    x = toy()
    with pytest.raises(TypeError, match="resample is a int: pass Resampling"):
        SGD(resample=5)
    with pytest.raises(ValueError, match="every=10 never comes within until=0.5 of 12 steps: lower every"):
        fit(half_dead(), x, SGD(resample=OFTEN), steps=12)
    with pytest.raises(ValueError, match="dead_after=300 samples are not seen in the 10 steps"):
        fit(half_dead(), x, SGD(resample=OFTEN), steps=25, batch_size=20)
    with pytest.raises(ValueError, match="pass total_steps"):
        SGD(resample=OFTEN).init(half_dead(), x)
    with pytest.raises(ValueError, match="base.resample sets biases"):
        BiasAdaptation(base=SGD(resample=OFTEN))
    state = SGD(resample=OFTEN).init(half_dead(), x, total_steps=100)
    with pytest.raises(ValueError, match=r"resample=Resampling\(...\) counts whole batches"):
        state.join(object.__new__(ProcessGroup))

    class Computed(Foreign):
        W_enc = property(lambda self: self.up.weight.T * 2)

    with pytest.raises(TypeError, match="columns of W_enc and b_enc, one for each latent, and Computed has none"):
        fit(Computed(), x, SGD(resample=OFTEN), epochs=10)

    class Rows(Foreign):
        W_dec = property(lambda self: self.down.weight.T * 2)

    with pytest.raises(TypeError, match="W_dec, which Rows computes"):
        fit(Rows(), x, SGD(resample=OFTEN), epochs=10)


def test_neutral_by_default():
    assert GradientOptions().resample is None
    state = SGD().init(make_sae(), samples())
    assert isinstance(state, TrainState)
    assert state.silence is None
    assert "silence" not in state.state_dict()
