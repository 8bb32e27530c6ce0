"""Every site of many architectures, against hooks of one's own: small random models made from their configurations."""

from __future__ import annotations

import warnings

import pytest
import torch

from splinterp import SAE, TopK
from splinterp.data import LanguageModel, extract_activations, extract_places, pack_tokens
from splinterp.language import logit_attribution
from tests.data.tiny_models import letters, word_tokenizer
from tests.helpers import rng

transformers = pytest.importorskip("transformers")  # the import above has said what to install

SIZES = {
    "num_hidden_layers": 2, "n_layer": 2, "n_layers": 2, "num_layers": 2, "encoder_layers": 2, "decoder_layers": 2,
    "hidden_size": 32, "n_embd": 32, "d_model": 32, "dim": 32, "embedding_size": 16, "word_embed_proj_dim": 32, "d_kv": 8,
    "num_attention_heads": 4, "n_head": 4, "n_heads": 4, "num_heads": 4, "num_key_value_heads": 2, "n_head_kv": 2, "head_dim": 8,
    "encoder_attention_heads": 4, "decoder_attention_heads": 4, "rotary_dim": 4,
    "intermediate_size": 48, "ffn_dim": 48, "n_inner": 48, "d_ff": 48, "hidden_dim": 48, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48,
    "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16, "num_local_experts": 4, "num_experts": 4,
    "n_routed_experts": 4, "num_experts_per_tok": 2, "vocab_size": 64, "max_position_embeddings": 64, "n_positions": 64, "n_ctx": 64,
    "sliding_window": 16, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
ADDS = [
    "apertus", "arcee", "biogpt", "bitnet", "bloom", "codegen", "cohere", "cohere2", "diffllama", "doge", "ernie4_5", "esm",
    "exaone4", "gemma", "gemma2", "gemma3_text", "glm", "glm4", "gpt2", "gpt_neox", "gptj", "granite", "helium", "llama", "mistral",
    "mixtral", "modernbert", "mpt", "nemotron", "olmo", "olmo2", "olmoe", "opt", "persimmon", "phi", "phi3", "qwen2", "qwen2_moe", "qwen3",
    "rwkv", "smollm3", "stablelm", "starcoder2", "t5", "xglm",
]  # fmt: skip
"""Architectures in whose blocks two sums go into the stream."""
REFUSED = {"mpnet": "mlp", "mamba": "mlp", "falcon_mamba": "attention"}
"""A part that is not there, or whose output is not what is added."""
DOCUMENTS = [letters(12), letters(5), letters(9)]


def built(kind, dtype=torch.float32):
    """A small random model of an architecture, always the same one."""
    if kind not in transformers.CONFIG_MAPPING:
        pytest.skip(f"this transformers has no {kind}")
    config = transformers.CONFIG_MAPPING[kind]
    plain = config()
    options = {
        name: size
        for name, size in SIZES.items()
        if type(getattr(plain, name, "")) in (int, type(None)) and not isinstance(getattr(type(plain), name, None), property)
    }
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of their own deprecations
        model = transformers.AutoModel.from_config(config(**options)).to(dtype)
    return LanguageModel(model, word_tokenizer(False), kind)


def quietly(*arguments, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return extract_activations(*arguments, **options)


@pytest.mark.parametrize("kind", ADDS)
def test_what_attention_and_mlp_give_is_what_the_block_adds(kind):
    lm = built(kind)
    x = {site: quietly(lm, DOCUMENTS, 2, site).x for site in ("residual", "attention", "mlp")}
    added = x["residual"] - quietly(lm, DOCUMENTS, 1).x
    assert float((added - x["attention"] - x["mlp"]).norm() / added.norm()) < 1e-4
    assert all(float(x[site].norm()) > 0 for site in x)


@pytest.mark.parametrize("kind", ADDS)
def test_residual_is_what_a_hook_of_ones_own_gets_however_tokens_are_padded(kind):
    lm = built(kind)
    found = quietly(lm, DOCUMENTS, 1)  # in one batch, padded
    alone = torch.cat([quietly(lm, [document], 1).x for document in DOCUMENTS])
    torch.testing.assert_close(found.x, alone, rtol=1e-3, atol=1e-4)
    seen = []
    handle = lm.blocks[0].register_forward_hook(
        lambda _, args, output: seen.append(output[0] if isinstance(output, tuple) else output)
    )
    ids = torch.tensor(pack_tokens(lm.tokenizer, DOCUMENTS[:1]).ids)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        lm.model(input_ids=ids)
    handle.remove()
    torch.testing.assert_close(alone[:12], seen[0][0], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("kind", ["gpt2", "llama", "gemma2", "bloom"])
def test_the_side_on_which_a_tokenizer_pads_changes_nothing(kind, side):
    lm = built(kind)
    expected = quietly(lm, DOCUMENTS, 2).x
    lm.tokenizer.padding_side = lm.tokenizer.truncation_side = side
    assert torch.equal(quietly(lm, DOCUMENTS, 2).x, expected)


@pytest.mark.parametrize("kind", ADDS)
def test_sites_are_found_in_bfloat16_too(kind):
    lm = built(kind, torch.bfloat16)
    x = {site: quietly(lm, DOCUMENTS[:1], 2, site).x for site in ("residual", "attention", "mlp")}
    added = x["residual"] - quietly(lm, DOCUMENTS[:1], 1).x
    assert float((added - x["attention"] - x["mlp"]).norm() / x["residual"].norm()) < 0.02


@pytest.mark.parametrize("kind", REFUSED)
def test_a_part_that_is_not_what_is_added_is_refused(kind):
    lm = built(kind)
    with pytest.raises(ValueError, match="take site='residual'"):
        quietly(lm, DOCUMENTS, 2, REFUSED[kind])
    assert quietly(lm, DOCUMENTS, 2).x.shape == (26, 32)


@pytest.mark.parametrize("kind", ["falcon", "phi", "gpt2", "gemma2"])
def test_a_place_gives_the_same_alone_and_beside_others_although_models_write_in_place(kind):
    lm = built(kind)
    places = [(1, "mlp"), (1, "attention"), (1, "residual"), (2, "residual")]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = extract_places(lm, DOCUMENTS, places)
    for place in places:
        torch.testing.assert_close(found[place].x, quietly(lm, DOCUMENTS, *place).x)


@pytest.mark.parametrize("kind", ["biogpt", "rwkv", "gpt2", "opt", "mamba"])
def test_blocks_are_found_with_a_head_too(kind):
    if kind not in transformers.CONFIG_MAPPING:
        pytest.skip(f"this transformers has no {kind}")
    config = built(kind).model.config
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = transformers.AutoModelForCausalLM.from_config(config)
        lm = LanguageModel(model, word_tokenizer(False), kind)
        assert lm.n_layers == 2
        assert lm.logits(torch.ones(1, 3, dtype=torch.int64), torch.ones(1, 3, dtype=torch.int64)).shape == (1, 3, 64)


LENS = ["gpt2", "llama", "gemma2", "cohere", "olmo", "nemotron", "opt", "mpt", "bloom", "gpt_neox", "stablelm", "phi"]


@pytest.mark.parametrize("kind", LENS)
@torch.no_grad()
def test_the_logit_lens_is_the_models_own_way_to_its_logits(kind):
    """Of a long stream after the last block, a small move along a direction moves the logits, times the stream's size, as the lens says,
    but for what the division by the size takes back along the stream."""
    config = built(kind).model.config
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = transformers.AutoModelForCausalLM.from_config(config).double()
    for module in model.modules():
        if "norm" in type(module).__name__.lower() and getattr(module, "weight", None) is not None:
            module.weight.add_(0.3 * torch.randn(module.weight.shape, generator=rng(5), dtype=torch.float64))
    lm = LanguageModel(model, word_tokenizer(False), kind)
    sae = SAE(32, 12, TopK(2), dtype=torch.float64, generator=0)
    found = logit_attribution(lm, sae, [3, 7]).double()
    ids = torch.ones(1, 3, dtype=torch.int64)
    stream = 40 * torch.randn(32, generator=rng(2), dtype=torch.float64)

    def logits(move):
        with lm.edited(2, "residual", lambda x: (stream + move).expand_as(x)), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return lm.logits(ids, torch.ones_like(ids))[0, -1].double()

    along = (logits(1e-3 * stream) - logits(-1e-3 * stream)) / 2e-3  # of what division takes back, nearly nothing is left
    base = logits(0 * stream)
    moved = [(logits(1e-2 * row) - logits(-1e-2 * row)) / 2e-2 for row in sae.W_dec[[3, 7]]]
    for lens, change in zip(
        found, moved, strict=True
    ):  # change = c lens + e (the stream's own logits): fitted, nothing is left
        design = torch.stack([lens, base, torch.ones_like(base), along], dim=1)
        solution = torch.linalg.lstsq(design, change[:, None]).solution
        left = change - (design @ solution)[:, 0]
        assert float(left.norm()) < 0.02 * float(change.norm())
        assert float(solution[0]) > 0


def test_a_way_to_the_logits_that_is_more_than_its_modules_is_refused():
    config = built("roberta").model.config
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = transformers.AutoModelForMaskedLM.from_config(config)
        lm = LanguageModel(model, word_tokenizer(False), "roberta")
        with pytest.raises(TypeError, match="is more than its modules"):
            logit_attribution(lm, SAE(32, 12, TopK(2)), [3])
