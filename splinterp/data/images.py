"""Images as rows: scikit-learn's digits (always there) and MNIST (from files, or downloaded)."""

from __future__ import annotations

import gzip
import io
import math
import os
import struct
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from splinterp._files import reading, require_file
from splinterp._typing import Float, Int, Tensor

MNIST_FILES = {
    "x_train": ("train-images-idx3-ubyte", (60_000, 28, 28)),
    "y_train": ("train-labels-idx1-ubyte", (60_000,)),
    "x_test": ("t10k-images-idx3-ubyte", (10_000, 28, 28)),
    "y_test": ("t10k-labels-idx1-ubyte", (10_000,)),
}
DIGITS_TEST = 360
MOST_AXES = 32
READ_BYTES = 2**20


class Images(NamedTuple):
    """Flattened images in [0, 1], float32, and their labels, int64."""

    x_train: Float[Tensor, "n_train d_in"]
    y_train: Int[Tensor, " n_train"]
    x_test: Float[Tensor, "n_test d_in"]
    y_test: Int[Tensor, " n_test"]


def load_digits() -> Images:
    """The 1,797 8 x 8 digits of scikit-learn's wheel: 1,437 for training, 360 for testing (a fixed random split)."""
    from sklearn import datasets

    data = datasets.load_digits()
    order = np.random.default_rng(0).permutation(len(data.data))
    x = torch.from_numpy(data.data[order].astype(np.float32) / 16)
    y = torch.from_numpy(data.target[order].astype(np.int64))
    return Images(x[:-DIGITS_TEST], y[:-DIGITS_TEST], x[-DIGITS_TEST:], y[-DIGITS_TEST:])


def load_mnist(data_dir: str | Path | None = None) -> Images:
    """MNIST: 60,000 training and 10,000 test images, 784 pixels each.

    Reads the four IDX files, gzipped or not, from `data_dir` or `$SPLINTERP_DATA` (the folder itself or its
    subfolder `mnist`), under the name of the original (`train-images-idx3-ubyte`) or that of archives (`train-images.idx3-ubyte`), or
    in folders of these names. Without either, downloads through torchvision where it imports, else through
    scikit-learn's OpenML client.

    Raises:
        FileNotFoundError: a file is missing from the folder given; the message names it.
        ValueError: a file is truncated or not what its name says; the message names it.
        RuntimeError: no folder was given and nothing could be downloaded; the message says what to do.
    """
    folder = data_dir if data_dir is not None else os.environ.get("SPLINTERP_DATA")
    if not folder:
        return _download_mnist()
    root = Path(folder)
    candidates = [root, root / "mnist", root / "MNIST" / "raw"]
    first = MNIST_FILES["x_train"][0]
    home = next((c for c in candidates if _find(c, first) is not None), None)
    if home is None:
        raise FileNotFoundError(
            f"no {first}[.gz] in {', '.join(str(c) for c in candidates)}: put the four IDX files there{_unusable(candidates, first)}"
        )
    return _as_images({part: _read_part(home, part) for part in MNIST_FILES})


def _names(name: str) -> list[str]:
    """Under which an IDX file is found: `a-idx3-ubyte` is `a.idx3-ubyte` in archives; each gzipped or not."""
    both = (name, name.replace("-idx", ".idx"))
    return [f"{each}{packed}" for packed in ("", ".gz") for each in both]


def _find(folder: Path, name: str) -> Path | None:
    """The regular file of that name, or in a folder of that name."""
    names = _names(name)
    places = [folder / each for each in names] + [folder / outer / inner for outer in names for inner in names]
    return next((path for path in places if path.is_file()), None)


def _unusable(folders: list[Path], name: str) -> str:
    """What is there under the name and cannot be read, as the end of a message."""
    found = next((folder / each for folder in folders for each in _names(name) if (folder / each).exists()), None)
    if found is None:
        return ""
    return f" ({found} is {'a folder without it' if found.is_dir() else 'no regular file'})"


def _as_images(arrays: dict[str, np.ndarray]) -> Images:
    def pixels(a: np.ndarray) -> Tensor:
        return torch.from_numpy(a.reshape(len(a), -1).astype(np.float32) / 255)

    def labels(a: np.ndarray) -> Tensor:
        return torch.from_numpy(a.astype(np.int64))

    return Images(pixels(arrays["x_train"]), labels(arrays["y_train"]), pixels(arrays["x_test"]), labels(arrays["y_test"]))


def _read_part(folder: Path, part: str) -> np.ndarray:
    name, shape = MNIST_FILES[part]
    path = _find(folder, name)
    if path is None:
        raise FileNotFoundError(f"{folder / name}[.gz] is missing: MNIST needs all four IDX files{_unusable([folder], name)}")
    return _read_idx(path, shape)


def read_idx(path: str | Path) -> np.ndarray:
    """Read an IDX file of unsigned bytes, gzipped or not; no more of it than its header announces.

    Raises:
        FileNotFoundError: it is missing.
        ValueError: it is no regular file, truncated or wrong; the message names it.
    """
    return _read_idx(Path(path), None)


def _read_idx(path: Path, wanted: tuple[int, ...] | None) -> np.ndarray:
    with reading(path), open(require_file(path), "rb") as plain:
        packed = plain.read(2) == b"\x1f\x8b"
        plain.seek(0)
        if not packed:
            return _parse_idx(path, plain, plain.seek(0, os.SEEK_END), wanted)
        try:
            with gzip.GzipFile(fileobj=plain) as unpacked:
                return _parse_idx(path, unpacked, None, wanted)
        except (EOFError, OSError, zlib.error) as error:
            raise ValueError(f"{path} is truncated or corrupt ({error}): fetch it again") from error


def _parse_idx(
    path: Path, file: gzip.GzipFile | io.BufferedReader, size: int | None, wanted: tuple[int, ...] | None
) -> np.ndarray:
    """The array of a file of `size` bytes (None: of a stream, which is read no further than its header announces)."""
    file.seek(0)
    start = file.read(4)
    axes = start[3] if len(start) == 4 else 0
    sizes = file.read(4 * axes)
    if start[:3] != b"\0\0\x08" or len(start) < 4 or len(sizes) < 4 * axes or axes > MOST_AXES:
        raise ValueError(f"{path} is not an IDX file of unsigned bytes: fetch it again")
    shape = struct.unpack(f">{axes}I", sizes)
    expected, found = math.prod(shape), None if size is None else size - 4 - 4 * axes
    if found is not None and found != expected:
        raise ValueError(f"{path} announces {expected} bytes of data and holds {found}: fetch it again")
    if wanted is not None and shape != wanted:
        raise ValueError(f"{path} holds an array of shape {shape}, not {wanted}: it is not the MNIST file of that name")
    content = bytearray()
    while piece := file.read(min(READ_BYTES, expected + 1 - len(content))):
        content += piece
    if len(content) != expected:
        more = len(content) > expected
        raise ValueError(
            f"{path} announces {expected} bytes of data and holds {'more' if more else len(content)}: fetch it again"
        )
    return np.frombuffer(content, np.uint8).reshape(shape)


def _download_mnist() -> Images:
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "splinterp"
    failures = []
    for source in (_from_torchvision, _from_openml):
        try:
            return _as_images(source(cache))
        except Exception as error:  # any failure of a download only means the next source
            failures.append(f"{source.__name__.removeprefix('_from_')}: {type(error).__name__}: {error}")
    names = ", ".join(f"{name}.gz" for name, _ in MNIST_FILES.values())
    raise RuntimeError(
        f"MNIST could not be downloaded ({'; '.join(failures)}). Put {names} into a folder and pass "
        "data_dir=FOLDER (--data-dir on the command line) or set SPLINTERP_DATA=FOLDER."
    )


def _from_torchvision(cache: Path) -> dict[str, np.ndarray]:
    from torchvision.datasets import MNIST

    train, test = MNIST(cache, train=True, download=True), MNIST(cache, train=False, download=True)
    return {
        "x_train": train.data.numpy(), "y_train": train.targets.numpy(),
        "x_test": test.data.numpy(), "y_test": test.targets.numpy(),
    }  # fmt: skip


def _from_openml(cache: Path) -> dict[str, np.ndarray]:
    from sklearn.datasets import fetch_openml

    x, y = fetch_openml("mnist_784", version=1, return_X_y=True, as_frame=False, data_home=str(cache), parser="liac-arff")
    x, y = np.asarray(x), np.asarray(y).astype(np.int64)
    return {"x_train": x[:60_000], "y_train": y[:60_000], "x_test": x[60_000:], "y_test": y[60_000:]}
