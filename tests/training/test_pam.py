"""PAMSGD: the published step by hand, proximal alternating minimisation, foreign modules, special cases."""

from __future__ import annotations

import dataclasses
import itertools
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from splinterp import PAMSGD, SAE, SGD, BiasAdaptation, ReLU, TopK, fit
from splinterp.decoder import DecoderStats, gcv_ridge, held_out_ridge, solve_decoder
from splinterp.training import Refresh, solver, start_at_mean
from splinterp.training.solver import held_out_samples
from tests.helpers import DECODERS, make_sae, rng, samples, stats_of


def batches_of(x, size=32):
    return list(x.split(size))


def test_published_gradient_step_reproduces_a_handwritten_one():
    """One Adam step on mean err^2 + mu (|W - W_t|^2 + |b - b_t|^2) + l1 mean_r |z_r|_1, away from the anchor."""
    x, mu, l1, lr = samples(64, dtype=torch.float64), 1e-2, 1e-3, 3e-3
    sae = make_sae("ReLU", dtype=torch.float64)
    method = PAMSGD.published(mu=mu, n_samples=64, d_in=8, lr=lr, l1=l1)
    assert method.prox_enc == mu * 64 * 8
    state = method.init(sae, x)
    method.encoder_step(sae, state, x[:32])  # away from the anchor, so that the pull acts
    W = sae.W_enc.detach().clone().requires_grad_()
    b = sae.b_enc.detach().clone().requires_grad_()
    W_dec, b_dec = sae.W_dec.detach().clone(), sae.b_dec.detach().clone()
    W_t, b_t = make_sae("ReLU", dtype=torch.float64).W_enc.detach(), torch.zeros(12, dtype=torch.float64)
    z = torch.relu(x[32:] @ W + b)
    loss = F.mse_loss(z @ W_dec + b_dec, x[32:]) + l1 * z.abs().sum(1).mean()
    loss = loss + mu * ((W - W_t).square().sum() + (b - b_t).square().sum())
    loss.backward()
    by_hand = torch.optim.Adam([W, b], lr=lr)
    moments = state.optimizer.state
    for p, q in ((W, sae.W_enc), (b, sae.b_enc)):
        by_hand.state[p] = {k: v.clone() for k, v in moments[q].items()}
    method.encoder_step(sae, state, x[32:])
    by_hand.step()
    torch.testing.assert_close(sae.W_enc, W)
    torch.testing.assert_close(sae.b_enc, b)
    assert torch.equal(sae.W_dec, W_dec)
    assert torch.equal(sae.b_dec, b_dec)


def test_published_decoder_step_solves_weights_without_the_bias():
    x = samples(100, dtype=torch.float64)
    sae = make_sae("ReLU", dtype=torch.float64)
    method = PAMSGD.published(weight_decay=0.3, nu=1e-3, n_samples=100, d_in=8)
    state = method.init(sae, x)
    z, W_t = sae.encode(x).detach(), sae.W_dec.detach().clone()
    method.decoder_step(sae, state, batches_of(x))
    nu, ridge = 1e-3 * 800, 0.3**2
    A = z.T @ z + (nu + ridge) * torch.eye(12, dtype=torch.float64)
    torch.testing.assert_close(sae.W_dec, torch.linalg.solve(A, z.T @ x + nu * W_t))
    torch.testing.assert_close(sae.b_dec, (x - z @ sae.W_dec).mean(0))
    assert state.residual > 1e-3  # and says that this is not the joint optimum


@pytest.mark.parametrize("decoder", DECODERS)
def test_decoder_step_is_the_exact_solve(decoder):
    x = samples(100, dtype=torch.float64)
    sae = make_sae("TopK", decoder, dtype=torch.float64)
    method = PAMSGD()
    state = method.init(sae, x)
    for batch in batches_of(x):
        method.encoder_step(sae, state, batch)
    z = sae.encode(x).detach()
    W_enc = sae.W_enc.detach().clone()
    method.decoder_step(sae, state, batches_of(x, 7))
    assert torch.equal(sae.W_enc, W_enc)
    if decoder == "tied":
        torch.testing.assert_close(sae.b_dec, (x - z @ W_enc.T).mean(0))
        return
    stats = DecoderStats(12, 8).update(z, x)
    prior = W_enc.T if decoder == "tied_residual" else None
    ridge = gcv_ridge(stats, prior).ridge
    assert state.ridge == pytest.approx(ridge, rel=1e-6)
    W, b = solve_decoder(stats, ridge=state.ridge, prior=prior)
    torch.testing.assert_close(sae.W_dec, W)
    torch.testing.assert_close(sae.b_dec, b)
    assert state.residual < 1e-10


def test_tied_scales_are_solved():
    x = samples(100, dtype=torch.float64)
    sae = make_sae("TopK", "tied", dtype=torch.float64, tie_scale=True)
    method = PAMSGD()
    state = method.init(sae, x)
    before = float((sae(x).x_hat - x).square().sum().detach())
    method.decoder_step(sae, state, batches_of(x))
    out = sae(x)
    error = out.x_hat - x
    assert float(error.square().sum().detach()) < before
    gradient = torch.autograd.grad(error.square().sum(), [sae.scale, sae.b_dec])
    assert all(float(g.abs().max()) < 1e-8 for g in gradient)


def test_fitted_common_scale_is_optimal_for_the_tied_part():
    x = samples(100, dtype=torch.float64)
    sae = make_sae("TopK", "tied_residual", dtype=torch.float64, tie_scale=True)
    method = PAMSGD(scale="fit", ridge=math.inf)
    method.decoder_step(sae, method.init(sae, x), batches_of(x))
    assert (sae.scale == sae.scale[0]).all()
    assert float(sae.scale.detach()[0]) != 1.0

    def error(s):
        z = sae.encode(x).detach()
        r = x - s * z @ sae.W_enc.detach().T
        return float((r - r.mean(0)).square().sum())

    s = float(sae.scale.detach()[0])
    assert error(s) <= min(error(s * 0.999), error(s * 1.001))


def test_alternation_decreases_the_objective_with_exact_blocks():
    """With small encoder steps on the full set and both proximal pulls, F falls after every block."""
    x = samples(80, dtype=torch.float64)
    sae = make_sae("ReLU", dtype=torch.float64)
    method = PAMSGD(gradient="encoder", optimizer="sgd", lr=1e-3, schedule="constant", ridge=0.5, prox_enc=1.0, prox_dec=1.0)
    state = method.init(sae, x)

    def objective() -> float:
        return float(((sae(x).x_hat - x).square().sum() + 0.5 * sae.W_dec.square().sum()).detach())

    values = [objective()]
    for _ in range(10):
        method.encoder_step(sae, state, x)
        values.append(objective())
        method.decoder_step(sae, state, [x])
        values.append(objective())
    assert all(b <= a for a, b in itertools.pairwise(values))
    assert values[-1] < 0.9 * values[0]


def test_ridge_acts_in_the_gradient_phase_as_in_the_solve():
    """At the solve's optimum the full-batch gradient on the residual vanishes: one objective for both phases."""
    x = samples(100, dtype=torch.float64)
    for decoder in ("free", "tied_residual"):
        sae = make_sae("TopK", decoder, dtype=torch.float64)
        method = PAMSGD()
        state = method.init(sae, x)
        method.decoder_step(sae, state, [x])
        moved = sae.W_dec if decoder == "free" else sae.residual
        assert 0 < state.ridge < math.inf
        before = moved.detach().clone()
        method.encoder_step(sae, state, x)
        decay = next(g["weight_decay"] for g in state.optimizer.param_groups if any(p is moved for p in g["params"]))
        assert decay == 2 * state.ridge / x.numel()
        assert float((moved.grad + decay * before).abs().max()) < 1e-12


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("decoder", ["free", "tied_residual"])
def test_the_ridge_pulls_the_same_as_the_optimizers_decay_and_as_a_gradient(decoder, optimizer):
    """A gradient norm that is never reached makes the pull a gradient of its own, which clipping sees."""
    x = samples(100, dtype=torch.float64)

    def trained(clip, pulls=True):
        sae = make_sae("TopK", decoder, dtype=torch.float64)
        method = PAMSGD(ridge=40.0, optimizer=optimizer, clip=clip, lr=0.01, weight_decay=0.1)
        state = method.init(sae, x)
        method.decoder_step(sae, state, [x])
        state.ridge = state.ridge if pulls else 0.0
        for _ in range(5):
            method.encoder_step(sae, state, x)
        return sae.W_dec.detach()

    torch.testing.assert_close(trained(None), trained(1e12))
    assert not torch.allclose(trained(None), trained(None, pulls=False))
    assert not torch.allclose(trained(1e12), trained(1e12, pulls=False))


def test_only_the_decoders_own_weights_are_decayed_by_the_ridge():
    """Not where somebody else makes the optimizer, nor where a scheduler of one's own counts the groups."""

    class Own(PAMSGD):
        def make_optimizer(self, sae, fixed=()):
            return torch.optim.Adam(sae.parameters(), lr=self.lr)

    x, pulls = samples(100), {}
    for method in (Own(ridge=40.0), PAMSGD(ridge=40.0, optimizer="adamw"), PAMSGD(ridge=40.0)):
        sae = make_sae("TopK", "tied_residual")
        state = method.init(sae, x)
        method.decoder_step(sae, state, [x])
        method.encoder_step(sae, state, x)
        for group in state.optimizer.param_groups:
            if group["weight_decay"] > 0:
                pulls[type(method).__name__, method.optimizer] = [p is sae.residual for p in group["params"]]
    assert pulls == {("PAMSGD", "adam"): [True]}
    by_group = PAMSGD(schedule=lambda o: torch.optim.lr_scheduler.LambdaLR(o, [lambda t: 1.0, lambda t: 0.5]))
    fit(make_sae("TopK", "tied_residual"), x, by_group, epochs=2)


def test_infinite_ridge_freezes_the_residual():
    x = samples(100)
    sae = make_sae("TopK", "tied_residual")
    fit(sae, x, PAMSGD(ridge=math.inf, hold=0.0), epochs=3)
    assert float(sae.residual.detach().abs().max()) == 0
    tied = make_sae("TopK", "tied")
    fit(tied, x, PAMSGD(), epochs=3)
    torch.testing.assert_close(tied.W_enc, sae.W_enc)


def test_hold_is_tied_sgd_until_the_first_solve():
    """Half of eight steps are held: the parameters are those of tied SGD, whose schedule is as long."""
    x = samples(300)
    held, tied = make_sae("TopK", "tied_residual", m=24), make_sae("TopK", "tied", m=24)
    methods = PAMSGD(lr=1e-2, hold=0.5), SGD(lr=1e-2)
    states = [method.init(sae, x, total_steps=8) for method, sae in zip(methods, (held, tied), strict=True)]
    for _ in range(2):
        assert states[0].held
        for _ in range(2):
            for method, sae, state in zip(methods, (held, tied), states, strict=True):
                method.step(sae, state, x)
        assert float(held.residual.detach().abs().max()) == 0
        torch.testing.assert_close(held.W_enc, tied.W_enc, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(held.b_dec, tied.b_dec, rtol=1e-5, atol=1e-6)
        methods[0].end_epoch(held, states[0], [x])
    assert not states[0].held
    assert math.isfinite(states[0].ridge)
    solved = held.residual.detach().clone()
    assert float(solved.abs().max()) > 0
    methods[0].step(held, states[0], x)
    assert not torch.equal(held.residual, solved)


def test_a_solve_that_finds_no_use_for_the_residual_keeps_it_at_zero():
    """The tied decoder reconstructs exactly, so cross-validation has nothing to gain: the ridge is infinite."""
    sae = SAE(4, 8, ReLU(), "tied_residual", dtype=torch.float64, generator=rng(1))
    with torch.no_grad():
        sae.W_enc.copy_(torch.cat([torch.eye(4), -torch.eye(4)], 1).double())
    x = torch.randn(200, 4, generator=rng(2), dtype=torch.float64)
    method = PAMSGD(lr=1e-9, solve_gap=1, hold=0.1)
    state = method.init(sae, x, total_steps=20)
    for _ in range(20):
        method.step(sae, state, x)
        method.end_epoch(sae, state, [x])
    assert not state.held
    assert state.ridge == math.inf
    assert float(sae.residual.detach().abs().max()) == 0


def test_encoder_only_moves_the_encoder_only():
    x = samples(100)
    sae = make_sae("TopK", "tied_residual")
    method = PAMSGD(gradient="encoder")
    state = method.init(sae, x)
    method.decoder_step(sae, state, [x])
    residual, b_dec = sae.residual.detach().clone(), sae.b_dec.detach().clone()
    method.encoder_step(sae, state, x)
    assert torch.equal(sae.residual, residual)
    assert torch.equal(sae.b_dec, b_dec)


def test_when_the_solves_happen(monkeypatch):
    calls = []
    original = PAMSGD.decoder_step

    def counted(self, sae, state, batches):
        calls.append(state.step)
        return original(self, sae, state, batches)

    monkeypatch.setattr(PAMSGD, "decoder_step", counted)
    x = samples(100)  # 4 batches of 32

    def run(decoder="free", **options):
        calls.clear()
        fit(make_sae(decoder=decoder), x, PAMSGD(**options), epochs=2, batch_size=32)
        return list(calls)

    assert run() == [8]
    assert run(solve_gap=1) == [4, 8]
    assert run(gradient="encoder") == [4, 8]
    assert run(solve_first=True) == [0, 4]
    assert run(decoder_every=3) == [3, 4, 6, 8]
    assert run(decoder_every=2) == [2, 4, 6, 8]
    for hold, expected in ((0.0, [8]), (0.1, [4, 8]), (0.5, [4, 8]), (0.6, [8])):
        assert run("tied_residual", hold=hold) == expected  # the first solve after the hold waits for no gap
    assert run("tied_residual", hold=0.3, solve_gap=1) == [4, 8]
    assert run("tied_residual", hold=0.3, decoder_every=2) == [4, 6, 8]
    assert run("tied_residual", hold=0.3, solve_first=True) == [4]


@pytest.mark.parametrize("decoder", DECODERS)
def test_dead_latents_and_few_samples(decoder):
    """More latents than samples, most of them dead: everything stays finite and the loss falls."""
    x = samples(6)
    sae = SAE(8, 40, TopK(2), decoder=decoder, generator=rng())
    result = fit(sae, x, PAMSGD(), epochs=3, batch_size=100)
    assert all(torch.isfinite(p).all() for p in sae.parameters())
    assert result.history[-1]["step"] == 3
    silent = SAE(8, 40, ReLU(), decoder=decoder, generator=rng())
    with torch.no_grad():
        silent.b_enc.fill_(-1e4)
    with pytest.warns(UserWarning, match="no latent fires"):
        fit(silent, x, PAMSGD(), epochs=2)
    torch.testing.assert_close(silent(x).x_hat, x.mean(0).expand_as(x))


class ForeignSAE(nn.Module):
    """Another library's layout: two Linear layers, weights transposed, no relation to splinterp.SAE."""

    def __init__(self, d: int, m: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder, self.decoder = nn.Linear(d, m), nn.Linear(m, d)

    def encode(self, x):
        return torch.relu(self.encoder(x))

    W_enc = property(lambda self: self.encoder.weight.T)
    b_enc = property(lambda self: self.encoder.bias)
    W_dec = property(lambda self: self.decoder.weight.T)
    b_dec = property(lambda self: self.decoder.bias)


@pytest.mark.parametrize("options", [{}, {"gradient": "encoder", "prox_enc": 1.0, "prox_dec": 1.0, "ridge": 0.1}])
def test_trains_a_foreign_module(options):
    x = samples(300)
    state = torch.random.get_rng_state()
    foreign = ForeignSAE(8, 12)
    torch.random.set_rng_state(state)
    result = fit(foreign, x, PAMSGD(lr=1e-2, **options), epochs=5, x_val=samples(50, seed=9))
    assert result.history[-1]["val_fvu"] < 0.2
    z = foreign.encode(x).detach()
    if not options:
        expected = solve_decoder(DecoderStats(12, 8).update(z, x), ridge=result.state.ridge)
        torch.testing.assert_close(foreign.W_dec.double(), expected.W_dec, atol=1e-4, rtol=1e-3)
    assert foreign.decoder.weight.is_leaf
    fit(foreign, x, SGD(lr=1e-3, unit_norm_decoder=True), epochs=1)
    norms = foreign.decoder.weight.detach().norm(dim=0)
    torch.testing.assert_close(norms[norms > 0], torch.ones(int((norms > 0).sum())))  # a dead latent's row stays 0
    assert int((norms > 0).sum()) >= 10


class TiedForeign(ForeignSAE):
    W_dec = property(lambda self: self.encoder.weight)


class ScaledForeign(ForeignSAE):
    W_dec = property(lambda self: 2 * self.decoder.weight.T)


@pytest.mark.parametrize("cls", [TiedForeign, ScaledForeign])
def test_foreign_decoders_that_cannot_be_written_are_refused(cls):
    state = torch.random.get_rng_state()
    foreign = cls(8, 12)
    torch.random.set_rng_state(state)
    with pytest.raises(TypeError, match="shares with W_enc or computes"):
        fit(foreign, samples(), PAMSGD())
    if cls is ScaledForeign:
        with pytest.raises(TypeError, match="make it a parameter"):
            fit(foreign, samples(), SGD(unit_norm_decoder=True))


def test_encoder_only_leaves_the_scales_to_the_solve():
    sae = make_sae("TopK", "tied", tie_scale=True)
    method = PAMSGD(gradient="encoder")
    state = method.init(sae, samples())
    method.encoder_step(sae, state, samples()[:32])
    assert torch.equal(sae.scale.detach(), torch.ones(12))
    method.decoder_step(sae, state, [samples()])
    assert not torch.equal(sae.scale.detach(), torch.ones(12))
    assert state.ridge is None


def test_foreign_module_equals_ours():
    """The same weights in both layouts train to the same weights."""
    x = samples(200, dtype=torch.float64)
    state = torch.random.get_rng_state()
    foreign = ForeignSAE(8, 12).double()
    torch.random.set_rng_state(state)
    ours = make_sae("ReLU", dtype=torch.float64, b_pre=False)
    with torch.no_grad():
        for name in ("W_enc", "b_enc", "W_dec", "b_dec"):
            getattr(ours, name).copy_(getattr(foreign, name))
    for method in (PAMSGD(), PAMSGD(gradient="encoder", prox_enc=5.0, ridge=0.1), SGD(weight_decay=0.1)):
        for sae in (foreign, ours):
            fit(sae, x, method, epochs=2, generator=rng(1))
        torch.testing.assert_close(foreign.W_enc, ours.W_enc, rtol=1e-7, atol=1e-9)
        torch.testing.assert_close(foreign.W_dec, ours.W_dec, rtol=1e-6, atol=1e-8)


def test_hand_driven_loop_equals_fit():
    x = samples(96)
    driven, fitted = make_sae(decoder="tied_residual"), make_sae(decoder="tied_residual")
    method = PAMSGD(lr=1e-2, solve_gap=1, hold=0.0)
    fit(fitted, x, method, epochs=3, batch_size=32, generator=rng(7))
    start_at_mean(driven, x)
    g = rng(7)
    state = method.init(driven, x, total_steps=9)
    for _ in range(3):
        for rows in torch.randperm(96, generator=g).split(32):
            method.encoder_step(driven, state, x[rows])
        method.decoder_step(driven, state, x.split(32))
    for p, q in zip(driven.parameters(), fitted.parameters(), strict=True):
        assert torch.equal(p, q)


def test_empty_batches_are_an_error():
    sae, method = make_sae(), PAMSGD()
    state = method.init(sae, samples())
    with pytest.raises(ValueError, match="statistics are empty"):
        method.decoder_step(sae, state, [])


def test_methods_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        PAMSGD().lr = 1.0


def test_held_out_ridge_is_that_of_the_validation_samples():
    x, x_val = samples(300), samples(200, seed=5)
    sae = make_sae(decoder="tied_residual", m=40)
    result = fit(sae, x, PAMSGD(ridge="held_out", solve_gap=1, readout=False), epochs=3, x_val=x_val)
    other = make_sae(decoder="tied_residual", m=40)
    fit(other, x, PAMSGD(solve_gap=1, readout=False), epochs=3, x_val=x_val)
    assert not torch.equal(sae.residual, other.residual)
    with torch.no_grad():
        codes = [stats_of(sae.encode(part).double(), part.double()) for part in (x, x_val)]
        prior = sae.W_enc.T.double()
        ridge = held_out_ridge(*codes, prior).ridge
        assert result.state.ridge == pytest.approx(ridge, rel=1e-3)
        expected = solve_decoder(codes[0], ridge=ridge, prior=prior).W_dec
        torch.testing.assert_close(sae.W_dec.double(), expected, rtol=1e-3, atol=1e-4)


def test_held_out_ridge_needs_held_out_samples_and_no_other_option():
    x = samples(150)
    with pytest.raises(ValueError, match="pass x_val"):
        fit(make_sae(), x, PAMSGD(ridge="held_out"))
    with pytest.raises(ValueError, match="pass x_val"):
        fit(make_sae("ReLU"), x, BiasAdaptation(base=PAMSGD(ridge="held_out"), target_frequencies=0.1))
    method = PAMSGD(ridge="held_out")
    sae = make_sae()
    state = method.init(sae, x)
    method.encoder_step(sae, state, x[:50])
    with pytest.raises(ValueError, match=r"set state.held_out"):
        method.decoder_step(sae, state, [x])
    state.held_out = x[:20]
    method.decoder_step(sae, state, [x])
    assert state.ridge is not None
    for options in ({"prox_dec": 1.0}, {"gcv_inflation": 1.4}, {"bias": "separate"}):
        with pytest.raises(ValueError, match="ridge='held_out'"):
            PAMSGD(ridge="held_out", **options)
    with pytest.raises(ValueError, match="do not act on a tied decoder"):
        fit(make_sae(decoder="tied"), x, PAMSGD(ridge="held_out"), x_val=x)


@pytest.mark.parametrize(
    ("n_held_out", "options", "rule"),
    [
        (200, {}, "held_out"),
        (199, {}, "gcv"),
        (0, {}, "gcv"),
        (300, {"prox_dec": 2.0}, "gcv"),
        (300, {"gcv_inflation": 1.4}, "gcv"),
        (300, {"when": Refresh(every=3)}, "held_out"),
    ],
)
def test_the_default_ridge_is_by_held_out_samples_where_there_are_enough(n_held_out, options, rule):
    x, x_val = samples(400), samples(n_held_out, seed=5) if n_held_out else None
    found = []
    for ridge in ({}, {"ridge": rule}):
        sae = make_sae(decoder="tied_residual", m=40)
        result = fit(sae, x, PAMSGD(readout=False, **options, **ridge), epochs=3, x_val=x_val, generator=0, log_every=1)
        found.append((result.state.ridge, *(p.detach() for p in sae.parameters())))
    assert found[0][0] == found[1][0]
    assert all(torch.equal(a, b) for a, b in zip(found[0][1:], found[1][1:], strict=True))


def test_the_default_ridge_is_no_reason_to_refuse_a_tied_decoder():
    sae = make_sae(decoder="tied")
    result = fit(sae, samples(300), PAMSGD(), x_val=samples(250, seed=5), epochs=2)
    assert result.state.solves >= 1
    assert PAMSGD().ridge == "auto"
    assert not PAMSGD().wants_x_val
    assert PAMSGD(gcv_inflation=1.4).ridge == "gcv"
    assert PAMSGD(gcv_inflation=1.4).gcv_inflation == 1.4


def test_a_ridge_goes_by_as_many_held_out_samples_as_it_needs(monkeypatch):
    """Evenly spaced: fewer give another ridge, the same ones the same."""
    x, x_val = samples(300), samples(400, seed=5)
    ridges = []
    for most, given in ((100, x_val), (100, x_val[::4]), (10**6, x_val)):
        monkeypatch.setattr(solver, "RIDGE_SAMPLES", most)
        method = PAMSGD(ridge="held_out", readout=False)
        ridges.append(fit(make_sae(decoder="tied_residual"), x, method, x_val=given, epochs=2, generator=0).state.ridge)
    assert ridges[0] == ridges[1] != ridges[2]
    assert [held_out_samples(n) for n in (400, 4 * 10**6 + 8)] == [10**6, 10**6 + 2]


def test_final_solve_is_tied_sgd_and_one_solve():
    x, x_val = samples(300), samples(200, seed=5)
    sae, tied = make_sae(decoder="tied_residual", m=40), make_sae(decoder="tied", m=40)
    options = {"epochs": 3, "x_val": x_val, "log_every": 1, "generator": 0}
    result = fit(sae, x, PAMSGD.final_solve(lr=1e-2), **options)
    alone = fit(tied, x, SGD(lr=1e-2), **options)
    torch.testing.assert_close(sae.W_enc, tied.W_enc, rtol=1e-5, atol=1e-6)
    for ours, theirs in zip(result.history[:-1], alone.history[:-1], strict=True):
        assert ours["val_fvu"] == pytest.approx(theirs["val_fvu"], rel=1e-5)
    assert sae.residual.abs().max() > 0
    assert result.history[-1]["val_fvu"] < alone.history[-1]["val_fvu"]
    assert math.isfinite(result.state.ridge)
    for options, named in (({"gradient": "tied"}, "gradient='tied'"), ({"hold": 0.1}, "hold=0.1")):
        with pytest.raises(ValueError, match=f"{named} holds a residual"):
            fit(make_sae(), x, PAMSGD(**options))


def test_gradient_tied_moves_the_residual_by_solves_alone():
    x = samples(300)
    sae, method = make_sae(decoder="tied_residual", m=40), PAMSGD(gradient="tied", ridge=3.0)
    state = method.init(sae, x)
    method.encoder_step(sae, state, x[:100])
    assert sae.residual.abs().max() == 0
    method.decoder_step(sae, state, [x])
    solved, bias = sae.residual.clone(), sae.b_dec.clone()
    assert solved.abs().max() > 0
    method.encoder_step(sae, state, x[:100])
    assert torch.equal(sae.residual, solved)
    assert not torch.equal(sae.b_dec, bias)


@pytest.mark.parametrize(
    ("k", "options", "fixed"),
    [
        (3, {}, 0.5), (2, {}, 0.0), (3, {"gradient": "encoder"}, 0.0), (3, {"gradient": "tied"}, 0.0),
        (3, {"hold": 0.25}, 0.25), (3, {"hold": 0.0}, 0.0),
    ],
)  # fmt: skip
def test_without_a_choice_dense_codes_hold_the_residual(k, options, fixed):
    """A sixth of 16 dimensions is less than three latents."""
    x = samples(300, d=16)
    left, chosen = (SAE(16, 40, TopK(k), "tied_residual", generator=rng(1)) for _ in range(2))
    fit(left, x, PAMSGD(lr=1e-2, **options), epochs=6, batch_size=64, generator=rng(2))
    fit(chosen, x, PAMSGD(lr=1e-2, **{**options, "hold": fixed}), epochs=6, batch_size=64, generator=rng(2))
    assert all(torch.equal(p, q) for p, q in zip(left.parameters(), chosen.parameters(), strict=True))


def test_what_has_no_choice_of_a_hold_has_none():
    x = samples(100)
    for decoder in ("free", "tied"):
        assert PAMSGD().init(make_sae(decoder=decoder), x, total_steps=9).hold == 0
    sae = make_sae("TopK", "tied_residual")
    assert PAMSGD().init(sae, x, total_steps=9).hold == 0.5
    assert PAMSGD().init(sae, x).hold == 0  # no one knows when a half of it is over
    assert PAMSGD(when=Refresh()).init(sae, x, total_steps=9).hold == 0
    assert PAMSGD(hold="race").init(sae, x, total_steps=9, x_val=x).hold == "race"
    assert PAMSGD().init(make_sae("ReLU", "tied_residual"), x, total_steps=9).hold == 0
    assert PAMSGD().init(make_sae("AbsTopK", "tied_residual"), x, total_steps=9).hold == 0.5
    with pytest.raises(ValueError, match="hold='half'.*auto.*race"):
        PAMSGD(hold="half")
