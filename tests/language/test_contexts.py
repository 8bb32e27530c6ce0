"""Top activating samples against sorting everything, and contexts that stay in their sequence."""

from __future__ import annotations

import pytest
import torch

from splinterp.data import extract_activations
from splinterp.language.contexts import context_of, top_activating
from tests.helpers import make_sae, samples


@pytest.mark.parametrize("sign", ["positive", "negative", "magnitude"])
@pytest.mark.parametrize("batch_size", [1, 7, 1_000])
def test_equals_sorting_all_codes(sign, batch_size):
    sae, x = make_sae("AbsTopK", seed=4), samples(120)
    found = top_activating(sae, x, n=5, sign=sign, batch_size=batch_size)
    codes = sae.encode(x).detach()
    strength = {"positive": codes, "negative": -codes, "magnitude": codes.abs()}[sign].clamp_min(0)
    for latent in range(12):
        expected = strength[:, latent].sort(descending=True)
        n = min(5, int((strength[:, latent] > 0).sum()))
        assert found.rows[latent, :n].tolist() == expected.indices[:n].tolist()
        torch.testing.assert_close(found.acts[latent, :n], codes[expected.indices[:n], latent])
        assert found.rows[latent, n:].tolist() == [-1] * (5 - n)
        assert (found.acts[latent, n:] == 0).all()
    some = top_activating(sae, x, n=5, latents=[7, 2], sign=sign)
    assert torch.equal(some.rows, found.rows[[7, 2]])
    for mask in (torch.arange(12) % 5 == 2, (torch.arange(12) % 5 == 2).numpy(), [i % 5 == 2 for i in range(12)]):
        assert torch.equal(top_activating(sae, x, n=5, latents=mask, sign=sign).rows, found.rows[[2, 7]])
    assert sae.training


def test_bad_input_is_named():
    sae = make_sae("AbsTopK")
    for options, message in (({"n": 0}, "n=0"), ({"sign": "both"}, "known: 'positive'"), ({"latents": [12]}, "0 to 11")):
        with pytest.raises(ValueError, match=message):
            top_activating(sae, samples(), **options)
    with pytest.raises(TypeError, match="float"):
        top_activating(sae, samples(), latents=torch.tensor([1.5]))
    with pytest.raises(IndexError, match=r"mask of shape \(2,\)"):
        top_activating(sae, samples(), latents=[True, False])


def test_contexts_come_from_the_text(tmp_path):
    tiny_models = pytest.importorskip("tests.data.tiny_models")
    lm = tiny_models.tiny("BERT")
    documents = ["a b c d e f g h", "i j k"]
    memory = extract_activations(lm, documents, 1, context=6)  # sequences abcd, efgh, ijk
    store = extract_activations(lm, documents, 1, context=6, folder=tmp_path)
    for tokens in (memory.tokens, store):
        assert context_of(tokens, 1, lm.tokenizer) == "a «b» c d"
        assert context_of(tokens, 4, lm.tokenizer) == "«e» f g h"
        assert context_of(tokens, 10, lm.tokenizer, before=1) == "j «k»"
        assert context_of(tokens, 5, lm.tokenizer, before=5, after=1, mark="[{}]") == "e [f] g"
        with pytest.raises(IndexError, match="row=11"):
            context_of(tokens, 11, lm.tokenizer)
    sae = make_sae("AbsTopK", d=16, m=20)
    one, other = (top_activating(sae, x, n=3) for x in (memory.x, store))
    assert torch.equal(one.rows, other.rows)
    with pytest.raises(ValueError, match="d_in=16 but 8"):
        top_activating(make_sae("AbsTopK"), store)


def _byte_level(merges=()):
    """GPT-2's kind: one token a byte, spaces inside the tokens, and the merges given."""
    tokenizers = pytest.importorskip("tokenizers")
    transformers = pytest.importorskip("transformers")
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*alphabet, *("".join(pair) for pair in merges)])}
    inner = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, list(merges)))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = tokenizers.decoders.ByteLevel()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=inner)


def _word_pieces():
    """BERT's kind: pieces inside a word begin with ##."""
    tokenizers = pytest.importorskip("tokenizers")
    transformers = pytest.importorskip("transformers")
    vocabulary = {token: i for i, token in enumerate(["u", "play", "##ing", "##s", "the", "game"])}
    inner = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocabulary, unk_token="u"))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    inner.decoder = tokenizers.decoders.WordPiece()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=inner)


def _about(ids):
    return torch.tensor([[i, 0, 0] for i in ids], dtype=torch.int64)


def test_words_of_several_tokens_stay_whole():
    merges = [("l", "l"), ("Ġ", "w")]
    tokenizer = _byte_level(merges)
    text = "hello world, and\nmore"
    ids = tokenizer(text)["input_ids"]
    tokens = _about(ids)
    found = [context_of(tokens, row, tokenizer, before=40, after=40) for row in range(len(ids))]
    assert found[:6] == [
        "«h»ello world, and⏎more", "h«e»llo world, and⏎more", "he«ll»o world, and⏎more", "hell«o» world, and⏎more",
        "hello «w»orld, and⏎more", "hello w«o»rld, and⏎more",
    ]  # fmt: skip
    assert "hello world, and«⏎»more" in found
    assert all(each.replace("«", "").replace("»", "").replace("⏎", "\n") == text for each in found)
    assert context_of(tokens, 4, tokenizer, before=2, after=2) == "llo «w»or"
    pieces = _word_pieces()
    tokens = _about(pieces("the games playing")["input_ids"])
    assert [context_of(tokens, row, pieces) for row in range(5)] == [
        "«the» games playing", "the «game»s playing", "the game«s» playing", "the games «play»ing", "the games play«ing»",
    ]  # fmt: skip


def test_characters_of_several_tokens_are_marked_whole():
    tokenizer = _byte_level()
    text = "aé {b} 🙂c"
    ids = tokenizer(text)["input_ids"]
    found = [context_of(_about(ids), row, tokenizer, after=12) for row in range(len(ids))]
    assert all(each.replace("«", "").replace("»", "") == text for each in found)
    assert found[1:3] == ["a«é» {b} 🙂c"] * 2
    assert found[-5:-1] == ["aé {b} «🙂»c"] * 4
