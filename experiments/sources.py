"""What the data of runs is: its name and the hashes of its content, which enter every key and every results file."""

from __future__ import annotations

import functools
from dataclasses import dataclass

from experiments import small_gpt2, texts
from experiments.content import model_hash, tokenizer_hash
from experiments.errors import UsageError
from experiments.recipe import digest
from splinterp._content import content_hash
from splinterp.data import load_digits, load_mnist

IMAGES = {"mnist": "MNIST", "digits": "scikit-learn's digits"}
LAST = "@last"
"""Ends the name of data that are the last tokens of texts."""
TITLES = {"minilm": "MiniLM", texts.SMALL_GPT2: "a small GPT-2"}


@dataclass(frozen=True)
class Source:
    """The data of an experiment."""

    name: str
    """As captions name it."""
    parts: tuple[tuple[str, str], ...]
    """(what, the hash of its content), for all that the samples are made from."""

    @property
    def key(self) -> str:
        """Enters the keys of runs. Of content, not of names: a renamed copy is the same data."""
        return digest(self.parts)

    def describe(self) -> dict[str, str]:
        """What a results file keeps."""
        return {"name": self.name, **dict(self.parts), "key": self.key}


def source_of(data: str, data_dir: str | None = None) -> Source:
    """The source of "mnist", "digits", or MODEL-LAYER[@last] of a language model on a text (see `texts.documents`), the same for all
    of its layers.

    Raises UsageError, with what to do, where the data cannot be had.
    """
    try:
        return _images(data, data_dir) if data in IMAGES else _tokens(data, data_dir)
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        raise UsageError(str(error)) from error


def split_name(data: str) -> tuple[str, int]:
    """(model, layer) of a language model's data."""
    model, _, layer = data.removesuffix(LAST).rpartition("-")
    return model, int(layer)


@functools.lru_cache(maxsize=2)
def _images(data: str, data_dir: str | None) -> Source:
    return Source(IMAGES[data], (("content", content_hash(load_digits() if data == "digits" else load_mnist(data_dir))),))


def _tokens(data: str, data_dir: str | None) -> Source:
    model, layer = split_name(data)
    if model == texts.SMALL_GPT2:
        if not 0 <= layer <= small_gpt2.Config.n_layer:
            raise UsageError(f"layer={layer} is not one of 0 to {small_gpt2.Config.n_layer} of {model}")
    else:
        texts.language_model(model).module(layer, "residual")  # an impossible layer is told here
    return _text_and_model(model, data_dir)


@functools.lru_cache(maxsize=2)
def _text_and_model(model: str, data_dir: str | None) -> Source:
    text = texts.texts_for(model, data_dir)
    if model == texts.SMALL_GPT2:  # its weights differ with the machine that trains it: its recipe names it
        names = [small_gpt2.recipe()] * 2
    else:
        loaded = texts.language_model(model)
        names = [model_hash(loaded), tokenizer_hash(loaded.tokenizer)]
    return Source(
        f"{TITLES.get(model, model)} ({text.name})",
        (
            ("text", content_hash(document.encode() for document in (*text.training, "\0", *text.test))),
            ("model", names[0]),
            ("tokenizer", names[1]),
            ("context", str(texts.CONTEXT)),
        ),
    )
