"""Images as rows: scikit-learn's digits (always there) and MNIST (from files, or downloaded)."""

from __future__ import annotations

import gzip
import os
import struct
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from splinterp._typing import Float, Int, Tensor

MNIST_FILES = {
    "x_train": ("train-images-idx3-ubyte", (60_000, 28, 28)),
    "y_train": ("train-labels-idx1-ubyte", (60_000,)),
    "x_test": ("t10k-images-idx3-ubyte", (10_000, 28, 28)),
    "y_test": ("t10k-labels-idx1-ubyte", (10_000,)),
}
DIGITS_TEST = 360


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
    subfolder `mnist`). Without either, downloads through torchvision where it imports, else through
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
    home = next((c for c in candidates if (c / first).exists() or (c / f"{first}.gz").exists()), None)
    if home is None:
        raise FileNotFoundError(f"no {first}[.gz] in {', '.join(str(c) for c in candidates)}: put the four IDX files there")
    return _as_images({part: _read_part(home, part) for part in MNIST_FILES})


def _as_images(arrays: dict[str, np.ndarray]) -> Images:
    def pixels(a: np.ndarray) -> Tensor:
        return torch.from_numpy(a.reshape(len(a), -1).astype(np.float32) / 255)

    def labels(a: np.ndarray) -> Tensor:
        return torch.from_numpy(a.astype(np.int64))

    return Images(pixels(arrays["x_train"]), labels(arrays["y_train"]), pixels(arrays["x_test"]), labels(arrays["y_test"]))


def _read_part(folder: Path, part: str) -> np.ndarray:
    name, shape = MNIST_FILES[part]
    path = folder / name
    if not path.exists():
        path = folder / f"{name}.gz"
    if not path.exists():
        raise FileNotFoundError(f"{folder / name}[.gz] is missing: MNIST needs all four IDX files")
    array = read_idx(path)
    if array.shape != shape:
        raise ValueError(f"{path} holds an array of shape {array.shape}, not {shape}: it is not the MNIST file of that name")
    return array


def read_idx(path: str | Path) -> np.ndarray:
    """Read an IDX file of unsigned bytes, gzipped or not. Raises ValueError, naming the file, if it is truncated or wrong."""
    path = Path(path)
    raw = path.read_bytes()
    if raw[:2] == b"\x1f\x8b":
        try:
            raw = gzip.decompress(raw)
        except (EOFError, OSError, zlib.error) as error:
            raise ValueError(f"{path} is truncated or corrupt ({error}): fetch it again") from error
    if len(raw) < 4 or raw[:3] != b"\0\0\x08" or len(raw) < 4 + 4 * raw[3]:
        raise ValueError(f"{path} is not an IDX file of unsigned bytes: fetch it again")
    shape = struct.unpack(f">{raw[3]}I", raw[4 : 4 + 4 * raw[3]])
    expected, found = int(np.prod(shape)), len(raw) - 4 - 4 * raw[3]
    if found != expected:
        raise ValueError(f"{path} announces {expected} bytes of data and holds {found}: fetch it again")
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3]).reshape(shape)


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
