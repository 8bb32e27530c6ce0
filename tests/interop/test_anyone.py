"""Folders of any known format, and repositories that stand for the hub's."""

from __future__ import annotations

import sys
import types

import pytest
import torch

from splinterp import SAE, JumpReLU, TopK
from splinterp.data import Standardizer
from splinterp.interop import (
    load_any,
    load_from_hub,
    save_dictionary_learning,
    save_gemma_scope,
    save_saelens,
    save_sparsify,
    save_to_hub,
)
from tests.helpers import rng, samples


def sae_of(activation):
    sae = SAE(8, 12, activation, generator=rng(0))
    with torch.no_grad():
        for p in sae.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=rng(1)))
    return sae.eval()


SAVES = {
    "splinterp": lambda sae, folder: sae.save(folder, about={"note": 1}), "saelens": save_saelens, "sparsify": save_sparsify,
    "dictionary_learning": save_dictionary_learning, "gemma_scope": lambda sae, folder: save_gemma_scope(sae, folder / "params.npz"),
}  # fmt: skip


@pytest.mark.parametrize("kind", SAVES)
def test_a_folder_is_known_by_its_files(kind, tmp_path):
    sae, x = sae_of(JumpReLU() if kind == "gemma_scope" else TopK(3)), samples()
    SAVES[kind](sae, tmp_path)
    found = load_any(tmp_path)
    assert found.format == kind
    assert found.standardizer is None
    torch.testing.assert_close(found.sae(x).x_hat, sae(x).x_hat, rtol=1e-4, atol=1e-4)
    assert (kind == "splinterp") == (found.config.get("note") == 1)


def test_a_standardizer_comes_with_its_sae_and_others_are_refused(tmp_path):
    standardizer = Standardizer("global").fit(samples())
    sae_of(TopK(3)).save(tmp_path / "a", standardizer)
    assert load_any(tmp_path / "a").standardizer.fingerprint() == standardizer.fingerprint()
    (tmp_path / "b").mkdir()
    with pytest.raises(FileNotFoundError, match="no known format"):
        load_any(tmp_path / "b")
    with pytest.raises(FileNotFoundError, match="is no folder"):
        load_any(tmp_path / "c")


def test_the_hub_gives_and_takes_folders(tmp_path, monkeypatch):
    calls = []
    hub = types.SimpleNamespace(
        snapshot_download=lambda repo_id, revision, allow_patterns: (
            calls.append((repo_id, revision, allow_patterns)) or str(tmp_path)
        ),
        create_repo=lambda repo_id, private, exist_ok: calls.append((repo_id, private, exist_ok)),
        upload_folder=lambda **options: calls.append(options) or "https://hub/commit",
    )
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    save_sparsify(sae_of(TopK(3)), tmp_path / "layers.3")
    found = load_from_hub("us/saes", "layers.3", revision="v1")
    assert found.format == "sparsify"
    assert calls == [("us/saes", "v1", ["layers.3/*"])]
    assert save_to_hub(tmp_path / "layers.3", "us/other", "deep", private=True) == "https://hub/commit"
    assert calls[1] == ("us/other", True, True)
    assert (calls[2]["repo_id"], calls[2]["path_in_repo"]) == ("us/other", "deep")
    with pytest.raises(FileNotFoundError, match="no known format"):
        save_to_hub(tmp_path, "us/other")
    assert len(calls) == 3
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match="pip install huggingface_hub"):
        load_from_hub("us/saes")


def test_what_the_hubs_library_takes_is_what_is_asked_of_it():
    hub = pytest.importorskip("huggingface_hub")
    import inspect

    for name, options in {
        "snapshot_download": ("repo_id", "revision", "allow_patterns"), "create_repo": ("repo_id", "private", "exist_ok"),
        "upload_folder": ("repo_id", "folder_path", "path_in_repo", "commit_message", "ignore_patterns"),
    }.items():  # fmt: skip
        assert set(options) <= set(inspect.signature(getattr(hub, name)).parameters)
