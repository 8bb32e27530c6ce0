"""Text as a list of documents, and documents as token sequences that a language model reads."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from splinterp._checks import whole
from splinterp._documented import documented

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

    Rows without text (None, or nothing but white space) are left out. `limit` streams and takes so many of the others; `options` go
    to `datasets.load_dataset`.

    Raises:
        ImportError: `datasets` is not installed.
        KeyError: no such column.
        TypeError: a column that holds no strings.
    """
    try:
        from datasets import load_dataset  # type: ignore[import-not-found, unused-ignore]
    except ImportError as error:
        raise ImportError("text_from_datasets needs the datasets library: pip install datasets") from error
    rows = load_dataset(name, split=split, streaming=limit is not None, **options)
    documents: list[str] = []
    for row in rows:
        if column not in row:
            raise KeyError(f"{name} has no column {column!r}; it has {', '.join(sorted(row))}")
        text = row[column]
        if text is not None and not isinstance(text, str):
            raise TypeError(f"column {column!r} of {name} holds a {type(text).__name__}: name a column of strings")
        if text is not None and text.strip():
            documents.append(text)
        if limit is not None and len(documents) >= limit:
            break
    return documents


@documented
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


def pack_tokens(
    tokenizer: Any, documents: Sequence[str], context: int = 128, across_documents: bool = False, bos: bool | None = None
) -> TokenSequences:
    """Cut documents into sequences of at most `context` tokens, with the special tokens the tokenizer adds to each.

    A sequence never holds two documents, so the last of each document may be short. `across_documents` fills every sequence: the
    documents are laid end to end with the tokenizer's end-of-text (or separator) token between them, and attention crosses it.

    The text is tokenised whole and cut here, from its beginning on: what the tokenizer is set to truncate or pad has no effect.

    Args:
        tokenizer: a fast tokenizer of `transformers`.
        context: tokens a sequence, special ones included.
        bos: whether each sequence begins with the tokenizer's beginning-of-text token. None: where the tokenizer puts it there itself, as
            those of models that were trained with it do (Gemma, Llama); True puts it there anyway (GPT-2, Pythia), False nowhere.

    Raises:
        TypeError: a slow tokenizer, a string in place of a list of documents, a document that is no string.
        ValueError: a context that special tokens fill, no documents, no token to put between them.
    """
    if isinstance(documents, str):
        raise TypeError("documents is one string: pass a list of documents, [text]")
    if isinstance(tokenizer, str):
        raise TypeError(f"tokenizer is the name {tokenizer!r}: pass LanguageModel.load({tokenizer!r}).tokenizer")
    if not getattr(tokenizer, "is_fast", False):
        raise TypeError(f"{type(tokenizer).__name__} is not a fast tokenizer: load it with use_fast=True")
    documents = list(documents)
    if not documents:
        raise ValueError("there are no documents to pack")
    for i, document in enumerate(documents):
        if not isinstance(document, str):
            raise TypeError(f"documents[{i}] is a {type(document).__name__}: pass strings, and leave out what has no text")
    n_special = tokenizer.num_special_tokens_to_add()
    whole("context", context, n_special + 1)
    rows = _tokenised(tokenizer, documents)
    before, after = _around(tokenizer, documents, rows) if n_special else ([], [])
    if bos is not None:
        before = _begun(tokenizer, before, bos)
        whole("context", context, len(before) + len(after) + 1)
    between = _between(tokenizer) if across_documents else None
    owned = [(row, [owner] * len(row)) for owner, row in enumerate(rows)] if between is None else [_end_to_end(rows, between)]
    step = context - len(before) - len(after)
    known = _special_ids(tokenizer)
    ids, owners = [], []
    for row, owner in owned:
        for start in range(0, len(row), step):
            stop = min(start + step, len(row))
            if row[stop - 1] == between and after[:1] == [between]:  # the tokenizer ends the sequence in it already
                stop -= 1
            if stop > start:
                ids.append([*before, *row[start:stop], *after])
                owners.append([owner[start]] * len(before) + owner[start:stop] + [owner[stop - 1]] * len(after))
    return _kept(TokenSequences(ids, [[int(token in known) for token in row] for row in ids], owners))


def _tokenised(tokenizer: Any, documents: list[str]) -> list[list[int]]:
    """Token ids of each document, all of them. The tokenizer's own windows are not asked for: versions of it lose text there."""
    plain = {"truncation": False, "padding": False, "return_attention_mask": False, "return_token_type_ids": False}
    return tokenizer(documents, add_special_tokens=False, verbose=False, **plain)["input_ids"]


def _around(tokenizer: Any, documents: list[str], rows: list[list[int]]) -> tuple[list[int], list[int]]:
    """The special tokens that the tokenizer puts before and after a sequence, as it puts them around the beginning of a text."""
    document = next((document for document, row in zip(documents, rows, strict=True) if row), "")
    size = 64
    while not (bare := _tokenised(tokenizer, [document[:size]])[0]) and size < len(document):
        size *= 2
    full = tokenizer(document[:size], return_special_tokens_mask=True, truncation=False, padding=False, verbose=False)
    ids, added = full["input_ids"], [*full["special_tokens_mask"], 0]
    first = added.index(0)
    last = first + len(bare)
    if ids[first:last] != bare or not all(added[last : len(ids)]):
        raise ValueError(
            f"{type(tokenizer).__name__} changes a text's own tokens when it adds special ones, so windows cannot be cut from them: "
            "make TokenSequences with it and pass those"
        )
    return ids[:first], ids[last:]


def _begun(tokenizer: Any, before: list[int], bos: bool) -> list[int]:
    """What a sequence begins with, the beginning-of-text token put before it or taken away."""
    begin = tokenizer.bos_token_id
    if bos and begin is None:
        raise ValueError(f"{type(tokenizer).__name__} has no beginning-of-text token (bos_token): leave bos=True out")
    without = before[1:] if begin is not None and before[:1] == [begin] else before
    return [begin, *without] if bos else without


def _special_ids(tokenizer: Any) -> set[int]:
    """Of tokens that are not text. An unknown word is text, unless its token serves another purpose too."""
    names = ("bos_token_id", "eos_token_id", "sep_token_id", "pad_token_id", "cls_token_id", "mask_token_id")
    others = {getattr(tokenizer, name, None) for name in names}
    unknown = tokenizer.unk_token_id
    return set(tokenizer.all_special_ids) - ({unknown} if unknown not in others else set())


def _between(tokenizer: Any) -> int:
    between = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.sep_token_id
    if between is None:
        raise ValueError(
            f"{type(tokenizer).__name__} has no end-of-text token to put between documents: leave across_documents out"
        )
    return int(between)


def _end_to_end(rows: list[list[int]], between: int) -> tuple[list[int], list[int]]:
    """(token ids, document of each) of all documents in one row, each followed by the token."""
    stream: list[int] = []
    owners: list[int] = []
    for owner, row in enumerate(rows):
        stream += [*row, between]
        owners += [owner] * (len(row) + 1)
    return stream, owners


def _kept(sequences: TokenSequences) -> TokenSequences:
    """Without the sequences that hold nothing but special tokens (of empty documents)."""
    some = [i for i, row in enumerate(sequences.special) if not all(row)]
    parts = (sequences.ids, sequences.special, sequences.documents)
    return TokenSequences(*([part[i] for i in some] for part in parts))
