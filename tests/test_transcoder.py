"""Transcoders: the SAE that they are for y = x, solves of y on codes, files, refusals."""

from __future__ import annotations

import pytest
import torch

from splinterp import PAMSGD, SAE, SGD, BiasAdaptation, ReLU, TopK, Transcoder, fit, paired
from splinterp.encoders import TopAFA
from splinterp.ensembles import Ensemble
from splinterp.geometry import region_of
from splinterp.interop import save_saelens, to_jumprelu
from splinterp.losses import AuxK, Matryoshka, RowNormL1, SquaredError
from splinterp.metrics import bipolarity, description_length, error_predictability, evaluate, fvu
from splinterp.training import Resampling, StreamingPAMSGD
from tests.helpers import ACTIVATIONS, rng, samples, stopped_and_resumed

X = samples(240)
Y = torch.relu(X @ torch.randn(8, 5, generator=rng(3)))
DATA = paired(X, Y)
METHODS = {"SGD": SGD(lr=1e-2), "PAMSGD": PAMSGD(lr=1e-2)}


def make(activation="TopK", m=64, seed=1, dtype=torch.float32, **options):
    return Transcoder(8, m, ACTIVATIONS[activation], d_out=5, generator=rng(seed), dtype=dtype, **options)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_it_learns_y_is_saved_and_resumed(activation, method, tmp_path):
    options = {"batch_size": 32, "generator": 0, "x_val": DATA[200:]}
    whole = fit(make(activation), DATA[:200], METHODS[method], epochs=8, **options)
    found = evaluate(whole.sae, DATA[200:])
    assert found.fvu == pytest.approx(fvu(Y[200:], whole.sae(X[200:]).x_hat.detach()), rel=1e-4)
    assert found.fvu < 0.8

    def run(**checkpoints):
        return fit(make(activation), DATA[:200], METHODS[method], epochs=8, **options, **checkpoints)

    resumed = stopped_and_resumed(run, 5, tmp_path / "c")
    assert all(torch.equal(v, resumed.sae.state_dict()[k]) for k, v in whole.sae.state_dict().items())
    whole.sae.save(tmp_path / "t")
    back = SAE.load(tmp_path / "t")
    assert isinstance(back, Transcoder)
    assert torch.equal(back(X).x_hat, whole.sae(X).x_hat)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("activation", ["TopK", "ReLU"])
def test_of_x_itself_it_is_the_sae(activation, method):
    x = X.double()
    sae = SAE(8, 64, ACTIVATIONS[activation], "free", init_dec="random", generator=rng(1), dtype=torch.float64)
    same = Transcoder(8, 64, ACTIVATIONS[activation], d_out=8, generator=rng(1), dtype=torch.float64)
    with torch.no_grad():
        same.W_dec.copy_(sae.W_dec)
    assert same.trains_sparse == sae.trains_sparse == (activation == "TopK")
    for model, data in ((sae, x), (same, paired(x, x))):
        fit(model, data, METHODS[method], epochs=4, batch_size=32, x_val=data[:60], generator=0)
    for name, value in sae.state_dict().items():
        torch.testing.assert_close(same.state_dict()[name], value, atol=1e-8, rtol=1e-6)


def test_a_solve_is_least_squares_of_y_on_codes():
    model = make(m=12, dtype=torch.float64)
    data = DATA.double()
    method = PAMSGD(ridge=0.0)
    state = method.init(model, data)
    codes = torch.cat([model.encode(data).detach(), torch.ones(240, 1)], 1)
    method.decoder_step(model, state, data.split(50))
    best = torch.linalg.lstsq(codes, Y.double(), driver="gelsd").solution
    left = float((Y - codes @ best).square().sum())
    assert float((Y - model(data).x_hat.detach()).square().sum()) == pytest.approx(left, rel=1e-9)


def test_sparse_gradients_are_autograds(monkeypatch):
    model, data = make(dtype=torch.float64), DATA.double()
    found = {}
    for sparse in (True, False):
        model.zero_grad()
        if sparse:
            assert model.squared_error_gradients(data, {id(p) for p in model.parameters()}) is not None
        else:
            (Y - model(X.double()).x_hat).square().mean().backward()
        found[sparse] = {name: p.grad.clone() for name, p in model.named_parameters()}
    for name, gradient in found[True].items():
        torch.testing.assert_close(gradient, found[False][name])


def test_terms_centres_and_metrics():
    terms = (Matryoshka(widths=(8, 16)), AuxK(k_aux=2, dead_after=50))
    result = fit(make(b_pre=True), DATA, PAMSGD(terms=terms, lr=1e-2), epochs=4, batch_size=32, x_val=DATA[:60], generator=0)
    assert result.history[-1]["val_fvu"] < 1
    fresh = make()
    method = SGD()
    method.init(fresh, DATA)
    from splinterp.training import start_at_mean

    start_at_mean(fresh, DATA)
    torch.testing.assert_close(fresh.b_pre, X.mean(0))
    torch.testing.assert_close(fresh.b_dec.detach(), Y.mean(0))
    assert description_length(fresh, DATA, 0.1).bits > 0
    assert error_predictability(fresh, DATA[:200], DATA[200:]).error <= 1
    sae = make("ReLU")
    fit(sae, DATA, SGD(terms=(SquaredError(), RowNormL1(weight=1e-2))), epochs=2, batch_size=32, generator=0)
    fit(make("ReLU"), DATA, BiasAdaptation(groups=2, lowest=0.05), epochs=2, batch_size=32, generator=0)


def test_its_regions_are_its_encoders():
    model = make(dtype=torch.float64).eval()
    region = region_of(model, X[0].double())
    torch.testing.assert_close(
        torch.from_numpy(X[0].double().numpy() @ region.matrix + region.offset), model(X[:1].double()).x_hat[0].detach()
    )
    assert sorted(region.support.tolist()) == model.encode(X[:1].double())[0].nonzero().flatten().tolist()


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda p: paired(X, Y[:5]), ValueError, "240 rows and y has 5"),
        (lambda p: make(decoder="tied"), ValueError, "no mirror of x"),
        (lambda p: make(init_dec="transpose"), ValueError, "no mirror of x"),
        (lambda p: make("ReLU", encoder=TopAFA()), TypeError, "take TopK"),
        (lambda p: Transcoder(8, 12, ReLU(), d_out=0), ValueError, "d_out=0"),
        (lambda p: fit(make(), X, SGD()), ValueError, "13"),
        (lambda p: evaluate(make(), X), ValueError, "13"),
        (lambda p: make().encode(Y), ValueError, "13"),
        (lambda p: save_saelens(make(), p), TypeError, "reconstructs its input"),
        (lambda p: to_jumprelu(make("ReLU")), TypeError, "reconstructs its input"),
        (lambda p: fit(make(), DATA, SGD(resample=Resampling(every=2, dead_after=10)), epochs=1), TypeError, "no input"),
    ],
)
def test_what_cannot_be_is_refused(call, error, words, tmp_path):
    with pytest.raises(error, match=words):
        call(tmp_path)


def test_a_model_of_a_batch_trains_on_few_kept_latents():
    assert make().trains_sparse
    assert Transcoder(8, 64, TopK(3), d_out=5).pairs


def test_between_solves_the_ridge_is_as_strong_as_in_them():
    transcoder = make(m=16, dtype=torch.float64)
    method, x = PAMSGD(ridge=50.0), DATA.double()
    state = method.init(transcoder, x)
    method.decoder_step(transcoder, state, [x])
    method._set_rates(state)
    method.gradients(transcoder, state, x, list(transcoder.parameters()))
    method.adjust_gradients(transcoder, state)
    (pull,) = (g["weight_decay"] for g in state.optimizer.param_groups if any(p is transcoder.W_dec for p in g["params"]))
    assert transcoder.W_dec.grad is not None
    assert float(transcoder.W_dec.grad.norm()) > 1e-3
    assert (
        float((transcoder.W_dec.grad + pull * transcoder.W_dec.detach()).norm()) < 1e-10
    )  # the solved decoder is where both agree


@pytest.mark.parametrize("refresh_every", [None, 5])
def test_a_streamed_run_is_resumed_within_a_window(refresh_every, tmp_path):
    class StoppedError(Exception):
        pass

    def run(stop=None, name="run.pt"):
        def callback(row):
            if row["step"] == stop:
                raise StoppedError

        options = {} if refresh_every is None else {"refresh_every": refresh_every}
        return fit(
            make(), DATA, StreamingPAMSGD(**options), steps=12, batch_size=40, generator=3, log_every_steps=1, callback=callback,
            checkpoint=tmp_path / name, checkpoint_every_steps=1, resume=True,
        )  # fmt: skip

    whole = run(name="whole.pt")
    with pytest.raises(StoppedError):
        run(stop=8)
    resumed = run()
    for name, value in whole.sae.state_dict().items():
        assert torch.equal(value, resumed.sae.state_dict()[name])


def test_signs_and_ensembles_of_pairs():
    found, acts = bipolarity(make("AbsTopK"), DATA), make("AbsTopK").encode(X)
    assert torch.equal(found.positive, (acts > 0).sum(0))
    assert torch.equal(found.negative, (acts < 0).sum(0))
    with pytest.raises(TypeError, match="transcoder"):
        Ensemble([make(), make(seed=2)])
