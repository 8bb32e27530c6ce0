"""The step size that PAM-SGD's residual has, and when it is let in, where that is not given."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from splinterp import PAMSGD, SAE, SGD, AbsTopK, ArchetypalSAE, BatchTopK, JumpReLU, ReLU, TopK, fit
from splinterp.losses import L1, RowNormL1, SquaredError
from splinterp.protocol import as_model
from splinterp.training import StreamingPAMSGD
from tests.helpers import rng, samples, stopped_and_resumed
from tests.training.test_options import same

D = 24
"""k = 3 is an eighth of it, k = 4 a sixth."""


def rate(method, activation, decoder="tied_residual"):
    """At a step size of 0.008, unless the method has another one."""
    method = method if method.lr != SGD().lr else dataclasses.replace(method, lr=8e-3)
    return method.decoder_rate(as_model(SAE(D, 32, activation, decoder, generator=0)))


@pytest.mark.parametrize(
    ("activation", "expected"),
    [(TopK(3), 0.3), (TopK(4), 1.0), (BatchTopK(3), 1.0), (BatchTopK(4), 1.0), (AbsTopK(3), 1.0), (AbsTopK(4), 1.0), (ReLU(), 1.0),
     (JumpReLU(), 1.0)],
)  # fmt: skip
def test_it_goes_by_the_activation(activation, expected):
    assert rate(PAMSGD(lr=8e-3), activation) == pytest.approx(expected)
    assert rate(PAMSGD(lr=2e-3), activation) == 1.0  # steps are small as they are
    assert rate(SGD(lr=8e-3), activation) == 1.0
    assert rate(PAMSGD(decoder_lr=0.7), activation) == rate(SGD(decoder_lr=0.7), activation) == 0.7
    assert rate(PAMSGD(decoder_lr=1), activation) == 1


@pytest.mark.parametrize("decoder", ["free", "tied"])
def test_other_decoders_keep_the_step_size_of_the_rest(decoder):
    assert rate(PAMSGD(), TopK(3), decoder) == 1.0
    points = torch.randn(30, D, generator=rng(1))
    archetypal = ArchetypalSAE(D, 32, TopK(3), points=points, relaxation=0.1, generator=0)
    assert PAMSGD().decoder_rate(as_model(archetypal)) == 1.0


@pytest.mark.parametrize(
    "method",
    [PAMSGD(hold=1), PAMSGD(ridge=math.inf), PAMSGD(gradient="tied"), PAMSGD(gradient="encoder"), PAMSGD(optimizer="sgd"),
     PAMSGD(optimizer="muon"), PAMSGD(optimizer=torch.optim.NAdam), StreamingPAMSGD(), PAMSGD.final_solve(), PAMSGD.published()],
)  # fmt: skip
def test_what_was_not_measured_is_left_alone(method):
    assert rate(method, TopK(3)) == 1.0


def test_a_schedule_of_ones_own_still_sets_all_step_sizes():
    def one_cycle(optimizer):
        return torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-2, total_steps=40)

    method = PAMSGD(lr=8e-3, schedule=one_cycle)
    assert rate(method, TopK(3)) == 1.0
    fit(SAE(8, 12, TopK(1), "tied_residual", generator=0), samples(), method, epochs=2, batch_size=64, generator=0)
    with pytest.raises(ValueError, match=r"decoder_lr=0\.3 would do nothing"):
        fit(
            SAE(8, 12, TopK(1), "tied_residual"), samples(), PAMSGD(schedule=one_cycle, decoder_lr=0.3), epochs=2, batch_size=64
        )


@pytest.mark.parametrize("options", [{}, {"hold": 0.5}, {"hold": "race"}, {"encoder_updates": 2}])
def test_training_by_it_is_training_with_the_option(options, tmp_path):
    x = samples()

    def run(factor=None, **checkpoints):
        method = PAMSGD(lr=8e-3, decoder_lr=factor, warmup=0.1, **options)
        sae = SAE(8, 12, TopK(1), "tied_residual", generator=0)
        return fit(sae, x, method, epochs=4, batch_size=16, x_val=x, generator=3, **checkpoints)

    default = run(checkpoint=tmp_path / "whole")
    assert same(default.sae, run(0.3).sae)
    assert not same(default.sae, run(1.0).sae)
    assert same(stopped_and_resumed(run, 2, tmp_path / "c").sae, default.sae)


@pytest.mark.parametrize(
    ("activation", "options", "hold"),
    [(ReLU(), {"l1": 0.1}, 0.5), (ReLU(), {}, 0.0), (JumpReLU(), {"l0": 0.1}, 0.0), (JumpReLU(), {"l1": 0.1}, 0.5),
     (ReLU(), {"l1": 0.1, "hold": 0.0}, 0.0),
     (TopK(3), {}, 0.0), (TopK(4), {}, 0.5), (AbsTopK(4), {}, 0.5), (BatchTopK(3), {}, 0.0),
     (ReLU(), {"terms": (SquaredError(), RowNormL1(weight=0.1))}, 0.0), (ReLU(), {"terms": (SquaredError(), L1(weight=0.1))}, 0.5)],
)  # fmt: skip
def test_a_residual_waits_where_codes_could_shrink_beside_it(activation, options, hold):
    """An L1 penalty rewards shrinking, which a decoder of its own allows; one that counts latents, or the decoder's norms too, does not."""
    sae, method = SAE(D, 32, activation, "tied_residual", generator=0), PAMSGD(**options)
    x = torch.randn(300, D, generator=rng(2))
    assert method.init(sae, x, total_steps=10).hold == hold
    assert method.opening(sae.activation, D)[0] == hold
    assert method.init(sae, x).hold == (0.0 if "hold" not in options else hold)  # the number of steps is unknown
    assert method.init(SAE(D, 32, activation, "tied", generator=0), x, total_steps=10).hold == 0.0


@pytest.mark.parametrize(("epochs", "share"), [(1, 0.75), (2, 0.5), (3, 2 / 3)])
def test_a_residual_comes_in_even_where_no_solve_lets_it(epochs, share):
    """Solves come at ends of epochs: of a single one, none before the end."""
    x, method, sae = samples(), PAMSGD(l1=1e-3), SAE(8, 12, ReLU(), "tied_residual", generator=0)
    batches = [*x.split(10)] * epochs
    state = method.init(sae, x, total_steps=len(batches))
    first = None
    for n, batch in enumerate(batches):
        method.step(sae, state, batch)
        if first is None and bool(sae.residual.any()):
            first = n
        if (n + 1) % 20 == 0:
            method.end_epoch(sae, state, x.split(10))
    assert first == round(share * len(batches))


def test_a_default_never_asks_for_what_was_not_asked():
    """A residual that stays as it is has no step size: refused where one is given, and left alone where not."""
    for still in (True, False):
        sae = SAE(D, 32, TopK(3), "tied_residual", generator=0)
        sae.residual.requires_grad_(still)
        fixed = (sae.residual,) if still else ()
        PAMSGD(lr=8e-3).make_optimizer(sae, fixed)
        with pytest.raises(ValueError, match=r"decoder_lr=0\.3 acts on"):
            PAMSGD(lr=8e-3, decoder_lr=0.3).make_optimizer(sae, fixed)


def test_kinds_of_optimizers_terms_and_activations():
    class Squares(TopK):
        def keep(self, scores):
            return scores.relu() ** 2

    class Larger(TopK):
        pass

    class Named(L1):
        pass

    adam = PAMSGD(lr=8e-3, optimizer=torch.optim.Adam)
    assert rate(adam, TopK(3)) == rate(PAMSGD(lr=8e-3), TopK(3)) == rate(adam, Larger(3)) < 1
    assert rate(adam, Squares(3)) == 1
    for term, hold in ((Named(weight=0.1), 0.5), (L1(weight=0.0), 0.0)):
        assert PAMSGD(terms=(SquaredError(), term)).opening(ReLU(), D)[0] == hold
