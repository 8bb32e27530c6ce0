"""Archetypal SAEs: rows stay at the points, the exact solve, files, what reads them, refusals."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from splinterp import PAMSGD, SAE, SGD, ArchetypalSAE, BiasAdaptation, TopK, fit
from splinterp.archetypal import centroids
from splinterp.decoder import solve_decoder
from splinterp.encoders import Kronecker
from splinterp.geometry import region_of, region_statistics
from splinterp.interop import load_saelens, save_saelens
from splinterp.losses import AuxK, Matryoshka, RowNormL1, SquaredError
from splinterp.metrics import evaluate, fvu
from splinterp.sae_files import CHECKSUM
from splinterp.training import Resampling
from tests.helpers import ACTIVATIONS, Averaging, rng, samples, stats_of, stopped_and_resumed

X = samples(240)
POINTS = centroids(X[:200], 30)
METHODS = {"SGD": SGD(lr=1e-2), "PAMSGD": PAMSGD(lr=1e-2)}


def make(activation="TopK", m=64, seed=1, points=POINTS, relaxation=0.2, dtype=torch.float32, **options):
    return ArchetypalSAE(
        8, m, ACTIVATIONS[activation], points=points, relaxation=relaxation, generator=rng(seed), dtype=dtype, **options
    )


def in_the_set(sae):
    sums, lengths = sae.mixing.sum(1), sae.deviation.norm(dim=1)
    expected = sae.log_scale.exp() * (sae.mixing @ sae.points + sae.deviation)
    return (
        bool((sae.mixing >= 0).all())
        and torch.allclose(sums, torch.ones_like(sums), atol=1e-5)
        and bool((lengths <= sae.relaxation + 1e-5).all())
        and torch.allclose(sae.W_dec, expected, atol=1e-5)
    )


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_it_learns_in_its_set_is_saved_and_resumed(activation, method, tmp_path):
    options = {"batch_size": 32, "generator": 0, "x_val": X[200:]}
    whole = fit(make(activation), X[:200], METHODS[method], epochs=20, **options)
    assert in_the_set(whole.sae)
    assert whole.history[-1]["val_fvu"] < 0.8

    def run(**checkpoints):
        return fit(make(activation), X[:200], METHODS[method], epochs=20, **options, **checkpoints)

    resumed = stopped_and_resumed(run, 15, tmp_path / "c")
    assert all(torch.equal(v, resumed.sae.state_dict()[k]) for k, v in whole.sae.state_dict().items())
    whole.sae.save(tmp_path / "a")
    back = SAE.load(tmp_path / "a")
    assert isinstance(back, ArchetypalSAE)
    assert back.relaxation == 0.2
    assert torch.equal(back(X).x_hat, whole.sae(X).x_hat)


@pytest.mark.parametrize("activation", ["TopK", "ReLU", "AbsTopK"])
def test_a_solve_lowers_the_training_error_and_says_how_far_it_is(activation):
    sae, method = make(activation, dtype=torch.float64), PAMSGD()
    x = X[:200].double()
    state = method.init(sae, x, total_steps=10)
    with torch.no_grad():
        sae.b_dec.copy_(x.mean(0))
    before = evaluate(sae, x).fvu
    method.decoder_step(sae, state, x.split(50))
    after = evaluate(sae, x).fvu
    assert after < before
    assert in_the_set(sae)
    method.decoder_step(sae, state, x.split(50))
    assert after - evaluate(sae, x).fvu <= state.residual + 1e-9 < 0.1
    # a decoder that may be anything is a bound from below
    with torch.no_grad():
        acts = sae.encode(x)
        free = solve_decoder(stats_of(acts, x), ridge=0.0)
    assert after >= fvu(x, acts @ free.W_dec + free.b_dec) - 1e-9


def test_options_change_the_result():
    found = {
        name: fit(make(**options), X[:200], PAMSGD(lr=1e-2), epochs=4, batch_size=32, generator=0).sae.W_dec
        for name, options in {
            "as it is": {}, "relaxation": {"relaxation": 0.0}, "points": {"points": POINTS[:5]}, "b_pre": {"b_pre": False},
        }.items()
    }  # fmt: skip
    rows = list(found.values())
    assert all(not torch.allclose(rows[0], other) for other in rows[1:])


def test_fewer_points_and_no_room_give_rows_that_are_mixtures():
    sae = fit(make(points=POINTS[:3], relaxation=0.0), X[:200], PAMSGD(lr=1e-2), epochs=3, batch_size=32, generator=0).sae
    assert not bool(sae.deviation.any())
    assert torch.linalg.matrix_rank(sae.W_dec.detach(), rtol=1e-4) <= 3


def test_starts_at_points_of_norm_one_on_average():
    sae = make(m=20)
    torch.testing.assert_close(sae.W_dec.norm(dim=1).mean(), torch.tensor(1.0))
    torch.testing.assert_close(sae.W_enc.norm(dim=0), torch.ones(20))
    assert len({int(i) for i in sae.mixing.argmax(1)}) == 20


def test_terms_and_what_reads_an_sae(tmp_path):
    sae = make("TopK", m=16)
    terms = (Matryoshka(widths=(4, 8)), AuxK())
    fit(sae, X[:200], PAMSGD(lr=1e-2, terms=terms), epochs=3, batch_size=32, generator=0)
    assert in_the_set(sae)
    sae.eval()
    region = region_of(sae, X[0])
    reached = torch.as_tensor(X[0].double().numpy() @ region.matrix + region.offset)
    torch.testing.assert_close(reached, sae(X[:1]).x_hat[0].double(), atol=1e-4, rtol=1e-4)
    assert region_statistics(sae, X).n_regions > 1
    save_saelens(sae, tmp_path / "s")
    torch.testing.assert_close(load_saelens(tmp_path / "s")[0](X).x_hat, sae(X).x_hat, atol=1e-4, rtol=1e-4)


def test_refusals():
    for options, message in [
        ({"relaxation": -0.1}, "relaxation"), ({"points": POINTS[:, :3]}, "8"), ({"points": torch.zeros(4, 8)}, "all 0"),
        ({"points": torch.zeros(0, 8)}, "no rows"), ({"points": 0}, "points"), ({"tie_scale": True}, "leave decoder"),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=message):
            make(**options)
    with pytest.raises(ValueError, match="leave decoder"):
        ArchetypalSAE(8, 16, TopK(2), "tied", points=POINTS)
    with pytest.raises((ValueError, TypeError)):
        make(encoder=Kronecker(heads=8, left=2, right=4))
    with pytest.raises(ValueError, match="n_points=30"):
        centroids(X[:20], 30)
    sae = make()
    with pytest.raises(AttributeError, match="mixing"):
        sae.W_dec = torch.zeros(64, 8)
    for options, message in [
        ({"ridge": 1.0}, "takes no ridge"), ({"ridge": "gcv"}, "takes no ridge"), ({"prox_dec": 1.0}, "takes no ridge"),
        ({"readout": True}, "readout"), ({"hold": 0.1}, "residual"), ({"terms": (SquaredError(), RowNormL1(weight=1.0))}, "RowNormL1"),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=message):
            fit(make(), X[:200], PAMSGD(**options), epochs=1, x_val=X[200:])
    with pytest.raises(ValueError, match="unit_norm_decoder"):
        fit(make(), X, SGD(unit_norm_decoder=True), epochs=1)
    with pytest.raises(TypeError, match="resample"):
        fit(make(), X, SGD(resample=Resampling(every=2, dead_after=50)), steps=20)


def test_points_are_its_own():
    given = POINTS.clone().numpy()
    sae, other = make(points=given), make(points=POINTS)
    rows = sae.W_dec.detach().clone()
    given[:] = 0.0
    torch.testing.assert_close(sae.W_dec, rows)
    donor = SAE(8, 12, TopK(2), generator=0)
    taken = make(points=donor.W_dec)
    assert taken.points.data_ptr() != donor.W_dec.data_ptr()
    assert not taken.points.requires_grad
    before = POINTS.clone()
    other.load_state_dict({**other.state_dict(), "points": 2 * POINTS})
    assert torch.equal(POINTS, before)
    x = X.clone().requires_grad_()
    assert not centroids(x, 5).requires_grad


@pytest.mark.parametrize("activation", ["TopK", "ReLU"])
@pytest.mark.parametrize("method", METHODS)
def test_under_autocast_rows_keep_their_dtype(activation, method):
    sae = make(activation, m=64)
    fit(sae, X[:200], METHODS[method], epochs=2, batch_size=32, generator=0, autocast=torch.bfloat16)
    assert in_the_set(sae)
    with torch.autocast("cpu", torch.bfloat16):
        assert sae.W_dec.dtype == torch.float32


def test_bias_adaptation_scales_all_rows_alike():
    sae = make("JumpReLU", m=64)
    rows = sae.W_dec.detach().clone()
    method = BiasAdaptation(base=SGD(lr=1e-2), gain=3.0)
    method.init(sae, X[:200], total_steps=10)
    torch.testing.assert_close(sae.W_dec.detach(), 3 * rows)
    assert in_the_set(sae)


def test_encoder_gradients_leave_the_whole_decoder():
    sae = make(m=64)
    method = PAMSGD(gradient="encoder", lr=1e-2)
    state = method.init(sae, X[:200], total_steps=10)
    before = [p.detach().clone() for p in (sae.mixing, sae.deviation, sae.log_scale, sae.b_dec)]
    method.encoder_step(sae, state, X[:32])
    assert all(torch.equal(a, b) for a, b in zip(before, (sae.mixing, sae.deviation, sae.log_scale, sae.b_dec), strict=True))


def test_averaging_optimizers_are_refused():
    with pytest.raises(ValueError, match="Averaging ends with need not be"):
        fit(make(), X[:200], SGD(optimizer=lambda groups, **_: Averaging(groups, lr=0.1)), epochs=1)


def test_damaged_files_are_refused(tmp_path):
    for name, value in [("points", torch.nan), ("mixing", torch.inf), ("log_scale", torch.inf)]:
        make().save(tmp_path / name)
        tensors = load_file(tmp_path / name / "sae.safetensors")
        tensors[name].fill_(value)
        save_file(tensors, tmp_path / name / "sae.safetensors")
        edit(tmp_path / name / "sae.json", sha256=None)
        with pytest.raises(ValueError, match=name):
            SAE.load(tmp_path / name)
    make().save(tmp_path / "a")
    edit(tmp_path / "a" / "sae.json", points=10**9)
    with pytest.raises(ValueError, match="points has shape"):
        SAE.load(tmp_path / "a")


def edit(path, **entries):
    """Change a sealed file, as a program that knows no seals would."""
    config = {**json.loads(path.read_text()), **entries}
    path.write_text(json.dumps({name: value for name, value in config.items() if value is not None and name != CHECKSUM}))


def test_solves_are_priced_by_their_steps():
    sae, cheap = make(m=64), SAE(8, 64, TopK(3), generator=0)
    when = PAMSGD().when
    costs = [when._cost(PAMSGD().init(model, X[:200], total_steps=100)) for model in (sae, cheap)]
    assert costs[0] == pytest.approx(
        len(X[:200]) / when._parts(PAMSGD().init(sae, X[:200], total_steps=100)) + 100 * (64 + 30) / 3
    )
    assert costs[1] < costs[0]
