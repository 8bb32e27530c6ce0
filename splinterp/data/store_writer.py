"""Writing activations to disk, so that an interruption loses at most the shard in hand."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch

from splinterp._atomic import locked, remove_if_dead, replace_file
from splinterp._checks import one_of, whole
from splinterp._files import sealed
from splinterp._typing import Float, Int, Tensor
from splinterp.data.manifest import DTYPES, FORMAT, MANIFEST, check_sizes, in_dtype, read_manifest
from splinterp.data.store import ActivationStore


class StoreWriter:
    """Appends shards to a folder. Each is written under a temporary name, then named in the manifest, which is replaced whole.

    A folder of an interrupted writer is continued after its last complete shard: `n_shards` says how many there are. A call of
    `append` that failed may be repeated. Of two writers on one folder the one that comes second is refused.

    Args:
        folder: created if it is not there.
        d_in: width of the activations.
        dtype: "float32", "float16" or "bfloat16".
        about: what the activations are of (model, layer, text, ...), JSON; a folder written about something else is refused.

    Raises:
        ValueError: an unknown dtype, a damaged manifest, a folder of other activations, or one that was finished.
        CorruptStoreError: a shard that the manifest names is missing or has another size.
    """

    def __init__(self, folder: str | Path, d_in: int, dtype: str = "float32", about: dict[str, Any] | None = None) -> None:
        d_in = whole("d_in", d_in, 1)
        one_of("dtype", dtype, DTYPES)
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        fresh = {"format": FORMAT, "d_in": d_in, "dtype": dtype, "about": about or {}, "complete": False, "shards": []}
        path = self.folder / MANIFEST
        for leftover in self.folder.glob(".*.tmp"):  # of a writer that was killed
            remove_if_dead(leftover)
        with locked(self.folder, exclusive=True):
            if not path.exists():
                self._write_manifest(fresh)
        self.manifest: dict[str, Any] = read_manifest(path)
        expected = json.loads(json.dumps(fresh))
        for theirs, ours in ((self.manifest, expected), (self.manifest["about"], expected["about"])):
            for key in sorted({*theirs, *ours} - {"about", "complete", "shards"}):
                if json.dumps(theirs.get(key)) != json.dumps(ours.get(key)):  # NaN is not equal to itself
                    found = f"its {key} is {theirs.get(key)!r}, not {ours.get(key)!r}"
                    raise ValueError(f"{folder} holds other activations: {found}: write to another folder")
        for shard in self.manifest["shards"]:
            check_sizes(self.folder, shard, self.manifest)

    @property
    def n_shards(self) -> int:
        """Complete shards."""
        return len(self.manifest["shards"])

    @property
    def complete(self) -> bool:
        """Whether `finish` was called."""
        return bool(self.manifest["complete"])

    def append(
        self, activations: Float[Tensor, "n d_in"], tokens: Int[Tensor, "n 3"], left_out: dict[str, int] | None = None
    ) -> None:
        """Write one shard: activations, and (token id, document, index of the sequence) of each row; `left_out` counts tokens that are not
        among them, by why.

        Raises ValueError: rows or widths that do not fit, finite values that the store's dtype makes infinite, a finished store, or
        one that another writer has added to.
        """
        if self.complete:
            raise ValueError(f"{self.folder} is finished: write to another folder")
        activations, tokens = (torch.as_tensor(part) for part in (activations, tokens))
        if activations.shape[1] != self.manifest["d_in"] or tokens.shape != (len(activations), 3):
            raise ValueError(f"activations {tuple(activations.shape)} and tokens {tuple(tokens.shape)} do not fit a store of "
                             f"d_in={self.manifest['d_in']} and 3 columns of tokens")  # fmt: skip
        name, files = f"shard-{self.n_shards:05d}", {}
        shard: dict[str, Any] = {"rows": len(activations), **({"left_out": left_out} if left_out else {})}
        values = in_dtype(activations.detach().cpu(), DTYPES[self.manifest["dtype"]]).contiguous()
        raw = values.view(torch.uint16).numpy() if values.dtype == torch.bfloat16 else values.numpy()
        for key, array in (("activations", raw), ("tokens", tokens.cpu().to(torch.int32).contiguous().numpy())):
            content = array.reshape(-1).view(np.uint8).data  # hashed and written where it lies
            file = f"{name}.{key}"
            shard[key] = {"file": file, "sha256": hashlib.sha256(content).hexdigest(), "bytes": content.nbytes}
            files[self.folder / file] = content
        self._replace({**self.manifest, "shards": [*self.manifest["shards"], shard]}, files)

    def finish(self) -> ActivationStore:
        """Mark the store as complete and open it. Raises ValueError where another writer has added to it."""
        self._replace({**self.manifest, "complete": True}, {})
        return ActivationStore(self.folder)

    def _replace(self, manifest: dict[str, Any], files: dict[Path, memoryview]) -> None:
        """Write files, then the manifest that names them, unless both are there already: a call that failed may be repeated."""
        with locked(self.folder, exclusive=True, needed=True):
            there = read_manifest(self.folder / MANIFEST)
            if there == self.manifest:
                for path, content in files.items():
                    _write_synced(path, content)
                self._write_manifest(manifest)
            elif there != manifest:
                raise ValueError(
                    f"another writer has added to {self.folder}, which has {len(there['shards'])} shards now, not {self.n_shards}: let it "
                    "finish, or open a new StoreWriter and go on after its last shard"
                )
        self.manifest = manifest

    def _write_manifest(self, manifest: dict[str, Any]) -> None:
        text = json.dumps(sealed(manifest), indent=1) + "\n"
        replace_file(self.folder / MANIFEST, lambda path: path.write_text(text), clean=False)


def _write_synced(path: Path, content: memoryview) -> None:
    def write(temporary: Path) -> None:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())

    replace_file(path, write, clean=False)  # the writer has cleaned up; looking through all shards at each would take long
