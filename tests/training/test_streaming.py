"""PAM-SGD on data seen once."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from splinterp import PAMSGD, SAE, SGD, ReLU, TopK, fit
from splinterp.decoder import DecoderStats, solve_decoder
from splinterp.metrics import evaluate
from splinterp.training import Refresh, StreamingPAMSGD, pam, when
from tests.helpers import rng


def stream(n=600, d=6):
    return (
        torch.randn(n, d, generator=rng(1), dtype=torch.float64) @ torch.randn(d, d, generator=rng(2), dtype=torch.float64) + 1
    )


def make(activation=None, decoder="free", n_latents=30):
    return SAE(6, n_latents, activation or TopK(3), decoder, dtype=torch.float64, generator=rng(0))


@pytest.mark.parametrize("activation", [TopK(3), ReLU()])
def test_a_refresh_is_weighted_least_squares_on_the_windows(activation):
    x, sae = stream(240), make(activation)
    method = StreamingPAMSGD(lr=1e-2, refresh_every=4, keep=0.25, ridge=2.0, gradient="encoder", schedule="constant")
    state = method.init(sae, x[:20])
    codes, seen = [], []
    for step, batch in enumerate(x.split(20)):
        method.step(sae, state, batch)
        if (step + 1) % 4 == 0:  # the codes that the refresh has just used: of the encoder as it is
            window = x[20 * (step - 3) : 20 * (step + 1)]
            codes.append(sae.encode(window).detach())
            seen.append(window)
            weights = np.concatenate([np.full(len(z), 0.25 ** (len(codes) - 1 - i)) for i, z in enumerate(codes)])
            assert state.stats.n_samples == pytest.approx(weights.sum())
            Z, X = torch.cat(codes).numpy(), torch.cat(seen).numpy()
            root = np.sqrt(weights)[:, None]
            design = np.hstack([Z, np.ones((len(Z), 1))]) * root
            penalty = np.sqrt(2.0) * np.eye(30, 31)
            expected, *_ = np.linalg.lstsq(np.vstack([design, penalty]), np.vstack([X * root, np.zeros((30, 6))]), rcond=None)
            np.testing.assert_allclose(sae.W_dec.detach().numpy(), expected[:30], rtol=1e-6, atol=1e-8)
            np.testing.assert_allclose(sae.b_dec.detach().numpy(), expected[30], rtol=1e-6, atol=1e-8)
    assert state.window == []


def test_forgetting_is_the_weight_of_samples():
    z, x = torch.rand(50, 5, generator=rng(1), dtype=torch.float64), stream(50)
    kept = DecoderStats(5, 6).update(z, x)
    solution = solve_decoder(kept, ridge=1.0)
    kept.forget(0.5)
    assert kept.n_samples == 25
    torch.testing.assert_close(solve_decoder(kept, ridge=0.5), solution)  # all sums halved: half the ridge
    with pytest.raises(ValueError, match="keep=2"):
        kept.forget(2)
    assert DecoderStats(5, 6).update(z, x).forget(0.0).update(z, x).n_samples == 50


@pytest.mark.parametrize("decoder", ["free", "tied", "tied_residual"])
def test_one_pass_beats_gradients_alone(decoder):
    x = stream(4_000)
    fvus = []
    for method in (StreamingPAMSGD(lr=3e-3, refresh_every=10), SGD(lr=3e-3)):
        sae = make(decoder=decoder)
        if decoder == "free":
            sae.W_dec.data.normal_(0, 0.01, generator=rng(5))
        fit(sae, x, method, epochs=1, batch_size=50)
        fvus.append(evaluate(sae, stream(4_000)[-500:]).fvu)
    assert fvus[0] < fvus[1] * (1.001 if decoder == "tied" else 1)


def test_options_change_the_result():
    def weights(**options):
        sae = make()
        fit(sae, stream(), StreamingPAMSGD(lr=1e-2, **{"refresh_every": 5, **options}), epochs=2, batch_size=20, generator=0)
        return sae.W_dec.detach()

    plain = weights()
    assert torch.equal(plain, weights())
    assert not torch.equal(plain, weights(keep=0.9))
    assert not torch.equal(plain, weights(refresh_every=7))


def test_a_checkpoint_resumes_to_the_same_bits(tmp_path):
    method = StreamingPAMSGD(lr=1e-2, refresh_every=7)
    whole = fit(make(), stream(), method, epochs=4, batch_size=20, generator=0, checkpoint=tmp_path / "whole").sae

    class StopError(Exception):
        pass

    def stop(row):
        if row["epoch"] == 3:
            raise StopError

    with pytest.raises(StopError):
        fit(make(), stream(), method, epochs=4, batch_size=20, generator=0, checkpoint=tmp_path / "part", callback=stop)
    resumed = fit(make(), stream(), method, epochs=4, batch_size=20, generator=0, checkpoint=tmp_path / "part", resume=True).sae
    for ours, theirs in zip(resumed.parameters(), whole.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_what_does_not_fit_a_stream_is_refused(monkeypatch):
    for options in ({"keep": 1.0}, {"keep": -0.1}, {"refresh_every": 0}, {"decoder_every": 3}, {"solve_first": True},
                    {"solve_gap": 3}):  # fmt: skip
        with pytest.raises(ValueError, match="keep|refresh_every"):
            StreamingPAMSGD(**options)
    monkeypatch.setattr(when, "GRAM_LATENTS", 30)
    with pytest.raises(ValueError, match="30 latents need a Gram matrix"):
        StreamingPAMSGD().init(make(), stream())
    assert isinstance(PAMSGD().init(make(), stream()), pam.PAMState)
    assert StreamingPAMSGD(refresh_every=7, keep=0.1, lr=1.0) == PAMSGD(when=Refresh(every=7, keep=0.1), lr=1.0)


def test_a_stream_holds_the_residual_too():
    x, sae = stream(240), make(decoder="tied_residual")
    method = StreamingPAMSGD(lr=1e-2, refresh_every=3, ridge=2.0, hold=0.5)
    state = method.init(sae, x[:20], total_steps=12)
    for step, batch in enumerate(x.split(20), start=1):
        method.step(sae, state, batch)
        assert bool(sae.residual.detach().abs().max() > 0) == (step >= 6), step
    assert state.stats.n_samples > 60  # what was gathered in the hold counts
