"""Streams of activations against extraction into memory."""

from __future__ import annotations

import pytest
import torch

from splinterp import PAMSGD, SAE, SGD, BiasAdaptation, TopK, fit
from splinterp.data import ActivationStream, Standardizer, TokenRules, extract_activations
from splinterp.data import stream as module
from splinterp.training import StreamingPAMSGD
from tests.data.tiny_models import letters, tiny
from tests.helpers import rng


@pytest.fixture(autouse=True)
def _small_groups(monkeypatch):
    monkeypatch.setattr(module, "GROUP_TOKENS", 40)


def documents(n=30, seed=0):
    lengths = torch.randint(1, 30, (n,), generator=rng(seed)).tolist()
    return [letters(length) for length in lengths]


def stream(text, **options):
    return ActivationStream(tiny("GPT-2"), text, 2, **{"context": 12, "buffer": 64, **options})


@pytest.mark.parametrize("rules", [None, TokenRules(skip_first=2)])
def test_rows_are_those_of_extraction_in_the_order_of_the_text(rules):
    text = documents()
    whole = extract_activations(tiny("GPT-2"), text, 2, context=12, rules=rules)
    found, parts = stream(text, rules=rules), []
    while len(part := found.take(37)):
        parts.append(part)
    torch.testing.assert_close(torch.cat(parts), whole.x, rtol=1e-4, atol=1e-5)
    assert found.n_given == len(whole.x)
    assert found.left_out == whole.left_out
    assert found.n_read == len(text)
    assert not len(found.take(5))


def test_a_long_document_is_run_in_parts_and_memory_is_bounded():
    found, whole = stream([letters(700)]), extract_activations(tiny("GPT-2"), [letters(700)], 2, context=12).x
    held = []
    for _ in range(10):
        found.peek(20)
        held.append(len(found._pending))
        torch.testing.assert_close(found.take(20), whole[20 * len(held) - 20 : 20 * len(held)], rtol=1e-4, atol=1e-5)
    assert max(held) < 20 + 2 * 40


def test_peeking_takes_nothing_and_a_budget_ends_it():
    found = stream(documents(), max_tokens=50)
    first = found.peek(30)
    assert torch.equal(found.take(30), first)
    assert len(found.peek(30)) == len(found.take(30)) == 20
    assert not len(found.peek(1))


def test_repeating_begins_again_and_an_iterator_cannot():
    text = documents(5)
    n = len(stream(text).take(10_000))
    again = stream(lambda: iter(text), repeat=True).take(2 * n + 7)
    assert len(again) == 2 * n + 7
    torch.testing.assert_close(again[n : 2 * n], again[:n], rtol=1e-4, atol=1e-5)
    assert len(stream(iter(text)).take(10_000)) == n
    with pytest.raises(ValueError, match="repeat=True needs documents that can be read again"):
        stream(iter(text), repeat=True)


@pytest.mark.parametrize("taken", [0, 3, 60, 200])
@pytest.mark.parametrize("repeat", [False, True])
def test_a_stream_goes_on_where_another_was(taken, repeat):
    text = documents()
    one = stream(text, repeat=repeat)
    one.take(taken)
    saved = one.state_dict()
    other = stream(lambda: iter(text), repeat=repeat)
    other.load_state_dict(saved)
    assert torch.equal(one.take(90), other.take(90))
    assert (one.n_read, one.n_given, one.left_out) == (other.n_read, other.n_given, other.left_out)
    if taken and not repeat:
        with pytest.raises(ValueError, match="only 1: pass the same text"):
            stream(text[:1]).load_state_dict({**saved, "n_read": 20})


def test_rows_are_standardised_by_what_was_peeked():
    found = stream(documents())
    raw = found.peek(100)
    found.standardizer = Standardizer("global").fit(raw)
    torch.testing.assert_close(found.take(100), found.standardizer.transform(raw))


@pytest.mark.parametrize(
    "method",
    [
        SGD(lr=1e-2),
        StreamingPAMSGD(lr=1e-2, refresh_every=3),
        BiasAdaptation(base=SGD(lr=1e-2), target_frequencies=0.2, gain=1.0),
    ],
)
def test_training_on_a_stream_killed_and_resumed_ends_in_the_same_bits(method, tmp_path, monkeypatch):
    text = documents(80)

    def run(folder, steps=20, **options):
        sae = SAE(16, 24, TopK(3), "tied_residual", generator=rng(0))
        rows = stream(text, buffer=100)
        x_val = rows.take(60)
        return fit(sae, rows, method, steps=steps, batch_size=32, x_val=x_val, generator=0, checkpoint=folder / "c", **options)

    whole = run(tmp_path)
    (tmp_path / "cut").mkdir()
    steps = []
    own = type(method).step

    def killed(self, sae, state, x):
        steps.append(len(x))
        if len(steps) > 11:
            raise KeyboardInterrupt
        return own(self, sae, state, x)

    monkeypatch.setattr(type(method), "step", killed)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut")
    monkeypatch.setattr(type(method), "step", own)
    again = run(tmp_path / "cut", resume=True)
    assert set(steps) == {32}
    assert [row["step"] for row in again.history] == [row["step"] for row in whole.history]
    assert whole.history[-1]["step"] == 20
    assert all(torch.equal(a, b) for a, b in zip(whole.sae.parameters(), again.sae.parameters(), strict=True))
    assert whole.history[-1]["val_fvu"] < 0.5
    other = stream(text, buffer=101)
    options = {"x_val": other.take(60), "steps": 20, "batch_size": 32, "generator": 0, "checkpoint": tmp_path / "c"}
    with pytest.raises(ValueError, match="another stream"):
        fit(SAE(16, 24, TopK(3), "tied_residual", generator=rng(0)), other, method, resume=True, **options)


@pytest.mark.parametrize("method", [SGD(lr=1e-2), StreamingPAMSGD(lr=1e-2, refresh_every=3)])
@pytest.mark.parametrize("every", [1, 4, 7])
def test_a_run_goes_on_from_within_a_buffer_too(method, every, tmp_path, monkeypatch):
    text = documents(80)

    def run(folder, **options):
        sae, rows = SAE(16, 24, TopK(3), "tied_residual", generator=rng(0)), stream(text, buffer=320)
        return fit(
            sae, rows, method, steps=25, batch_size=32, generator=0, checkpoint=folder / "c", checkpoint_every_steps=every,
            log_every_steps=6, **options,
        )  # fmt: skip

    whole = run(tmp_path)
    (tmp_path / "cut").mkdir()
    steps, own = [], type(method).step

    def killed(self, sae, state, x):
        steps.append(len(x))
        if len(steps) == 19:
            raise KeyboardInterrupt
        return own(self, sae, state, x)

    monkeypatch.setattr(type(method), "step", killed)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut")
    saved = torch.load(tmp_path / "cut" / "c", weights_only=True)["step"]
    assert 18 - every < saved <= 18
    again = run(tmp_path / "cut", resume=True)
    assert len(steps) == 19 + 25 - saved  # the batches before are passed over, not trained on
    assert [row["step"] for row in again.history] == [row["step"] for row in whole.history]
    assert all(torch.equal(a, b) for a, b in zip(whole.sae.parameters(), again.sae.parameters(), strict=True))


def test_training_ends_with_the_text_and_goes_on_with_more(tmp_path, monkeypatch):
    monkeypatch.setattr("splinterp.training.stream_batches.LOOKED_AT", 50)  # rows that both texts have
    text = documents(30)
    n = len(stream(text).take(10_000))

    def run(documents, **options):
        sae = SAE(16, 24, TopK(3), generator=rng(0))
        rows = stream(documents, buffer=100)
        return fit(sae, rows, SGD(lr=1e-2), steps=40, batch_size=32, generator=0, train_eval_samples=50, **options)

    with pytest.warns(UserWarning, match=f"the text has ended after {n:,} activations, at step {n // 32} of 40"):
        short = run(text, checkpoint=tmp_path / "c")
    assert short.history[-1]["step"] == n // 32
    assert len({row["step"] for row in short.history}) == len(short.history)
    with pytest.warns(UserWarning, match="the text has ended"):
        again = run(text, checkpoint=tmp_path / "c", resume=True)
    assert str(again.history) == str(short.history)
    longer = documents(30) + documents(60, seed=1)
    more = run(longer, checkpoint=tmp_path / "c", resume=True)
    assert more.history[-1]["step"] == 40
    assert str(more.history[: len(short.history)]) == str(short.history)


def test_what_is_no_document_is_refused_and_an_iterator_cannot_be_resumed(tmp_path):
    text = documents()
    for bad in ([None, *text], [*text[:3], None, *text[3:]], [*text, None]):
        with pytest.raises(TypeError, match="is a NoneType: pass strings"):
            stream(lambda bad=bad: iter(bad)).take(10_000)
    one = stream(iter(text))
    one.take(50)
    saved = one.state_dict()
    other = stream(iter(text))
    other.peek(5)
    with pytest.raises(ValueError, match="an iterator that was read from"):
        other.load_state_dict(saved)


def test_every_row_is_trained_on_once():
    text = documents(40)
    whole = extract_activations(tiny("GPT-2"), text, 2, context=12).x
    seen = []

    class Watched(SGD):
        def step(self, sae, state, x):
            seen.append(x)
            return super().step(sae, state, x)

    rows = stream(text, buffer=100, max_tokens=len(whole))
    fit(SAE(16, 24, TopK(3), generator=rng(0)), rows, Watched(lr=1e-3), batch_size=32, generator=0)
    seen = torch.cat(seen)
    assert len(seen) == len(whole) // 32 * 32
    nearest = torch.cdist(seen.double(), whole.double())
    assert float(nearest.min(1).values.max()) < 1e-3
    assert not torch.allclose(seen[:100], whole[:100], atol=1e-3)  # mixed


@pytest.mark.parametrize(
    ("options", "method", "given", "error", "message"),
    [
        ({}, PAMSGD(), {"steps": 3}, TypeError, "take StreamingPAMSGD"),
        ({}, BiasAdaptation(base=PAMSGD(), target_frequencies=0.2), {"steps": 3}, TypeError, "take StreamingPAMSGD"),
        ({}, SGD(), {"epochs": 2}, ValueError, "a stream has no passes"),
        ({}, SGD(), {}, ValueError, "pass steps=, or max_tokens"),
        ({"buffer": 16}, SGD(), {"steps": 3}, ValueError, "must hold a batch of 32"),
        ({"max_tokens": 100}, SGD(), {"steps": 4}, ValueError, "3 fit"),
        ({"max_tokens": 20}, SGD(), {}, ValueError, "leaves no batch"),
        ({}, StreamingPAMSGD(ridge="held_out"), {"steps": 3}, ValueError, r"x_val=stream.take\(5_000\)"),
    ],
)
def test_what_a_stream_cannot_do_is_refused(options, method, given, error, message):
    with pytest.raises(error, match=message):
        fit(SAE(16, 24, TopK(3), generator=rng(0)), stream(documents(), **options), method, batch_size=32, **given)


def test_bad_text_is_refused():
    for text, message in (("a b c", "one string"), (lambda: iter([1, 2]), "document 0 is a int")):
        with pytest.raises(TypeError, match=message):
            stream(text).take(3)
    with pytest.raises(ValueError, match="no token of 100 times 40 was taken"):
        stream(["a b c"], repeat=True, rules=TokenRules(skip_first=50)).take(3)
