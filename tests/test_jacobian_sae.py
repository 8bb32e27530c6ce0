"""Two SAEs around an MLP: blocks stay blocks, the Jacobian is that of the halves, the solve is two solves, the penalty acts."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from splinterp import PAMSGD, SAE, SGD, JacobianSAE, TopK, fit
from splinterp.activations import BlockTopK, TopActs
from splinterp.decoder import DecoderStats
from splinterp.jacobian_sae import ENTRYWISE
from splinterp.losses import JacobianL1, SquaredError
from splinterp.losses.forward import Forward
from splinterp.metrics import MLP, active_jacobian, evaluate
from splinterp.training import BiasAdaptation, Resampling
from tests.helpers import DECODERS, Averaging, rng, samples, stopped_and_resumed

METHODS = {"SGD": SGD(lr=1e-2), "PAMSGD": PAMSGD(lr=1e-2), "SGD, penalty": SGD(lr=1e-2, terms=(SquaredError(), JacobianL1(weight=0.1))),
           "PAMSGD, penalty": PAMSGD(lr=1e-2, terms=(SquaredError(), JacobianL1(weight=0.1)))}  # fmt: skip


def mlp(activation=F.gelu, seed=3, d_after=5, dtype=torch.float64):
    g = rng(seed)

    def drawn(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype)

    return MLP(drawn(8, 10) / 8**0.5, drawn(10), drawn(10, d_after) / 10**0.5, drawn(d_after), activation)


def make(decoder="free", m=24, k=6, seed=1, activation=F.gelu, dtype=torch.float64, **options):
    return JacobianSAE(
        13, m, BlockTopK(k, 2), decoder, mlp=mlp(activation, dtype=dtype), dtype=dtype, generator=rng(seed), **options
    )


def is_in_blocks(sae):
    half = sae.n_latents // 2
    outside = [sae.W_enc[:8, half:], sae.W_enc[8:, :half], sae.W_dec[:half, 8:], sae.W_dec[half:, :8]]
    return all(not bool(part.any()) for part in outside)


X = samples(200, dtype=torch.float64)


@pytest.mark.parametrize("m", [24, 400])  # dense and sparse codes
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("decoder", DECODERS)
def test_it_learns_in_blocks_is_saved_and_resumed(decoder, method, m, tmp_path):
    pairs = make(dtype=torch.float32).samples(X.float())
    options = {"batch_size": 50, "generator": 0, "x_val": pairs[150:], "epochs": 20}

    def run(**checkpoints):
        return fit(make(decoder, m, dtype=torch.float32), pairs[:150], METHODS[method], **options, **checkpoints)

    whole = run()
    assert is_in_blocks(whole.sae)
    assert whole.history[-1]["val_fvu"] < 0.9
    resumed = stopped_and_resumed(run, 5, tmp_path / "c")
    assert all(torch.equal(v, resumed.sae.state_dict()[k]) for k, v in whole.sae.state_dict().items())
    whole.sae.save(tmp_path / "a")
    back = SAE.load(tmp_path / "a")
    assert isinstance(back, JacobianSAE)
    assert torch.equal(back(pairs).x_hat, whole.sae(pairs).x_hat)
    assert torch.equal(back.samples(X.float()), pairs)


@pytest.mark.parametrize("m", [24, 400])
@pytest.mark.parametrize("name", ENTRYWISE)
@pytest.mark.parametrize("decoder", DECODERS)
def test_its_jacobian_is_that_of_its_halves(decoder, name, m):
    sae = make(decoder, m, activation=ENTRYWISE[name])
    pairs = sae.samples(X)
    with torch.no_grad():
        for p in sae.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=rng(5), dtype=p.dtype))
        sae.b_pre.copy_(pairs.mean(0))
        sae.project()
    first, second = sae.halves()
    expected = active_jacobian(first, sae.mlp, second, X)
    found = sae.jacobian(pairs)

    def scattered(jacobian):
        dense = torch.zeros(len(X), m // 2, m // 2, dtype=torch.float64)
        where = jacobian.before[:, :, None], jacobian.after[:, None]
        dense[(torch.arange(len(X))[:, None, None], *where)] = jacobian.values.detach()
        return dense * (first.encode(X).detach() != 0)[:, :, None]

    torch.testing.assert_close(scattered(found), scattered(expected), atol=1e-10, rtol=1e-8)
    halves = torch.cat([first(X).x_hat, second(pairs[:, 8:]).x_hat], 1)
    torch.testing.assert_close(sae(pairs).x_hat, halves)


def test_rescaling_latents_does_not_change_the_penalty_and_rows_of_norm_1_give_the_published_one():
    sae = make("free")
    pairs = sae.samples(X)
    term = JacobianL1()
    before = term(Forward(sae, pairs), {})
    with torch.no_grad():
        gains = torch.rand(24, generator=rng(2), dtype=torch.float64) + 0.5
        gains[:] = torch.where(torch.arange(24) < 12, gains[0], gains[-1])  # one a block: supports stay
        sae.W_enc.mul_(gains)
        sae.b_enc.mul_(gains)
        sae.W_dec.div_(gains[:, None])
    torch.testing.assert_close(term(Forward(sae, pairs), {}), before)
    with torch.no_grad():
        sae.W_dec.div_(sae.W_dec.norm(dim=1, keepdim=True))
    torch.testing.assert_close(term(Forward(sae, pairs), {}), sae.jacobian(pairs).values.abs().mean())


def test_gradients_of_the_penalty_are_right():
    sae = make("tied_residual", m=12, k=4, activation=torch.tanh)
    pairs = sae.samples(X[:6])

    def penalty(W_enc, residual, b_dec):
        with torch.no_grad():
            sae.W_enc.copy_(W_enc)
        names = {"W_enc": W_enc, "residual": residual, "b_dec": b_dec}
        return torch.func.functional_call(Penalised(sae), {f"sae.{k}": v for k, v in names.items()}, (pairs,))

    start = [t.detach().clone().requires_grad_() for t in (sae.W_enc, sae.residual, sae.b_dec)]
    assert torch.autograd.gradcheck(penalty, start, eps=1e-7, atol=1e-4, rtol=1e-3)


class Penalised(torch.nn.Module):
    def __init__(self, sae):
        super().__init__()
        self.sae = sae

    def forward(self, pairs):
        return JacobianL1()(Forward(self.sae, pairs), {})


@pytest.mark.parametrize("decoder", ["free", "tied_residual"])
def test_the_solve_is_two_solves(decoder):
    sae, method = make(decoder), PAMSGD()
    pairs = sae.samples(X)
    state = method.init(sae, pairs, total_steps=10)
    codes = sae.encode(pairs).detach()
    prior = torch.zeros_like(sae.W_dec) if decoder == "free" else sae.W_enc.T.detach().clone()
    before = evaluate(sae, pairs).fvu
    method.decoder_step(sae, state, pairs.split(50))
    assert is_in_blocks(sae)
    assert evaluate(sae, pairs).fvu < before
    ridges = []
    for columns, latents in ((slice(0, 8), slice(0, 12)), (slice(8, 13), slice(12, 24))):  # each by itself, with one ridge
        stats = DecoderStats(12, columns.stop - columns.start).update(codes[:, latents], pairs[:, columns])
        W = sae.W_dec[latents, columns].detach()
        left, pull = stats.cross - stats.gram @ W, W - prior[latents, columns]
        ridges.append(float((left * pull).sum() / pull.square().sum()))
        torch.testing.assert_close(left, ridges[-1] * pull, atol=1e-8, rtol=1e-6)
        torch.testing.assert_close(sae.b_dec[columns].detach(), stats.mean_x - stats.mean_acts @ W)
    assert ridges[0] == pytest.approx(ridges[1])
    assert ridges[0] > 0


@pytest.mark.slow
def test_the_penalty_makes_the_jacobian_sparser_at_little_cost():
    """Features, two at a time, each with a gated neuron of its own: dictionaries exist between which the MLP acts one to one."""
    g = rng(0)
    features = torch.linalg.qr(torch.randn(16, 16, generator=g))[0]
    z = torch.rand(6_000, 16, generator=g) * (torch.rand(6_000, 16, generator=g) < 0.15)
    between = MLP(features.T, torch.zeros(16), torch.linalg.qr(torch.randn(16, 16, generator=g))[0], torch.zeros(16), F.gelu)
    found = {}
    for weight in (0.0, 0.01):
        sae = JacobianSAE(32, 64, BlockTopK(6, 2), "free", mlp=between, generator=1)
        pairs = sae.samples(z @ features)
        terms = (SquaredError(), *([JacobianL1(weight=weight)] if weight else []))
        fit(sae, pairs[:5_000], SGD(lr=1e-2, terms=terms), epochs=30, batch_size=128, generator=0)
        J = JacobianL1()(Forward(sae, pairs[5_000:]), {})
        entries = sae.jacobian(pairs[5_000:]).values.detach().abs()
        large = (entries > 0.01 * entries.amax((1, 2), keepdim=True)).double().mean()
        found[weight] = float(J.detach()), float(large), evaluate(sae, pairs[5_000:]).fvu
    assert found[0.01][0] < 0.85 * found[0.0][0]
    assert found[0.01][1] < 0.7 * found[0.0][1]
    assert found[0.01][2] < 1.5 * found[0.0][2]


def test_what_does_not_fit_is_named():
    with pytest.raises(TypeError, match=r"pass BlockTopK\(k, 2\)"):
        JacobianSAE(13, 24, TopK(6), mlp=mlp())
    with pytest.raises(TypeError, match=r"pass BlockTopK\(k, 2\)"):
        JacobianSAE(13, 24, BlockTopK(6, 3), mlp=mlp())
    with pytest.raises(ValueError, match=r"d_in=12.*8 \+ 5"):
        JacobianSAE(12, 24, BlockTopK(6, 2), mlp=mlp())
    with pytest.raises(TypeError, match="none of gelu"):
        JacobianSAE(13, 24, BlockTopK(6, 2), mlp=mlp(torch.sigmoid))
    with pytest.raises(ValueError, match="shapes do not fit"):
        JacobianSAE(13, 24, BlockTopK(6, 2), mlp=mlp()._replace(b_in=torch.zeros(9, dtype=torch.float64)))
    with pytest.raises(TypeError, match="tie_scale"):
        make("tied", tie_scale=True)
    with pytest.raises(TypeError, match="JacobianSAE"):
        fit(SAE(8, 16, TopK(2)), X.float(), SGD(terms=(SquaredError(), JacobianL1())), epochs=1)
    with pytest.raises(ValueError, match="a decoder solve of its own"):
        fit(make(dtype=torch.float32), make(dtype=torch.float32).samples(X.float()), PAMSGD(ridge=0.1), epochs=1)
    with pytest.raises(TypeError, match="none of gelu"):
        make(activation="sigmoid")
    with pytest.raises(TypeError, match="mlp"):
        JacobianSAE(13, 24, BlockTopK(6, 2), mlp=None)
    with pytest.raises(TypeError, match="W_in of the MLP is a ndarray"):
        JacobianSAE(13, 24, BlockTopK(6, 2), mlp=mlp()._replace(W_in=mlp().W_in.numpy()))
    with pytest.raises(ValueError, match="activation='softmax'"):
        JacobianSAE(13, 24, BlockTopK(6, 2), mlp={"d_before": 8, "width": 10, "d_after": 5, "activation": "softmax"})
    with pytest.raises(ValueError, match="13"):
        make().samples(make().samples(X))
    pairs = make(dtype=torch.float32).samples(X.float())
    for decoder in DECODERS:
        with pytest.raises(TypeError, match="holds in sets"):
            fit(make(decoder, dtype=torch.float32), pairs, SGD(resample=Resampling(every=2, dead_after=50)), epochs=2)
    with pytest.raises(ValueError, match="has a solve of its own: leave it out"):
        fit(make(dtype=torch.float32), pairs, PAMSGD(readout=True), epochs=1, x_val=pairs)


@pytest.mark.parametrize("decoder", DECODERS)
def test_averaging_optimizers_are_refused(decoder):
    sae = make(decoder, dtype=torch.float32)
    with pytest.raises(ValueError, match="JacobianSAE holds parameters in sets, in which the average that Averaging"):
        fit(sae, sae.samples(X.float()), SGD(optimizer=lambda groups, **_: Averaging(groups, lr=0.1)), epochs=1)


@pytest.mark.parametrize("method", [BiasAdaptation(groups=2), BiasAdaptation(base=PAMSGD(), groups=2)])
def test_bias_adaptation_says_what_it_needs(method):
    sae = make("tied", dtype=torch.float32)
    pairs = sae.samples(X.float())
    with pytest.raises(
        ValueError, match="the decoder of JacobianSAE has the encoder's: build it with a free decoder or"
    ) as refused:
        fit(sae, pairs, method, epochs=1)
    assert "gain=1" in str(refused.value)
    fit(make("free", dtype=torch.float32), pairs, method, epochs=1, generator=0)
    fit(sae, pairs, replace(method, gain=1.0), epochs=1, generator=0)


@pytest.mark.parametrize("given", ["silu", torch.nn.SiLU(), F.silu, torch.nn.GELU(approximate="tanh"), torch.nn.Tanh(), F.relu])
def test_activations_are_known_by_what_they_do(given):
    sae = make(activation=given)
    function = F.silu if given == "silu" else given
    torch.testing.assert_close(sae.samples(X), make(activation=function).samples(X))
    torch.testing.assert_close(sae.samples(X)[:, 8:], mlp(function)(X))


@pytest.mark.parametrize("optimizer", ["sgd", "muon"])
def test_clipping_and_muon_see_the_blocks_alone(optimizer):
    sae = make(decoder="free", m=64)
    pairs = sae.samples(X)
    before = {name: p.detach().clone() for name, p in sae.named_parameters()}
    fit(sae, pairs, SGD(optimizer=optimizer, lr=1.0, clip=1e-3, schedule="constant"), steps=1, batch_size=200, generator=0)
    moved = {name: p.detach() - before[name] for name, p in sae.named_parameters()}
    moved["b_dec"] = torch.zeros(1)  # starts at the mean before the step
    assert is_in_blocks(sae)
    if optimizer == "sgd":
        gradients = torch.cat([v.flatten() for k, v in moved.items() if k not in ("b_dec", "b_pre")])
        assert 0.9e-3 < float(gradients.norm()) <= 1e-3
    else:  # what is orthogonal has singular values of one size, in each block
        for rows, latents in sae._blocks():
            values = torch.linalg.svdvals(moved["W_enc"][rows, latents])
            assert float(values.min()) > 0.3 * float(values.max())


def test_a_solve_that_finds_nothing_does_not_stop_the_encoder():
    x = torch.randn(60, 64, generator=rng(0))
    g = rng(3)
    between = MLP(torch.randn(64, 64, generator=g) / 8, torch.randn(64, generator=g), torch.randn(64, 64, generator=g) / 8,
                  torch.randn(64, generator=g), F.gelu)  # fmt: skip
    sae = JacobianSAE(128, 256, BlockTopK(4, 2), mlp=between, generator=0)
    terms = (SquaredError(), JacobianL1(weight=0.1))
    history = fit(sae, sae.samples(x), PAMSGD(terms=terms), epochs=10, batch_size=50, generator=0).history
    assert float(sae.W_dec.detach().abs().max()) > 0
    assert all(math.isfinite(row["loss"]) for row in history)
    with torch.no_grad():
        sae.W_dec[:5] = 0.0
    assert math.isfinite(float(JacobianL1()(Forward(sae, sae.samples(x)), {}).detach()))


def test_unit_rows_give_the_published_penalty_while_training():
    sae = make(dtype=torch.float32)
    pairs = sae.samples(X.float())
    fit(
        sae, pairs, SGD(lr=1e-2, unit_norm_decoder=True, terms=(SquaredError(), JacobianL1(weight=0.01))), epochs=3, generator=0
    )
    torch.testing.assert_close(sae.W_dec.detach().norm(dim=1), torch.ones(24))
    assert is_in_blocks(sae)


def test_codes_in_any_order_and_inference_mode():
    sae = make(m=400)
    pairs = sae.samples(X)
    code = sae.code(pairs)
    assert isinstance(code, TopActs)
    order = code.top_acts.argsort(dim=1)
    shuffled = TopActs(code.top_acts.gather(1, order), code.top_indices.gather(1, order))
    for found in (sae.jacobian(pairs, code), sae.jacobian(pairs, shuffled)):
        total = found.values.detach().abs().sum((1, 2))
        torch.testing.assert_close(total, sae.jacobian(pairs).values.detach().abs().sum((1, 2)))
    with torch.inference_mode():
        quiet = sae.jacobian(pairs).values
    torch.testing.assert_close(quiet.clone(), sae.jacobian(pairs).values.detach())


def test_halves_draw_nothing():
    sae = make()
    before = torch.random.get_rng_state()
    sae.halves()
    assert torch.equal(before, torch.random.get_rng_state())
