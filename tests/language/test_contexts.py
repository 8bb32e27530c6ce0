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
