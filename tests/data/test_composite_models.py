"""Models of several parts: encoder with decoder, and language models that take images too."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from splinterp.data import LanguageModel, extract_activations
from splinterp.data._passes import fitting_batch
from tests.data.tiny_models import NO_ENDS, SIZES, WORDS, letters, tiny, word_tokenizer

transformers = pytest.importorskip("transformers")

ENDS = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 4, "decoder_start_token_id": 4}
PAIR = {
    "vocab_size": len(WORDS), "d_model": 16, "encoder_layers": 3, "decoder_layers": 2, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "max_position_embeddings": 64, **ENDS,
}  # fmt: skip
TEXT = {**SIZES, "intermediate_size": 32, "num_key_value_heads": 1, **NO_ENDS}
SEEING = {
    "hidden_size": 24,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
}


def bert(**options):
    return transformers.BertConfig(**SIZES, intermediate_size=32, max_position_embeddings=64, **options)


def coupled():
    decoder = transformers.BertLMHeadModel(bert(is_decoder=True, add_cross_attention=True))
    return transformers.EncoderDecoderModel(encoder=transformers.BertModel(bert()), decoder=decoder)


READERS = {
    "BART": lambda: transformers.BartModel(transformers.BartConfig(**PAIR)),
    "BART with head": lambda: transformers.BartForConditionalGeneration(transformers.BartConfig(**PAIR)),
    "Pegasus": lambda: transformers.PegasusModel(transformers.PegasusConfig(**PAIR)),
    "Marian": lambda: transformers.MarianModel(transformers.MarianConfig(**PAIR)),
    "a pair of BERTs": coupled,
}


@pytest.mark.parametrize("kind", READERS)
@pytest.mark.parametrize("layer", [0, 1, 2])
def test_rows_of_an_encoder_decoder_are_the_encoders(kind, layer):
    with torch.random.fork_rng():
        torch.manual_seed(2)
        model = READERS[kind]().eval()
    lm = LanguageModel(model, word_tokenizer(True), kind)
    assert (lm.n_layers, lm.d_model) == (3, 16)
    text = letters(7)
    found = extract_activations(lm, [text, "a"], layer)
    ids = lm.tokenizer(text, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        state = model.get_encoder()(input_ids=ids, output_hidden_states=True).hidden_states[layer][0]
    torch.testing.assert_close(found.x[:7], state[1:-1], rtol=1e-4, atol=1e-5)
    assert " ".join(lm.tokenizer.convert_ids_to_tokens(found.tokens[:7, 0].tolist())) == text
    with pytest.raises(TypeError, match="predicts no tokens"):
        lm.logits(ids, torch.ones_like(ids))


def test_a_decoder_alone_is_read_itself():
    model = transformers.BartForCausalLM(transformers.BartConfig(**PAIR)).eval()
    lm = LanguageModel(model, word_tokenizer(True))
    found = extract_activations(lm, ["a b c"], 1, keep_special=True)
    ids = lm.tokenizer("a b c", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        state = model(input_ids=ids, output_hidden_states=True).hidden_states[1][0]
    torch.testing.assert_close(found.x, state, rtol=1e-4, atol=1e-5)


def test_an_encoder_of_sound_is_refused():
    sizes = {k: v for k, v in PAIR.items() if k != "max_position_embeddings"}
    model = transformers.WhisperModel(transformers.WhisperConfig(**sizes, max_source_positions=10))
    with pytest.raises(ValueError, match="the encoder of WhisperModel reads input_features, not tokens"):
        LanguageModel(model, word_tokenizer(True))


def llava():
    return transformers.LlavaConfig(
        text_config=transformers.LlamaConfig(**TEXT),
        vision_config=transformers.CLIPVisionConfig(**SEEING),
        image_token_index=20,
    )


def gemma3():
    text = {**TEXT, "head_dim": 8, "sliding_window": 4}
    vision = {k: v for k, v in SEEING.items() if k != "hidden_size"} | {"hidden_size": 24}
    return transformers.Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4, image_token_index=20)


COMPOSED = {
    "LLaVA": lambda: transformers.LlavaModel(llava()),
    "LLaVA with head": lambda: transformers.LlavaForConditionalGeneration(llava()),
    "Gemma 3": lambda: transformers.Gemma3Model(gemma3()),
}


@pytest.mark.parametrize("kind", COMPOSED)
def test_a_model_that_sees_has_the_width_of_its_text(kind):
    with torch.random.fork_rng():
        torch.manual_seed(2)
        model = COMPOSED[kind]().eval()
    lm = LanguageModel(model, word_tokenizer(False), kind)
    assert (lm.n_layers, lm.d_model) == (3, 16)
    found = {site: extract_activations(lm, ["a b c d"], 2, site).x for site in ("residual", "mlp", "attention")}
    below = extract_activations(lm, ["a b c d"], 1).x
    torch.testing.assert_close(below + found["mlp"] + found["attention"], found["residual"], rtol=1e-4, atol=1e-5)
    ids = lm.tokenizer("a b c d", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        state = model(input_ids=ids, output_hidden_states=True).hidden_states[2][0]
    torch.testing.assert_close(found["residual"], state, rtol=1e-4, atol=1e-5)


def test_sizes_may_be_one_a_layer():
    lm = tiny("Llama")
    plain = fitting_batch(lm, 12)
    lm.model.config = SimpleNamespace(hidden_size=16, intermediate_size=[8, 32, 16], num_attention_heads=(2, 1, 2))
    assert fitting_batch(lm, 12) == plain
    assert lm.d_model == 16


def test_a_stream_of_several_vectors_a_token_is_refused():
    lm = tiny("Llama")
    lm.blocks[0].register_forward_hook(lambda _, __, output: output[None].expand(4, -1, -1, -1))
    with pytest.raises(ValueError, match=r"residual of layer 1 of Llama has shape \(4, 1, 3, 16\) for \(1, 3\) tokens"):
        extract_activations(lm, ["a b c"], 1)
