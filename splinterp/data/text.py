"""Text as a list of documents, and documents as token sequences that a language model reads."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from splinterp._checks import at_least

WIKITEXT_HEADING = r"^ = [^=].*[^=] = $"
"""The first line of each article of a WikiText file, for `text_from_files(..., heading=WIKITEXT_HEADING)`."""


def python_documentation() -> list[str]:
    """The prose of Python's own documentation of its language, one document a topic: text that every installation has."""
    from pydoc_data.topics import topics

    return [topics[name] for name in sorted(topics)]


def text_from_files(paths: str | Path | Iterable[str | Path], heading: str | None = None) -> list[str]:
    """Documents from UTF-8 text files; a folder stands for its *.txt files, sorted.

    Args:
        paths: one file or folder, or several.
        heading: regular expression of a line that begins a new document; None makes each file one document.

    Raises:
        FileNotFoundError: a path, or the *.txt files of a folder.
        ValueError: nothing but white space.
    """
    documents: list[str] = []
    for path in [paths] if isinstance(paths, str | Path) else list(paths):
        path = Path(path)
        files = sorted(path.glob("*.txt")) if path.is_dir() else [path]
        if not files:
            raise FileNotFoundError(f"{path} has no *.txt files")
        for file in files:
            content = file.read_text(encoding="utf-8")
            documents += _cut(content, heading) if heading else [content]
    documents = [document for document in documents if document.strip()]
    if not documents:
        raise ValueError(f"{paths} holds no text")
    return documents


def _cut(content: str, heading: str) -> list[str]:
    starts = [match.start() for match in re.finditer(heading, content, re.MULTILINE)]
    bounds = [0, *starts, len(content)]
    return [content[a:b] for a, b in pairwise(bounds)]


def text_from_datasets(
    name: str, /, split: str = "train", column: str = "text", limit: int | None = None, **options: Any
) -> list[str]:
    """Documents of a data set of the Hugging Face hub, or a local one, by the `datasets` library; rows are documents.

    `limit` streams and takes so many non-empty rows; `options` go to `datasets.load_dataset`.

    Raises:
        ImportError: `datasets` is not installed.
        KeyError: no such column.
    """
    try:
        from datasets import load_dataset  # type: ignore[import-not-found, unused-ignore]
    except ImportError as error:
        raise ImportError("text_from_datasets needs the datasets library: pip install 'splinterp[datasets]'") from error
    rows = load_dataset(name, split=split, streaming=limit is not None, **options)
    documents: list[str] = []
    for row in rows:
        if column not in row:
            raise KeyError(f"{name} has no column {column!r}; it has {', '.join(sorted(row))}")
        if row[column].strip():
            documents.append(row[column])
        if limit is not None and len(documents) >= limit:
            break
    return documents


@dataclass(frozen=True)
class TokenSequences:
    """Sequences for a model, in the order of the text. Entries of the lists belong together."""

    ids: list[list[int]]
    """Token ids of each sequence, special tokens included."""
    special: list[list[int]]
    """1 where the token is one of the tokenizer's special ones."""
    documents: list[list[int]]
    """Index of the document that each token is of; special tokens take their neighbour's."""

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, start: int, stop: int) -> TokenSequences:
        """The sequences `start` to `stop`."""
        return TokenSequences(self.ids[start:stop], self.special[start:stop], self.documents[start:stop])

    @property
    def n_tokens(self) -> int:
        """Tokens of all sequences that are not special."""
        return sum(len(row) - sum(row) for row in self.special)


def pack_tokens(tokenizer: Any, documents: Sequence[str], context: int = 128, across_documents: bool = False) -> TokenSequences:
    """Cut documents into sequences of at most `context` tokens, with the special tokens the tokenizer adds to each.

    A sequence never holds two documents, so the last of each document may be short. `across_documents` fills every sequence: the
    documents are laid end to end with the tokenizer's end-of-text (or separator) token between them, and attention crosses it.

    Args:
        tokenizer: a fast tokenizer of `transformers`.
        context: tokens a sequence, special ones included.

    Raises:
        TypeError: a slow tokenizer, or a string in place of a list of documents.
        ValueError: a context that special tokens fill, no documents, no token to put between them.
    """
    if isinstance(documents, str):
        raise TypeError("documents is one string: pass a list of documents, [text]")
    if not getattr(tokenizer, "is_fast", False):
        raise TypeError(f"{type(tokenizer).__name__} is not a fast tokenizer: load it with use_fast=True")
    if not documents:
        raise ValueError("there are no documents to pack")
    at_least("context", context, tokenizer.num_special_tokens_to_add() + 1)
    known = set(tokenizer.all_special_ids)
    if across_documents:
        return _packed_across(tokenizer, documents, context, known)
    windows = tokenizer(
        list(documents), truncation=True, max_length=context, return_overflowing_tokens=True, return_attention_mask=False,
        return_token_type_ids=False,
    )  # fmt: skip
    ids = windows["input_ids"]
    special = [[int(token in known) for token in row] for row in ids]
    owners = [[owner] * len(row) for row, owner in zip(ids, windows["overflow_to_sample_mapping"], strict=True)]
    return _kept(TokenSequences(ids, special, owners))


def _packed_across(tokenizer: Any, documents: Sequence[str], context: int, known: set[int]) -> TokenSequences:
    between = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.sep_token_id
    if between is None:
        raise ValueError(
            f"{type(tokenizer).__name__} has no end-of-text token to put between documents: leave across_documents out"
        )
    stream: list[int] = []
    owners: list[int] = []
    for owner, row in enumerate(tokenizer(list(documents), add_special_tokens=False, verbose=False)["input_ids"]):
        stream += [*row, between]
        owners += [owner] * (len(row) + 1)
    cuts = range(0, len(stream), context)
    ids = [stream[a : a + context] for a in cuts]
    special = [[int(token in known) for token in row] for row in ids]
    return _kept(TokenSequences(ids, special, [owners[a : a + context] for a in cuts]))


def _kept(sequences: TokenSequences) -> TokenSequences:
    """Without the sequences that hold nothing but special tokens (of empty documents)."""
    some = [i for i, row in enumerate(sequences.special) if not all(row)]
    parts = (sequences.ids, sequences.special, sequences.documents)
    return TokenSequences(*([part[i] for i in some] for part in parts))
