"""Every option has one definition and default for all methods, and every option changes the result."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from splinterp import PAMSGD, SGD, ArchetypalSAE, BiasAdaptation, DivergenceError, TopK, fit
from splinterp.training import GradientOptions
from tests.helpers import ACTIVATIONS, DECODERS, make_sae, rng, samples, stopped_and_resumed


def trained(method, activation="ReLU", decoder="free", epochs=2, batch_size=64, **sae_options):
    sae = make_sae(activation, decoder, **sae_options)
    fit(sae, samples(), method, epochs=epochs, batch_size=batch_size, generator=rng(3))
    return sae


def same(a, b) -> bool:
    return all(torch.equal(p, q) for p, q in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_shared_options_have_one_definition_and_default():
    shared = {f.name: f for f in dataclasses.fields(GradientOptions)}
    assert {"lr", "optimizer", "betas", "schedule", "clip", "weight_decay", "l1", "l0"} <= set(shared)
    for cls in (SGD, PAMSGD):
        own = {f.name: f for f in dataclasses.fields(cls)}
        for name, field in shared.items():
            assert own[name].default == field.default
            assert getattr(cls(), name) == getattr(GradientOptions(), name)
            assert name not in cls.__annotations__


SHARED = {
    "bias_lr": 4.0, "decoder_lr": 0.3, "lr": 1e-2, "optimizer": "sgd", "betas": (0.5, 0.9), "schedule": "constant", "clip": 1e-3,
    "weight_decay": 0.1, "l1": 0.1,
}  # fmt: skip


@pytest.mark.parametrize("method", [SGD, PAMSGD])
@pytest.mark.parametrize("name", SHARED)
def test_shared_option_changes_the_result(method, name):
    assert not same(trained(method(**{name: SHARED[name]})), trained(method()))


@pytest.mark.parametrize("method", [SGD, PAMSGD])
def test_other_shared_options_change_the_result(method):
    assert not same(trained(method(weight_decay=0.1, decay_biases=True)), trained(method(weight_decay=0.1)))
    assert not same(trained(method(weight_decay=0.1, optimizer="adamw")), trained(method(weight_decay=0.1)))
    assert not same(trained(method(l0=0.1), "JumpReLU"), trained(method(), "JumpReLU"))
    assert not same(trained(method(optimizer=torch.optim.NAdam)), trained(method()))


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("method", [SGD, PAMSGD])
def test_the_bias_moves_by_its_own_step_size(method, decoder):
    x, moved = samples(), {}
    for bias_lr in (1.0, 4.0):
        sae = make_sae("ReLU", decoder)
        own = method(bias_lr=bias_lr, optimizer="sgd", lr=1e-3, schedule="constant")
        before = {name: p.detach().clone() for name, p in sae.named_parameters()}
        own.step(sae, own.init(sae, x, total_steps=10), x[:64])
        moved[bias_lr] = {name: p.detach() - before[name] for name, p in sae.named_parameters()}
    for name, step in moved[1.0].items():
        torch.testing.assert_close(moved[4.0][name], (4 if name == "b_enc" else 1) * step)


@pytest.mark.parametrize("decoder", ["free", "tied_residual"])
@pytest.mark.parametrize("method", [SGD, PAMSGD])
def test_the_decoders_own_weights_move_by_their_own_step_size(method, decoder):
    x, moved = samples(), {}
    for decoder_lr in (1.0, 0.25):
        sae = make_sae("TopK", decoder)
        own = method(decoder_lr=decoder_lr, bias_lr=3.0, optimizer="sgd", lr=1e-3, schedule="constant")
        before = {name: p.detach().clone() for name, p in sae.named_parameters()}
        own.step(sae, own.init(sae, x, total_steps=10), x[:64])
        moved[decoder_lr] = {name: p.detach() - before[name] for name, p in sae.named_parameters()}
    for name, step in moved[1.0].items():
        torch.testing.assert_close(moved[0.25][name], (0.25 if name in ("W_dec", "residual") else 1) * step)


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "muon"])
def test_the_decoders_step_size_follows_schedules_and_resumes(optimizer, tmp_path):
    def run(**checkpoints):
        method = PAMSGD(decoder_lr=0.25, warmup=0.2, optimizer=optimizer)
        return fit(make_sae("TopK", "tied_residual"), samples(), method, epochs=4, batch_size=64, generator=3, **checkpoints)

    whole = run(checkpoint=tmp_path / "whole")
    lrs = [group["lr"] for group in whole.state.optimizer.param_groups]
    assert max(lrs) == pytest.approx(4 * min(lrs))
    assert same(stopped_and_resumed(run, 2, tmp_path / "c").sae, whole.sae)


@pytest.mark.parametrize("option", [{"decoder_lr": 0.25}, {"bias_lr": 4.0}])
def test_schedulers_that_know_one_step_size_are_refused_beside_others(option):
    ((name, factor),) = option.items()

    def one_cycle(max_lr):
        return lambda optimizer: torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=max_lr, total_steps=40)

    def trained_by(schedule):
        method = SGD(lr=1e-2, schedule=schedule, **option)
        result = fit(make_sae("TopK", "free"), samples(), method, epochs=1, generator=0)
        return [group["lr"] for group in result.state.optimizer.param_groups]

    with pytest.raises(ValueError, match=rf"one initial_lr for all 3 groups.*{name}={factor:g} would do nothing"):
        trained_by(one_cycle(1e-2))
    assert len(set(trained_by(one_cycle([1e-2, 1e-2, factor * 1e-2])))) == 2
    with pytest.raises(ValueError, match="one swa_lr for all 3 groups"):
        trained_by(lambda optimizer: torch.optim.swa_utils.SWALR(optimizer, swa_lr=5e-3))
    lrs = trained_by(
        lambda optimizer: torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: 0.9**t)
    )  # multiplies what it finds
    assert max(lrs) == pytest.approx(4 * min(lrs))


@pytest.mark.parametrize(
    ("method", "decoder"),
    [(SGD(decoder_lr=0.3), "tied"), (PAMSGD(decoder_lr=0.3), "tied"), (PAMSGD(decoder_lr=0.3, gradient="encoder"), "free"),
     (PAMSGD(decoder_lr=0.3, gradient="tied"), "tied_residual")],
)  # fmt: skip
def test_a_decoder_that_no_gradient_moves_has_no_step_size(method, decoder):
    with pytest.raises(ValueError, match=r"decoder_lr=0\.3 acts on the decoder's own weights"):
        fit(make_sae("TopK", decoder), samples(), method, epochs=1)
    with pytest.raises(ValueError, match="decoder_lr=0"):
        SGD(decoder_lr=0)


@pytest.mark.parametrize("options", [{"hold": 1.0}, {"ridge": math.inf}])
def test_a_residual_that_stays_at_0_has_no_step_size(options):
    with pytest.raises(ValueError, match="changes nothing with (hold=1|ridge=inf)"):
        PAMSGD(decoder_lr=0.3, **options)
    PAMSGD(**options)


def test_frozen_parameters_have_no_step_size():
    for name, option in (("W_dec", {"decoder_lr": 0.3}), ("b_enc", {"bias_lr": 3.0})):
        sae = make_sae("TopK", "free")
        getattr(sae, name).requires_grad_(False)
        with pytest.raises(ValueError, match="no trained parameter"):
            fit(sae, samples(), SGD(**option), epochs=1)


def test_step_sizes_that_share_a_tensor_are_told_apart():
    method = SGD(bias_lr=4.0, decoder_lr=0.1, optimizer=lambda groups: torch.optim.Adam(groups, lr=torch.tensor(0.01)))
    optimizer = method.make_optimizer(make_sae("TopK", "free"))
    assert sorted({round(float(group["lr"]), 6) for group in optimizer.param_groups}) == [0.001, 0.01, 0.04]


def test_every_weight_of_a_decoder_has_its_step_size():
    sae = ArchetypalSAE(8, 12, TopK(2), points=torch.randn(30, 8, generator=rng(1)), relaxation=0.1, generator=0)
    optimizer = SGD(lr=0.01, decoder_lr=0.1).make_optimizer(sae)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    slow = {name for name, p in sae.named_parameters() if rates[id(p)] == pytest.approx(1e-3)}
    assert slow == {"mixing", "deviation", "log_scale"}


def test_the_step_size_of_the_bias_follows_schedules_and_resumes(tmp_path):
    def run(**checkpoints):
        method = PAMSGD(bias_lr=4.0, warmup=0.2)
        return fit(make_sae("TopK", "tied_residual"), samples(), method, epochs=4, batch_size=64, generator=3, **checkpoints)

    whole = run(checkpoint=tmp_path / "whole")
    lrs = [group["lr"] for group in whole.state.optimizer.param_groups]
    assert len(lrs) == 4 or len(lrs) == 3
    assert max(lrs) == pytest.approx(4 * min(lrs))
    assert same(stopped_and_resumed(run, 2, tmp_path / "c").sae, whole.sae)


def test_a_bias_without_steps_of_its_own_is_refused():
    with pytest.raises(ValueError, match="bias_lr=0.0"):
        SGD(bias_lr=0.0)
    with pytest.raises(ValueError, match="leave it out"):
        fit(make_sae("ReLU", "tied", tie_scale=True), samples(), BiasAdaptation(base=SGD(bias_lr=2.0)), epochs=1)


PAM = {
    "gradient": "encoder", "encoder_updates": 3, "prox_enc": 50.0, "prox_dec": 5.0, "ridge": 3.0, "gcv_inflation": 3.0,
    "solve_gap": 1, "decoder_every": 2, "solve_first": True,
}  # fmt: skip


@pytest.mark.parametrize("name", PAM)
@pytest.mark.parametrize("decoder", ["free", "tied_residual"])
def test_pam_option_changes_the_result(name, decoder):
    changed = PAMSGD(hold=0.0, **{name: PAM[name]})
    assert not same(trained(changed, "TopK", decoder), trained(PAMSGD(hold=0.0), "TopK", decoder))


def test_hold_changes_the_result():
    runs = [trained(PAMSGD(hold=hold), "TopK", "tied_residual", epochs=4) for hold in (0.0, 0.1, 0.7)]
    assert not any(same(runs[i], runs[j]) for i, j in ((0, 1), (0, 2), (1, 2)))


def test_pam_options_of_the_bias_change_the_result():
    base = trained(PAMSGD(ridge=1.0))
    for options in ({"bias_ridge": 10.0}, {"bias_prox": 10.0}, {"bias": "separate"}, {"stats_dtype": torch.float32}):
        assert not same(trained(PAMSGD(ridge=1.0, **options)), base), options
    options = {"decoder": "tied_residual", "tie_scale": True}
    assert not same(trained(PAMSGD(scale="fit"), **options), trained(PAMSGD(), **options))


def test_sgd_unit_norm_decoder():
    for decoder in ("free", "tied"):
        sae = trained(SGD(unit_norm_decoder=True), "TopK", decoder)
        torch.testing.assert_close(sae.W_dec.detach().norm(dim=1), torch.ones(12))
        assert not same(sae, trained(SGD(), "TopK", decoder))


@pytest.mark.parametrize("method", [SGD(lr=1e-2), PAMSGD(lr=1e-2), PAMSGD.published(lr=1e-2)])
@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_method_trains_every_activation_and_decoder(method, decoder, activation):
    """Better than at the start by a clear margin, and the same seed gives the same bits."""
    sae, twin = (make_sae(activation, decoder) for _ in range(2))
    x = samples(300)
    results = [fit(s, x, method, epochs=6, batch_size=32, generator=rng(1)) for s in (sae, twin)]
    assert same(sae, twin)
    assert results[0].history[-1]["train_fvu"] < 0.5
    assert results[0].history[-1]["train_fvu"] < results[0].history[0]["train_fvu"] + 0.02


def test_permuting_latents_permutes_nothing_else_in_training():
    order = torch.randperm(12, generator=rng(2))
    for decoder in DECODERS:
        a, b = (make_sae("TopK", decoder, dtype=torch.float64, init_bias=0.0) for _ in range(2))
        with torch.no_grad():
            b.W_enc.copy_(b.W_enc[:, order].clone())
            if decoder == "free":
                b.W_dec.copy_(b.W_dec[order].clone())
        for sae in (a, b):
            fit(sae, samples(dtype=torch.float64), PAMSGD(lr=1e-2), epochs=2, generator=rng(4))
        torch.testing.assert_close(b.W_enc, a.W_enc[:, order], rtol=1e-6, atol=1e-8)
        torch.testing.assert_close(b.W_dec, a.W_dec[order], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SGD(lr=0), "lr=0 must be greater than 0"),
        (lambda: SGD(optimizer="adagrab"), "known: 'adam', 'adamw', 'sgd'"),
        (lambda: SGD(schedule="linear"), "known: 'cosine', 'constant'"),
        (lambda: SGD(clip=0.0), "clip=0.0"),
        (lambda: SGD(l1=-1.0), "l1=-1.0"),
        (lambda: SGD(decay_biases=True), "changes nothing"),
        (lambda: PAMSGD(gradient="decoder"), "known: 'both', 'tied', 'encoder'"),
        (lambda: PAMSGD(ridge="loo"), "known: 'auto', 'gcv'"),
        (lambda: PAMSGD(ridge=-1.0), "ridge=-1.0"),
        (lambda: PAMSGD(bias_ridge=1.0), "ridge='auto' assumes"),
        (lambda: PAMSGD(bias_prox=1.0), "ridge='auto' assumes"),
        (lambda: PAMSGD(bias="separate"), "ridge='auto' assumes"),
        (lambda: PAMSGD(bias="separate", ridge=0.0, bias_ridge=1.0), "takes no bias_ridge"),
        (lambda: PAMSGD(ridge=1.0, gcv_inflation=2.0), "gcv_inflation=2.0 acts only with ridge='gcv'"),
        (lambda: PAMSGD(encoder_updates=0), "encoder_updates=0"),
        (lambda: PAMSGD(hold=-0.1), "hold=-0.1"),
        (lambda: PAMSGD(hold=1.5), "hold=1.5 is a share of the steps"),
        (lambda: PAMSGD(hold=0.1, gradient="encoder"), "hold=0.1 acts only with gradient='both'"),
        (lambda: PAMSGD(decoder_every=0), "decoder_every=0"),
        (lambda: PAMSGD(decoder_every=2, solve_first=True), "exclude each other"),
        (lambda: PAMSGD.published(mu=1e-3), "pass n_samples and d_in"),
    ],
)
def test_bad_options(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_options_that_do_not_fit_the_module():
    x = samples()
    with pytest.raises(ValueError, match="fixes it by k"):
        fit(make_sae("TopK"), x, SGD(l1=1e-3))
    with pytest.raises(ValueError, match="needs JumpReLU, not ReLU"):
        fit(make_sae("ReLU"), x, SGD(l0=1e-3))
    with pytest.raises(ValueError, match="unit_norm_decoder=True needs"):
        fit(make_sae(decoder="tied_residual"), x, SGD(unit_norm_decoder=True))
    with pytest.raises(ValueError, match="scale='fit' needs"):
        fit(make_sae(decoder="tied_residual"), x, PAMSGD(scale="fit"))
    with pytest.raises(TypeError, match="Linear lacks encode, W_enc"):
        SGD().check_module(torch.nn.Linear(2, 2))


def test_options_that_would_change_nothing_are_refused():
    x = samples()
    with pytest.raises(ValueError, match="changes nothing with optimizer='sgd'"):
        SGD(optimizer="sgd", betas=(0.5, 0.9))
    with pytest.raises(ValueError, match="no effect on Rprop"):
        fit(make_sae(), x, SGD(optimizer=torch.optim.Rprop, weight_decay=0.1))
    for options in ({"ridge": 5.0}, {"prox_dec": 1.0}):
        with pytest.raises(ValueError, match="do not act on a tied decoder"):
            fit(make_sae(decoder="tied"), x, PAMSGD(**options))
    with pytest.raises(ValueError, match="hold a free W_dec at 0"):
        fit(make_sae(), x, PAMSGD(ridge=math.inf))


def test_biases_that_decay():
    """All but b_dec: a centred start would be pulled away from the data's mean."""
    method = SGD(weight_decay=0.5, decay_biases=True)
    sae = make_sae("JumpReLU")
    decayed, kept = method.make_optimizer(sae).param_groups
    assert {id(p) for p in kept["params"]} == {id(sae.b_dec)}
    assert kept["weight_decay"] == 0
    assert any(p is sae.b_enc for p in decayed["params"])
    decayed, kept = SGD(weight_decay=0.5).make_optimizer(sae).param_groups
    assert {id(p) for p in decayed["params"]} == {id(sae.W_enc), id(sae.W_dec)}


def test_divergence_seen_by_a_solve():
    sae, x, method = make_sae("ReLU"), samples(), PAMSGD()
    state = method.init(sae, x)
    with torch.no_grad():
        sae.W_enc.fill_(torch.inf)
    with pytest.raises(DivergenceError):
        method.decoder_step(sae, state, [x])


def test_divergence_keeps_step_and_state():
    sae = make_sae("ReLU")
    before = None

    class Explosive(torch.optim.SGD):
        def step(self, closure=None):
            nonlocal before
            super().step()
            if state_steps[0] == 3:
                with torch.no_grad():
                    sae.W_enc.fill_(1e30)
            before = sae.W_enc.detach().clone()
            state_steps[0] += 1

    state_steps = [0]
    with pytest.raises(DivergenceError, match="not finite at step 4: lower lr") as caught:
        fit(sae, samples(), SGD(optimizer=Explosive, lr=1e-9), epochs=3, batch_size=32)
    assert caught.value.step == 4
    assert caught.value.state.step == 4
    assert torch.equal(sae.W_enc, before)
