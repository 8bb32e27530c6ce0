"""Activations of a language model on real text, extracted once into a cache on disk and split by text, never by token."""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch

from experiments.errors import UsageError
from experiments.sources import LAST, source_of
from experiments.texts import CONTEXT, cache_folder, language_model, texts_for
from splinterp.data import ActivationStore, Standardizer, TokenSequences, extract_activations, pack_tokens

N_VALIDATION, N_TEST = 5_000, 20_000
BATCH_TOKENS = 8_192


class Tokens(NamedTuple):
    """Standardised activations, one row a token. The validation rows are of other documents than the training rows."""

    x: torch.Tensor
    x_val: torch.Tensor
    x_test: torch.Tensor
    standardizer: Standardizer


Rows = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def store(
    model: str, layer: int, text: Sequence[str] | TokenSequences, max_tokens: int, name: str,
    which: Literal["all", "last"] = "all", least: int = 1,
) -> ActivationStore:  # fmt: skip
    """The activations of the text's first tokens (or of the last one of each sequence); extracted if the cache lacks `name`.

    Raises UsageError, before anything is extracted, where the text has fewer than `least`.
    """
    folder = cache_folder() / "activations" / f"{name}-{max_tokens}"
    if (folder / "manifest.json").exists():
        earlier = ActivationStore(folder, allow_incomplete=True)
        if earlier.manifest["complete"]:
            return earlier
    loaded = language_model(model)
    sequences = text if isinstance(text, TokenSequences) else packed(loaded.tokenizer, text)
    rows, needed = (sequences.n_tokens, "tokens") if which == "all" else (len(sequences), f"sequences of {CONTEXT} tokens")
    if rows < least:
        raise UsageError(f"the text has {rows:,} training {needed}, fewer than the {least:,} needed: take another --text")
    print(f"extracting {model}'s layer {layer}: up to {max_tokens:,} rows of {name}", file=sys.stderr)
    found = extract_activations(
        loaded, sequences, layer, tokens=which, context=CONTEXT, max_tokens=max_tokens, folder=folder, batch_tokens=BATCH_TOKENS,
        progress=sys.stderr.isatty(),
    )  # fmt: skip
    assert isinstance(found, ActivationStore)
    return found


def packed(tokenizer: Any, documents: Sequence[str]) -> TokenSequences:
    """Sequences of `CONTEXT` tokens, unknown words among the special tokens: the committed runs are of the known ones."""
    found = pack_tokens(tokenizer, documents, CONTEXT)
    if tokenizer.unk_token_id is None:
        return found
    unknown = [
        [int(flag or token == tokenizer.unk_token_id) for token, flag in zip(ids, special, strict=True)]
        for ids, special in zip(found.ids, found.special, strict=True)
    ]
    some = [i for i, row in enumerate(unknown) if not all(row)]
    return TokenSequences([found.ids[i] for i in some], [unknown[i] for i in some], [found.documents[i] for i in some])


@functools.lru_cache(maxsize=2)
def raw_tokens(model: str, layer: int, n_train: int, data_dir: str | None, source: str | None = None) -> Rows:
    """Training rows from the first documents, validation rows from the last ones of the same part, test rows from the test part,
    as the model gives them. `source` is the key of `source_of`, which names the extracted activations.

    Raises UsageError: a text of fewer tokens.
    """
    source = source or source_of(f"{model}-{layer}", data_dir).key
    text = texts_for(model, data_dir)
    held = max(1, len(text.training) // 8)
    x = store(model, layer, text.training[:-held], n_train, f"{source}-{layer}-train", least=n_train)[:]
    x_val = store(model, layer, text.training[-held:], N_VALIDATION, f"{source}-{layer}-val")[:]
    return x, x_val, store(model, layer, text.test, N_TEST, f"{source}-{layer}-test")[:]


@functools.lru_cache(maxsize=1)
def last_tokens(model: str, layer: int, n_train: int, data_dir: str | None, source: str | None = None) -> Rows:
    """(training, validation, test) rows: the last token of texts of `CONTEXT` tokens, a ninth of `n_train` for each of the others."""
    source = source or source_of(f"{model}-{layer}{LAST}", data_dir).key
    needed, held = n_train + 2 * (n_train // 9), n_train // 9
    sequences = packed(language_model(model).tokenizer, texts_for(model, data_dir).training)
    x = store(model, layer, sequences, needed, f"{source}-{layer}-last", "last", least=needed)[:]
    return x[:n_train], x[n_train : n_train + held], x[n_train + held :]


def tokens(model: str, layer: int, n_train: int, data_dir: str | None, source: str | None = None) -> Tokens:
    """`raw_tokens` under one mean and one standard deviation, those of the training rows."""
    parts = raw_tokens(model, layer, n_train, data_dir, source)
    standardizer = Standardizer("global").fit(parts[0])
    x, x_val, x_test = (standardizer.transform(part) for part in parts)
    return Tokens(x, x_val, x_test, standardizer)
