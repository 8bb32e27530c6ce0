"""The text that language models read in experiments, and the models."""

from __future__ import annotations

import argparse
import functools
import os
from pathlib import Path
from typing import NamedTuple

from experiments.errors import UsageError
from experiments.options import TEXT_HELP, add_data_dir
from splinterp.data import LanguageModel, python_documentation, text_from_datasets, text_from_files
from splinterp.data.text import WIKITEXT_HEADING

CONTEXT = 128
"""Tokens a sequence."""
WIKITEXT_2, PYTHON, WIKITEXT_103 = TEXTS = ("wikitext2", "python-docs", "wikitext-103")
"""WikiText-2 is read from a folder, Python's documentation comes with Python, WikiText-103 from the Hugging Face hub."""
N_ARTICLES = 110_000
"""Rows of WikiText-103."""
SMALL_GPT2 = "small-gpt2"
"""The model of `experiments.small_gpt2`, which reads Python's documentation only."""


class Text(NamedTuple):
    """Documents of one text, in two parts."""

    training: list[str]
    test: list[str]
    name: str


def cache_folder() -> Path:
    """`$SPLINTERP_CACHE`, or a folder under the user's cache."""
    return Path(os.environ.get("SPLINTERP_CACHE") or Path.home() / ".cache" / "splinterp")


def add_text_options(parser: argparse.ArgumentParser) -> None:
    """Add --data-dir and --text."""
    add_data_dir(parser, TEXT_HELP)
    parser.add_argument("--text", choices=TEXTS, help="what the model reads (default: as --data-dir says)")


def location(text: str | None, data_dir: str | None, last: bool = False) -> str:
    """Where a command's text is: a folder with wikitext2/, or one of the names that `documents` knows.

    Unless `text` names one: `data_dir` or `$SPLINTERP_DATA` where one is given, else the text that needs none (for last tokens of
    many texts: WikiText-103 from the hub). Raises UsageError: WikiText-2 without a folder.
    """
    folder = data_dir or os.environ.get("SPLINTERP_DATA", "")
    if text is None:
        return folder or (WIKITEXT_103 if last else PYTHON)
    if text != WIKITEXT_2:
        return text
    if not folder:
        raise UsageError(f"--text {WIKITEXT_2} is read from a folder: pass --data-dir FOLDER or set SPLINTERP_DATA")
    return folder


def documents(where: str | None) -> Text:
    """The documents at a `location` (None: `location` of nothing). A folder: WikiText-2's validation part for training and its test
    part. Python's own documentation: every fourth topic for testing. WikiText-103: all for training.

    Raises FileNotFoundError: a folder that does not hold the text.
    """
    where = where or location(None, None)
    if where == PYTHON:
        topics = python_documentation()
        return Text([t for i, t in enumerate(topics) if i % 4], topics[::4], "Python's documentation")
    if where == WIKITEXT_103:
        rows = text_from_datasets("Salesforce/wikitext", limit=N_ARTICLES, name="wikitext-103-raw-v1")
        return Text(rows, [], "WikiText-103")
    files = [Path(where) / "wikitext2" / f"{part}.txt" for part in ("valid", "test")]
    missing = [file for file in files if not file.exists()]
    if missing:
        raise FileNotFoundError(
            f"{missing[0]} is missing: put WikiText-2 there, or read Python's documentation by --text {PYTHON}"
        )
    training, test = (text_from_files(file, heading=WIKITEXT_HEADING) for file in files)
    return Text(training, test, "WikiText-2")


def texts_for(model: str, where: str | None) -> Text:
    """`documents` that the model was trained on or for."""
    return documents(PYTHON if model == SMALL_GPT2 else where)


@functools.lru_cache(maxsize=2)
def language_model(name: str, causal: bool = False) -> LanguageModel:
    """The model of a name, with its head if it is `causal`."""
    if name == SMALL_GPT2:
        from experiments import small_gpt2

        return small_gpt2.load()
    return LanguageModel.load(name, causal=causal)
