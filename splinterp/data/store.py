"""Activations on disk: shards with a manifest, read by memory map, shuffled within a memory budget."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from splinterp._checks import as_positions, at_least, whole
from splinterp._content import content_hash
from splinterp._typing import Int, Tensor
from splinterp.data.manifest import MANIFEST, CorruptStoreError, check_bytes, check_sizes, read_manifest
from splinterp.data.token_rules import added

if TYPE_CHECKING:
    from splinterp.data.standardizer import Standardizer

RAW = {"float32": np.float32, "float16": np.float16, "bfloat16": np.uint16}
"""What NumPy maps the file as: it has no bfloat16."""
CHUNK_ROWS = 256
"""Rows that are read together when shuffling."""
READ_BYTES = 2**24

_VERIFIED: set[tuple[Any, ...]] = set()
"""Files whose bytes this process has compared: device, inode, size, time of change, checksum."""


class ActivationStore:
    """Activations of a folder, read by memory map; `fit` takes a store where it takes a tensor (N, d_in).

    `store[a:b]`, `store[indices]` and `store[mask]` give rows as a tensor, half precision as float32. Nothing else is loaded.

    Args:
        folder: written by `StoreWriter` or `extract_activations`.
        memory: bytes that `shuffled` may hold; half of the passes' randomness comes from a budget of a few shards.
        standardizer: applied to every row that is read. Fit it to the store of the training text:
            `ActivationStore(folder, standardizer=Standardizer("global").fit(ActivationStore(train_folder)))`.
        allow_incomplete: open what an interrupted extraction has written so far.

    Raises:
        FileNotFoundError: no manifest.
        ValueError: another format; a manifest that is damaged or names files outside the folder; an incomplete store.
        CorruptStoreError: a shard is missing or has another size; on a pass over the rows, other bytes than were written.
    """

    def __init__(
        self, folder: str | Path, memory: int = 2**28, standardizer: Standardizer | None = None, allow_incomplete: bool = False
    ) -> None:
        self.folder, self.memory, self.standardizer = Path(folder), memory, standardizer
        self.manifest = read_manifest(self.folder / MANIFEST)
        if not self.manifest["complete"] and not allow_incomplete:
            raise ValueError(
                f"the extraction into {folder} was not finished: run it again to continue, or pass allow_incomplete=True"
            )
        shards = self.manifest["shards"]
        for shard in shards:
            check_sizes(self.folder, shard, self.manifest)
        self.ends = np.cumsum([shard["rows"] for shard in shards], dtype=np.int64)
        self.n_rows = int(self.ends[-1]) if shards else 0
        self._first = 0  # row of the folder that is row 0 here
        at_least("memory", memory, CHUNK_ROWS * self.d_in * 4)

    @property
    def d_in(self) -> int:
        """Width of the activations."""
        return int(self.manifest["d_in"])

    @property
    def about(self) -> dict[str, Any]:
        """What the activations are of, as the writer said."""
        return self.manifest["about"]

    @property
    def left_out(self) -> dict[str, int]:
        """Tokens that are not among the rows, or were capped, by the rule that says so (`TokenRules`)."""
        total: dict[str, int] = {}
        for shard in self.manifest["shards"]:
            added(total, shard.get("left_out", {}))
        return total

    @property
    def shape(self) -> tuple[int, int]:
        """(N, d_in)."""
        return self.n_rows, self.d_in

    def part(self, start: int, stop: int | None = None) -> ActivationStore:
        """The rows `start` to `stop`, bounds as a slice has them, as a store of the same folder: `fit(sae, store.part(0, -5_000), method,
        x_val=store.part(-5_000))`. Neighbouring rows are of the same text: hold out whole documents where it matters.

        Raises ValueError: no rows.
        """
        begin, end, _ = slice(start, stop).indices(self.n_rows)
        if begin >= end:
            raise ValueError(f"part({start}, {stop}) of {self.n_rows} rows has none")
        found = copy.copy(self)
        found._first, found.n_rows = self._first + begin, end - begin
        return found

    def of_width(self, d_in: int) -> ActivationStore:
        """Itself. Raises ValueError unless the activations are `d_in` wide."""
        if self.d_in != d_in:
            raise ValueError(f"the store in {self.folder} has d_in={self.d_in} but {d_in} are expected: check d_in")
        return self

    def __len__(self) -> int:
        return self.n_rows

    def numel(self) -> int:
        """N d_in."""
        return self.n_rows * self.d_in

    def __getitem__(self, rows: Any) -> Tensor:
        """What the same index gives of the rows as one tensor (N, d_in); columns are not indexed.

        Args:
            rows: an int gives (d_in,); a slice, a mask (N,), or whole numbers of any shape, as a list, an array or a tensor, give
                (..., d_in). Negative ones count from the end.

        Raises:
            TypeError: another kind or dtype of index.
            IndexError: a row that is not there, a mask of another shape.
            ValueError: a slice of negative steps, which PyTorch has not either.
        """
        if isinstance(rows, slice):
            start, stop, step = rows.indices(self.n_rows)
            if step < 0:
                raise ValueError(f"step={step} must be positive: take the rows forwards, and flip them: store[a:b].flip(0)")
            if step == 1:
                if (start, stop) == (0, self.n_rows):
                    self._verify_once()
                return self._contiguous(start, max(start, stop))
            return self._rows(np.arange(start, stop, step, dtype=np.int64))
        if isinstance(rows, tuple) or rows is None or rows is ...:
            raise TypeError(f"a store is indexed by its rows alone, not by {rows!r}: store[rows][:, columns]")
        index = as_positions(rows, self.n_rows, "rows").numpy()
        if index.size and (index.min() < -self.n_rows or index.max() >= self.n_rows):
            bad = index.min() if index.min() < -self.n_rows else index.max()
            raise IndexError(f"row {bad} is not one of 0 to {self.n_rows - 1}, nor of -{self.n_rows} to -1")
        index = np.where(index < 0, index + self.n_rows, index)
        return self._rows(index.reshape(-1)).reshape(*index.shape, self.d_in)

    def _rows(self, index: np.ndarray) -> Tensor:
        """Rows (n, d_in) at positions (n,), each of them there."""
        out = torch.empty(len(index), self.d_in)
        index = index + self._first
        owner = np.searchsorted(self.ends, index, side="right")
        for shard in np.unique(owner):
            where = np.flatnonzero(owner == shard)
            first = int(self.ends[shard]) - int(self.manifest["shards"][shard]["rows"])
            out[torch.from_numpy(where)] = self._tensor(self._map(int(shard), "activations")[index[where] - first])
        return out

    def tokens(self, start: int, stop: int) -> Int[Tensor, "n 3"]:
        """(token id, document, index of the sequence) of the rows `start` to `stop`, which are bounds as a slice has them."""
        start, stop, _ = slice(start, stop).indices(self.n_rows)
        pieces = list(self._pieces(start, stop))
        self._verify_once("tokens", (shard for shard, _, _ in pieces))
        parts = [torch.from_numpy(np.array(self._map(shard, "tokens")[a:b])) for shard, a, b in pieces]
        return torch.cat(parts).long() if parts else torch.empty(0, 3, dtype=torch.int64)

    def split(self, n: int) -> Iterator[Tensor]:
        """Rows in order, n at a time."""
        whole("n", n, 1)
        self._verify_once()
        for start in range(0, self.n_rows, n):
            yield self._contiguous(start, min(start + n, self.n_rows))

    def shuffled(self, batch_size: int, generator: torch.Generator) -> Iterator[Tensor]:
        """All rows once, `batch_size` at a time, in an order drawn from the generator.

        Blocks of 256 neighbouring rows are drawn from the whole store until `memory` bytes are held, and their rows are mixed.
        """
        self._verify_once()
        blocks = torch.arange(0, self.n_rows, CHUNK_ROWS)
        starts: list[int] = blocks[torch.randperm(len(blocks), device="cpu", generator=generator)].tolist()
        per_buffer = max(1, self.memory // (CHUNK_ROWS * self.d_in * 4) - 1)  # one block for rows left over and in hand
        rest = torch.empty(0, self.d_in)
        for first in range(0, len(starts), per_buffer):
            chosen = sorted(starts[first : first + per_buffer])
            n = len(rest) + sum(min(CHUNK_ROWS, self.n_rows - s) for s in chosen)
            buffer = torch.empty(n, self.d_in)
            buffer[: len(rest)] = rest
            filled = len(rest)
            for start in chosen:
                part = self._contiguous(start, min(start + CHUNK_ROWS, self.n_rows))
                buffer[filled : filled + len(part)] = part
                filled += len(part)
            order = torch.randperm(n, device="cpu", generator=generator)
            last = first + per_buffer >= len(starts)
            whole = n if last else n // batch_size * batch_size
            for rows in order[:whole].split(batch_size):
                yield buffer[rows]
            rest = buffer[order[whole:]]
            del buffer  # before the next one is made

    def statistics(self) -> dict[str, Tensor]:
        """Of the rows, in one pass, float64: "mean", "std" (divisor N), "min", "max", each (d_in,), and "norm", the mean norm."""
        n, shift = 0, torch.zeros(self.d_in, dtype=torch.float64)
        low, high = torch.full_like(shift, torch.inf), torch.full_like(shift, -torch.inf)
        total, square, norm = torch.zeros_like(shift), torch.zeros_like(shift), torch.zeros((), dtype=torch.float64)
        for part in self.split(max(1, READ_BYTES // (8 * self.d_in))):
            if n == 0:
                shift = part.double().mean(0)
            centred = part.double() - shift
            total, square, n = total + centred.sum(0), square + centred.square().sum(0), n + len(part)
            norm = norm + part.double().norm(dim=1).sum()
            low, high = torch.minimum(low, part.amin(0).double()), torch.maximum(high, part.amax(0).double())
        if n == 0:
            raise ValueError(f"{self.folder} has no rows")
        mean = total / n
        return {
            "mean": mean + shift,
            "std": (square / n - mean.square()).clamp_min(0).sqrt(),
            "norm": norm / n,
            "min": low,
            "max": high,
        }

    def fingerprint(self) -> str:
        """A hash of the shards' checksums and the standardizer: stores of equal fingerprints give equal rows."""
        parts: list[Tensor | bytes] = [f"{self.manifest['dtype']} {self.d_in}".encode()]
        parts += [shard["activations"]["sha256"].encode() for shard in self.manifest["shards"]]
        if self._first or self.n_rows < int(self.ends[-1]):
            parts.append(f"rows {self._first} to {self._first + self.n_rows}".encode())
        if self.standardizer is not None:
            own = self.standardizer
            parts += [own.mode.encode(), *(value for value in (own.mean, own.scale) if value is not None)]
        return content_hash(parts)

    def verify(self) -> None:
        """Compare every shard with its checksum. Raises CorruptStoreError naming the first that differs.

        A pass over the rows (`split`, `shuffled`, `statistics`), and `tokens`, do so for the files they read, unless this process has seen
        them with these bytes and they were not written to since; rows that are asked for by index are not looked at.
        """
        for shard in self.manifest["shards"]:
            for key in ("activations", "tokens"):
                check_bytes(self.folder, shard[key])

    def _verify_once(self, key: str = "activations", shards: Iterable[int] | None = None) -> None:
        """`verify` for one kind of file, of all shards or some, but for those that this process has seen with these bytes."""
        for i in range(len(self.manifest["shards"])) if shards is None else shards:
            file = self.manifest["shards"][i][key]
            path = self.folder / file["file"]
            try:
                about = path.stat()
            except OSError as error:
                raise CorruptStoreError(f"{path} is missing: the manifest names it; restore it") from error
            seen = (about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns, file["sha256"])
            if seen not in _VERIFIED:
                check_bytes(self.folder, file)
                _VERIFIED.add(seen)

    def _pieces(self, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """(shard, first row, row after the last) of what lies between `start` and `stop`."""
        start, stop = start + self._first, stop + self._first
        shard = int(np.searchsorted(self.ends, start, side="right"))
        while start < stop:
            first = int(self.ends[shard]) - int(self.manifest["shards"][shard]["rows"])
            end = min(stop, int(self.ends[shard]))
            if start < end:  # a file of no bytes cannot be mapped
                yield shard, start - first, end - first
            start, shard = end, shard + 1

    def _contiguous(self, start: int, stop: int) -> Tensor:
        parts = [self._tensor(self._map(shard, "activations")[a:b]) for shard, a, b in self._pieces(start, stop)]
        return torch.cat(parts) if parts else torch.empty(0, self.d_in)

    def _map(self, shard: int, key: str) -> np.ndarray:
        info = self.manifest["shards"][shard]
        dtype, width = (np.int32, 3) if key == "tokens" else (RAW[self.manifest["dtype"]], self.d_in)
        return np.memmap(self.folder / info[key]["file"], dtype=dtype, mode="r", shape=(info["rows"], width))

    def _tensor(self, rows: np.ndarray) -> Tensor:
        values = torch.from_numpy(np.array(rows))
        values = (values.view(torch.bfloat16) if self.manifest["dtype"] == "bfloat16" else values).float()
        return values if self.standardizer is None else self.standardizer.transform(values)
