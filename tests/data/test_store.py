"""Stores: bytes and rows against plain tensors, shuffling, corruption, and training on one."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from splinterp import PAMSGD, SAE, SGD, BiasAdaptation, ReLU, TopK, fit
from splinterp._atomic import locked
from splinterp.data import ActivationStore, CorruptStoreError, Standardizer, StoreWriter
from tests.helpers import rng

SIZES = (300, 1, 700, 123)


def rows(d=6, seed=0):
    return torch.randn(sum(SIZES), d, generator=rng(seed)) + torch.arange(d)


def write(folder, x, dtype="float32", sizes=SIZES, finish=True):
    writer = StoreWriter(folder, x.shape[1], dtype, {"model": "none"})
    start = sum(sizes[: writer.n_shards])
    for size in sizes[writer.n_shards :]:
        part = x[start : start + size]
        writer.append(part, torch.arange(start, start + size)[:, None].expand(-1, 3))
        start += size
    return writer.finish() if finish else writer


def test_rows_are_those_that_were_written(tmp_path):
    x = rows()
    store = write(tmp_path, x)
    assert (store.shape, len(store), store.numel(), store.about) == ((1124, 6), 1124, 6744, {"model": "none"})
    assert torch.equal(store[:], x)
    assert torch.equal(store[290:1010], x[290:1010])
    assert torch.equal(torch.cat(list(store.split(97))), x)
    index = torch.randint(len(x), (50,), generator=rng(1))
    assert torch.equal(store[index], x[index])
    assert store[5:5].shape == (0, 6)
    assert torch.equal(store.tokens(299, 303)[:, 0], torch.arange(299, 303))
    store.verify()
    with pytest.raises(IndexError, match="0 to 1123"):
        store[torch.tensor([1124])]


INDICES = {
    "int": 5, "last": -1, "NumPy int": np.int32(7), "0-d tensor": torch.tensor(-2), "0-d array": np.array(3), "list": [4, 0, -3, 4],
    "empty list": [], "range": range(290, 310, 3), "array": np.array([1123, 0, 300]),
    "narrow array": np.array([1, -7], dtype=np.int16), "narrow tensor": torch.tensor([8, 1000], dtype=torch.int32),
    "matrix": torch.tensor([[301, 2, -1], [7, 7, 8]]), "empty tensor": torch.empty(0, dtype=torch.int64),
    "mask": torch.arange(1124) % 7 == 0, "array mask": np.arange(1124) > 1100, "list mask": [i % 400 == 299 for i in range(1124)],
    "no row": torch.zeros(1124, dtype=torch.bool),
    "slice": slice(-20, None), "backwards bounds": slice(20, 10), "steps": slice(3, 1100, 250), "far": slice(-5000, 5000, 301),
    "beyond": slice(2000, 3000), "all": slice(None), "long step": slice(None, None, 10_000), "negative stop": slice(None, -1000, 2),
}  # fmt: skip


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("kind", INDICES)
def test_an_index_gives_what_it_gives_of_the_tensor(tmp_path, kind, dtype):
    x = rows()
    store, whole, index = write(tmp_path, x, dtype), x.to(getattr(torch, dtype)).float(), INDICES[kind]
    narrow = isinstance(index, np.ndarray | np.generic)
    assert torch.equal(store[index], whole[index.tolist() if narrow else index])
    seen = ActivationStore(tmp_path, standardizer=Standardizer("global").fit(whole))
    torch.testing.assert_close(seen[index], seen.standardizer.transform(whole)[index.tolist() if narrow else index])


def test_other_indices_are_refused_and_named(tmp_path):
    store = write(tmp_path, rows())
    for index, error, message in (
        (1124, IndexError, "row 1124 is not one of 0 to 1123"), (-1125, IndexError, "row -1125"), ([0, 5000], IndexError, "5000"),
        (torch.ones(1123, dtype=torch.bool), IndexError, r"mask of shape \(1123,\)"), ([True, False], IndexError, r"\(2,\)"),
        (torch.ones(1124, 6, dtype=torch.bool), IndexError, r"\(1124, 6\)"), (1.0, TypeError, "is a float"),
        (torch.tensor([1.0]), TypeError, "dtype float32"), (np.array([0.5]), TypeError, "dtype float64"), ([0.5], TypeError, "float64"),
        (torch.tensor([1], dtype=torch.uint8), TypeError, "uint8"), (True, TypeError, "one boolean"), ((1, 2), TypeError, "rows alone"),
        (None, TypeError, "rows alone"), (..., TypeError, "rows alone"), ("a", TypeError, "is a str"), ([True, 2], TypeError, "booleans"),
        (["a"], TypeError, "dtype"), ([[1], [1, 2]], TypeError, "nested"), (slice(None, None, -1), ValueError, "step=-1"),
    ):  # fmt: skip
        with pytest.raises(error, match=message):
            store[index]


def test_a_list_may_hold_single_tensors(tmp_path):
    x = rows()
    assert torch.equal(write(tmp_path, x)[[torch.tensor(3), 900]], x[[3, 900]])


def test_bounds_of_tokens_are_a_slices(tmp_path):
    store = write(tmp_path, rows())
    tokens = torch.arange(1124)[:, None].expand(-1, 3)
    for start, stop in ((-4, 5000), (5, -1100), (2000, 3000), (20, 10), (298, 303)):
        assert torch.equal(store.tokens(start, stop), tokens[start:stop])
    empty = StoreWriter(tmp_path / "empty", 6).finish()
    assert empty[:].shape == empty[[]].shape == empty[::2].shape == (0, 6)
    with pytest.raises(IndexError):
        empty[0]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_kept_as_it_is_and_read_as_float32(tmp_path, dtype):
    x = rows()
    store = write(tmp_path, x, dtype)
    assert torch.equal(store[:], x.to(getattr(torch, dtype)).float())
    assert (tmp_path / "shard-00000.activations").stat().st_size == 2 * 300 * 6


@pytest.mark.parametrize("memory", [2**16, 2**28])
@pytest.mark.parametrize("batch_size", [1, 64, 5_000])
def test_shuffling_gives_every_row_once(tmp_path, memory, batch_size):
    x = torch.arange(9_000.0).reshape(-1, 3)
    write(tmp_path, x, sizes=(1_700, 1_300))
    store = ActivationStore(tmp_path, memory=memory)
    batches = list(store.shuffled(batch_size, rng(3)))
    seen = torch.cat(batches)
    assert not torch.equal(seen, x)
    assert torch.equal(seen[seen[:, 0].argsort()], x)
    assert all(len(b) == min(batch_size, 3_000) for b in batches[:-1])
    assert torch.equal(seen, torch.cat(list(store.shuffled(batch_size, rng(3)))))
    assert not torch.equal(seen, torch.cat(list(store.shuffled(batch_size, rng(4)))))


def test_a_small_budget_still_mixes_far_rows(tmp_path):
    x = torch.arange(40_000.0)[:, None].expand(-1, 4).contiguous()
    write(tmp_path, x, sizes=(20_000, 20_000))
    first = next(iter(ActivationStore(tmp_path, memory=2**17).shuffled(512, rng(0))))
    assert float(first.max() - first.min()) > 20_000


def test_statistics_and_standardizers_equal_those_of_the_tensor(tmp_path):
    x = rows()
    x[:, 2] = 7.0
    store = write(tmp_path, x)
    found = store.statistics()
    y = x.double()
    for name, value in {
        "mean": y.mean(0),
        "std": y.std(0, correction=0),
        "norm": y.norm(dim=1).mean(),
        "min": y.amin(0),
    }.items():
        torch.testing.assert_close(found[name], value, rtol=1e-10, atol=1e-12)
    for mode in ("none", "global", "unit_norm"):
        ours, theirs = Standardizer(mode).fit(store), Standardizer(mode).fit(x)
        torch.testing.assert_close((ours.mean, ours.scale), (theirs.mean, theirs.scale), rtol=1e-10, atol=1e-12)
    with pytest.warns(UserWarning, match="1 of 6 columns are constant"):
        ours = Standardizer("per_feature").fit(store)
    with pytest.warns(UserWarning, match="1 of 6"):
        theirs = Standardizer("per_feature").fit(x)
    torch.testing.assert_close((ours.mean, ours.scale), (theirs.mean, theirs.scale), rtol=1e-10, atol=1e-12)
    seen = ActivationStore(tmp_path, standardizer=ours)
    torch.testing.assert_close(seen[10:20], ours.transform(x[10:20]))
    assert seen.fingerprint() != store.fingerprint()


def test_an_interrupted_writer_is_continued_to_the_same_bytes(tmp_path):
    x = rows()
    write(tmp_path / "whole", x)
    writer = StoreWriter(tmp_path / "cut", 6, about={"model": "none"})
    writer.append(x[:300], torch.arange(300)[:, None].expand(-1, 3))
    (tmp_path / "cut" / ".shard-00001.activations.abc.tmp").write_bytes(b"half a shard")
    (tmp_path / "cut" / "shard-00001.activations").write_bytes(b"written, but not in the manifest")
    with pytest.raises(ValueError, match="not finished"):
        ActivationStore(tmp_path / "cut")
    assert len(ActivationStore(tmp_path / "cut", allow_incomplete=True)) == 300
    write(tmp_path / "cut", x)
    names = sorted(p.name for p in (tmp_path / "whole").iterdir())
    assert sorted(p.name for p in (tmp_path / "cut").iterdir()) == names
    assert all((tmp_path / "cut" / n).read_bytes() == (tmp_path / "whole" / n).read_bytes() for n in names)


def test_corruption_is_named(tmp_path):
    store = write(tmp_path, rows())
    path = tmp_path / "shard-00002.activations"
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)
    with pytest.raises(CorruptStoreError, match="shard-00002.activations"):
        store.verify()
    path.write_bytes(content[:-1])
    with pytest.raises(CorruptStoreError, match=r"shard-00002.activations has \d+ bytes"):
        ActivationStore(tmp_path)
    path.unlink()
    with pytest.raises(CorruptStoreError, match="shard-00002.activations is missing"):
        ActivationStore(tmp_path)


@pytest.mark.parametrize("method", [SGD(), PAMSGD()])
def test_a_shard_of_other_bytes_is_not_trained_on(tmp_path, method):
    store = write(tmp_path, rows())
    fit(SAE(6, 12, TopK(2)), store, method, epochs=1)
    path = tmp_path / "shard-00002.activations"
    path.write_bytes(path.read_bytes()[::-1])
    for run in (
        lambda: fit(SAE(6, 12, TopK(2)), store, method, epochs=1),
        lambda: fit(SAE(6, 12, TopK(2)), rows(), method, epochs=1, x_val=ActivationStore(tmp_path)),
        lambda: Standardizer("per_feature").fit(store),
        lambda: list(store.shuffled(64, rng())),
    ):
        with pytest.raises(CorruptStoreError, match="shard-00002.activations does not have the bytes"):
            run()
    assert len(store.tokens(0, 9)) == 9
    path = tmp_path / "shard-00000.tokens"
    path.write_bytes(path.read_bytes()[::-1])
    with pytest.raises(CorruptStoreError, match="shard-00000.tokens does not have the bytes"):
        store.tokens(0, 9)


def test_fingerprints_tell_what_gives_other_rows(tmp_path):
    x = rows()
    write(tmp_path, x)
    found = []
    for change in (0.0, 1e-6, 1e-12):
        standardizer = Standardizer("per_feature").fit(x)
        standardizer.scale = standardizer.scale * (1 + change)
        found.append(ActivationStore(tmp_path, standardizer=standardizer).fingerprint())
    assert len(set(found)) == 3
    torch.set_printoptions(precision=1)
    try:
        assert ActivationStore(tmp_path, standardizer=standardizer).fingerprint() == found[-1]
    finally:
        torch.set_printoptions(profile="default")


def test_a_failed_append_may_be_repeated(tmp_path, monkeypatch):
    x = rows()[:50]
    tokens = torch.zeros(50, 3, dtype=torch.int64)
    original = StoreWriter._write_manifest

    def before(self, manifest):
        raise OSError("disk full")

    def after(self, manifest):
        original(self, manifest)
        raise KeyboardInterrupt

    writer = StoreWriter(tmp_path, 6)
    for fails, error in ((before, OSError), (after, KeyboardInterrupt)):
        monkeypatch.setattr(StoreWriter, "_write_manifest", fails)
        with pytest.raises(error):
            writer.append(x, tokens)
        monkeypatch.setattr(StoreWriter, "_write_manifest", original)
        writer.append(x, tokens)
    monkeypatch.setattr(StoreWriter, "_write_manifest", after)
    with pytest.raises(KeyboardInterrupt):
        writer.finish()
    monkeypatch.undo()
    assert torch.equal(writer.finish()[:], torch.cat([x, x]))


def test_the_second_of_two_writers_is_refused(tmp_path):
    x, tokens = rows()[:50], torch.zeros(50, 3, dtype=torch.int64)
    first, second = StoreWriter(tmp_path, 6), StoreWriter(tmp_path, 6)
    first.append(x, tokens)
    with pytest.raises(ValueError, match="another writer has added to .*has 1 shards now, not 0"):
        second.append(x + 1, tokens)
    with pytest.raises(ValueError, match="another writer"):
        second.finish()
    third = StoreWriter(tmp_path, 6)
    third.append(x + 2, tokens)
    with pytest.raises(ValueError, match="another writer"):
        first.append(x + 3, tokens)
    assert torch.equal(third.finish()[:], torch.cat([x, x + 2]))


def test_a_writer_that_is_writing_is_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr("splinterp._atomic.LOCK_SECONDS", 0.05)
    x, tokens = rows()[:50], torch.zeros(50, 3, dtype=torch.int64)
    writer = StoreWriter(tmp_path, 6)
    with locked(tmp_path, exclusive=True), pytest.raises(ValueError, match="being written to by another process"):
        writer.append(x, tokens)
    writer.append(x, tokens)
    assert len(writer.finish()) == 50


def test_what_does_not_fit_is_refused(tmp_path):
    writer = write(tmp_path, rows(), finish=False)
    with pytest.raises(ValueError, match="d_in=6"):
        writer.append(torch.zeros(3, 5), torch.zeros(3, 3, dtype=torch.int64))
    writer.finish()
    with pytest.raises(ValueError, match="is finished"):
        writer.append(torch.zeros(3, 6), torch.zeros(3, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match="its model is"):
        StoreWriter(tmp_path, 6, about={"model": "another"})
    with pytest.raises(ValueError, match="dtype='int8'"):
        StoreWriter(tmp_path / "new", 6, "int8")
    with pytest.raises(ValueError, match="memory=10"):
        ActivationStore(tmp_path, memory=10)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps({**manifest, "format": "other"}))
    with pytest.raises(ValueError, match="not of the format"):
        ActivationStore(tmp_path)
    with pytest.raises(FileNotFoundError):
        ActivationStore(tmp_path / "nowhere")


METHODS = {
    "SGD": SGD(lr=0.01), "PAM": PAMSGD(lr=0.01, solve_gap=1),
    "GBA": BiasAdaptation(base=PAMSGD(lr=0.01), groups=2, every=7, rule="quantile", quantile_samples=200, gain=1.0),
}  # fmt: skip


@pytest.mark.parametrize("method", METHODS)
def test_fit_takes_a_store(tmp_path, method):
    x = rows()
    store = write(tmp_path / "store", x)
    sae = SAE(6, 10, ReLU(), "tied_residual", b_pre=True, generator=rng(1))
    result = fit(sae, store, METHODS[method], epochs=6, batch_size=50, x_val=x[:100], generator=rng(2))
    assert result.history[-1]["train_fvu"] < result.history[0]["train_fvu"]
    again = SAE(6, 10, ReLU(), "tied_residual", b_pre=True, generator=rng(1))
    kept = tmp_path / "checkpoint"
    for _ in range(2):  # the second call finds the run done and repeats nothing
        fit(
            again,
            store,
            METHODS[method],
            epochs=6,
            batch_size=50,
            x_val=x[:100],
            generator=rng(2),
            checkpoint=kept,
            resume=True,
        )
    assert torch.equal(again.W_dec, sae.W_dec)
    changed = ActivationStore(tmp_path / "store", standardizer=Standardizer("global").fit(store))
    with pytest.raises(ValueError, match="another run"):
        fit(again, changed, METHODS[method], epochs=6, batch_size=50, checkpoint=kept, resume=True)


def test_fit_on_a_store_starts_at_the_mean_and_checks_rows(tmp_path):
    x = rows()
    store = write(tmp_path / "a", x)
    sae = SAE(6, 10, TopK(2), b_pre=True, generator=rng(1))
    fit(sae, store, SGD(lr=1e-12), epochs=1)
    torch.testing.assert_close(sae.b_dec.detach(), x.mean(0), rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="d_in=6 but 7"):
        fit(SAE(7, 10, TopK(2)), store, SGD(), epochs=1)
    x[5, 3] = torch.nan
    with pytest.raises(ValueError, match="1 non-finite entries"):
        fit(sae, write(tmp_path / "b", x), SGD(), epochs=1)
    x[5] = 1e6
    with pytest.warns(UserWarning, match=r"x\[5\]"):
        fit(sae, write(tmp_path / "c", x), SGD(lr=1e-12), epochs=1)


@pytest.mark.parametrize(("dtype", "large"), [("float16", 7e4), ("float16", -1e30), ("bfloat16", 3.4e38), ("float32", 1e300)])
def test_values_that_a_dtype_makes_infinite_are_refused(tmp_path, dtype, large):
    x = rows().double()
    x[4, 2] = large
    with pytest.raises(ValueError, match=rf"1 activations, the largest .* do not fit {dtype}.*: take dtype=torch\.[bf]"):
        write(tmp_path, x, dtype)
    x[4, 2] = 6e4  # which all of them hold
    assert torch.equal(write(tmp_path / "fits", x, dtype)[4], x[4].to(getattr(torch, dtype)).float())


@pytest.mark.parametrize(("start", "stop"), [(0, 7), (3, None), (-5, None), (5, -4), (6, 8)])
def test_a_part_is_a_store_of_those_rows(tmp_path, start, stop):
    x = torch.randn(23, 4, generator=rng(0))
    tokens = torch.arange(69).reshape(23, 3)
    writer = StoreWriter(tmp_path, 4)
    for a, b in ((0, 6), (6, 13), (13, 23)):
        writer.append(x[a:b], tokens[a:b])
    store = writer.finish()
    part, expected = store.part(start, stop), x[start:stop]
    n = len(expected)
    assert (len(part), part.shape, part.numel()) == (n, (n, 4), 4 * n)
    assert torch.equal(part[:], expected)
    assert torch.equal(torch.cat(list(part.split(3))), expected)
    assert torch.equal(part[[0, n - 1, -1]], expected[[0, n - 1, -1]])
    assert torch.equal(part[::2], expected[::2])
    assert torch.equal(part.tokens(0, n), tokens[start:stop])
    torch.testing.assert_close(part.statistics()["mean"], expected.double().mean(0))
    mixed = torch.cat(list(part.shuffled(4, rng(1))))
    assert sorted(mixed[:, 0].tolist()) == sorted(expected[:, 0].tolist())
    assert torch.equal(part.part(1, 3)[:], expected[1:3]) or n < 3
    assert part.fingerprint() != store.fingerprint()
    assert store.part(0).fingerprint() == store.fingerprint()
    assert len(store) == 23
    with pytest.raises(IndexError, match=f"row {n} is not one"):
        part[n]
    with pytest.raises(ValueError, match="has none"):
        store.part(5, 5)


def test_one_store_trains_and_validates(tmp_path):
    from splinterp import PAMSGD, SAE, TopK, fit

    writer = StoreWriter(tmp_path, 8)
    writer.append(torch.randn(700, 8, generator=rng(0)), torch.zeros(700, 3, dtype=torch.int64))
    store = writer.finish()
    options = {"epochs": 2, "generator": 0}
    one, other = (SAE(8, 16, TopK(2), "tied_residual", generator=rng(1)) for _ in range(2))
    fit(one, store.part(0, -250), PAMSGD(), x_val=store.part(-250), **options)
    fit(other, store.part(0, -250), PAMSGD(), x_val=store[-250:], **options)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
