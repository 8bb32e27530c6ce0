"""An SAE from a folder or a repository of the Hugging Face hub, whichever of the known formats it has."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from splinterp._documented import documented
from splinterp.data.standardizer import Standardizer
from splinterp.interop.dictionary_learning import load_dictionary_learning
from splinterp.interop.gemma_scope import load_gemma_scope
from splinterp.interop.llama_scope import load_llama_scope
from splinterp.interop.saelens import load_saelens
from splinterp.interop.sparsify import load_sparsify
from splinterp.sae import SAE

FILES = {
    "splinterp": ("sae.json", "sae.safetensors"), "saelens": ("cfg.json", "sae_weights.safetensors"),
    "sparsify": ("cfg.json", "sae.safetensors"), "dictionary_learning": ("config.json", "ae.pt"), "gemma_scope": ("params.npz",),
    "gemma_scope 2": ("params.safetensors",), "llama_scope": ("hyperparams.json", "checkpoints/final.safetensors"),
}  # fmt: skip
"""By which files a folder is known to be of a format, in the order in which they are tried."""


@documented
class Loaded(NamedTuple):
    """An SAE of any format."""

    sae: SAE
    format: str
    config: dict[str, Any]
    """What the format says of it beside its tensors; `SAE.about` of splinterp's own."""
    standardizer: Standardizer | None
    """What its input is to be normalised by; None where it takes activations as the model gives them."""


def load_any(folder: str | Path) -> Loaded:
    """Read an SAE of splinterp's own format, SAELens, sparsify, dictionary_learning, Gemma Scope or Llama Scope, told by its files.

    Raises:
        FileNotFoundError: no such folder, or none of the formats' files in it.
        ValueError: what the format's own loader refuses.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is no folder")
    found = next((name for name, files in FILES.items() if all((folder / file).exists() for file in files)), None)
    if found is None:
        known = "; ".join(f"{name}: {' and '.join(files)}" for name, files in FILES.items())
        raise FileNotFoundError(f"{folder} has the files of no known format ({known})")
    if found == "splinterp":
        sae = SAE.load(folder)
        standardizer = Standardizer.load(folder) if (folder / "standardizer.json").exists() else None
        return Loaded(sae, found, sae.about, standardizer)
    if found.startswith("gemma_scope"):
        return Loaded(load_gemma_scope(folder), found, {}, None)
    load = {
        "saelens": load_saelens, "sparsify": load_sparsify, "dictionary_learning": load_dictionary_learning,
        "llama_scope": load_llama_scope,
    }[found]  # fmt: skip
    sae, config = load(folder)
    return Loaded(sae, found, config, None)


def load_from_hub(repo_id: str, folder: str = "", *, revision: str | None = None) -> Loaded:
    """`load_any` of a folder of a model repository of the Hugging Face hub, which is downloaded to its cache.

    Raises:
        ImportError: huggingface_hub is not installed.
        FileNotFoundError, ValueError: as `load_any`; what the hub refuses is raised as it comes.
    """
    hub = _hub()
    folder = folder.strip("/")
    patterns = [f"{folder}/*"] if folder else None
    root = Path(hub.snapshot_download(repo_id, revision=revision, allow_patterns=patterns))
    return load_any(root / folder if folder else root)


def save_to_hub(
    folder: str | Path, repo_id: str, path_in_repo: str = "", *, private: bool = False, message: str | None = None
) -> str:
    """Upload a folder that holds an SAE of a known format (`SAE.save`, `save_saelens`, ...) to a model repository of the hub, which is made
    where it is not there. Returns the address of the commit.

    Raises:
        ImportError: huggingface_hub is not installed.
        FileNotFoundError, ValueError: the folder holds no SAE that could be read again.
    """
    hub = _hub()
    found = load_any(folder)
    hub.create_repo(repo_id, private=private, exist_ok=True)
    commit = hub.upload_folder(
        repo_id=repo_id, folder_path=str(folder), path_in_repo=path_in_repo or None,
        commit_message=message or f"SAE of {found.sae.n_latents} latents ({found.format})", ignore_patterns=[".*"],
    )  # fmt: skip
    return str(commit)


def _hub() -> Any:
    try:
        import huggingface_hub
    except ImportError as error:
        raise ImportError("the hub needs huggingface_hub: pip install huggingface_hub") from error
    return huggingface_hub
