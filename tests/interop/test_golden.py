"""Files that the field's libraries wrote themselves (`make_golden.py`), with what these made of some samples."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from splinterp.interop import load_any

FOLDERS = sorted(
    folder for folder in (Path(__file__).parent / "golden").iterdir() if not folder.name.startswith("overcomplete")
)
"""Overcomplete's, which are states and no folders of a format, are read in `test_overcomplete.py`."""


def test_all_libraries_are_there():
    assert {folder.name.split("_")[0] for folder in FOLDERS} == {"saelens", "dictionary", "sparsify"}
    assert len(FOLDERS) == 13


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_what_a_library_wrote_is_read_as_the_same_map(folder):
    samples = load_file(folder / "samples.safetensors")
    found = load_any(folder)
    assert folder.name.startswith(found.format)
    with safe_open(folder / "samples.safetensors", "pt") as file:
        assert file.metadata()["library"].split()[1][0].isdigit()
    with torch.no_grad():
        torch.testing.assert_close(found.sae(samples["x"]).x_hat, samples["x_hat"], rtol=1e-4, atol=1e-4)
        assert (found.sae.encode(samples["x"]) != 0).any()
