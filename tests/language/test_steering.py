"""Steering, the logit lens and the ablation graph against the same done by hand."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from splinterp import SAE, AbsTopK, TopK
from splinterp.data import LanguageModel, Standardizer, extract_activations, pack_tokens
from splinterp.language import Place, ablation_graph, latent_effect, logit_attribution, steered, top_tokens, written
from tests.data.tiny_models import BUILDERS, WORDS, letters, tiny, word_tokenizer
from tests.helpers import rng

IDS = torch.tensor([[5, 6, 7, 8, 9]])
MASK = torch.ones_like(IDS)


@pytest.fixture(scope="module")
def lm():
    torch.manual_seed(3)
    return LanguageModel(BUILDERS["GPT-2 with head"](), word_tokenizer(False), "tiny")


def sae_of(seed=0, activation=None):
    sae = SAE(16, 24, activation or AbsTopK(5), generator=rng(seed))
    with torch.no_grad():
        for p in sae.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=rng(seed + 1)))
    return sae.eval()


def standardizer_of(lm):
    return Standardizer("per_feature").fit(extract_activations(lm, [letters(40)], 2, context=16).x)


@pytest.mark.parametrize("standardised", [False, True])
@pytest.mark.parametrize("mode", ["add", "clamp", "scale"])
def test_steering_moves_the_stream_as_by_hand(lm, mode, standardised):
    sae, standardizer = sae_of(), standardizer_of(lm) if standardised else None
    changes = {3: 2.0, 7: -1.5, 11: 0.0}
    x = lm.hidden(IDS, MASK, 2)
    with steered(lm, sae, changes, 2, mode=mode, standardizer=standardizer):
        moved = lm.hidden(IDS, MASK, 2)
    seen = x[0] if standardizer is None else standardizer.transform(x[0])
    codes = sae.encode(seen)
    expected = x[0].clone()
    for latent, number in changes.items():
        z = codes[:, latent]
        change = {"add": torch.full_like(z, number), "clamp": number - z, "scale": (number - 1) * z}[mode]
        scale = 1.0 if standardizer is None else standardizer.scale.float()
        expected += change[:, None] * sae.W_dec[latent] * scale
    torch.testing.assert_close(moved[0], expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(lm.hidden(IDS, MASK, 2), x)  # as before


def test_clamping_one_latent_is_its_effect(lm):
    sae = sae_of()
    found = latent_effect(lm, sae, IDS[0].tolist(), 2, 4, value=3.0)
    with steered(lm, sae, {4: 3.0}, 2):
        after = F.log_softmax(lm.logits(IDS, MASK)[0, -1].float(), dim=0)
    torch.testing.assert_close(found.after, after)
    assert found.kl > 0


def test_a_model_writes_otherwise_when_it_is_steered(lm):
    sae = sae_of()
    plain = written(lm, "a b c", 8)
    assert plain == written(lm, "a b c", 8)
    assert 1 <= len(plain.split()) <= 8
    with steered(lm, sae, {2: 80.0}, 2, mode="add"):
        there = written(lm, "a b c", 8)
    with steered(lm, sae, {2: -80.0}, 2, mode="add"):
        back = written(lm, "a b c", 8)
    assert len({plain, there, back}) == 3
    assert plain == written(lm, "a b c", 8)
    with steered(lm, sae, {2: 80.0}, 2, mode="add"):  # with and without the cache of keys
        assert written(lm, "a b c", 8, use_cache=False) == there
    with pytest.raises(ValueError, match="no tokens"):
        written(lm, "", 8)
    with pytest.raises(TypeError, match="causal=True"):
        written(tiny("GPT-2"), "a b c")


@pytest.mark.parametrize("name", ["GPT-2 with head", "Llama with head", "Gemma 2 with head"])
def test_logits_are_the_direct_path_through_the_final_norm(name):
    """The derivative of the logits by the stream before the final norm, at a stream of which the norm's division is 1."""
    from transformers import Gemma2Config, Gemma2ForCausalLM, LlamaConfig, LlamaForCausalLM

    sizes = {"num_hidden_layers": 2, "hidden_size": 16, "num_attention_heads": 2, "vocab_size": len(WORDS), "intermediate_size": 32,
             "bos_token_id": None, "eos_token_id": None, "pad_token_id": 0}  # fmt: skip
    made = {
        "GPT-2 with head": BUILDERS["GPT-2 with head"],
        "Llama with head": lambda: LlamaForCausalLM(LlamaConfig(**sizes)),
        "Gemma 2 with head": lambda: Gemma2ForCausalLM(
            Gemma2Config(**sizes, num_key_value_heads=1, head_dim=8, final_logit_softcapping=None)
        ),
    }
    torch.manual_seed(1)
    model = made[name]()
    norm = model.base_model.ln_f if "GPT" in name else model.base_model.norm
    with torch.no_grad():
        norm.weight.add_(0.3 * torch.randn(16, generator=rng(5)))
    lm, sae, standardizer = LanguageModel(model, word_tokenizer(False)), sae_of(), standardizer_of(tiny("GPT-2"))
    found = logit_attribution(lm, sae, [1, 4], standardizer=standardizer)
    rows = (sae.W_dec[[1, 4]] * standardizer.scale.float()).detach()
    # far from the origin along a direction that the norm does not turn, division is nearly constant: differences of its outputs
    start = torch.randn(16, generator=rng(6)) * 1e3
    start = start - start.mean()
    root = start.square().mean().sqrt()
    radial = start / start.norm()
    across = rows - rows.mean(1, keepdim=True) * ("GPT" in name)
    across = across - (across @ radial)[:, None] * radial  # what the division by the size takes out, to first order
    with torch.no_grad():
        slope = (norm(start + 0.5 * rows) - norm(start - 0.5 * rows)) * root
        expected = slope @ lm.model.get_output_embeddings().weight.T
        gain = norm(torch.ones(16)) if "GPT" not in name else norm.weight
        taken = (rows - rows.mean(1, keepdim=True) * ("GPT" in name) - across) * gain
        torch.testing.assert_close(found - taken @ lm.model.get_output_embeddings().weight.T, expected, rtol=2e-2, atol=2e-2)
    top = top_tokens(lm, sae, [1, 4], 3, standardizer=standardizer)
    assert torch.equal(top.raised[0], found[0].topk(3).indices)
    assert torch.equal(top.lowered[1], (-found[1]).topk(3).indices)
    torch.testing.assert_close(top.down[1], found[1][top.lowered[1]])
    assert top_tokens(lm, sae, [1], 10_000).up.shape == (1, len(WORDS))


def test_the_ablation_graph_is_of_codes_with_and_without(lm):
    lower, upper = sae_of(0, TopK(5)), sae_of(7, AbsTopK(4))
    standardizer = standardizer_of(lm)
    sequences = pack_tokens(lm.tokenizer, [letters(9), letters(4)], 6, bos=None)
    stream = extract_activations(lm, sequences, 1).x
    latents = (lower.encode(stream) != 0).sum(0).topk(3).indices.tolist()
    found = ablation_graph(lm, Place(lower, 1), Place(upper, 3, "residual", standardizer), sequences, latents)
    expected, n = torch.zeros(3, 24), 0
    for ids in sequences.ids:
        tokens = torch.tensor([ids])
        mask = torch.ones_like(tokens)
        with torch.no_grad():
            whole = upper.encode(standardizer.transform(lm.hidden(tokens, mask, 3)[0]))
            for i, latent in enumerate(latents):
                with steered(lm, lower, {latent: 0.0}, 1, mode="scale"):
                    expected[i] += (upper.encode(standardizer.transform(lm.hidden(tokens, mask, 3)[0])) - whole).sum(0)
        n += len(ids)
    torch.testing.assert_close(found, expected / n, rtol=1e-3, atol=1e-4)
    assert float(found.abs().max()) > 0


def test_bad_input_is_named(lm):
    sae = sae_of()
    for call, error, message in (
        (lambda: steered(lm, sae, {3: 1.0}, 2, mode="set").__enter__(), ValueError, "mode='set'"),
        (lambda: steered(lm, sae, {24: 1.0}, 2).__enter__(), ValueError, "latent=24"),
        (lambda: logit_attribution(lm, sae, [24]), ValueError, "latents must be in"),
        (lambda: logit_attribution(tiny("GPT-2"), sae, [1]), TypeError, "no unembedding"),
        (lambda: logit_attribution(lm, SAE(8, 12, TopK(2)), [1]), ValueError, "rows of W_dec have 8"),
    ):
        with pytest.raises(error, match=message):
            call()
