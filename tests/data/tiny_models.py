"""Small random transformers of several architectures, and a tokenizer of single letters: no network, no files."""

from __future__ import annotations

import string
from typing import Any

import pytest
import torch

pytest.importorskip("transformers", reason="needs transformers: pip install -e '.[llm]'")

from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertModel,
    BloomConfig,
    BloomModel,
    Gemma2Config,
    Gemma2Model,
    GPT2Config,
    GPT2LMHeadModel,
    GPT2Model,
    GPTNeoXConfig,
    GPTNeoXModel,
    LlamaConfig,
    LlamaModel,
    Olmo2Config,
    Olmo2Model,
    PreTrainedTokenizerFast,
)

from splinterp.data import LanguageModel

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[EOS]", *string.ascii_lowercase]


def word_tokenizer(special: bool, around: str | None = None, **options: Any) -> Any:
    """One token a letter; with `special`, [CLS] and [SEP] around each sequence, as BERT's.

    `around` is another template, such as "[EOS] $A"; `options` go to the tokenizer.
    """
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    if special:
        inner.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
    if around is not None:
        used = [(word, WORDS.index(word)) for word in around.split() if word in WORDS]
        inner.post_processor = processors.TemplateProcessing(single=around, special_tokens=used)
    names = {"cls_token": "[CLS]", "sep_token": "[SEP]"} if special else {"eos_token": "[EOS]"}
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="[PAD]", unk_token="[UNK]", **names, **options)


SIZES = {"num_hidden_layers": 3, "hidden_size": 16, "num_attention_heads": 2, "vocab_size": len(WORDS)}
NO_ENDS = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": 0}
BUILDERS: dict[str, Any] = {
    "BERT": lambda: BertModel(BertConfig(**SIZES, intermediate_size=32, max_position_embeddings=64)),
    "GPT-2": lambda: GPT2Model(GPT2Config(n_layer=3, n_embd=16, n_head=2, vocab_size=len(WORDS), n_positions=64, **NO_ENDS)),
    "GPT-2 with head": lambda: GPT2LMHeadModel(
        GPT2Config(n_layer=3, n_embd=16, n_head=2, vocab_size=len(WORDS), n_positions=64, **NO_ENDS)
    ),
    "Llama": lambda: LlamaModel(LlamaConfig(**SIZES, intermediate_size=32, num_key_value_heads=2, **NO_ENDS)),
    "Gemma 2": lambda: Gemma2Model(
        Gemma2Config(**SIZES, intermediate_size=32, num_key_value_heads=1, head_dim=8, sliding_window=8, **NO_ENDS)
    ),
    "OLMo 2": lambda: Olmo2Model(Olmo2Config(**SIZES, intermediate_size=32, **NO_ENDS)),
    "BLOOM": lambda: BloomModel(BloomConfig(n_layer=3, hidden_size=16, n_head=2, vocab_size=len(WORDS), **NO_ENDS)),
    "GPT-NeoX": lambda: GPTNeoXModel(GPTNeoXConfig(**SIZES, intermediate_size=32, **NO_ENDS)),
}


def tiny(kind: str) -> LanguageModel:
    """A random model of an architecture, always the same."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = BUILDERS[kind]()
    return LanguageModel(model, word_tokenizer(special=kind == "BERT"), kind)


def letters(n: int, seed: int = 0) -> str:
    """A document of n letters."""
    index = torch.randint(26, (n,), generator=torch.Generator().manual_seed(seed)).tolist()
    return " ".join(string.ascii_lowercase[i] for i in index)
