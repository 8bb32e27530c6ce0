"""States of Overcomplete's SAEs (written by `make_golden.py` with the library itself), and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from splinterp import JumpReLU, ReLU, TopK
from splinterp.interop import load_overcomplete
from tests.helpers import rng

FOLDERS = sorted((Path(__file__).parent / "golden").glob("overcomplete_*"))
K = 3


def told(folder):
    """What has to be said of the SAE beside its state."""
    name = folder.name.removeprefix("overcomplete_")
    with safe_open(folder / "samples.safetensors", "pt") as file:
        threshold = file.metadata()["threshold"]
    options = {"normalization": "max_l1"} if name.endswith("max_l1") else {}
    if name == "JumpSAE":
        return options
    if threshold:
        return {**options, "activation": JumpReLU(), "threshold": float(threshold)}
    return {**options, "activation": ReLU() if name == "SAE" else TopK(K)}


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_a_state_is_read_as_the_same_map(folder):
    samples = load_file(folder / "samples.safetensors")
    sae = load_overcomplete(folder / "state.pt", **told(folder))
    with torch.no_grad():
        torch.testing.assert_close(sae(samples["x"]).x_hat, samples["x_hat"], rtol=1e-4, atol=1e-4)
        assert (sae.encode(samples["x"]) != 0).any()
    state = torch.load(folder / "state.pt", weights_only=True)
    again = load_overcomplete(state, **told(folder))
    assert all(torch.equal(a, b) for a, b in zip(sae.state_dict().values(), again.state_dict().values(), strict=True))


def test_all_kinds_are_there():
    assert len(FOLDERS) == 9


def state(d=4, m=6, seed=0):
    g = rng(seed)
    return {
        "encoder.final_block.0.weight": torch.randn(m, d, generator=g), "encoder.final_block.0.bias": torch.randn(m, generator=g),
        "dictionary._weights": torch.randn(m, d, generator=g), "dictionary.multiplier": torch.zeros(()),
    }  # fmt: skip


def test_options_change_what_is_read():
    by_name = [
        load_overcomplete(state(), ReLU(), normalization=name).W_dec for name in ("l2", "l1", "max_l2", "max_l1", "identity")
    ]
    assert all(not torch.equal(a, b) for i, a in enumerate(by_name) for b in by_name[:i])
    hull = {
        "dictionary.W": torch.rand(6, 5),
        "dictionary.C": torch.randn(5, 4, generator=rng(1)),
        "dictionary.Relax": torch.ones(6, 4),
    }
    archetypal = {**{name: value for name, value in state().items() if "_weights" not in name}, **hull}
    near, far = (load_overcomplete(archetypal, ReLU(), delta=delta).W_dec for delta in (0.0, 1.0))
    torch.testing.assert_close((far - near).norm(dim=1), torch.ones(6))
    low, high = (load_overcomplete(state(), JumpReLU(), threshold=value).activation.threshold for value in (0.1, 0.2))
    assert not torch.equal(low, high)


@pytest.mark.parametrize(
    ("change", "options", "error", "message"),
    [
        ({"encoder.mlp_blocks.0.0.weight": torch.ones(4, 4)}, {"activation": ReLU()}, ValueError, "not affine.*mlp_blocks"),
        ({"encoder.final_block.1.weight": torch.ones(6), "encoder.final_block.1.bias": torch.ones(6)}, {"activation": ReLU()}, ValueError,
         "LayerNorm"),
        ({"encoder.final_block.0.weight": torch.ones(4, 5)}, {"activation": ReLU()}, ValueError, "shape"),
        ({"dictionary._weights": torch.full((6, 4), torch.nan)}, {"activation": ReLU()}, ValueError, "W_dec"),
        ({}, {}, TypeError, "activation=TopK"),
        ({}, {"activation": JumpReLU()}, TypeError, "running_threshold"),
        ({"thresholds": torch.zeros(6)}, {"activation": TopK(2)}, ValueError, "JumpSAE"),
        ({"dictionary._weights": 3}, {"activation": ReLU()}, ValueError, "state_dict"),
        ({}, {"activation": ReLU(), "normalization": "l3"}, ValueError, "normalization"),
        ({}, {"activation": ReLU(), "delta": -1.0}, ValueError, "delta"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_named(change, options, error, message):
    with pytest.raises(error, match=message):
        load_overcomplete({**state(), **change}, **options)


def test_files_that_are_none_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="missing"):
        load_overcomplete(tmp_path / "none.pt", ReLU())
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pt")
    with pytest.raises(ValueError, match=r"module\.pt"):
        load_overcomplete(tmp_path / "module.pt", ReLU())
    del (without := state())["dictionary._weights"]
    torch.save(without, tmp_path / "state.pt")
    with pytest.raises(ValueError, match=r"state\.pt.*neither dictionary\._weights"):
        load_overcomplete(tmp_path / "state.pt", ReLU())
