"""Step sizes, weights of penalties and optimizers of all kinds, by step."""

from __future__ import annotations

import functools
import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from splinterp import PAMSGD, SGD, fit
from splinterp.losses import SquaredError
from splinterp.losses.terms import L1
from splinterp.metrics import evaluate
from splinterp.training import DivergenceError, Resampling
from tests.helpers import make_sae, samples

METHODS = [SGD, PAMSGD]


def same(a, b):
    return all(torch.equal(p, q) for p, q in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def rates(method, total, sae=None, x=None):
    """The step size of the first group in each of `total` steps."""
    sae, x = make_sae("ReLU") if sae is None else sae, samples(40) if x is None else x
    state, found = method.init(sae, x, total_steps=total), []
    for _ in range(total):
        method.step(sae, state, x)
        found.append(state.optimizer.param_groups[0]["lr"])
    return found


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"schedule": "constant"}, [1.0] * 10),
        ({"schedule": "constant", "warmup": 0.4}, [0.25, 0.5, 0.75, 1.0] + [1.0] * 6),
        ({"schedule": "constant", "decay": 0.5}, [1.0] * 6 + [0.8, 0.6, 0.4, 0.2]),
        ({"schedule": "constant", "warmup": 0.2, "decay": 0.2}, [0.5] + [1.0] * 8 + [0.5]),
        ({"schedule": "constant", "warmup": 0.5, "decay": 0.5}, [0.2, 0.4, 0.6, 0.8, 1.0, 1.0, 0.8, 0.6, 0.4, 0.2]),
        ({"schedule": "constant", "warmup": 0.25}, [0.4, 0.8, 1.0] + [1.0] * 7),  # 2.5 steps: never above the peak
        ({}, [0.5 * (1 + math.cos(math.pi * t / 10)) for t in range(10)]),
        ({"warmup": 0.2}, [0.5, 1.0] + [0.5 * (1 + math.cos(math.pi * t / 8)) for t in range(8)]),
    ],
)
def test_step_sizes(method, options, expected):
    assert rates(method(lr=0.01, **options), 10) == pytest.approx([0.01 * e for e in expected])


@pytest.mark.parametrize("method", METHODS)
def test_every_schedule_changes_the_result(method):
    runs = []
    for options in ({}, {"warmup": 0.3}, {"schedule": "constant"}, {"schedule": "constant", "decay": 0.3}, {"l1": 0.1},
                    {"l1": 0.1, "penalty_warmup": 0.5}):  # fmt: skip
        sae = make_sae("ReLU")
        fit(sae, samples(), method(lr=1e-2, **options), epochs=3, batch_size=50, generator=0)
        runs.append(sae)
    assert not any(same(runs[i], runs[j]) for i in range(len(runs)) for j in range(i))


def test_shares_of_an_unknown_number_of_steps_are_refused():
    for options in ({"warmup": 0.1}, {"decay": 0.1, "schedule": "constant"}, {"penalty_warmup": 0.1, "l1": 0.1}):
        with pytest.raises(ValueError, match="is a share of the steps, whose number is not known: pass total_steps"):
            SGD(**options).init(make_sae("ReLU"), samples())
    for options, message in (
        ({"warmup": 1.5}, "warmup=1.5 is a share"),
        ({"warmup": 0.6, "decay": 0.6, "schedule": "constant"}, "more than all steps together"),
        ({"decay": 0.1}, "decay=0.1 ends a constant step size"),
        ({"penalty_warmup": 0.1}, "changes nothing without a penalty"),
        ({"warmup": 0.1, "schedule": lambda o: None}, "warmup=0.1 is not for a torch scheduler"),
    ):
        with pytest.raises(ValueError, match=message):
            SGD(**options)


@pytest.mark.parametrize("method", METHODS)
def test_weights_of_penalties_rise_and_those_of_reconstructions_do_not(method):
    method, x = method(lr=1e-9, terms=(SquaredError(), L1(weight=0.5)), penalty_warmup=0.5), samples(60)
    sae = make_sae("ReLU")
    state = method.init(sae, x, total_steps=10)
    weights = []
    for _ in range(10):
        method.step(sae, state, x)
        weights.append(float((state.loss - state.values["SquaredError"]) / state.values["L1"]))
    assert weights == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4] + [0.5] * 5, abs=1e-5)


def test_a_penalty_warmup_that_a_loss_of_ones_own_would_ignore_is_refused():
    class Own(SGD):
        def loss(self, sae, x, observer=None):
            return (sae(x).x_hat - x).abs().mean()

    with pytest.raises(ValueError, match="penalty_warmup=0.5 does not act on the loss that Own overrides"):
        fit(make_sae("ReLU"), samples(), Own(l1=0.1, penalty_warmup=0.5))


def stepped(optimizer):
    return torch.optim.lr_scheduler.StepLR(optimizer, step_size=3, gamma=0.5)


def cycled(optimizer):
    return torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.05, total_steps=30)


@pytest.mark.parametrize("make", [stepped, cycled])
@pytest.mark.parametrize("method", [SGD(lr=0.02, schedule=stepped), PAMSGD(lr=0.02), PAMSGD(lr=0.02, encoder_updates=3)])
def test_a_torch_scheduler_decides_the_step_sizes_once_a_batch(make, method):
    method = replace(method, schedule=make)
    alone = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.02)
    scheduler, expected = make(alone), []
    for _ in range(12):
        expected.append(alone.param_groups[0]["lr"])
        alone.step()
        scheduler.step()
    assert rates(method, 12) == pytest.approx(expected)


def test_schedulers_that_cannot_be_stepped_alone_are_refused():
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau
    with pytest.raises(TypeError, match="ReduceLROnPlateau.step needs metrics"):
        SGD(schedule=plateau).init(make_sae(), samples())
    with pytest.raises(TypeError, match=r"schedule returned a NoneType: return a torch scheduler"):
        SGD(schedule=lambda optimizer: None).init(make_sae(), samples())


def test_a_step_size_moved_from_outside_is_refused_and_never_overwritten():
    for attach in (stepped, cycled):
        sae, method = make_sae(), SGD()
        state = method.init(sae, samples(), total_steps=10)
        attach(state.optimizer)
        with pytest.raises(
            ValueError, match="moved from outside, e.g. by a torch scheduler attached to it: pass that as schedule="
        ):
            method.step(sae, state, samples())
    sae, method = make_sae(), SGD()
    state = method.init(sae, samples(), total_steps=10)
    method.step(sae, state, samples())
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(state.optimizer, patience=0, factor=0.5)
    method.step(sae, state, samples())  # nothing has moved yet
    for _ in range(3):
        plateau.step(1.0)
    halved = state.optimizer.param_groups[0]["lr"]
    with pytest.raises(ValueError, match="moved from outside"):
        method.step(sae, state, samples())
    assert state.optimizer.param_groups[0]["lr"] == halved


class Stopped(Exception):  # noqa: N818
    pass


def interrupted_and_resumed(make_method, tmp_path, kind="TopK", **options):
    """(undisturbed, resumed) SAEs of one run; the method is made anew for each, as another process would."""

    def stop(row):
        if row["epoch"] == 3:
            raise Stopped

    options = {"epochs": 6, "batch_size": 50, "generator": 0, **options}
    whole, parted, again = (make_sae(kind, "tied_residual") for _ in range(3))
    fit(whole, samples(), make_method(), **options)
    path = tmp_path / "checkpoint"
    with pytest.raises(Stopped):
        fit(parted, samples(), make_method(), checkpoint=path, callback=stop, **options)
    fit(again, samples(), make_method(), checkpoint=path, resume=True, **options)
    return whole, again


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "options",
    [
        {"warmup": 0.6},
        {"schedule": "constant", "decay": 0.8},
        {"schedule": stepped},
        {"schedule": cycled},
        {"schedule": lambda optimizer: stepped(optimizer)},
        {"optimizer": functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9)},
        {"optimizer": torch.optim.RAdam},
    ],
)
def test_resumed_runs_give_the_same_bits(method, options, tmp_path):
    def make():  # a function made anew has another address
        made = dict(options)
        if callable(made.get("schedule")):
            made["schedule"] = lambda optimizer: options["schedule"](optimizer)
        return method(lr=1e-2, **made)

    assert same(*interrupted_and_resumed(make, tmp_path))


def per_group(kind):
    def make(groups):
        return kind([{**group, "lr": 0.02 if group["params"][0].ndim > 1 else 0.005} for group in groups])

    return make


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", [torch.optim.NAdam, torch.optim.RAdam])
def test_a_factory_sets_the_step_size_of_each_group(method, kind):
    sae, own = make_sae("ReLU"), make_sae("ReLU")
    state = fit(
        sae, samples(), method(optimizer=per_group(kind), schedule="constant"), epochs=3, batch_size=50, generator=0
    ).state
    assert isinstance(state.optimizer, kind)
    assert [group["lr"] for group in state.optimizer.param_groups] == [0.02, 0.005]
    fit(own, samples(), method(optimizer=kind, schedule="constant"), epochs=3, batch_size=50, generator=0)
    assert not same(sae, own)
    warm = method(optimizer=per_group(kind), schedule="constant", warmup=0.5)
    assert rates(warm, 4) == pytest.approx([0.01, 0.02, 0.02, 0.02])


class Composite(torch.optim.Optimizer):
    """Several optimizers as one."""

    def __init__(self, parts):
        self.parts = parts
        super().__init__([group for part in parts for group in part.param_groups], {})
        self.param_groups = [group for part in parts for group in part.param_groups]

    def step(self, closure=None):
        for part in self.parts:
            part.step()

    def state_dict(self):
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, saved):
        for part, own in zip(self.parts, saved["parts"], strict=True):
            part.load_state_dict(own)
        self.param_groups = [group for part in self.parts for group in part.param_groups]


def muon(groups):
    parameters = [p for group in groups for p in group["params"]]
    matrices, others = [p for p in parameters if p.ndim == 2], [p for p in parameters if p.ndim != 2]
    return Composite([torch.optim.Muon(matrices, lr=0.02, weight_decay=0.0), torch.optim.Adam(others, lr=0.005)])


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch.optim.Muon needs torch 2.9")
@pytest.mark.parametrize("method", METHODS)
def test_muon_on_matrices(method, tmp_path):
    sae = make_sae("TopK")
    result = fit(sae, samples(), method(optimizer=muon), epochs=10, batch_size=50, generator=0)
    assert result.history[-1]["train_fvu"] < 0.5 * result.history[0]["train_fvu"] + 0.1
    assert same(*interrupted_and_resumed(lambda: method(optimizer=muon), tmp_path))


class Averaging(torch.optim.SGD):
    """Steps of SGD at the last iterate; what is evaluated is the mean of all iterates: two sets of parameters, as schedule-free has."""

    def __init__(self, params, lr=1e-2):
        super().__init__(params, lr=lr)
        self.calls, self.training, self.n = [], False, 0

    def _swap(self):
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                other = state.setdefault("other", p.detach().clone())
                p.data, state["other"] = other.clone(), p.detach().clone()

    def train(self):
        self.calls.append("train")
        if not self.training:
            self.training = True
            self._swap()

    def eval(self):
        self.calls.append("eval")
        if self.training:
            self.training = False
            self._swap()

    def step(self, closure=None):
        assert self.training
        self.calls.append("step")
        super().step()
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                state["count"] = state.get("count", torch.zeros(())) + 1
                state["other"].lerp_(p.detach(), 1 / float(state["count"] + 1))


def test_an_optimizer_with_two_modes_is_switched_around_evaluation(tmp_path):
    sae, calls = make_sae("ReLU"), []

    def seen(row):
        calls.append(list(state.optimizer.calls)) if (state := holder.get("state")) else None

    holder = {}

    class Held(SGD):
        def init(self, *arguments, **options):
            holder["state"] = super().init(*arguments, **options)
            return holder["state"]

    method = Held(optimizer=Averaging, lr=1e-2, schedule="constant")
    result = fit(sae, samples(100), method, epochs=2, batch_size=50, generator=0, callback=seen)
    optimizer = result.state.optimizer
    assert [before[-1] for before in calls] == ["eval", "eval"]
    assert not optimizer.training
    squeezed = [c for c, previous in zip(optimizer.calls, [None, *optimizer.calls], strict=False) if c != previous]
    assert squeezed == ["train", "step", "eval", "train", "step", "eval"]
    assert optimizer.calls.count("step") == 4
    assert evaluate(sae, samples(100)).fvu == result.history[-1]["train_fvu"]
    optimizer.train()
    assert evaluate(sae, samples(100)).fvu != result.history[-1]["train_fvu"]  # the last iterate is another

    by_steps = fit(
        make_sae("ReLU"), samples(100), method, steps=4, batch_size=25, log_every_steps=1, generator=0
    ).state.optimizer
    squeezed = [c for c, previous in zip(by_steps.calls, [None, *by_steps.calls], strict=False) if c != previous]
    assert squeezed == ["train", "step", "eval"] * 4


def test_solves_see_the_parameters_that_are_evaluated():
    seen = []

    class Watched(PAMSGD):
        def decoder_step(self, sae, state, batches):
            seen.append(state.optimizer.training)
            super().decoder_step(sae, state, batches)

    for options in ({"solve_gap": 1}, {"decoder_every": 1}, {"solve_first": True}):
        optimizer = fit(
            make_sae(), samples(), Watched(optimizer=Averaging, lr=1e-2, **options), epochs=3, generator=0
        ).state.optimizer
        assert not optimizer.training
    assert seen
    assert not any(seen)


def test_an_optimizer_with_two_modes_is_left_in_evaluation_after_a_failure():
    sae, method = make_sae("ReLU"), SGD(optimizer=Averaging, lr=1e30, schedule="constant")
    with pytest.raises(DivergenceError) as caught:
        fit(sae, samples(), method, epochs=5)
    assert not caught.value.state.optimizer.training
    with pytest.raises(ValueError, match="of which Averaging keeps copies"):
        fit(make_sae(), samples(), SGD(optimizer=Averaging, resample=Resampling(every=1, dead_after=10)))


@pytest.mark.parametrize("decoder", ["free", "tied"])
def test_project_gradient_drops_the_part_along_the_rows(decoder):
    x, gradients, saes = samples(dtype=torch.float64), {}, {}
    for project in (False, True):
        sae = make_sae("TopK", decoder, dtype=torch.float64)
        with torch.no_grad():
            rows = sae.W_dec if decoder == "free" else sae.W_enc.T
            rows /= rows.norm(dim=1, keepdim=True)
        before = rows.detach().clone()
        method = SGD(unit_norm_decoder=True, project_gradient=project, optimizer="sgd", lr=1e-3)
        state = method.init(sae, x, total_steps=10)
        method.step(sae, state, x)
        gradients[project] = (sae.W_dec.grad if decoder == "free" else sae.W_enc.grad.T).clone()
        long = make_sae("TopK", decoder, dtype=torch.float64)
        fit(long, x, SGD(unit_norm_decoder=True, project_gradient=project), epochs=2, generator=0)
        saes[project] = long
    along = (gradients[False] * before).sum(1, keepdim=True)
    assert float(along.abs().max()) > 1e-4
    torch.testing.assert_close(gradients[True], gradients[False] - along * before)
    assert float((gradients[True] * before).sum(1).abs().max()) < 1e-15 + 1e-12 * float(along.abs().max())
    assert not same(saes[True], saes[False])
    with pytest.raises(ValueError, match="project_gradient=True is for unit rows: set unit_norm_decoder=True"):
        SGD(project_gradient=True)
