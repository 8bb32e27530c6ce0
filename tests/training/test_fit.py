"""The loop: history, checkpoints, errors."""

from __future__ import annotations

import math
import pickle
import warnings
from types import SimpleNamespace

import pytest
import torch

import splinterp.training.run
from splinterp import PAMSGD, SAE, SGD, DivergenceError, TopK, fit
from splinterp.baselines import KMeansAutoencoder
from splinterp.data import Standardizer
from splinterp.metrics import evaluate
from tests.helpers import ACTIVATIONS, DECODERS, make_sae, rng, samples


def test_trains_in_place_and_logs_rows():
    sae, x, x_val = make_sae(), samples(100), samples(40, seed=5)
    rows = []
    result = fit(sae, x, SGD(), epochs=5, batch_size=32, x_val=x_val, log_every=2, callback=rows.append)
    assert result.sae is sae
    assert [row["epoch"] for row in result.history] == [2, 4, 5]
    assert [row["step"] for row in result.history] == [8, 16, 20]
    assert rows == result.history
    last = result.history[-1]
    found = evaluate(sae, x_val)
    assert last["val_fvu"] == pytest.approx(found.fvu)
    assert last["l0"] == pytest.approx(found.l0)
    assert last["frac_dead"] == found.frac_dead
    assert last["train_fvu"] == pytest.approx(evaluate(sae, x).fvu)
    assert result.state.step == 20
    without = fit(make_sae(), x, SGD(), epochs=1)
    assert math.isnan(without.history[0]["val_fvu"])
    assert "ridge" in fit(make_sae(), x, PAMSGD(), epochs=1).history[0]


def test_evaluation_and_callback_are_outside_the_timed_region(monkeypatch):
    """On a clock that training moves by 1 a step, and what is not training by 100 a time."""
    clock, loop = [0.0], splinterp.training.run
    monkeypatch.setattr(loop, "time", SimpleNamespace(perf_counter=lambda: clock[0]))

    def costs(seconds, function):
        def called(*arguments, **options):
            clock[0] += seconds
            return function(*arguments, **options)

        return called

    monkeypatch.setattr(SGD, "step", costs(1.0, SGD.step))
    monkeypatch.setattr(loop, "evaluate", costs(100.0, loop.evaluate))
    result = fit(make_sae(), samples(64), SGD(), epochs=3, batch_size=32, callback=lambda row: costs(100.0, int)())
    assert [row["seconds"] for row in result.history] == [2.0, 4.0, 6.0]
    assert clock[0] >= 606.0


@pytest.mark.parametrize("decoder", DECODERS)
def test_biases_start_at_the_training_mean(decoder):
    x = samples()
    sae = make_sae(decoder=decoder, b_pre=True)
    fit(sae, x, SGD(lr=1e-12), epochs=1)
    torch.testing.assert_close(sae.b_dec, x.mean(0))
    torch.testing.assert_close(sae.b_pre, x.mean(0))


def test_every_sample_is_used_once_an_epoch():
    x = torch.arange(80, dtype=torch.float32).reshape(10, 8)
    seen = []

    class Spy(SGD):
        def step(self, sae, state, x):
            seen.append(x.clone())
            super().step(sae, state, x)

    fit(make_sae(), x, Spy(lr=1e-12), epochs=2, batch_size=4)
    assert [len(b) for b in seen] == [4, 4, 2] * 2
    for epoch in (seen[:3], seen[3:]):
        assert sorted(torch.cat(epoch)[:, 0].tolist()) == x[:, 0].tolist()
    assert not torch.equal(torch.cat(seen[:3]), torch.cat(seen[3:]))
    seen.clear()
    fit(make_sae(), x, Spy(lr=1e-12), epochs=1, batch_size=1000)
    assert [len(b) for b in seen] == [10]


def test_data_order_follows_the_generator_only():
    x = samples()
    before = torch.random.get_rng_state()
    weights = []
    for seed in (1, 1, 2):
        sae = make_sae()
        fit(sae, x, SGD(), epochs=2, generator=rng(seed))
        weights.append(sae.W_enc.detach().clone())
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_keep_best_restores_the_lowest_validation_row():
    x, x_val = samples(12), samples(200, seed=8)
    sae = make_sae()
    result = fit(sae, x, SGD(lr=0.05, schedule="constant"), epochs=60, x_val=x_val, keep_best=True)
    values = [row["val_fvu"] for row in result.history]
    assert min(values) < values[-1]
    assert evaluate(sae, x_val).fvu == pytest.approx(min(values))


@pytest.mark.parametrize(
    "method",
    [
        SGD(lr=1e-2),
        PAMSGD(lr=1e-2),
        PAMSGD(lr=1e-2, hold=0.9),  # still held where it is interrupted
        PAMSGD(gradient="encoder", prox_enc=10.0, decoder_every=3, ridge=1.0),
    ],
)
def test_resume_gives_the_same_bits(tmp_path, method):
    x, x_val, path = samples(), samples(30, seed=4), tmp_path / "run" / "state.pt"

    def run(sae, **options):
        return fit(sae, x, method, epochs=6, batch_size=32, x_val=x_val, keep_best=True, generator=rng(2), **options)

    whole = make_sae("BatchTopK", "tied_residual")
    expected = run(whole)

    class InterruptedRunError(Exception):
        pass

    def stop(row):
        if row["epoch"] == 4:
            raise InterruptedRunError

    with pytest.raises(InterruptedRunError):
        run(make_sae("BatchTopK", "tied_residual"), checkpoint=path, checkpoint_every=2, callback=stop)
    resumed = make_sae("BatchTopK", "tied_residual")
    result = run(resumed, checkpoint=path, checkpoint_every=2, resume=True)
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True))
    assert [r["val_fvu"] for r in result.history] == [r["val_fvu"] for r in expected.history]
    assert [p.name for p in path.parent.iterdir()] == ["state.pt"]
    again = make_sae("BatchTopK", "tied_residual")
    run(again, checkpoint=path, resume=True)
    assert torch.equal(again.W_enc, whole.W_enc)


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    x, path = samples(), tmp_path / "state.pt"
    fit(make_sae(), x, SGD(), epochs=1, checkpoint=path, resume=True)
    with pytest.raises(ValueError, match="belongs to another run"):
        fit(make_sae(), x, SGD(lr=1e-2), epochs=1, checkpoint=path, resume=True)
    same = {"epochs": 1, "checkpoint": path, "resume": True}
    with pytest.raises(ValueError, match="belongs to another run"):
        fit(make_sae(), x[:-1], SGD(), **same)
    with pytest.raises(ValueError, match="belongs to another run"):
        fit(make_sae(), x + 1, SGD(), **same)
    with pytest.raises(ValueError, match="belongs to another run"):
        fit(make_sae("AbsTopK"), x, SGD(), **same)
    with pytest.raises(ValueError, match="belongs to another run"):
        fit(make_sae(), x, SGD(), generator=rng(8), **same)
    with pytest.raises(ValueError, match="belongs to another run"):
        fit(make_sae(), x, SGD(), keep_best=True, x_val=x, **same)
    with pytest.raises(ValueError, match=r"belongs to another run, with another autocast.*this one .torch.bfloat16"):
        fit(make_sae(), x, SGD(), autocast=torch.bfloat16, **same)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("method", [SGD(lr=1e-2), PAMSGD(lr=1e-2, solve_gap=1)])
def test_autocast_lowers_the_products_and_nothing_else(activation, method):
    x, found = samples(400), {}
    for autocast in (None, torch.bfloat16):
        sae = make_sae(activation, "tied_residual", m=64)
        found[autocast] = (
            sae,
            fit(sae, x, method, epochs=8, batch_size=50, generator=0, autocast=autocast).history[-1]["train_fvu"],
        )
        assert all(p.dtype == torch.float32 for p in sae.parameters())
    (full, fvu), (lowered, lower_fvu) = found.values()
    assert not torch.equal(full.W_enc, lowered.W_enc)
    assert lower_fvu == pytest.approx(fvu, rel=0.15)


def test_errors_come_early():
    sae, x = make_sae(), samples()
    with pytest.raises(ValueError, match="training needs at least 2 samples, got 1"):
        fit(sae, x[:1], SGD())
    with pytest.raises(ValueError, match="got 0"):
        fit(sae, x[:0], SGD())
    with pytest.raises(ValueError, match="epochs=0 must be at least 1"):
        fit(sae, x, SGD(), epochs=0)
    with pytest.raises(ValueError, match="pass x_val"):
        fit(sae, x, SGD(), keep_best=True)
    with pytest.raises(ValueError, match=r"autocast=torch.float16 is not torch.bfloat16"):
        fit(sae, x, SGD(), autocast=torch.float16)
    with pytest.raises(ValueError, match="needs checkpoint=PATH"):
        fit(sae, x, SGD(), resume=True)
    with pytest.raises(ValueError, match="x_val has 7 columns"):
        fit(sae, x, SGD(), x_val=x[:, :7])
    with pytest.raises(ValueError, match="x_val has 1 samples"):
        fit(sae, x, SGD(), x_val=x[:1])
    with pytest.raises(ValueError, match="train_eval_samples"):
        fit(sae, x, SGD(), train_eval_samples=1)
    with pytest.raises(ValueError, match=r"reshape to \(200, 8\)"):
        fit(sae, x.reshape(200, 2, 4), SGD())
    bad = x.clone()
    bad[3, 1] = math.nan
    with pytest.raises(ValueError, match=r"1 non-finite entries, the first at index \(3, 1\)"):
        fit(sae, bad, SGD())
    far = x.clone()
    far[17] *= 1e4
    with pytest.warns(UserWarning, match=r"x\[17\] has norm .* over 100 times the median"):
        fit(sae, far, SGD(), epochs=1)


def test_train_eval_samples_are_the_first_ones():
    x = samples()
    few, all_of_them = (fit(make_sae(), x, SGD(), epochs=1, train_eval_samples=n) for n in (20, 10_000))
    assert few.history[0]["train_fvu"] == pytest.approx(evaluate(few.sae, x[:20]).fvu)
    assert few.history[0]["train_fvu"] != all_of_them.history[0]["train_fvu"]


def test_divergence_at_the_last_update_is_reported():
    with pytest.raises(DivergenceError):
        fit(make_sae("ReLU"), samples(50), SGD(lr=1e30, optimizer="sgd"), epochs=1, batch_size=100)


def test_divergence_error_survives_pickling():
    sae, x = make_sae(), samples()
    error = DivergenceError(7, SGD().init(sae, x))
    assert pickle.loads(pickle.dumps(error)).step == 7


def test_numpy_and_half_precision_data():
    x = samples()
    for data in (x.numpy(), x.double(), x.bfloat16()):
        sae = make_sae()
        fit(sae, data, PAMSGD(), epochs=1)
        assert sae.W_enc.dtype == torch.float32


def test_training_mode_is_restored():
    sae = make_sae().eval()
    fit(sae, samples(), SGD(), epochs=1)
    assert not sae.training


def test_schedule_reaches_zero_and_constant_without_total_steps():
    method = SGD(lr=1.0)
    sae, x = make_sae(), samples()
    state = method.init(sae, x, total_steps=10)
    rates = []
    for step in (0, 5, 10, 20):
        state.step = step
        rates.append(method.rate(state))
    assert rates == pytest.approx([1.0, 0.5, 0.0, 0.0])
    assert method.rate(method.init(sae, x)) == 1.0


def test_progress_bar_goes_to_stderr_only_when_asked(capfd):
    fit(make_sae(), samples(), SGD(), epochs=1)
    assert capfd.readouterr() == ("", "")
    fit(make_sae(), samples(), SGD(), epochs=1, progress=True)
    out, err = capfd.readouterr()
    assert out == ""
    assert "fvu" in err


@pytest.mark.gpu
@pytest.mark.parametrize("method", [SGD(lr=1e-2), PAMSGD(lr=1e-2)])
def test_gpu_run_starts_from_the_same_bits_and_agrees(method):
    x = samples(400)
    on_cpu, on_gpu = make_sae(decoder="tied_residual"), make_sae(decoder="tied_residual", device="cuda")
    assert torch.equal(on_cpu.W_enc, on_gpu.W_enc.cpu())
    for sae in (on_cpu, on_gpu):
        fit(sae, x, method, epochs=3, x_val=x[:50], generator=rng(1))
    torch.testing.assert_close(on_gpu.W_enc.cpu(), on_cpu.W_enc, atol=1e-3, rtol=1e-2)


def test_warnings_name_the_line_that_called():
    def sae():
        return SAE(8, 12, TopK(1), "tied_residual", generator=0)

    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        fit(sae(), torch.randn(400, 8, generator=rng(0)), PAMSGD(ridge="held_out"), epochs=1)
        fit(sae(), 1e5 * torch.randn(400, 8, generator=rng(0)), SGD(), epochs=1)
        Standardizer("per_feature").fit(torch.ones(20, 1) * torch.arange(20)[:, None] * torch.tensor([[1.0, 0.0]]))
        KMeansAutoencoder(n_regions=3, random_state=0).fit([[0.0], [0.0], [1.0], [1.0]])
    assert len(found) >= 4
    assert {warning.filename for warning in found} == {__file__}


def test_a_warning_that_nobody_called_for_stays_in_the_package():
    """As under `python -m splinterp`, where Python's own frames are above."""
    constant = torch.tensor([[1.0, 0.0], [2.0, 0.0]])
    call = compile("Standardizer('per_feature').fit(constant)", "<frozen runpy>", "eval")
    with pytest.warns(UserWarning, match="constant on the training part") as found:
        eval(call, {"Standardizer": Standardizer, "constant": constant})
    assert "standardizer" in found[0].filename.lower()  # its file, or the type checker's frame around it
