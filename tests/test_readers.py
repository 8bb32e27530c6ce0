"""Every reader on damaged files: no crash, no hang, no other result where content can be checked, and errors that name the file."""

from __future__ import annotations

import gzip
import json
import os
import random
import shutil
import struct
import warnings
from contextlib import suppress

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from splinterp import SAE, SGD, TopK, fit
from splinterp.data import ActivationStore, CorruptStoreError, Standardizer, StoreWriter
from splinterp.data.images import read_idx
from splinterp.interop import load_saelens, save_saelens
from tests.helpers import make_sae, samples

REFUSED = (ValueError, FileNotFoundError, CorruptStoreError)
X = samples(40)
JSON_VALUES = [
    None,
    True,
    False,
    "x",
    "",
    -1,
    0,
    3,
    2.9,
    float("nan"),
    float("inf"),
    10**20,
    [],
    [1],
    {},
    {"name": "ReLU"},
    "../x",
]
DTYPES = [torch.int8, torch.bool, torch.complex64, torch.float8_e4m3fn, torch.float64, torch.int64]


def trained_sae(folder):
    sae = make_sae("JumpReLU", "tied_residual", b_pre=True)
    sae.save(folder, Standardizer("per_feature").fit(X))


def of_sae(folder):
    sae = SAE.load(folder)
    return [str(sae), *[value.clone() for value in sae.state_dict().values()], sae(X).x_hat.detach()]


def of_standardizer(folder):
    found = Standardizer.load(folder)
    return [found.mode, found.mean, found.scale]


def store(folder):
    writer = StoreWriter(folder, 8, about={"model": "none"})
    for part in X.split(25):
        writer.append(part, torch.zeros(len(part), 3, dtype=torch.int64))
    writer.finish()


def of_store(folder):
    found = ActivationStore(folder)
    found.verify()
    return [str(found.about), found[:], found.tokens(0, len(found))]


def continued(folder):
    if not (folder / "manifest.json").exists():  # a new store
        raise FileNotFoundError(folder)
    return [str(StoreWriter(folder, 8, about={"model": "none"}).manifest)]


def run(folder, resume=False):
    sae = SAE(8, 40, TopK(2), generator=0)
    result = fit(sae, X, SGD(lr=0.01), steps=3, batch_size=20, checkpoint=folder / "run.ckpt", resume=resume, generator=0)
    found = [*[value.clone() for value in sae.state_dict().values()], str([row["loss"] for row in result.history])]
    if resume:  # one more step by the moments that were read must not crash, whatever options of the optimizer were changed
        with suppress(Exception):
            fit(sae, X, SGD(lr=0.01), steps=4, batch_size=20, checkpoint=folder / "run.ckpt", resume=True, generator=0)
    return found


def idx(folder):
    folder.mkdir(exist_ok=True)
    content = b"\0\0\x08\x02" + struct.pack(">2I", 5, 7) + bytes(range(35))
    (folder / "plain").write_bytes(content)
    (folder / "packed.gz").write_bytes(gzip.compress(content, mtime=0))


def made_run(folder):
    folder.mkdir(exist_ok=True)
    run(folder)


def of_saelens(folder):
    sae, config = load_saelens(folder)
    return [str(config), sae(X).x_hat.detach()]


READERS = {  # what writes, what reads, whether other content is always found out
    "sae": (trained_sae, of_sae, True),
    "standardizer": (trained_sae, of_standardizer, True),
    "store": (store, of_store, True),
    "continued": (store, continued, True),
    "checkpoint": (made_run, lambda folder: run(folder, resume=True), True),
    "saelens": (lambda folder: save_saelens(make_sae("TopK"), folder), of_saelens, False),
    "idx": (idx, lambda folder: [read_idx(folder / "plain")], False),
    "packed": (idx, lambda folder: [read_idx(folder / "packed.gz")], True),
}


WEIGHTS = {
    "sae": ("sae.safetensors", "b_dec"),
    "standardizer": ("standardizer.safetensors", "scale"),
    "saelens": ("sae_weights.safetensors", "b_dec"),
}


def damage(folder, draw: random.Random, others) -> str:
    """Change a file; returns what was done."""
    path = draw.choice(sorted(p for p in folder.iterdir() if p.is_file()))
    content = path.read_bytes()
    kind = draw.choice(
        ("truncated", "flipped", "overwritten", "swapped", "gone", "folder", "fifo", "longer", "inside", "inside", "inside")
    )
    at = draw.randrange(max(1, len(content)))
    if kind == "truncated":
        path.write_bytes(content[:at])
    elif kind == "flipped":
        path.write_bytes(content[:at] + bytes([content[at] ^ 1 << draw.randrange(8)]) + content[at + 1 :])
    elif kind == "overwritten":
        path.write_bytes(content[:at] + draw.randbytes(draw.randint(1, 64)) + content[at + 64 :])
    elif kind == "swapped":
        shutil.copy(draw.choice(others), path)
    elif kind in ("gone", "folder", "fifo"):
        path.unlink()
        if kind != "gone":
            (os.mkdir if kind == "folder" else os.mkfifo)(path)
    elif kind == "longer":
        path.write_bytes(content + draw.randbytes(draw.randint(1, 64)))
    elif path.suffix == ".json":
        path.write_text(json.dumps(changed(json.loads(content), draw)))
    elif path.suffix == ".safetensors":
        tensors = load_file(path)
        name = draw.choice(sorted(tensors))
        tensors[name] = draw.choice(
            [tensors[name].to(draw.choice(DTYPES)), tensors[name] * torch.nan, tensors[name][:1].clone(), -tensors[name]]
        )
        save_file(tensors, path)
    elif path.suffix == ".ckpt":
        torch.save(changed(torch.load(path, weights_only=True), draw), path)
    return f"{path.name} {kind} at {at}"


def unsealed(folder) -> None:
    """Without checksums, as older files are, so that what they hold is looked at itself."""
    for path in folder.glob("*.json"):
        content = json.loads(path.read_text())
        for name in ("checksum", "sha256"):
            content.pop(name, None)
        path.write_text(json.dumps(content))


def changed(content, draw: random.Random):
    """A copy of nested dicts and lists with one value replaced, or removed."""
    if isinstance(content, dict | list) and content and draw.random() < 0.9:
        key = draw.choice(list(content) if isinstance(content, dict) else range(len(content)))
        copied = content.copy()
        if draw.random() < 0.1:
            del copied[key]
        else:
            copied[key] = changed(content[key], draw)
        return copied
    if isinstance(content, torch.Tensor):
        return draw.choice(
            [content.to(torch.int8), content.flatten()[:1].clone(), torch.zeros(3, 5), content.double() * torch.nan, 7]
        )
    return draw.choice(JSON_VALUES)


def equal(a, b) -> bool:
    if len(a) != len(b):
        return False
    return all(x == y if isinstance(x, str) else np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def attempt(read, folder):
    """What was read, or None and why not."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return read(folder), ""
        except REFUSED as error:
            return None, str(error)


def check(tmp_path, name: str, seeds: range) -> None:
    write, read, summed = READERS[name]
    whole = tmp_path / "whole"
    others = []
    for other, (make, _, _) in READERS.items():
        make(tmp_path / "others" / other)
        others += [p for p in (tmp_path / "others" / other).iterdir()]
    write(whole)
    shutil.copytree(whole, tmp_path / "read")
    expected = read(tmp_path / "read")
    found = {"refused": 0, "same": 0}
    for seed in seeds:
        draw, folder = random.Random(seed), tmp_path / f"case-{seed}"
        shutil.copytree(whole, folder)
        older = draw.random() < 0.3
        if older:
            unsealed(folder)
        done = damage(folder, draw, others)
        inside = (name == "checkpoint" and "inside" in done) or "swapped" in done  # saved anew, with checksums of its own
        result, said = attempt(read, folder)
        if result is None:
            assert str(folder) in said, f"seed {seed}, {done}: {said!r} does not name the file"
            assert "weights_only" not in said
            found["refused"] += 1
        else:
            same = equal(result, expected)
            assert same or older or inside or not summed, f"seed {seed}, {done}: read as something else"
            found["same"] += same
        shutil.rmtree(folder)
    assert found["refused"] > len(seeds) / 4, found


@pytest.mark.parametrize("name", READERS)
def test_damaged_files_are_refused_by_name_or_read_as_what_they_were(tmp_path, name):
    check(tmp_path, name, range(40))


@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
def test_many_damaged_files_are_refused_by_name_or_read_as_what_they_were(tmp_path, name):
    check(tmp_path, name, range(1_000, 1_500))


@pytest.mark.parametrize("name", ["sae", "standardizer", "saelens"])
def test_older_files_without_checksums_are_read(tmp_path, name):
    write, read, _ = READERS[name]
    write(tmp_path)
    expected = read(tmp_path)
    unsealed(tmp_path)
    assert equal(read(tmp_path), expected)


def test_what_is_written_has_checksums(tmp_path):
    trained_sae(tmp_path / "sae")
    store(tmp_path / "store")
    for name in ("sae/sae.json", "sae/standardizer.json", "store/manifest.json"):
        content = json.loads((tmp_path / name).read_text())
        assert "checksum" in content
        assert "sha256" in str(content)


@pytest.mark.parametrize("bad", [torch.nan, *DTYPES])
@pytest.mark.parametrize("name", ["sae", "standardizer", "saelens"])
def test_tensors_that_are_no_weights_are_named(tmp_path, bad, name):
    write, read, _ = READERS[name]
    write(tmp_path)
    unsealed(tmp_path)
    weights, parameter = WEIGHTS[name]
    tensors = load_file(tmp_path / weights)
    tensors[parameter] = tensors[parameter] * bad if isinstance(bad, float) else tensors[parameter].to(bad)
    save_file(tensors, tmp_path / weights)
    if bad == torch.float64:
        assert read(tmp_path)
        return
    with pytest.raises(ValueError, match=rf"{parameter} in .*{weights} has"):
        read(tmp_path)


@pytest.mark.parametrize("scale", [0.0, -1.0, torch.inf])
def test_a_scale_that_cannot_be_right_is_named(tmp_path, scale):
    trained_sae(tmp_path)
    unsealed(tmp_path)
    path = tmp_path / "standardizer.safetensors"
    tensors = load_file(path)
    tensors["scale"][2] = scale
    save_file(tensors, path)
    with pytest.raises(ValueError, match=r"scale in .*standardizer\.safetensors has 1 entries"):
        Standardizer.load(tmp_path)


def test_sizes_are_compared_before_memory_is_taken(tmp_path):
    make_sae().save(tmp_path)
    unsealed(tmp_path)
    path = tmp_path / "sae.json"
    content = json.loads(path.read_text())
    for change in ({"n_latents": 10**11}, {"d_in": 10**11}):
        path.write_text(json.dumps({**content, **change}))
        with pytest.raises(ValueError, match=r"do not fit sae\.json: W_enc has shape \(8, 12\)"):
            SAE.load(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"file": "/etc/passwd"}, "names the file '/etc/passwd'"),
        ({"file": "../../x"}, "only files of its own folder"),
        ({"file": ".."}, "only files of its own folder"),
        ({"file": 3}, "file=3, which must be str"),
        ({"bytes": 32}, "32 bytes for the 25 rows"),
        ({"bytes": True}, "bytes=True, which must be int"),
    ],
)
def test_manifests_name_files_of_their_folder_alone(tmp_path, change, message):
    store(tmp_path)
    path = tmp_path / "manifest.json"
    content = json.loads(path.read_text())
    content.pop("checksum")
    content["shards"][0]["activations"].update(change)
    path.write_text(json.dumps(content))
    for read in (of_store, continued):
        with pytest.raises(ValueError, match=message) as found:
            read(tmp_path)
        assert str(path) in str(found.value)


def test_an_untrained_batch_topk_and_silenced_latents_are_read(tmp_path):
    sae = make_sae("BatchTopK")
    with torch.no_grad():
        sae.b_enc[3] = -torch.inf
    sae.save(tmp_path)
    found = SAE.load(tmp_path)
    assert bool(found.activation.threshold.isnan())
    assert float(found.b_enc[3].detach()) == -torch.inf
    assert torch.equal(found.train().encode(X), sae.encode(X))
