"""The identity of data: of content, in every key, and never another text in silence."""

from __future__ import annotations

import dataclasses
import gzip
import shutil
import struct

import numpy as np
import pytest
import torch

from experiments import runs, sources, texts
from experiments.errors import UsageError
from experiments.runs import Run
from experiments.sources import Source, source_of
from experiments.store import RecordStore
from splinterp._content import content_hash
from splinterp.data.images import MNIST_FILES

RUN = Run(data="digits", method="PAM", activation="TopK", k=3, n_latents=16, n_train=60, epochs=2, lr=1e-2, seed=1)


def test_hashes_are_of_content_type_and_shape():
    x = torch.arange(6.0)
    assert content_hash([x]) == content_hash([x.clone()]) != content_hash([x.flip(0)])
    assert content_hash([x]) != content_hash([x.view(2, 3)])
    assert content_hash([x]) != content_hash([x.double()])
    assert content_hash([torch.zeros(0)]) != content_hash([])
    assert content_hash([b"ab", b"c"]) != content_hash([b"a", b"bc"])
    swapped = x.clone()
    swapped[[0, 1]] = swapped[[1, 0]]  # same length, same sum
    assert content_hash([swapped]) != content_hash([x])


@pytest.fixture
def images(tmp_path, monkeypatch):
    """A folder of four IDX files of random images, and one with one pixel changed."""
    rng = np.random.default_rng(0)
    small = {part: (name, (20, *shape[1:])) for part, (name, shape) in MNIST_FILES.items()}
    monkeypatch.setattr("splinterp.data.images.MNIST_FILES", small)
    arrays = {part: rng.integers(0, 256 if "x" in part else 10, shape, dtype=np.uint8) for part, (_, shape) in small.items()}

    def write(folder, arrays):
        folder.mkdir()
        for part, (name, shape) in small.items():
            header = b"\0\0\x08" + bytes([len(shape)]) + struct.pack(f">{len(shape)}I", *shape)
            (folder / f"{name}.gz").write_bytes(gzip.compress(header + arrays[part].tobytes()))
        return str(folder)

    one = write(tmp_path / "one", arrays)
    shutil.copytree(one, tmp_path / "copy")
    arrays["x_train"][3, 4, 5] ^= 1
    return one, str(tmp_path / "copy"), write(tmp_path / "other", arrays)


def test_images_are_known_by_their_content_wherever_they_are(images):
    one, copy, other = (source_of("mnist", folder) for folder in images)
    assert one.key == copy.key != other.key
    assert one.name == other.name == "MNIST"
    keys = {dataclasses.replace(RUN, source=s.key).key for s in (one, copy, other)}
    assert len(keys) == 2


def test_a_run_is_not_made_on_other_data_than_its_own():
    with pytest.raises(ValueError, match="not those that the run is of"):
        runs.split(dataclasses.replace(RUN, source="0123456789abcdef"))
    assert len(runs.split(dataclasses.replace(RUN, source=source_of("digits").key)).x) == 60


def test_records_of_other_data_are_refused(tmp_path):
    def train(run, data_dir, device):
        return {"key": run.key, "run": dataclasses.asdict(run), "val_last": 0.5}

    ours, theirs = Source("WikiText-2", (("text", "a"),)), Source("Python's documentation", (("text", "b"),))
    store = RecordStore(tmp_path, "x", source=ours)
    store.complete([RUN], train=train)
    with pytest.raises(
        UsageError, match=r"x.cells holds runs on WikiText-2, and these are on Python's documentation: pass another --out"
    ):
        RecordStore(tmp_path, "x", source=theirs)
    store.merge({})
    for other in (theirs, None):
        with pytest.raises(UsageError, match="holds runs on WikiText-2"):
            RecordStore(tmp_path, "x", source=other)
    with pytest.raises(UsageError, match=r"of other content"):
        RecordStore(tmp_path, "x", source=Source("WikiText-2", (("text", "c"),)))
    assert RecordStore(tmp_path, "x", source=Source("renamed", ours.parts)).get(RUN)["val_last"] == 0.5
    (tmp_path / "x.json").write_text('{"records": 3}')
    with pytest.raises(UsageError, match="not a file of records"):
        RecordStore(tmp_path, "x", source=ours)


def test_no_text_stands_in_for_another(tmp_path, monkeypatch):
    monkeypatch.delenv("SPLINTERP_DATA", raising=False)
    assert texts.location(None, None) == texts.PYTHON
    assert texts.location(None, None, last=True) == texts.WIKITEXT_103
    assert texts.location(None, str(tmp_path)) == str(tmp_path)
    assert texts.documents(None).name == "Python's documentation"
    with pytest.raises(UsageError, match="pass --data-dir FOLDER or set SPLINTERP_DATA"):
        texts.location("wikitext2", None)
    monkeypatch.setenv("SPLINTERP_DATA", str(tmp_path))
    assert texts.location(None, None) == str(tmp_path)
    assert texts.location("python-docs", None) == texts.PYTHON
    with pytest.raises(FileNotFoundError, match="--text python-docs"):
        texts.documents(str(tmp_path))
    (tmp_path / "wikitext2").mkdir()
    for part in ("valid", "test"):
        (tmp_path / "wikitext2" / f"{part}.txt").write_text(f" = One = \n {part} \n = Two = \n {part} \n")
    found = texts.documents(str(tmp_path))
    assert found.name == "WikiText-2"
    assert len(found.training) == len(found.test) == 2
    assert texts.texts_for(texts.SMALL_GPT2, str(tmp_path)).name == "Python's documentation"


def test_what_cannot_be_had_is_an_error_of_use(tmp_path):
    with pytest.raises(UsageError, match="put the four IDX files there"):
        source_of("mnist", str(tmp_path))
    with pytest.raises(UsageError, match="layer=9"):
        source_of("small-gpt2-9")


def test_the_small_gpt2_is_named_before_it_is_trained(monkeypatch):
    monkeypatch.setattr("experiments.small_gpt2.train", None)
    one = source_of("small-gpt2-1")
    assert one == source_of("small-gpt2-3")  # layers are told apart by the runs
    assert one.name == "a small GPT-2 (Python's documentation)"
    sources._text_and_model.cache_clear()
    monkeypatch.setattr(texts, "CONTEXT", 64)
    assert source_of("small-gpt2-1").key != one.key
    sources._text_and_model.cache_clear()


def test_a_language_model_is_known_by_its_weights_and_tokenizer():
    pytest.importorskip("transformers", reason="needs transformers: pip install -e '.[llm]'")
    from experiments.content import model_hash, tokenizer_hash
    from tests.data.tiny_models import tiny

    lm = tiny("BERT")
    before = model_hash(lm), tokenizer_hash(lm.tokenizer)
    assert (model_hash(lm), tokenizer_hash(lm.tokenizer)) == before
    with torch.no_grad():
        next(lm.model.parameters()).view(-1)[7] += 1e-3
    assert model_hash(lm) != before[0]
    lm.tokenizer.add_tokens(["unheardof"])
    assert tokenizer_hash(lm.tokenizer) != before[1]
