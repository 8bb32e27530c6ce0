"""Activations of a transformer on text, to memory or to a store on disk."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tqdm.auto import tqdm

from splinterp._checks import one_of, whole
from splinterp._typing import Float, Int, Tensor
from splinterp.data.language_model import LanguageModel
from splinterp.data.store import DTYPES, ActivationStore, in_dtype
from splinterp.data.store_writer import StoreWriter
from splinterp.data.text import TokenSequences, pack_tokens

WORKING_BYTES = 2**28
"""Of one forward pass, roughly: what `batch_tokens=None` allows."""
BATCHES_A_SHARD = 4
"""Few, so that writing overlaps with the next shard's forward passes and an interruption loses little."""


class Activations(NamedTuple):
    """Activations and what they are of, row by row."""

    x: Float[Tensor, "n d_in"]
    tokens: Int[Tensor, "n 3"]
    """(token id, document, index of the sequence)."""


def extract_activations(
    model: LanguageModel | str,
    text: Sequence[str] | TokenSequences,
    layer: int,
    site: str = "residual",
    tokens: str = "all",
    *,
    context: int = 128,
    keep_special: bool = False,
    max_tokens: int | None = None,
    batch_tokens: int | None = None,
    dtype: torch.dtype = torch.float32,
    folder: str | Path | None = None,
    progress: bool = False,
) -> Activations | ActivationStore:
    """Activations at a site of a layer (see `LanguageModel`), in the order of the text.

    The forward pass stops at the site. Sequences of like length are run together; padding is left out always, special tokens by
    default.

    Args:
        model: or what `LanguageModel.load` takes.
        text: documents, packed to `context` tokens without crossing from one into the next; or sequences from `pack_tokens`.
        tokens: "all", or "last": the last token of each sequence (that is not special, by default).
        keep_special: keep the tokenizer's special tokens too.
        max_tokens: stop at so many rows; None takes all.
        batch_tokens: tokens a forward pass, padding included; None fits 256 MiB of intermediate values.
        dtype: of the result: float32, float16 or bfloat16.
        folder: write a store there and return it. An interrupted extraction is continued after its last shard, and ends in the
            same bytes as an undisturbed one; one by a model of other weights, on other text or with other options is refused.
        progress: bar with tokens a second, on stderr.

    Raises:
        TypeError, ValueError: bad options, text without tokens, a folder of other activations, activations that are not finite, in the
            model or in `dtype`.
        CorruptStoreError: a shard written before is missing or cut short.
    """
    one_of("tokens", tokens, ("all", "last"))
    one_of("dtype", dtype, DTYPES.values())
    if max_tokens is not None:
        max_tokens = whole("max_tokens", max_tokens, 1)
    if not isinstance(model, LanguageModel):
        model = LanguageModel.load(model)
    model.module(layer, site)
    sequences = text if isinstance(text, TokenSequences) else pack_tokens(model.tokenizer, text, context)
    if not len(sequences):
        raise ValueError("the text has no tokens: pass documents that are not empty")
    if batch_tokens is None:
        batch_tokens = fitting_batch(model, max(map(len, sequences.ids)))
    batch_tokens = whole("batch_tokens", batch_tokens, 1)
    plan = _Plan(model, sequences, layer, site, tokens, keep_special, batch_tokens, dtype, max_tokens)
    total = min(sequences.n_tokens, max_tokens or sequences.n_tokens) if tokens == "all" and not keep_special else max_tokens
    with tqdm(total=total, unit="token", unit_scale=True, disable=not progress) as bar:
        if folder is not None:
            return _to_store(plan, Path(folder), bar)
        parts = []
        for part in plan.shards(0, 0):
            parts.append(part)
            bar.update(len(part.x))
    return Activations(torch.cat([p.x for p in parts]), torch.cat([p.tokens for p in parts]))


def _to_store(plan: _Plan, folder: Path, bar: Any) -> ActivationStore:
    name = str(plan.dtype).removeprefix("torch.")
    writer = StoreWriter(folder, plan.width(), name, plan.describe())
    if writer.complete:
        return ActivationStore(folder)
    done = sum(shard["rows"] for shard in writer.manifest["shards"])
    bar.update(done)
    written: Future[None] | None = None
    with ThreadPoolExecutor(1) as background:  # hashing and writing release the interpreter
        for part in plan.shards(writer.n_shards, done):
            if written is not None:
                written.result()  # one shard waits at most; what went wrong is raised here
            written = background.submit(writer.append, part.x, part.tokens)
            bar.update(len(part.x))
        if written is not None:
            written.result()
    return writer.finish()


class _Plan:
    """Which sequences go together in a shard and in a forward pass: the same however often it is interrupted."""

    def __init__(
        self, model: LanguageModel, sequences: TokenSequences, layer: int, site: str, tokens: str, keep_special: bool, batch_tokens: int,
        dtype: torch.dtype, max_tokens: int | None,
    ) -> None:  # fmt: skip
        self.model, self.sequences, self.layer, self.site, self.tokens = model, sequences, layer, site, tokens
        self.keep_special, self.batch_tokens, self.dtype, self.max_tokens = keep_special, batch_tokens, dtype, max_tokens
        longest = max(map(len, sequences.ids))
        self.per_shard = BATCHES_A_SHARD * max(1, batch_tokens // longest)

    def describe(self) -> dict[str, Any]:
        """What a store is of, and what a folder must have been written about to be continued."""
        content = hashlib.sha256(repr(self.sequences.ids).encode()).hexdigest()
        return {
            "model": self.model.name, "weights": self.model.weights_hash(), "layer": self.layer,
            "site": self.site, "tokens": self.tokens, "keep_special": self.keep_special,
            "max_tokens": self.max_tokens, "batch_tokens": self.batch_tokens, "sequences_a_shard": self.per_shard,
            "n_sequences": len(self.sequences), "text_sha256": content,
        }  # fmt: skip

    def width(self) -> int:
        """Columns of the activations, from a forward pass of one token."""
        ids = torch.tensor([self.sequences.ids[0][:1]])
        return int(self.model.hidden(ids, torch.ones_like(ids), self.layer, self.site).shape[-1])

    def shards(self, first: int, rows: int) -> Iterator[Activations]:
        """The shards from number `first` on, `rows` having been made before."""
        for start in range(first * self.per_shard, len(self.sequences), self.per_shard):
            left = None if self.max_tokens is None else self.max_tokens - rows
            if left == 0:
                return
            part = self._shard(start, left)
            rows += len(part.x)
            yield part

    def _shard(self, start: int, left: int | None) -> Activations:
        rows = self.sequences.take(start, start + self.per_shard)
        kept = [self._kept(special) for special in rows.special]
        if left is not None:  # what lies beyond the limit need not run
            counts = torch.tensor([len(k) for k in kept]).cumsum(0)
            needed = int(torch.searchsorted(counts, left)) + 1
            rows, kept = rows.take(0, needed), kept[:needed]
        ends = [0, *torch.tensor([len(k) for k in kept]).cumsum(0).tolist()]
        x = torch.empty(0)
        for batch in length_batches(rows.ids, self.batch_tokens):
            ids, mask = padded([rows.ids[i] for i in batch])
            hidden = self.model.hidden(ids, mask, self.layer, self.site)
            x = x if len(x) else torch.empty(ends[-1], hidden.shape[-1], dtype=self.dtype)
            keep = torch.zeros(mask.shape, dtype=torch.bool)
            for row, i in enumerate(batch):
                keep[row, kept[i]] = True
            chosen = in_dtype(self._finite(hidden[keep.to(hidden.device)]), self.dtype).cpu()
            for i, values in zip(batch, chosen.split([len(kept[i]) for i in batch]), strict=True):
                x[ends[i] : ends[i + 1]] = values
        about = [(row[j], rows.documents[i][j], start + i) for i, row in enumerate(rows.ids) for j in kept[i]]
        return Activations(x[:left], torch.tensor(about, dtype=torch.int64).reshape(-1, 3)[:left])

    def _finite(self, values: Tensor) -> Tensor:
        if not torch.isfinite(values).all():
            bad, dtype = int((~torch.isfinite(values)).sum()), str(values.dtype).removeprefix("torch.")
            raise ValueError(
                f"{self.model.name} gives {bad} non-finite activations at {self.site} of layer {self.layer}, in {dtype}: load it with "
                "dtype=torch.bfloat16 or torch.float32, and check its weights"
            )
        return values

    def _kept(self, special: list[int]) -> list[int]:
        places = [j for j, flag in enumerate(special) if self.keep_special or not flag]
        return places[-1:] if self.tokens == "last" else places


def length_batches(ids: list[list[int]], batch_tokens: int) -> Iterator[list[int]]:
    """Indices of sequences of like length together, longest first, at most `batch_tokens` with padding (but one at least)."""
    order = sorted(range(len(ids)), key=lambda i: -len(ids[i]))
    while order:
        n = max(1, batch_tokens // len(ids[order[0]]))
        yield order[:n]
        order = order[n:]


def padded(ids: list[list[int]]) -> tuple[Tensor, Tensor]:
    """(token ids, attention mask), (n, longest); padded on the right with token 0, which the mask hides."""
    longest = max(map(len, ids))
    tokens = torch.zeros(len(ids), longest, dtype=torch.int64)
    mask = torch.zeros(len(ids), longest, dtype=torch.int64)
    for i, row in enumerate(ids):
        tokens[i, : len(row)] = torch.tensor(row)
        mask[i, : len(row)] = 1
    return tokens, mask


def fitting_batch(model: LanguageModel, longest: int) -> int:
    """Tokens a forward pass whose widest values (a hidden layer of the MLP, a row of attention for each head) fit WORKING_BYTES."""
    config = model.text_config
    inner = _widest(config, "intermediate_size") or _widest(config, "n_inner") or 4 * model.d_model
    heads = _widest(config, "num_attention_heads") or 1
    size = torch.finfo(next(model.model.parameters()).dtype).bits // 8
    return max(longest, WORKING_BYTES // (size * (2 * inner + 4 * model.d_model + 2 * heads * longest)))


def _widest(config: Any, name: str) -> int:
    """A size of a configuration, the largest where it is one for each layer; 0 where it is not there."""
    value = getattr(config, name, None) or 0
    return max(map(int, value), default=0) if isinstance(value, list | tuple) else int(value)
