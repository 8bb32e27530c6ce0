from __future__ import annotations

import gzip
import os
import struct
import sys
import tracemalloc
import types

import numpy as np
import pytest
import torch

from splinterp.data import images, load_digits, load_mnist
from splinterp.data.images import MNIST_FILES, read_idx


def idx(array: np.ndarray) -> bytes:
    return b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


@pytest.fixture
def small_mnist(tmp_path, monkeypatch):
    """A folder with MNIST's names and small arrays of its own shapes."""
    rng = np.random.default_rng(0)
    shapes = {"x_train": (6, 28, 28), "y_train": (6,), "x_test": (3, 28, 28), "y_test": (3,)}
    arrays = {part: rng.integers(0, 256 if "x" in part else 10, shape).astype(np.uint8) for part, shape in shapes.items()}
    monkeypatch.setattr(images, "MNIST_FILES", {part: (MNIST_FILES[part][0], shapes[part]) for part in shapes})
    for i, (part, array) in enumerate(arrays.items()):
        name = MNIST_FILES[part][0]
        if i % 2:
            (tmp_path / name).write_bytes(idx(array))
        else:
            (tmp_path / f"{name}.gz").write_bytes(gzip.compress(idx(array)))
    return tmp_path, arrays


def test_digits():
    data = load_digits()
    assert data.x_train.shape == (1437, 64)
    assert data.x_test.shape == (360, 64)
    assert data.x_train.dtype == torch.float32
    assert data.y_train.dtype == torch.int64
    assert 0 <= float(data.x_train.min()) < float(data.x_train.max()) == 1
    assert set(data.y_test.tolist()) == set(range(10))


@pytest.mark.parametrize("by_environment", [True, False])
@pytest.mark.parametrize("nested", [True, False])
def test_reads_gzipped_and_plain_files(small_mnist, monkeypatch, tmp_path, by_environment, nested):
    folder, arrays = small_mnist
    if nested:
        (tmp_path / "data").mkdir()
        target = tmp_path / "data" / "mnist"
        target.mkdir()
        for path in list(folder.glob("*ubyte*")):
            path.rename(target / path.name)
        folder = tmp_path / "data"
    if by_environment:
        monkeypatch.setenv("SPLINTERP_DATA", str(folder))
    found = load_mnist(None if by_environment else folder)
    for part in arrays:
        expected = arrays[part]
        values = getattr(found, part)
        if "x" in part:
            torch.testing.assert_close(values, torch.from_numpy(expected.reshape(len(expected), 784) / 255).float())
        else:
            assert values.tolist() == expected.tolist()


def test_bad_files_are_named(small_mnist):
    folder, arrays = small_mnist
    name = MNIST_FILES["y_train"][0]
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(whole[:-2])
    with pytest.raises(ValueError, match=rf"{name} announces 6 bytes of data and holds 4"):
        load_mnist(folder)
    (folder / name).write_bytes(idx(arrays["y_test"]))
    with pytest.raises(ValueError, match=rf"{name} holds an array of shape \(3,\), not \(6,\)"):
        load_mnist(folder)
    (folder / name).write_bytes(b"<html>not found</html>")
    with pytest.raises(ValueError, match=rf"{name} is not an IDX file"):
        load_mnist(folder)
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=rf"{name}\[.gz\] is missing"):
        load_mnist(folder)
    packed = folder / f"{MNIST_FILES['x_train'][0]}.gz"
    packed.write_bytes(packed.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"train-images-idx3-ubyte.gz is truncated or corrupt"):
        load_mnist(folder)
    with pytest.raises(FileNotFoundError, match="put the four IDX files there"):
        load_mnist(folder / "empty")


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("nested", [True, False])
def test_files_of_archives_are_found_under_their_names(small_mnist, packed, nested):
    folder, arrays = small_mnist
    for part, array in arrays.items():
        name = MNIST_FILES[part][0]
        for old in folder.glob(f"{name}*"):
            old.unlink()
        other = name.replace("-idx", ".idx") + (".gz" if packed else "")
        path = folder / name / other if nested else folder / other
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(gzip.compress(idx(array)) if packed else idx(array))
    assert load_mnist(folder).y_train.tolist() == arrays["y_train"].tolist()


def test_a_folder_or_a_fifo_in_place_of_a_file_is_named(tmp_path):
    (tmp_path / "train-images-idx3-ubyte").mkdir()
    with pytest.raises(FileNotFoundError, match="train-images-idx3-ubyte is a folder without it"):
        load_mnist(tmp_path)
    with pytest.raises(ValueError, match="is a folder: a file is expected"):
        read_idx(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="pipe is no regular file"):
        read_idx(tmp_path / "pipe")
    with pytest.raises(FileNotFoundError, match="nothing is missing"):
        read_idx(tmp_path / "nothing")


def test_a_packed_file_is_unpacked_no_further_than_it_announces(tmp_path):
    path = tmp_path / "bomb.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(b"\0\0\x08\x01\0\0\0\x05")
        for _ in range(200):
            file.write(bytes(2**20))
    tracemalloc.start()
    with pytest.raises(ValueError, match="announces 5 bytes of data and holds more"):
        read_idx(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**24
    path.write_bytes(gzip.compress(b"\0\0\x08\x04" + b"\xff" * 16 + b"abc"))
    with pytest.raises(ValueError, match="holds 3"):
        read_idx(path)
    path.write_bytes(b"\0\0\x08\xff" + bytes(4 * 255) + b"a")
    with pytest.raises(ValueError, match=r"bomb\.gz is not an IDX file"):
        read_idx(path)


def test_read_idx_of_an_empty_file(tmp_path):
    (tmp_path / "f").write_bytes(b"")
    with pytest.raises(ValueError, match="not an IDX file"):
        read_idx(tmp_path / "f")


def test_without_files_every_source_is_tried_and_the_way_out_named(monkeypatch, tmp_path):
    monkeypatch.delenv("SPLINTERP_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setitem(sys.modules, "torchvision", None)
    monkeypatch.setitem(sys.modules, "torchvision.datasets", None)

    def offline(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr("sklearn.datasets.fetch_openml", offline)
    with pytest.raises(RuntimeError, match=r"torchvision: .*openml: OSError: no network.*set SPLINTERP_DATA=FOLDER"):
        load_mnist()


def test_downloads_through_torchvision_then_openml(monkeypatch, tmp_path, small_mnist):
    _, arrays = small_mnist
    monkeypatch.delenv("SPLINTERP_DATA", raising=False)

    class MNIST:
        def __init__(self, root, train, download):
            part = "train" if train else "test"
            self.data, self.targets = torch.from_numpy(arrays[f"x_{part}"]), torch.from_numpy(arrays[f"y_{part}"])

    fake = types.ModuleType("torchvision.datasets")
    fake.MNIST = MNIST
    monkeypatch.setitem(sys.modules, "torchvision", types.ModuleType("torchvision"))
    monkeypatch.setitem(sys.modules, "torchvision.datasets", fake)
    by_vision = load_mnist()
    assert by_vision.y_test.tolist() == arrays["y_test"].tolist()
    monkeypatch.setitem(sys.modules, "torchvision.datasets", None)
    x = np.zeros((60_002, 784))
    x[60_000:] = 255
    monkeypatch.setattr("sklearn.datasets.fetch_openml", lambda *a, **k: (x, np.array(["3"] * 60_002)))
    by_openml = load_mnist()
    assert by_openml.x_test.shape == (2, 784)
    assert float(by_openml.x_test.mean()) == 1
    assert by_openml.y_test.tolist() == [3, 3]


def test_real_mnist(data_dir):
    data = load_mnist(data_dir)
    assert data.x_train.shape == (60_000, 784)
    assert data.x_test.shape == (10_000, 784)
    assert data.y_train.bincount().min() > 5_000
    assert float(data.x_train.mean()) == pytest.approx(0.1307, abs=1e-4)
    assert float(data.x_train.std()) == pytest.approx(0.3081, abs=1e-4)
