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
from splinterp._documented import documented
from splinterp._typing import Float, Int, Tensor
from splinterp.data._passes import batch_of, length_batches, padded
from splinterp.data.language_model import LanguageModel
from splinterp.data.manifest import DTYPES, in_dtype
from splinterp.data.store import ActivationStore
from splinterp.data.store_writer import StoreWriter
from splinterp.data.text import TokenSequences, pack_tokens
from splinterp.data.token_rules import TokenRules, added

BATCHES_A_SHARD = 4
"""Few, so that writing overlaps with the next shard's forward passes and an interruption loses little."""
Place = tuple[int, str]
"""(layer, site)."""


@documented
class Activations(NamedTuple):
    """Activations and what they are of, row by row."""

    x: Float[Tensor, "n d_in"]
    tokens: Int[Tensor, "n 3"]
    """(token id, document, index of the sequence)."""
    left_out: dict[str, int]
    """Tokens that are not among the rows, or were capped, by the rule that says so (`TokenRules`)."""


def extract_activations(
    model: LanguageModel | str,
    text: Sequence[str] | TokenSequences,
    layer: int,
    site: str = "residual",
    tokens: str = "all",
    *,
    context: int = 128,
    keep_special: bool = False,
    rules: TokenRules | None = None,
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
        tokens: "all", or "last": the last token of each sequence (that the rules keep).
        keep_special: keep the tokenizer's special tokens too.
        rules: which tokens are left out; None: `TokenRules(keep_special=keep_special)`.
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
    plan = _plan(
        model, text, [(layer, site)], tokens, context, keep_special, rules, max_tokens, batch_tokens, dtype
    )  # fmt: skip
    return _carried_out(plan, None if folder is None else [Path(folder)], progress)[0]


def extract_places(
    model: LanguageModel | str,
    text: Sequence[str] | TokenSequences,
    places: Sequence[Place],
    tokens: str = "all",
    *,
    context: int = 128,
    keep_special: bool = False,
    rules: TokenRules | None = None,
    max_tokens: int | None = None,
    batch_tokens: int | None = None,
    dtype: torch.dtype = torch.float32,
    folder: str | Path | None = None,
    progress: bool = False,
) -> dict[Place, Activations | ActivationStore]:
    """`extract_activations` at several places, (layer, site), from one forward pass.

    Each place has activations, or a store, of its own: `folder`/LAYER-SITE. Where rules leave out tokens by their norm, rows of one
    place need not be those of another. Arguments and errors as of `extract_activations`.
    """
    places = [(layer, site) for layer, site in places]
    if not places or len(set(places)) < len(places):
        raise ValueError(f"places={places} must be some (layer, site), each once")
    plan = _plan(model, text, places, tokens, context, keep_special, rules, max_tokens, batch_tokens, dtype)
    folders = (
        None if folder is None else [Path(folder) / f"{layer}-{site.replace('{layer}', str(layer))}" for layer, site in places]
    )
    return dict(zip(places, _carried_out(plan, folders, progress), strict=True))


def _plan(
    model: LanguageModel | str, text: Sequence[str] | TokenSequences, places: list[Place], tokens: str, context: int, keep_special: bool,
    rules: TokenRules | None, max_tokens: int | None, batch_tokens: int | None, dtype: torch.dtype,
) -> _Plan:  # fmt: skip
    one_of("tokens", tokens, ("all", "last"))
    one_of("dtype", dtype, DTYPES.values())
    if rules is not None and keep_special:
        raise ValueError("keep_special=True beside rules: pass TokenRules(keep_special=True, ...)")
    if max_tokens is not None:
        max_tokens = whole("max_tokens", max_tokens, 1)
    if not isinstance(model, LanguageModel):
        model = LanguageModel.load(model)
    for layer, site in places:
        model.module(layer, site)
    sequences = text if isinstance(text, TokenSequences) else pack_tokens(model.tokenizer, text, context)
    if not len(sequences):
        raise ValueError("the text has no tokens: pass documents that are not empty")
    batch_tokens = batch_of(model, sequences.ids, batch_tokens)
    return _Plan(
        model, sequences, places, tokens, rules or TokenRules(keep_special=keep_special), batch_tokens, dtype, max_tokens
    )


def activations_of(
    model: LanguageModel, sequences: TokenSequences, layer: int, site: str, rules: TokenRules, batch_tokens: int | None
) -> Activations:
    """All activations of some sequences, in memory, ruled together."""
    plan = _plan(model, sequences, [(layer, site)], "all", 0, False, rules, None, batch_tokens, torch.float32)
    plan.per_shard = len(sequences)
    return _joined([part for _, parts in plan.shards(0, [0]) for part in parts if part is not None])


def _carried_out(plan: _Plan, folders: list[Path] | None, progress: bool) -> list[Activations | ActivationStore]:
    """What is at each place of a plan."""
    plain = plan.tokens == "all" and plan.rules == TokenRules()
    n_tokens = plan.sequences.n_tokens
    total = min(n_tokens, plan.max_tokens or n_tokens) if plain else plan.max_tokens
    with tqdm(total=total, unit="token", unit_scale=True, disable=not progress) as bar:
        if folders is not None:
            return list(_to_stores(plan, folders, bar))
        found: list[list[Activations]] = [[] for _ in plan.places]
        for _, parts in plan.shards(0, [0] * len(plan.places)):
            for mine, part in zip(found, parts, strict=True):
                if part is not None:
                    mine.append(part)
            bar.update(max(0 if part is None else len(part.x) for part in parts))
    return [_joined(mine) for mine in found]


def _joined(parts: list[Activations]) -> Activations:
    left_out: dict[str, int] = {}
    for part in parts:
        added(left_out, part.left_out)
    return Activations(torch.cat([p.x for p in parts]), torch.cat([p.tokens for p in parts]), left_out)


def _to_stores(plan: _Plan, folders: list[Path], bar: Any) -> list[ActivationStore]:
    name = str(plan.dtype).removeprefix("torch.")
    writers = [
        StoreWriter(folder, width, name, plan.describe(place))
        for folder, width, place in zip(folders, plan.model.widths(plan.places), plan.places, strict=True)
    ]
    done = [sum(shard["rows"] for shard in writer.manifest["shards"]) for writer in writers]
    begin = min((writer.n_shards for writer in writers if not writer.complete), default=None)
    bar.update(max(done))
    written: list[Future[None]] = []
    if begin is not None:
        rows = [sum(shard["rows"] for shard in writer.manifest["shards"][:begin]) for writer in writers]
        with ThreadPoolExecutor(1) as background:  # hashing and writing release the interpreter
            for index, parts in plan.shards(begin, rows):
                for future in written:
                    future.result()  # one shard waits at most; what went wrong is raised here
                new = [
                    (writer, part)
                    for writer, part in zip(writers, parts, strict=True)
                    if part is not None and not writer.complete and writer.n_shards == index
                ]
                written = [background.submit(writer.append, *part) for writer, part in new]
                bar.update(max((len(part.x) for _, part in new), default=0))
            for future in written:
                future.result()
    return [ActivationStore(writer.folder) if writer.complete else writer.finish() for writer in writers]


class _Plan:
    """Which sequences go together in a shard and in a forward pass: the same however often it is interrupted."""

    def __init__(
        self, model: LanguageModel, sequences: TokenSequences, places: list[Place], tokens: str, rules: TokenRules, batch_tokens: int,
        dtype: torch.dtype, max_tokens: int | None,
    ) -> None:  # fmt: skip
        self.model, self.sequences, self.places, self.tokens = model, sequences, places, tokens
        self.rules, self.batch_tokens, self.dtype, self.max_tokens = rules, batch_tokens, dtype, max_tokens
        longest = max(map(len, sequences.ids))
        self.per_shard = BATCHES_A_SHARD * max(1, batch_tokens // longest)
        self._hashes: tuple[str, str] | None = None

    def describe(self, place: Place) -> dict[str, Any]:
        """What a store is of, and what a folder must have been written about to be continued."""
        if self._hashes is None:
            content = hashlib.sha256(repr(self.sequences.ids).encode()).hexdigest()
            self._hashes = self.model.weights_hash(), content
        weights, content = self._hashes
        rules = {name: value for name, value in self.rules.describe().items() if name != "keep_special"}
        return {
            "model": self.model.name, "weights": weights, "layer": place[0],
            "site": place[1], "tokens": self.tokens, "keep_special": self.rules.keep_special,
            "max_tokens": self.max_tokens, "batch_tokens": self.batch_tokens, "sequences_a_shard": self.per_shard,
            "n_sequences": len(self.sequences), "text_sha256": content, **({"rules": rules} if rules else {}),
        }  # fmt: skip

    def shards(self, first: int, rows: list[int]) -> Iterator[tuple[int, list[Activations | None]]]:
        """The shards from number `first` on, each with its number, of every place that lacks rows; `rows` have been made before."""
        rows = list(rows)
        for index, start in enumerate(range(first * self.per_shard, len(self.sequences), self.per_shard), first):
            left = [None if self.max_tokens is None else self.max_tokens - n for n in rows]
            if all(n == 0 for n in left):
                return
            parts = self._shard(start, left)
            rows = [n + (0 if part is None else len(part.x)) for n, part in zip(rows, parts, strict=True)]
            yield index, parts

    def _shard(self, start: int, left: list[int | None]) -> list[Activations | None]:
        rows = self.sequences.take(start, start + self.per_shard)
        kept, left_out = self._kept(rows)
        wanted = [place for place, n in zip(self.places, left, strict=True) if n != 0]
        if None not in left and self.rules.outliers != "leave_out":  # what lies beyond the limit need not run
            counts = torch.tensor([len(k) for k in kept]).cumsum(0)
            needed = int(torch.searchsorted(counts, max(n for n in left if n is not None))) + 1
            rows = rows.take(0, needed)
            kept, left_out = self._kept(rows)
        ends = [0, *torch.tensor([len(k) for k in kept]).cumsum(0).tolist()]
        made: dict[Place, Tensor] = {}
        for batch in length_batches(rows.ids, self.batch_tokens):
            ids, mask = padded([rows.ids[i] for i in batch])
            keep = torch.zeros(mask.shape, dtype=torch.bool)
            for row, i in enumerate(batch):
                keep[row, kept[i]] = True
            for place, hidden in zip(wanted, self.model.hidden_at(ids, mask, wanted), strict=True):
                if place not in made:
                    made[place] = torch.empty(ends[-1], hidden.shape[-1], dtype=self.dtype)
                chosen = in_dtype(self._finite(hidden[keep.to(hidden.device)], place), self.dtype).cpu()
                for i, values in zip(batch, chosen.split([len(kept[i]) for i in batch]), strict=True):
                    made[place][ends[i] : ends[i + 1]] = values
        about = [(row[j], rows.documents[i][j], start + i) for i, row in enumerate(rows.ids) for j in kept[i]]
        tokens = torch.tensor(about, dtype=torch.int64).reshape(-1, 3)
        return [
            self._ruled(made[place], tokens, left_out, n) if place in made else None
            for place, n in zip(self.places, left, strict=True)
        ]

    def _ruled(self, x: Tensor, tokens: Tensor, left_out: dict[str, int], most: int | None) -> Activations:
        """What the rules keep by its norm, up to a number of rows."""
        taken = self.rules.taken(x)
        return Activations(taken.x[:most], tokens[taken.kept][:most], {**left_out, **taken.counts})

    def _finite(self, values: Tensor, place: Place) -> Tensor:
        if not torch.isfinite(values).all():
            bad, dtype = int((~torch.isfinite(values)).sum()), str(values.dtype).removeprefix("torch.")
            raise ValueError(
                f"{self.model.name} gives {bad} non-finite activations at {place[1]} of layer {place[0]}, in {dtype}: load it with "
                "dtype=torch.bfloat16 or torch.float32, and check its weights"
            )
        return values

    def _kept(self, rows: TokenSequences) -> tuple[list[list[int]], dict[str, int]]:
        """The places of each sequence that are taken, and what is left out of all."""
        found, left_out = [], dict[str, int]()
        for ids, special in zip(rows.ids, rows.special, strict=True):
            places, counts = self.rules.places(ids, special)
            found.append(places[-1:] if self.tokens == "last" else places)
            added(left_out, counts)
        return found, left_out
