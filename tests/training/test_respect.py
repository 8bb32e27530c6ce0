"""What users override is respected everywhere or refused: no faster way goes around it."""

from __future__ import annotations

import copy
import pickle
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from splinterp import PAMSGD, SAE, SGD, ReLU, TopK, fit
from splinterp.activations import Activation
from splinterp.encoders import Encoder
from splinterp.metrics import evaluate
from splinterp.sae import SAEOutput
from splinterp.training.method import check_method
from tests.helpers import DECODERS, make_sae, rng, samples

METHODS = [SGD(lr=1e-2), PAMSGD(lr=1e-2)]


def wide(activation, decoder="free", kind=SAE, **options):
    """An SAE of few active latents, whose training would take the sparse kernels."""
    return kind(8, 64, activation, decoder, generator=rng(1), **options)


@pytest.mark.parametrize("k", [2, 9])
@pytest.mark.parametrize("base", [SGD, PAMSGD])
def test_a_loss_of_ones_own_is_what_is_minimised(base, k):
    calls = []

    @dataclass(frozen=True, kw_only=True)
    class Huber(base):
        def loss(self, sae, x, observer=None):
            calls.append(len(x))
            return torch.nn.functional.huber_loss(sae(x).x_hat, x)

    sae, plain = (wide(TopK(k), "tied_residual") for _ in range(2))
    fit(sae, samples(), Huber(lr=1e-2), epochs=2, batch_size=64, generator=0)
    assert len(calls) == 2 * 4
    fit(plain, samples(), base(lr=1e-2), epochs=2, batch_size=64, generator=0)
    assert not torch.equal(sae.W_enc, plain.W_enc)


class Gated(SAE):
    """Codes times a trained gate of each latent."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.gate = torch.nn.Parameter(torch.linspace(0.2, 2.0, self.n_latents))

    def encode(self, x):
        return super().encode(x) * self.gate

    def forward(self, x):
        acts = self.encode(x)
        return SAEOutput(self.decode(acts), acts, self.pre_acts(x))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("k", [2, 9])
def test_an_encode_of_ones_own_is_trained_evaluated_solved_and_saved(method, decoder, k, tmp_path):
    sae, x = wide(TopK(k), decoder, Gated), samples(400)
    before = sae.gate.detach().clone()
    result = fit(sae, x, method, epochs=3, batch_size=64, generator=0)
    assert not torch.equal(sae.gate, before)
    x_hat = sae(x).x_hat.detach()
    own = float((x - x_hat).square().sum() / (x - x.mean(0)).square().sum())
    assert evaluate(sae, x).fvu == pytest.approx(own, rel=1e-5)
    assert result.history[-1]["train_fvu"] == pytest.approx(own, rel=1e-4)
    sae.save(tmp_path)
    back = SAE.load(tmp_path)
    assert type(back) is Gated
    torch.testing.assert_close(back(x).x_hat, x_hat)
    if isinstance(method, PAMSGD) and decoder == "free":  # the solve saw the gated codes
        acts = sae.encode(x).detach().double()
        error = x.double() - acts @ sae.W_dec.detach().double() - sae.b_dec.detach().double()
        gradient = (acts - acts.mean(0)).T @ error - result.state.ridge * sae.W_dec.detach().double()
        assert float(gradient.norm()) < 1e-3 * float((acts.T @ x.double()).norm())


def test_a_forward_that_is_not_decode_of_encode_is_refused_in_training_and_read_in_evaluation():
    class Skip(SAE):
        def forward(self, x):
            out = super().forward(x)
            return out._replace(x_hat=out.x_hat + 0.5 * x)

    x, sae = samples(), wide(TopK(2), kind=Skip)
    for method in METHODS:
        with pytest.raises(TypeError, match=r"Skip overrides forward, whose x_hat is not decode\(encode\(x\)\)"):
            fit(sae, x, method)
    own = float((x - sae(x).x_hat.detach()).square().sum() / (x - x.mean(0)).square().sum())
    assert evaluate(sae, x).fvu == pytest.approx(own, rel=1e-5)


@pytest.mark.parametrize("name", ["pre_acts", "decode"])
def test_other_methods_of_ones_own_are_respected(name):
    class Doubled(SAE):
        pass

    if name == "pre_acts":
        Doubled.pre_acts = lambda self, x: 2 * SAE.pre_acts(self, x)
    else:
        Doubled.decode = lambda self, acts: 2 * SAE.decode(self, acts)
    x, sae, plain = samples(), wide(TopK(2), kind=Doubled), wide(TopK(2))
    assert float(SGD().loss(sae, x).detach()) == pytest.approx(float((sae(x).x_hat - x).square().mean().detach()), rel=1e-5)
    assert float(SGD().loss(sae, x).detach()) != pytest.approx(float(SGD().loss(plain, x).detach()), rel=1e-3)
    fit(sae, x, SGD(lr=1e-2), epochs=2, generator=0)
    fit(plain, x, SGD(lr=1e-2), epochs=2, generator=0)
    assert not torch.equal(sae.W_enc, plain.W_enc)


class Coupled(Activation):
    """Latents above the batch's own mean score: samples of a batch depend on each other."""

    def forward(self, pre_acts):
        return torch.where(pre_acts > pre_acts.mean(0), pre_acts, 0.0).relu()


class Said(ReLU):
    """A ReLU that says of itself that it couples nothing."""

    couples_samples = False

    def forward(self, pre_acts):
        return torch.relu(pre_acts)


def test_an_activation_of_ones_own_sees_the_batches_as_they_come():
    x, seen = samples(300), []

    class Spy(Coupled):
        def forward(self, pre_acts):
            seen.append(len(pre_acts))
            return super().forward(pre_acts)

    sae = SAE(8, 12, Spy(), generator=0)
    assert sae.couples_samples
    method = PAMSGD(ridge=1.0)
    state = method.init(sae, x)
    method.encoder_step(sae, state, x[:50])
    seen.clear()
    method.decoder_step(sae, state, x.split(50))
    assert seen == [50] * 6
    assert not SAE(8, 12, Said(), generator=0).couples_samples
    assert not SAE(8, 12, ReLU(), generator=0).couples_samples


def test_an_activation_of_ones_own_is_saved_and_loaded(tmp_path):
    class Capped(Activation):
        couples_samples = False

        def __init__(self, cap: float) -> None:
            super().__init__()
            self.cap = cap

        def config(self):
            return {**super().config(), "cap": self.cap}

        def forward(self, pre_acts):
            return pre_acts.clamp(0.0, self.cap)

    sae = SAE(8, 12, Capped(0.7), generator=0)
    sae.save(tmp_path)
    back = SAE.load(tmp_path)
    assert type(back.activation) is Capped
    assert back.activation.cap == 0.7
    torch.testing.assert_close(back(samples()).x_hat, sae(samples()).x_hat)


@pytest.mark.parametrize("k", [2, 9])
def test_a_topk_with_a_forward_of_its_own_has_one_code(k):
    class Halved(TopK):
        def forward(self, pre_acts):
            return 0.5 * TopK(self.k)(pre_acts)

    sae, x = wide(Halved(k)), samples()
    top = sae.encode_top(x)
    dense = torch.zeros(len(x), 64).scatter_add(1, top.top_indices, top.top_acts)
    torch.testing.assert_close(dense, sae.encode(x))
    assert evaluate(sae, x).fvu == pytest.approx(
        float((x - sae(x).x_hat.detach()).square().sum() / (x - x.mean(0)).square().sum()), rel=1e-5
    )
    assert float(SGD().loss(sae, x).detach()) == pytest.approx(float((sae(x).x_hat - x).square().mean().detach()), rel=1e-5)


def test_a_topk_with_a_keep_of_its_own_takes_autograd():
    class Squared(TopK):
        def keep(self, scores):
            return torch.relu(scores).square()

    x, grads = samples(), []
    for sparse in (True, False):
        sae = wide(Squared(2), dtype=torch.float64)
        assert sae.trains_sparse
        assert sae.squared_error_gradients(x.double(), {id(p) for p in sae.parameters()}) is None
        loss = SGD().loss(sae, x.double()) if sparse else (sae(x.double()).x_hat - x.double()).square().mean()
        grads.append(torch.autograd.grad(loss, list(sae.parameters())))
    torch.testing.assert_close(grads[0], grads[1])


@pytest.mark.parametrize("decoder", ["tied", "tied_residual"])
def test_a_computed_decoder_is_read_and_not_written(decoder):
    sae = make_sae("TopK", decoder)
    before = sae.W_dec.detach().clone()

    def write_slice():
        sae.W_dec[5] = 0

    def write_row():
        sae.W_dec[5].mul_(0)

    def scale():
        sae.W_dec *= 2

    with torch.no_grad():
        for write in (lambda: sae.W_dec.mul_(0), write_slice, write_row, scale, lambda: sae.W_dec.copy_(torch.ones(12, 8)),
                      lambda: sae.W_dec.T.zero_(), lambda: torch.add(before, 1, out=sae.W_dec), lambda: sae.W_dec.data.zero_(),
                      lambda: sae.W_dec.detach()[2:].zero_(), lambda: next(iter(sae.W_dec)).zero_(), lambda: sae.W_dec.split(2)[1].zero_(),
                      lambda: setattr(sae.W_dec, "data", before), lambda: torch._foreach_mul_([sae.W_dec], 2),
                      lambda: torch.nn.init.zeros_(sae.W_dec), lambda: torch.nn.functional.relu(sae.W_dec, inplace=True)):  # fmt: skip
            with pytest.raises((RuntimeError, AttributeError), match="W_dec"):
                write()
    for value in (torch.ones(12, 8), torch.nn.Parameter(torch.ones(12, 8))):
        with pytest.raises(AttributeError, match="is computed from W_enc"):
            sae.W_dec = value
    torch.testing.assert_close(sae.W_dec, before, rtol=0, atol=0)
    assert "W_dec" not in sae.state_dict()
    for plain in (sae.W_dec + 0, sae.W_dec.clone(), 2 * sae.W_dec, sae.W_dec @ sae.W_enc.detach(), copy.deepcopy(sae.W_dec.detach()),
                  pickle.loads(pickle.dumps(sae.W_dec.detach())), torch.stack(list(sae.W_dec))):  # fmt: skip
        assert type(plain) is torch.Tensor
    sae.W_dec.clone().mul_(2)
    torch.testing.assert_close(sae.W_dec.detach().norm(dim=1), before.norm(dim=1))
    sae.W_dec.square().sum().backward()
    assert sae.W_enc.grad is not None
    rows = sae.W_dec.requires_grad_()
    rows.retain_grad()
    rows.square().sum().backward()
    torch.testing.assert_close(rows.grad, 2 * before)
    assert torch.func.vmap(lambda z: z @ sae.W_dec)(torch.eye(12)).shape == (12, 8)
    with torch.no_grad():
        free = make_sae("TopK", "free")
        free.W_dec.mul_(0)
        assert float(free.W_dec.abs().sum()) == 0


def test_using_a_batch_topk_sae_does_not_change_it():
    sae, x = make_sae("BatchTopK"), samples(400)
    result = fit(sae, x, SGD(lr=1e-2), epochs=1, batch_size=32, x_val=samples(300, seed=5), generator=0)
    assert not sae.training
    before, state = float(sae.activation.threshold), {k: v.clone() for k, v in sae.state_dict().items()}
    assert result.history[-1]["l0"] == pytest.approx(3.0, rel=0.15)  # k, though it was trained for one epoch
    for mode in (True, False):
        sae.train(mode)
        for _ in range(20):
            sae.encode(x[:32])
        evaluate(sae, x)
    assert float(sae.activation.threshold) == before
    assert all(torch.equal(sae.state_dict()[name], value) for name, value in state.items())


class Descent:
    """A method that has what the protocol names, and nothing else."""

    couples_batches = True
    wants_x_val = False

    class State:
        def __init__(self):
            self.last = float("nan")

        def log(self):
            return {"loss": self.last, "speed": 1.0}

        def check_finite(self):
            pass

        def set_training(self, training):
            self.mode = training

        def join(self, processes):
            raise ValueError("one process")

        def state_dict(self):
            return {"last": self.last}

        def load_state_dict(self, saved):
            self.last = saved["last"]

    def init(self, sae, x, total_steps=None, *, x_val=None):
        return self.State()

    def step(self, sae, state, x):
        loss = (sae(x).x_hat - x).square().mean()
        state.last = float(loss.detach())
        for p, gradient in zip(sae.parameters(), torch.autograd.grad(loss, list(sae.parameters())), strict=True):
            p.data -= 0.1 * gradient

    def end_epoch(self, sae, state, batches):
        assert len(list(batches)) == 4

    def __str__(self):
        return "Descent"


def test_a_method_that_has_what_the_protocol_names_is_all_that_fit_needs(tmp_path):
    whole = fit(make_sae(), samples(), Descent(), epochs=4, batch_size=64, generator=0)
    assert whole.history[-1]["speed"] == 1.0
    assert whole.history[-1]["step"] == 16
    assert whole.history[-1]["train_fvu"] < whole.history[0]["train_fvu"]
    fit(make_sae(), samples(), Descent(), epochs=2, batch_size=64, generator=0, checkpoint=tmp_path / "c")
    extended = fit(
        make_sae(), samples(), Descent(), epochs=4, batch_size=64, generator=0, checkpoint=tmp_path / "c", resume=True
    )
    assert torch.equal(extended.sae.W_enc, whole.sae.W_enc)

    class Partial:
        def init(self, sae, x, total_steps=None): ...
        def step(self, sae, state, x): ...

    with pytest.raises(TypeError, match="Partial is no training method: it lacks couples_batches, wants_x_val, end_epoch"):
        check_method(Partial())
    with pytest.raises(TypeError, match="Partial"):
        fit(make_sae(), samples(), Partial())

    class Stateless(Descent):
        def init(self, sae, x, total_steps=None, *, x_val=None):
            return object()

    with pytest.raises(TypeError, match="the state of Stateless lacks log, check_finite"):
        fit(make_sae(), samples(), Stateless())


def test_what_reads_the_weights_alone_refuses_what_they_do_not_tell(tmp_path):
    from splinterp.geometry import region_of
    from splinterp.interop import save_saelens

    class Shifted(ReLU):
        def forward(self, pre_acts):
            return torch.relu(pre_acts - 0.5)

    @dataclass(frozen=True)
    class Twice(Encoder):
        def pre_acts(self, sae, centred):
            return 2 * super().pre_acts(sae, centred)

    changed = {
        "Shifted": SAE(8, 12, Shifted(), generator=0),
        "Twice": SAE(8, 12, ReLU(), encoder=Twice(), generator=0),
        "Gated overrides encode": Gated(8, 12, ReLU(), generator=0),
    }
    for what, sae in changed.items():
        for purpose, use in (
            ("geometry", lambda sae: region_of(sae, samples()[0])),
            ("SAELens", lambda sae: save_saelens(sae, tmp_path)),
        ):
            with pytest.raises(TypeError, match=f"{purpose}.*{what}"):
                use(sae)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("method", METHODS)
def test_an_encoder_of_ones_own_is_trained_saved_and_loaded(decoder, method, tmp_path):
    @dataclass(frozen=True)
    class Scaled(Encoder):
        start: float = 1.0

        def parameters(self, d_in, n_latents):
            return {"gain": torch.full((n_latents,), self.start)}

        def pre_acts(self, sae, centred):
            return super().pre_acts(sae, centred) * sae.gain

    sae, x = SAE(8, 64, TopK(2), decoder, encoder=Scaled(start=1.5), generator=0), samples()
    assert not sae.trains_sparse
    result = fit(sae, x, method, epochs=3, batch_size=32, generator=0)
    assert float((sae.gain.detach() - 1.5).abs().max()) > 1e-3
    assert result.history[-1]["train_fvu"] < result.history[0]["train_fvu"] + 0.01
    sae.save(tmp_path)
    back = SAE.load(tmp_path)
    assert back.encoder == Scaled(start=1.5)
    torch.testing.assert_close(back(x).x_hat, sae(x).x_hat)


def test_a_checkpoint_needs_a_method_that_can_be_told_again(tmp_path):
    class Anonymous(Descent):
        __str__ = object.__str__

    fit(make_sae(), samples(), Anonymous(), epochs=1, batch_size=64)
    with pytest.raises(TypeError, match="give it a __repr__ of its options"):
        fit(make_sae(), samples(), Anonymous(), epochs=1, batch_size=64, checkpoint=tmp_path / "c")


def test_what_makes_an_sae_from_given_weights_leaves_the_global_random_state(tmp_path):
    from splinterp.baselines import PCAAutoencoder
    from splinterp.interop import load_saelens, save_saelens, to_nonnegative

    sae = make_sae("AbsTopK")
    sae.save(tmp_path / "own")
    save_saelens(make_sae("TopK"), tmp_path / "theirs")
    before = torch.random.get_rng_state()
    to_nonnegative(sae)
    SAE.load(tmp_path / "own")
    load_saelens(tmp_path / "theirs")
    PCAAutoencoder(3).fit(samples().numpy()).to_sae()
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("m", [24, 64])
def test_a_selection_of_ones_own_is_kept(m):
    class Halves(TopK):
        """Two of each half."""

        def select(self, scores):
            half = scores.shape[1] // 2
            return torch.cat([scores[:, :half].topk(2, 1).indices, half + scores[:, half:].topk(2, 1).indices], 1)

    x = samples(300)
    sae = SAE(8, m, Halves(4), generator=0)
    kept = sae.activation.top(sae.pre_acts(x)).top_indices
    assert ((kept < m // 2).sum(1) == 2).all()
    fit(sae, x, SGD(), epochs=1, generator=0)
    sae.encode(x)
