"""Shared builders and hypothesis settings. CPU only unless marked gpu."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

import tests.typechecker

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is first imported: its kernels then run on the CPU

tests.typechecker.install("splinterp")  # before anything imports splinterp

torch.set_num_threads(tests.THREADS)  # also where something imported torch before this file

# SPLINTERP_EXAMPLES=1000 searches further, with new examples every time.
examples = os.environ.get("SPLINTERP_EXAMPLES")
settings.register_profile(
    "default", deadline=None, derandomize=examples is None, max_examples=int(examples or 60),
    suppress_health_check=list(HealthCheck) if examples else [HealthCheck.too_slow],
)  # fmt: skip
settings.load_profile("default")


@pytest.fixture(autouse=True)
def seeded() -> None:
    """What draws from torch's global generator, as an SAE without a generator does, draws the same in every run."""
    torch.manual_seed(0)


@pytest.fixture
def data_dir() -> Path:
    folder = os.environ.get("SPLINTERP_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("SPLINTERP_DATA does not name a folder with data")
    return Path(folder)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))
