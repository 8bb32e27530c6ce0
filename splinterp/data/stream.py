"""Activations made while they are asked for, from text of any length."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from splinterp._checks import whole
from splinterp._typing import Float, Tensor
from splinterp.data.extract import activations_of
from splinterp.data.language_model import LanguageModel
from splinterp.data.standardizer import Standardizer
from splinterp.data.text import TokenSequences, pack_tokens
from splinterp.data.token_rules import TokenRules, added

GROUP_TOKENS = 16_384
"""Tokens of the documents that are read, packed and run together."""
CHARACTERS = 3
"""Of text a token, at least: how many documents a group takes is told by their length, before they are tokenised."""

END: Any = object()
"""In place of a document where there are no more: a data set may hold None."""
MOST_EMPTY = 100
"""Groups without a row after which a stream gives up."""


class ActivationStream:
    """Activations at a site of a language model, extracted while `fit(..., steps=)` or a loop of one's own asks for them.

    Nothing is kept on disk, and in memory `buffer` rows and the few thousand that are extracted together; `fit` mixes within the buffer
    (which it copies, and holds 10,000 rows to look at): activations of neighbouring tokens are alike, so a batch should not be of one
    document. Rows come in the order of the text, each once. With the same text and options they are the same, bit for bit, on the same
    machine. What `fit` has taken of the last buffer and not trained on is not given again.

    Args:
        model: or what `LanguageModel.load` takes.
        documents: strings: a list, a `datasets` data set's column, anything that can be iterated over; or a function that returns such a
            thing anew. What can be iterated over only once (a generator) cannot be read again, and no run on it resumed.
        layer, site: as of `extract_activations`.
        context, bos: as of `pack_tokens`.
        rules: which tokens are left out; `left_out` counts them.
        max_tokens: a budget: rows after which the stream ends.
        repeat: begin again with the first document after the last one.
        buffer: rows that are mixed.
        standardizer: applied to rows: `stream.standardizer = Standardizer("global").fit(stream.peek(20_000))`.
        batch_tokens: tokens a forward pass; None fits 256 MiB of intermediate values.

    Raises:
        TypeError, ValueError: options out of range, a site that is not there, documents that are no strings.
    """

    def __init__(
        self,
        model: LanguageModel | str,
        documents: Iterable[str] | Callable[[], Iterable[str]],
        layer: int,
        site: str = "residual",
        *,
        context: int = 128,
        bos: bool | None = None,
        rules: TokenRules | None = None,
        max_tokens: int | None = None,
        repeat: bool = False,
        buffer: int = 2**16,
        standardizer: Standardizer | None = None,
        batch_tokens: int | None = None,
    ) -> None:
        if isinstance(documents, str | Path):
            raise TypeError("documents is one string: pass a list of documents, [text], or text_from_files(path)")
        self.model = model if isinstance(model, LanguageModel) else LanguageModel.load(model)
        self.model.module(layer, site)
        self.documents, self.layer, self.site = documents, layer, site
        self.context, self.bos, self.rules = whole("context", context, 1), bos, rules or TokenRules()
        self.max_tokens = None if max_tokens is None else whole("max_tokens", max_tokens, 1)
        self.repeat, self.buffer, self.standardizer = repeat, whole("buffer", buffer, 1), standardizer
        self.batch_tokens = batch_tokens
        self._once = not callable(documents) and iter(documents) is documents
        if self._once and repeat:
            raise ValueError("repeat=True needs documents that can be read again, and these are an iterator: pass a function")
        self.left_out: dict[str, int] = {}
        """Tokens that are not among the rows, or were capped, by the rule that says so."""
        self.n_read = 0
        """Documents read so far, repeats counted."""
        self.n_given = 0
        """Rows given so far."""
        self._pending = torch.empty(0, self.d_in)
        self._iterator: Iterator[str] | None = None
        self._sequences: TokenSequences | None = None
        self._begun = self._done = 0  # documents read before those of the sequences; sequences that were run
        self._ended = False

    @property
    def d_in(self) -> int:
        """Width of the activations."""
        if not hasattr(self, "_width"):
            [self._width] = self.model.widths([(self.layer, self.site)])
        return self._width

    def take(self, n: int) -> Float[Tensor, "m d_in"]:
        """The next n rows, fewer where the text or the budget ends; they are not given again."""
        found = self.peek(n)
        self._pending = self._pending[len(found) :].clone()  # a view would keep all of them in memory
        self.n_given += len(found)
        return found

    def peek(self, n: int) -> Float[Tensor, "m d_in"]:
        """The next n rows, fewer where the text or the budget ends, which stay the next ones."""
        whole("n", n, 0)
        if self.max_tokens is not None:
            n = min(n, self.max_tokens - self.n_given)
        parts, held, empty = [self._pending], len(self._pending), 0
        while held < n and not self._ended:
            parts.append(self._group())
            held += len(parts[-1])
            empty = 0 if len(parts[-1]) else empty + 1
            if empty > MOST_EMPTY:
                raise ValueError(
                    f"no token of {MOST_EMPTY} times {GROUP_TOKENS:,} was taken, by the rules {self.rules}: check them, and the text"
                )
        self._pending = torch.cat(parts) if len(parts) > 1 else parts[0]
        rows = self._pending[:n]
        return rows if self.standardizer is None else self.standardizer.transform(rows)

    def _group(self) -> Float[Tensor, "n d_in"]:
        """The rows of the next sequences; none where they hold no tokens, or there are no more."""
        if self._sequences is None or self._done >= len(self._sequences):
            self._pack()
        if self._sequences is None:
            return torch.empty(0, self.d_in)
        part = self._sequences.take(self._done, self._done + max(1, GROUP_TOKENS // self.context))
        self._done += len(part)
        if not len(part):
            return torch.empty(0, self.d_in)
        found = activations_of(self.model, part, self.layer, self.site, self.rules, self.batch_tokens)
        added(self.left_out, found.left_out)
        return found.x

    def _pack(self) -> None:
        """Read some documents and pack them; no sequences are left where there are no more."""
        documents: list[str] = []
        self._begun, self._done, length = self.n_read, 0, 0
        while length < CHARACTERS * GROUP_TOKENS and (document := self._next()) is not END:
            if not isinstance(document, str):
                raise TypeError(f"document {self.n_read} is a {type(document).__name__}: pass strings")
            self.n_read += 1
            documents.append(document)
            length += 1 + len(document)
        self._ended = not documents
        self._sequences = pack_tokens(self.model.tokenizer, documents, self.context, bos=self.bos) if documents else None

    def _next(self) -> Any:
        if self._iterator is None:
            self._iterator = iter(self._again())
        document = next(self._iterator, END)
        if document is END and self.repeat and self.n_read:
            self._iterator = iter(self._again())
            document = next(self._iterator, END)
        return document

    def _again(self) -> Iterable[str]:
        return self.documents() if callable(self.documents) else self.documents

    def __str__(self) -> str:
        options = {
            "context": self.context, "bos": self.bos, "rules": self.rules.describe(), "max_tokens": self.max_tokens,
            "repeat": self.repeat, "buffer": self.buffer, "batch_tokens": self.batch_tokens,
        }  # fmt: skip
        return f"the stream of {self.site} at layer {self.layer} of {self.model.name}, {options}"

    def state_dict(self) -> dict[str, Any]:
        """Where it is, for `load_state_dict` of a stream on the same text: what was read is passed over, not extracted again."""
        return {
            "n_read": self.n_read if self._sequences is None else self._begun, "n_run": self._done, "n_given": self.n_given,
            "packed": self._sequences is not None, "left_out": dict(self.left_out), "pending": self._pending.clone(),
        }  # fmt: skip

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Go on where a stream was. Raises ValueError: fewer documents than it had read, an iterator that was read from, rows of another
        width."""
        if self._once and self.n_read:
            raise ValueError(
                "the documents are an iterator that was read from: pass a list, or a function that begins them again"
            )
        pending = saved["pending"]
        if pending.ndim != 2 or pending.shape[1] != self.d_in:
            raise ValueError(f"the saved rows have shape {tuple(pending.shape)}, not (n, {self.d_in})")
        self._iterator, self.n_read = None, 0
        while self.n_read < saved["n_read"]:
            passed = self._pass_over(saved["n_read"] - self.n_read)
            if not passed:
                raise ValueError(
                    f"the stream had read {saved['n_read']} documents, and here are only {self.n_read}: pass the same text from its "
                    "beginning on"
                )
        self._sequences = None
        if saved["packed"]:
            self._pack()
        self._done = saved["n_run"]
        self._pending, self.n_given, self._ended = pending.clone(), saved["n_given"], False  # there may be more text now
        self.left_out = dict(saved["left_out"])

    def _pass_over(self, n: int) -> int:
        """Read up to n documents without looking at them; how many there were."""
        first = self._next()
        if first is END:
            return 0
        assert self._iterator is not None
        passed = 1 + sum(1 for _ in islice(self._iterator, n - 1))
        self.n_read += passed
        return passed
