"""What every encoder promises: training by both methods, files, checkpoints, samples that stand alone, refusals."""

from __future__ import annotations

import math

import pytest
import torch

from splinterp import PAMSGD, SAE, SGD, AbsTopK, BiasAdaptation, JumpReLU, ReLU, TopK, fit
from splinterp.encoders import AdaptiveK, Gated, Kronecker, TopAFA, fit_probe
from splinterp.geometry import region_of
from splinterp.metrics import evaluate
from splinterp.training import Resampling
from tests.encoders.cases import ENCODERS, make
from tests.helpers import DECODERS, samples

METHODS = {"SGD": SGD(lr=3e-3), "PAMSGD": PAMSGD(lr=3e-3)}
X = samples(240)


class StoppedError(Exception):
    pass


def decoders_of(name):
    return ("free",) if name.startswith("Kronecker") else DECODERS


CASES = [(name, decoder) for name in ENCODERS for decoder in decoders_of(name)]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("name", "decoder"), CASES)
def test_both_methods_train_it_and_it_is_saved_and_resumed(name, decoder, method, tmp_path):
    def fresh():
        return make(name, decoder, dtype=torch.float32)

    options = {"batch_size": 32, "generator": 0, "x_val": samples(60, seed=5)}
    whole = fit(fresh(), X, METHODS[method], epochs=6, **options)
    before = evaluate(fresh().calibrate(X), X).fvu
    assert whole.history[-1]["train_fvu"] < 0.7 * before

    def stop(row):
        if row["epoch"] == 4:
            raise StoppedError

    with pytest.raises(StoppedError):
        fit(fresh(), X, METHODS[method], epochs=6, checkpoint=tmp_path / "c", callback=stop, **options)
    resumed = fit(fresh(), X, METHODS[method], epochs=6, checkpoint=tmp_path / "c", resume=True, **options)
    for key, value in whole.sae.state_dict().items():
        assert torch.equal(value, resumed.sae.state_dict()[key]), key
    whole.sae.save(tmp_path / "sae")
    back = SAE.load(tmp_path / "sae")
    assert back.encoder == whole.sae.encoder
    assert torch.equal(back(X).x_hat, whole.sae.eval()(X).x_hat)


@pytest.mark.parametrize("name", ENCODERS)
def test_codes_are_those_of_each_sample_alone(name):
    sae = make(name)
    x = X.double()
    sae.calibrate(x).eval()
    acts = sae.encode(x)
    torch.testing.assert_close(torch.cat([sae.encode(row) for row in x[:40].split(1)]), acts[:40])
    assert sae.couples_samples == any(word in name for word in ("BatchTopK", "InputNoise", "Variational"))
    assert (acts >= 0).all() or name == "Variational"
    assert 0 < float((acts != 0).double().mean()) < 1


@pytest.mark.parametrize("name", ENCODERS)
def test_forward_code_and_terms_that_read_scores_agree(name):
    sae, x = make(name), X[:30].double()
    sae.train("BatchTopK" in name)  # noise is drawn anew at each call
    x_hat, acts, pre_acts = sae(x)
    torch.testing.assert_close(sae.code(x), acts)
    torch.testing.assert_close(sae.code_from(pre_acts, x), acts)
    torch.testing.assert_close(x_hat, acts @ sae.W_dec + sae.b_dec)
    sae.check_linear()


@pytest.mark.parametrize("name", ENCODERS)
def test_nan_is_seen(name):
    sae = make(name)
    with torch.no_grad():
        sae.b_enc[0] = math.nan
    assert torch.isnan(sae.train().encode(X[:4].double())).any()


@pytest.mark.parametrize("name", ENCODERS)
def test_gradients_are_those_of_the_selected_values(name):
    """Finite differences of a loss, at points where no selection changes."""
    sae, x = make(name).train("BatchTopK" in name), X[:6].double()

    def loss():
        return (x - sae(x).x_hat).square().sum()

    loss().backward()
    support, step = sae(x).acts != 0, 1e-6
    checked = 0
    for p in sae.parameters():
        flat, gradient = p.data.reshape(-1) if p.is_contiguous() else p.data.T.reshape(-1), p.grad
        gradient = gradient.reshape(-1) if p.is_contiguous() else gradient.T.reshape(-1)
        for at in range(0, len(flat), max(1, len(flat) // 5)):
            values = []
            for sign in (1, -1):
                flat[at] += sign * step
                same = torch.equal(sae(x).acts != 0, support)
                values.append(float(loss().detach()) if same else math.nan)
                flat[at] -= sign * step
            if not any(map(math.isnan, values)):
                assert float(gradient[at]) == pytest.approx((values[0] - values[1]) / (2 * step), rel=1e-5, abs=1e-5)
                checked += 1
    assert checked > 10


@pytest.mark.parametrize("name", ["Gated", "Kronecker", "TopAFA", "AdaptiveK"])
def test_geometry_refuses_codes_that_are_not_of_affine_scores(name):
    with pytest.raises(TypeError, match=f"its encoder is a {type(ENCODERS[name][0]).__name__}"):
        region_of(make(name), X[0].double())


@pytest.mark.parametrize(
    ("encoder", "activation", "decoder", "error", "words"),
    [
        (Gated(), JumpReLU(), "free", TypeError, "pass ReLU"),
        (Gated(), AbsTopK(2), "free", TypeError, "pass ReLU"),
        (TopAFA(), TopK(2), "free", TypeError, "chooses itself"),
        (AdaptiveK(1, 5), TopK(2), "free", TypeError, "chooses itself"),
        (AdaptiveK(), ReLU(), "free", ValueError, "highest=320 is larger than n_latents=12"),
        (Kronecker(heads=2), ReLU(), "free", ValueError, "makes 16 latents, not n_latents=12"),
        (Kronecker(heads=2, left=2, right=3), ReLU(), "tied", ValueError, "one column of W_enc for each latent"),
        (Kronecker(heads=3, left=2, right=2), ReLU(), "tied", ValueError, "one column of W_enc for each latent"),
    ],
)
def test_what_does_not_go_together_is_refused(encoder, activation, decoder, error, words):
    with pytest.raises(error, match=words):
        SAE(8, 12, activation, decoder, encoder=encoder)


@pytest.mark.parametrize(
    ("encoder", "options", "words"),
    [
        (Kronecker, {"heads": 0}, "heads=0"),
        (Kronecker, {"heads": 2, "left": 0}, "left=0"),
        (AdaptiveK, {"lowest": 0}, "lowest=0"),
        (AdaptiveK, {"lowest": 5, "highest": 4}, "highest=4"),
        (AdaptiveK, {"slope": -1.0}, "slope=-1"),
    ],
)
def test_options_out_of_range_are_refused(encoder, options, words):
    with pytest.raises(ValueError, match=words):
        encoder(**options)


@pytest.mark.parametrize("sizes", [(4, 3, 1), (3, 2, 2)])  # the latter has as many columns as latents
def test_kronecker_has_no_column_for_each_latent_to_adapt_or_resample(sizes):
    sae = SAE(8, 12, ReLU(), encoder=Kronecker(*sizes), generator=0)
    with pytest.raises(TypeError, match="one for each latent"):
        BiasAdaptation(gain=1.0).init(sae, X)
    with pytest.raises(TypeError, match="one for each latent"):
        fit(sae, X, SGD(resample=Resampling(every=2, dead_after=10)), epochs=1, generator=0)


def test_a_gated_latent_that_is_resampled_fires_again():
    sae = SAE(8, 16, ReLU(), "tied_residual", encoder=Gated(), generator=0)
    with torch.no_grad():
        sae.b_mag[:8] = -50.0
        sae.r_mag[:8] = 0.5
    fit(sae, X, SGD(lr=1e-3, resample=Resampling(every=10, dead_after=100)), steps=40, batch_size=60, generator=0)
    assert float(sae.b_mag.detach().min()) > -1
    assert float(sae.r_mag.detach().abs().max()) < 0.4
    assert int((sae.encode(X) > 0).any(0).sum()) == 16


def test_training_moves_no_probe():
    x = X + 5.0
    sae = SAE(8, 12, ReLU(), encoder=AdaptiveK(1, 9), generator=0)
    fit_probe(sae, x, x[:, 0])
    before = x @ sae.probe + sae.probe_bias
    fit(sae, x, SGD(), epochs=2, generator=0)
    torch.testing.assert_close(x @ sae.probe + sae.probe_bias, before)
    assert float(before.mean()) == pytest.approx(0.0, abs=1e-3)


def test_noise_is_none_to_what_reads_the_weights():
    sae = make("InputNoise").eval()
    assert sorted(region_of(sae, X[0].double()).support.tolist()) == sae.encode(X[:1].double())[0].nonzero().flatten().tolist()
