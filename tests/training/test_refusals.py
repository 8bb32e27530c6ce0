"""What a method cannot respect is refused by name before anything is trained, with advice that works."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch

from splinterp import PAMSGD, SAE, SGD, BatchTopK, BiasAdaptation, JumpReLU, ReLU, TopK, fit
from splinterp.activations import REGISTRY, Activation
from splinterp.encoders import Encoder
from splinterp.language.interventions import _reconstructed
from splinterp.losses import L0, L1, AuxK, SquaredError
from splinterp.protocol import as_model
from splinterp.training import HeldOut
from splinterp.training.schedules import SCHEDULES
from splinterp.training.solver import DecoderSolver
from splinterp.training.when import AtEnd, EveryEpoch, EverySteps, Refresh
from tests.helpers import make_sae, rng, samples


class Scaled(SAE):
    """Decodes twice the sum."""

    def decode(self, acts):
        return super().decode(acts) * 2


def test_a_solve_refuses_a_decode_of_ones_own_and_gradients_train_it():
    sae = Scaled(8, 24, TopK(3), generator=1)
    for method in (PAMSGD(), PAMSGD(when=AtEnd()), PAMSGD(when=Refresh(every=2))):
        with pytest.raises(TypeError, match="Scaled decodes in its own way, .*train it by SGD"):
            fit(sae, samples(), method, epochs=1, generator=0)
    history = fit(sae, samples(), SGD(lr=1e-2), epochs=3, batch_size=32, generator=0).history
    assert history[-1]["train_fvu"] < history[0]["train_fvu"]


@pytest.mark.parametrize("name", ["W_dec", "b_dec"])
def test_a_solve_refuses_frozen_parameters_and_gradients_leave_them(name):
    sae = make_sae("TopK", "free")
    getattr(sae, name).requires_grad_(False)
    with pytest.raises(ValueError, match=r"frozen \(requires_grad=False\): train it by SGD"):
        fit(sae, samples(), PAMSGD(), epochs=1, generator=0)
    parameter = getattr(sae, name)
    parameter.grad = torch.ones_like(parameter)  # of an earlier run
    before = parameter.detach().clone()
    fit(sae, samples(), SGD(lr=1e-2), epochs=1, generator=0)
    assert torch.equal(parameter, before)
    assert parameter.grad is None


@pytest.mark.parametrize("base", [SGD(), PAMSGD()])
def test_bias_adaptation_refuses_a_loss_that_its_base_would_not_minimise(base):
    @dataclass(frozen=True, kw_only=True)
    class Own(BiasAdaptation):
        def loss(self, sae, x, observer=None):
            return sae(x).x_hat.sum()

    with pytest.raises(TypeError, match="Own overrides loss, which the base takes gradients of"):
        fit(make_sae("TopK"), samples(), Own(base=base, groups=2), epochs=1, generator=0)


@dataclass(frozen=True, kw_only=True)
class TermOfAName(L1):
    called: str = "loss"

    @property
    def name(self):
        return self.called


def test_terms_that_would_be_lost_are_refused():
    for column in ("loss", "train_fvu", "ridge", "step"):
        with pytest.raises(ValueError, match=f"a term is called {column}, which is a column of the history"):
            SGD(terms=(SquaredError(), TermOfAName(weight=1e-3, called=column)))
    with pytest.raises(ValueError, match="every Reconstruction in terms has weight 0"):
        SGD(terms=(SquaredError(weight=0.0),))

    @dataclass(frozen=True, kw_only=True)
    class Own(SGD):
        def loss(self, sae, x, observer=None):
            return (sae(x).x_hat - x).square().sum(dim=1).mean()

    with pytest.raises(ValueError, match="AuxK keeps a state from batch to batch, which Own.loss does not pass on"):
        fit(make_sae("TopK"), samples(), Own(terms=(SquaredError(), AuxK(dead_after=5))), epochs=1, generator=0)


class Signed(JumpReLU):
    """Its codes are not those that JumpReLU's penalties are the gradients of."""

    def forward(self, pre_acts):
        return super().forward(pre_acts) - super().forward(-pre_acts)


class Stated(Signed):
    allows_l1 = True
    allows_l0 = True


@pytest.mark.parametrize("term", [L1(weight=1e-3), L0(weight=1e-3)])
def test_penalties_on_inherited_codes_are_refused_unless_the_class_says_it_takes_them(term):
    method = SGD(terms=(SquaredError(), term))
    with pytest.raises(ValueError, match="acts on what Signed inherits"):
        fit(SAE(8, 12, Signed(), generator=1), samples(), method, epochs=1, generator=0)
    fit(SAE(8, 12, Stated(), generator=1), samples(), method, epochs=1, generator=0)


def test_hooks_and_methods_of_the_object_are_seen():
    for k in (2, 9):
        hooked, plain = (SAE(8, 64, TopK(k), generator=1) for _ in range(2))
        hooked.activation.register_forward_hook(lambda module, args, out: out * 0.5)
        patched = SAE(8, 64, TopK(k), generator=1)
        forward = patched.activation.forward
        patched.activation.forward = lambda u, forward=forward: forward(u) * 0.5
        x = samples()
        codes = [sae.encode(x) for sae in (hooked, patched, plain)]
        torch.testing.assert_close(codes[0], 0.5 * codes[2])
        torch.testing.assert_close(codes[1], 0.5 * codes[2])
        rows = [fit(sae, x, SGD(lr=1e-2), epochs=1, batch_size=32, generator=0).history[0] for sae in (hooked, patched, plain)]
        assert rows[0]["loss"] == pytest.approx(rows[1]["loss"], rel=1e-5)
        assert rows[0]["loss"] != pytest.approx(rows[2]["loss"], rel=1e-3)
        for sae in (hooked, patched):
            with pytest.raises(TypeError):
                sae.require_plain("a cell")


def test_names_of_this_package_stay_its_own():
    known = {name: REGISTRY[name] for name in ("TopK", "ReLU")}
    for base, name in ((Activation, "TopK"), (Encoder, "Linear"), (SAE, "SAE")):
        with pytest.raises(TypeError, match=f"{name} is the name of .*choose another"):
            type(name, (base,), {"__module__": "elsewhere"})
    assert {name: REGISTRY[name] for name in known} == known


class Called(SAE):
    def __init__(self, *args, called="", **options):
        super().__init__(*args, **options)
        self.called = called


class Told(Called):
    def config(self):
        return {**super().config(), "called": self.called}


def test_arguments_of_a_subclass_are_saved_or_refused(tmp_path):
    with pytest.raises(TypeError, match="Called has the argument called, which would be lost: override config"):
        Called(8, 12, TopK(3), called="a", generator=0).save(tmp_path / "a")
    Told(8, 12, TopK(3), called="b", generator=0).save(tmp_path / "b")
    loaded = SAE.load(tmp_path / "b")
    assert type(loaded) is Told
    assert loaded.called == "b"


def test_held_out_solves_of_batch_topk_take_the_threshold_of_the_encoder_as_it_is():
    x, x_val = samples(300), samples(100, seed=4)
    sae = make_sae("BatchTopK")
    found = fit(sae, x, PAMSGD(ridge=HeldOut()), epochs=1, batch_size=32, x_val=x_val, generator=0).history[0]
    stale = make_sae("BatchTopK")
    stale.activation.threshold.fill_(1e9)  # nothing would fire, and every ridge would be as good
    again = fit(stale, x, PAMSGD(ridge=HeldOut()), epochs=1, batch_size=32, x_val=x_val, generator=0).history[0]
    assert found["ridge"] == again["ridge"] < torch.inf
    assert found["val_fvu"] == again["val_fvu"] < 1


def test_shorthands_change_the_solver_and_the_times_that_are_given():
    solver = DecoderSolver(ridge=0.5, dtype=torch.float32)
    assert PAMSGD(solver=solver, ridge=2.0).solver == replace(solver, ridge=2.0)
    assert PAMSGD(solver=solver, ridge="gcv", gcv_inflation=1.2).solver.ridge.inflation == 1.2
    assert replace(PAMSGD(solver=solver), ridge=3.0).solver == replace(solver, ridge=3.0)
    assert replace(PAMSGD(decoder_every=3), decoder_every=5).when == EverySteps(n=5)
    assert replace(PAMSGD(solve_gap=7), lr=0.1).when == EveryEpoch(gap=7)
    assert PAMSGD(when=EveryEpoch(gap=7), solve_first=False).when == EveryEpoch(gap=7)
    for options, message in (
        ({"decoder_every": 3, "solve_gap": 9}, "solve_gap=9 changes nothing beside decoder_every=3"),
        ({"solve_first": True, "solve_gap": 9}, "solve_gap=9 changes nothing with solve_first=True"),
        ({"ridge": 1.0, "gcv_inflation": 1.2}, "gcv_inflation=1.2 acts only with ridge='gcv'"),
    ):
        with pytest.raises(ValueError, match=message):
            PAMSGD(**options)


def test_a_checkpoint_of_another_order_says_so(tmp_path):
    x, path = samples(), tmp_path / "run.pt"
    generator = rng(3)
    fit(make_sae("TopK"), x, SGD(), epochs=1, generator=generator, checkpoint=path)
    with pytest.raises(ValueError, match="another order of the data: pass the seed it began with"):
        fit(make_sae("TopK"), x, SGD(), epochs=2, generator=generator, checkpoint=path, resume=True)
    result = fit(make_sae("TopK"), x, SGD(), epochs=2, generator=rng(3), checkpoint=path, resume=True)
    assert len(result.history) == 2


@pytest.mark.parametrize("when", [EveryEpoch(), EverySteps(n=4), AtEnd()])
def test_solves_are_exact_under_autocast(when):
    x = samples()
    for own in (True, False):  # fit's option, and a context of the user's around it
        sae = make_sae("TopK", "free")
        with torch.autocast("cpu", torch.bfloat16, enabled=not own):
            fit(
                sae,
                x,
                PAMSGD(ridge=0.0, when=when),
                epochs=2,
                batch_size=50,
                generator=0,
                autocast=torch.bfloat16 if own else None,
            )
        codes, misfit = sae.encode(x).detach(), x - sae(x).x_hat.detach()
        assert float((codes.T @ misfit).abs().max()) < 1e-4 * float((codes.T @ x).abs().max())  # the normal equations


def test_interventions_respect_a_decode_of_ones_own():
    sae = Scaled(8, 24, TopK(3), generator=1)
    x = samples()
    torch.testing.assert_close(_reconstructed(sae, x, None), sae(x).x_hat)
    torch.testing.assert_close(as_model(sae).run(x)[0], sae(x).x_hat)


def test_a_batch_topk_at_its_threshold_keeps_as_many_by_either_comparison():
    activation = BatchTopK(2)
    scores = torch.rand(50, 8, generator=rng(1))
    activation.calibrate([scores], len(scores))
    threshold = activation.threshold
    assert int((scores > threshold).sum()) == int((scores >= threshold).sum()) == 100


def test_an_encoder_is_part_of_what_a_checkpoint_tells():
    class Shifted(Encoder):
        pass

    assert "Shifted" in repr(SAE(8, 12, ReLU(), encoder=Shifted(), generator=0))
    assert "encoder" not in repr(SAE(8, 12, ReLU(), generator=0))
    assert "cosine" in SCHEDULES
