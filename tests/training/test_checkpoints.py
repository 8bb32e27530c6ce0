"""Checkpoints that cannot be right are refused by name, before anything computes with them."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from dataclasses import dataclass

import pytest
import torch

from splinterp import PAMSGD, SAE, SGD, DivergenceError, TopK, fit
from splinterp.data import StoreWriter
from splinterp.training import Refresh, Resampling
from tests.helpers import make_sae, samples


@dataclass(frozen=True)
class Made:
    """A torch optimizer with an option."""

    kind: str
    option: str
    value: float

    def __call__(self, groups):
        return getattr(torch.optim, self.kind)(groups, lr=0.01, **{self.option: self.value})


METHODS = {
    "adam": SGD(lr=0.01),
    "momentum": SGD(lr=0.01, optimizer=Made("SGD", "momentum", 0.9)),
    "amsgrad": SGD(lr=0.01, optimizer=Made("Adam", "amsgrad", True)),
}


X = torch.randint(0, 9, (300, 8), generator=torch.Generator().manual_seed(0)).float()
OTHER = {
    "shuffled rows": {"x": X.flip(0)},
    "reversed columns": {"x": X.flip(1)},
    "two entries changed places": {"x": X.index_put((torch.tensor([0, 1]), torch.tensor([3, 3])), X[[1, 0], 3])},
    "another dtype": {"x": X.double()},
    "one bit": {
        "x": X.index_put((torch.tensor([299]), torch.tensor([7])), torch.nextafter(X[299, 7], torch.tensor(torch.inf)))
    },
    "shuffled x_val": {"x_val": X[:60].flip(0)},
    "no x_val": {"x_val": None},
}


@pytest.mark.parametrize("other", OTHER)
@pytest.mark.parametrize("method", [SGD(), PAMSGD()])
def test_a_run_is_not_resumed_on_other_data(tmp_path, other, method):
    def train(x=X, x_val=X[:60], **options):
        return fit(
            SAE(8, 16, TopK(2), generator=1), x, method, x_val=x_val, generator=0, checkpoint=tmp_path / "run.pt", **options
        )

    train(epochs=1)
    part = "x_val" if "x_val" in OTHER[other] else "x"
    with pytest.raises(ValueError, match=f"belongs to another run, with another {part}: .*pass what it began with"):
        train(**OTHER[other], epochs=2, resume=True)
    assert len(train(epochs=2, resume=True).history) == 2


def test_resuming_with_another_number_of_threads_says_so(tmp_path):
    threads = torch.get_num_threads()
    run(tmp_path / "run.pt", epochs=1)
    torch.set_num_threads(threads + 1)
    try:
        with pytest.warns(UserWarning, match=rf"written with {threads} threads, this process has {threads + 1}"):
            run(tmp_path / "run.pt", epochs=2, resume=True)
    finally:
        torch.set_num_threads(threads)


def test_a_checkpoint_of_an_earlier_version_is_refused(tmp_path):
    path = tmp_path / "run.pt"
    run(path)
    saved = torch.load(path)
    torch.save({**saved, "plan": ["SGD()", 400, 12.5]}, path)
    with pytest.raises(ValueError, match="written by an earlier version"):
        run(path, resume=True)


@pytest.mark.parametrize("place", ["a folder", "below a file", "a pipe"])
def test_a_checkpoint_that_cannot_be_written_is_found_before_training(tmp_path, place, monkeypatch):
    path = tmp_path / "run.pt"
    if place == "a folder":
        path.mkdir()
    elif place == "a pipe":
        os.mkfifo(path)
    else:
        path.write_text("")
        path = path / "run.pt"
    monkeypatch.setattr(SGD, "step", lambda *args: pytest.fail("trained"))
    with pytest.raises(ValueError, match="run.pt.*(write to another path|cannot be written)"):
        run(path)


def run(path, method=METHODS["adam"], epochs=2, resume=False):
    sae = SAE(8, 40, TopK(2), generator=0)
    fit(sae, samples(), method, epochs=epochs, checkpoint=path, resume=resume, generator=0)
    return sae


def change(path, edit):
    saved = torch.load(path, weights_only=True)
    edit(saved)
    torch.save(saved, path)


def moments(saved):
    return saved["state"]["optimizer"]["state"]


def replaced(i, name, value):
    return lambda saved: moments(saved)[i].update({name: value})


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (replaced(0, "exp_avg", torch.zeros(3)), "exp_avg of parameter 0"),
        (replaced(0, "exp_avg_sq", torch.zeros(4_000, 4_000)), "exp_avg_sq of parameter 0"),
        (replaced(1, "exp_avg", torch.zeros(())), "exp_avg of parameter 1"),
        (replaced(1, "step", torch.zeros(2)), "step of parameter 1"),
        (replaced(1, "exp_avg_sq", 0.5), "exp_avg_sq of parameter 1 is 0.5"),
        (replaced(1, "exp_avg_sq", torch.zeros(40, dtype=torch.int8)), "torch.int8"),
        (lambda saved: moments(saved)[1]["exp_avg"].fill_(torch.nan), "is NaN in 320 entries"),
        (lambda saved: saved["sae"]["b_enc"].fill_(torch.nan), "b_enc in .* NaN"),
        (lambda saved: moments(saved)[0].pop("exp_avg_sq"), "parameter 0 has"),
        (lambda saved: moments(saved).update({99: {}}), "names parameters"),
        (lambda saved: saved["state"]["optimizer"]["param_groups"].pop(), "other groups"),
        (lambda saved: saved["state"].pop("optimizer"), "no entry 'optimizer'"),
        (lambda saved: saved["sae"].update(b_enc=torch.zeros(1)), "b_enc of its parameters"),
        (lambda saved: saved["sae"].update(b_enc=torch.zeros(40, dtype=torch.complex64)), "b_enc of its parameters"),
        (lambda saved: saved["sae"].pop("b_enc"), "its parameters are"),
        (lambda saved: saved.update(best={}), "its best parameters are"),
        (lambda saved: saved.update(generator=torch.zeros(7, dtype=torch.uint8)), "cannot be read"),
        (lambda saved: saved["history"][0].pop("step"), "in its history"),
        (lambda saved: saved.update(step="4"), "its step is a str"),
        (lambda saved: saved["plan"].pop("sae"), "another run"),
        (lambda saved: saved.pop("plan"), "it lacks plan"),
    ],
)
def test_what_cannot_be_right_is_named_with_the_file(tmp_path, edit, message):
    path = tmp_path / "run.ckpt"
    run(path)
    change(path, edit)
    with pytest.raises(ValueError, match=message) as found:
        run(path, epochs=2, resume=True)
    assert str(path) in str(found.value)


@pytest.mark.parametrize("method", METHODS)
def test_every_moment_of_torchs_optimizers_is_looked_at(tmp_path, method):
    path = tmp_path / "run.ckpt"
    run(path, METHODS[method])
    names = [name for name in moments(torch.load(path, weights_only=True))[0] if name != "step"]
    for name in names:
        run(path, METHODS[method])
        change(path, replaced(0, name, torch.zeros(5)))
        with pytest.raises(ValueError, match=f"{name} of parameter 0 is torch.float32 "):
            run(path, METHODS[method], resume=True)


@pytest.mark.parametrize(
    ("method", "edit", "message"),
    [
        (PAMSGD(when=Refresh()), lambda state: state["sums"].update(mean_acts=torch.zeros(1)), "mean_acts is"),
        (PAMSGD(when=Refresh()), lambda state: state.update(window=[torch.zeros(3, 9)]), r"\(3, 9\)"),
        (PAMSGD(prox_enc=0.1), lambda state: state.update(anchor=[torch.zeros(1), torch.zeros(1)]), "saved anchor"),
        (
            SGD(resample=Resampling(every=1, dead_after=50)),
            lambda state: state["silence"].update(samples=torch.zeros(1)),
            "samples of silence",
        ),
    ],
)
def test_what_methods_keep_is_not_spread_over_another_shape(tmp_path, method, edit, message):
    path = tmp_path / "run.ckpt"
    run(path, method)
    change(path, lambda saved: edit(saved["state"]))
    with pytest.raises(ValueError, match=message):
        run(path, method, resume=True)


def test_moments_of_another_layout_are_laid_out_as_their_parameters(tmp_path):
    path = tmp_path / "run.ckpt"
    run(path)
    whole = path.read_bytes()
    undisturbed = run(path, epochs=4, resume=True)
    path.write_bytes(whole)

    def relaid(saved):
        for kept in moments(saved).values():
            for name, value in kept.items():
                other = torch.empty(value.shape[::-1], dtype=value.dtype).T if value.ndim == 2 else value
                kept[name] = other.copy_(value)

    change(path, relaid)
    ours = run(path, epochs=4, resume=True)
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), undisturbed.parameters(), strict=True))
    for name in ("exp_avg", "exp_avg_sq"):  # of one number, spread over the parameter without memory of its own
        path.write_bytes(whole)
        shape = moments(torch.load(path, weights_only=True))[0][name].shape
        change(path, replaced(0, name, torch.ones(1).expand(shape)))
        with suppress(DivergenceError):  # a step may be of any size with such moments
            assert all(torch.isfinite(p).all() for p in run(path, epochs=4, resume=True).parameters())


def test_every_flipped_bit_of_the_tensors_is_found(tmp_path):
    path = tmp_path / "run.ckpt"
    run(path)
    whole = path.read_bytes()
    weights = torch.load(path, weights_only=True)["sae"]["W_dec"].numpy().tobytes()
    at = whole.index(weights) + len(weights) // 2
    path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    with pytest.raises(ValueError, match="is damaged.*remove it to start anew"):
        run(path, resume=True)


def test_other_content_is_named_and_nobody_is_told_to_load_it_unsafely(tmp_path):
    path = tmp_path / "run.ckpt"
    for content in (b"", b"not a checkpoint", b"PK\x03\x04"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"run\.ckpt is no checkpoint"):
            run(path, resume=True)
    for content in (torch.nn.Linear(2, 2), make_sae(), [1, 2], {"plan": 3}):
        torch.save(content, path)
        with pytest.raises(ValueError, match="run.ckpt") as found:
            run(path, resume=True)
        assert "weights_only" not in str(found.value)
    path.unlink()
    path.mkdir()
    with pytest.raises(ValueError, match="run.ckpt is a folder"):
        run(path, resume=True)
    path.rmdir()
    os.mkfifo(path)
    with pytest.raises(ValueError, match="no regular file"):
        run(path, resume=True)


def test_a_link_is_written_through_and_modes_are_kept(tmp_path):
    target, link = tmp_path / "elsewhere" / "run.ckpt", tmp_path / "run.ckpt"
    link.symlink_to(target)
    before = os.umask(0o077)
    try:
        run(link)
    finally:
        os.umask(before)
    assert link.is_symlink()
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    target.chmod(0o640)
    run(link, epochs=3)
    assert link.is_symlink()
    assert stat.S_IMODE(target.stat().st_mode) == 0o640
    assert sorted(p.name for p in target.parent.iterdir()) == ["run.ckpt"]
    assert torch.load(target, weights_only=True)["epoch"] == 3


@pytest.mark.parametrize(
    "method", [SGD(lr=1e-2), PAMSGD(lr=1e-2), PAMSGD(lr=1e-2, hold="race"), PAMSGD(lr=1e-2, decoder_every=3)]
)
@pytest.mark.parametrize("every", [1, 3, 5])
@pytest.mark.parametrize("stored", [False, True])
def test_a_run_goes_on_from_within_an_epoch(method, every, stored, tmp_path, monkeypatch):
    """Checkpoints inside epochs, rows inside epochs, a kill between two: the same bits, and no batch before the checkpoint again."""
    x, x_val = samples(400), samples(210, seed=5)
    if stored:
        writer = StoreWriter(tmp_path / "store", 8)
        for part in x.split(90):
            writer.append(part, torch.zeros(len(part), 3, dtype=torch.int64))
        x = writer.finish()

    def run(folder, **options):
        sae = make_sae(decoder="tied_residual", m=20)
        return fit(
            sae, x, method, epochs=4, batch_size=32, x_val=x_val, generator=0, checkpoint=folder / "c", checkpoint_every=3,
            checkpoint_every_steps=every, log_every_steps=4, **options,
        )  # fmt: skip

    (tmp_path / "whole").mkdir()
    (tmp_path / "cut").mkdir()
    whole = run(tmp_path / "whole")
    calls, own = [], type(method).step

    def killed(self, sae, state, x):
        calls.append(state.step)
        if len(calls) == 22:
            raise KeyboardInterrupt
        return own(self, sae, state, x)

    monkeypatch.setattr(type(method), "step", killed)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut")
    before = len(calls)
    again = run(tmp_path / "cut", resume=True)
    assert calls[before] > calls[before - 1] - every - 2
    assert [row["step"] for row in again.history] == [row["step"] for row in whole.history]
    for one, other in zip(again.history, whole.history, strict=True):
        timed = {"seconds", "solve_seconds"}
        assert str({k: v for k, v in one.items() if k not in timed}) == str({k: v for k, v in other.items() if k not in timed})
    assert all(torch.equal(a, b) for a, b in zip(whole.sae.parameters(), again.sae.parameters(), strict=True))
