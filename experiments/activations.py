"""Activations of a language model on real text, extracted once into a cache on disk and split by text, never by token."""

from __future__ import annotations

import functools
import hashlib
import os
from pathlib import Path
from typing import Literal, NamedTuple

import torch

from splinterp.data import (
    ActivationStore,
    LanguageModel,
    Standardizer,
    TokenSequences,
    extract_activations,
    pack_tokens,
    python_documentation,
    text_from_datasets,
    text_from_files,
)
from splinterp.data.text import WIKITEXT_HEADING

CONTEXT = 128
N_VALIDATION, N_TEST = 5_000, 20_000
BATCH_TOKENS = 8_192


class Tokens(NamedTuple):
    """Standardised activations, one row a token. The validation rows are of other documents than the training rows."""

    x: torch.Tensor
    x_val: torch.Tensor
    x_test: torch.Tensor
    standardizer: Standardizer


def cache_folder() -> Path:
    """`$SPLINTERP_CACHE`, or a folder under the user's cache."""
    return Path(os.environ.get("SPLINTERP_CACHE") or Path.home() / ".cache" / "splinterp")


SMALL_GPT2 = "small-gpt2"
"""The model of `experiments.small_gpt2`, which reads Python's documentation only."""


def documents(data_dir: str | None) -> tuple[list[str], list[str], str]:
    """(training documents, test documents, their name): WikiText-2's validation and test parts where `data_dir` (or
    `$SPLINTERP_DATA`) has them, else, and for an empty `data_dir`, Python's own documentation, every fourth topic for testing."""
    if data_dir is None:
        data_dir = os.environ.get("SPLINTERP_DATA", "")
    folder = Path(data_dir) / "wikitext2"
    if data_dir and folder.is_dir():
        parts = [text_from_files(folder / f"{part}.txt", heading=WIKITEXT_HEADING) for part in ("valid", "test")]
        return parts[0], parts[1], "wikitext2"
    topics = python_documentation()
    return [t for i, t in enumerate(topics) if i % 4], topics[::4], "python documentation"


def store(
    model: str, layer: int, text: list[str] | TokenSequences, max_tokens: int, which: Literal["all", "last"] = "all"
) -> ActivationStore:
    """The activations of the text's first tokens (or of the last one of each sequence), extracted if the cache lacks them."""
    content = hashlib.sha256((repr(text.ids) if isinstance(text, TokenSequences) else "\0".join(text)).encode()).hexdigest()[
        :16
    ]
    kind = "" if which == "all" else f"-{which}"
    folder = cache_folder() / "activations" / f"{model.replace('/', '--')}-{layer}-{CONTEXT}-{max_tokens}{kind}-{content}"
    if (folder / "manifest.json").exists():
        earlier = ActivationStore(folder, allow_incomplete=True)
        if earlier.manifest["complete"]:
            return earlier
    found = extract_activations(
        language_model(model), text, layer, tokens=which, context=CONTEXT, max_tokens=max_tokens, folder=folder,
        batch_tokens=BATCH_TOKENS,
    )  # fmt: skip
    assert isinstance(found, ActivationStore)
    return found


@functools.lru_cache(maxsize=1)
def language_model(name: str, causal: bool = False) -> LanguageModel:
    """The model of a name, with its head if it is `causal`."""
    if name == SMALL_GPT2:
        from experiments import small_gpt2

        return small_gpt2.load()
    return LanguageModel.load(name, causal=causal)


def texts_for(model: str, data_dir: str | None) -> tuple[list[str], list[str], str]:
    """`documents` that the model was trained on or for."""
    return documents("" if model == SMALL_GPT2 else data_dir)


@functools.lru_cache(maxsize=2)
def raw_tokens(model: str, layer: int, n_train: int, data_dir: str | None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Training rows from the first documents, validation rows from the last ones of the same part, test rows from the test part,
    as the model gives them."""
    train_documents, test_documents, _ = texts_for(model, data_dir)
    held = max(1, len(train_documents) // 8)
    x = store(model, layer, train_documents[:-held], n_train)[:]
    if len(x) < n_train:
        raise ValueError(f"the text has {len(x)} training tokens, fewer than n_train={n_train}: take fewer")
    x_val = store(model, layer, train_documents[-held:], N_VALIDATION)[:]
    return x, x_val, store(model, layer, test_documents, N_TEST)[:]


@functools.lru_cache(maxsize=1)
def last_tokens(model: str, layer: int, n_train: int, data_dir: str | None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(training, validation, test) rows: the last token of texts of `CONTEXT` tokens, a ninth of `n_train` for each of the others.

    Texts are those of `documents`, or of WikiText-103 from the hub where these are too few.
    """
    needed, held = n_train + 2 * (n_train // 9), n_train // 9
    loaded = language_model(model)
    sequences = pack_tokens(loaded.tokenizer, texts_for(model, data_dir)[0], CONTEXT)
    if len(sequences) < needed:
        articles = text_from_datasets("Salesforce/wikitext", limit=10 * needed, name="wikitext-103-raw-v1")
        sequences = pack_tokens(loaded.tokenizer, articles, CONTEXT)
    x = store(model, layer, sequences, needed, "last")[:]
    if len(x) < needed:
        raise ValueError(f"the texts have {len(x)} sequences of {CONTEXT} tokens, fewer than {needed}: take fewer")
    return x[:n_train], x[n_train : n_train + held], x[n_train + held :]


def tokens(model: str, layer: int, n_train: int, data_dir: str | None) -> Tokens:
    """`raw_tokens` under one mean and one standard deviation, those of the training rows."""
    parts = raw_tokens(model, layer, n_train, data_dir)
    standardizer = Standardizer("global").fit(parts[0])
    x, x_val, x_test = (standardizer.transform(part) for part in parts)
    return Tokens(x, x_val, x_test, standardizer)
