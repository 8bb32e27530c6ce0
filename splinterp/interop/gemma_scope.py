"""Files of Gemma Scope: `params.npz` (arXiv 2408.05147), and `params.safetensors` of its second release."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from splinterp._atomic import replace_file
from splinterp._files import reading, require_file
from splinterp._typing import Tensor
from splinterp.activations import JumpReLU
from splinterp.data.standardizer import Standardizer
from splinterp.interop.affine import affine_form, floats, sae_of
from splinterp.interop.jumprelu import to_jumprelu
from splinterp.sae import SAE

NAMES = ("W_enc", "b_enc", "W_dec", "b_dec", "threshold")


def load_gemma_scope(path: str | Path) -> SAE:
    """Read `params.npz` or `params.safetensors`, or a folder with one of them, as a JumpReLU SAE in evaluation mode.

    Its encoder does not centre. Arrays are read without pickles.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: other arrays (of a transcoder with a skip connection, of several layers), such that do not fit or hold NaN; the message
            names the file.
    """
    path = Path(path)
    if path.is_dir():
        path = next(
            (path / name for name in ("params.npz", "params.safetensors") if (path / name).exists()), path / "params.npz"
        )
    require_file(path)
    with reading(path):
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                found = {name: torch.from_numpy(np.array(arrays[name])) for name in arrays.files}
        else:
            found = load_file(path)
        tensors: dict[str, Tensor] = {
            ("W" + name[1:] if name.startswith("w_") else name): value for name, value in found.items()
        }
        if "affine_skip_connection" in tensors:
            raise ValueError("affine_skip_connection adds a linear map of the input: only autoencoders without it are read")
        missing = [name for name in NAMES if name not in tensors]
        if missing:
            raise ValueError(f"there is no {missing[0]}, which a JumpReLU SAE has")
        if tensors["W_dec"].ndim != 2:
            raise ValueError(f"W_dec has shape {tuple(tensors['W_dec'].shape)}: decoders of several layers are not read")
    threshold = tensors.pop("threshold")
    return sae_of(path, {name: tensors[name] for name in NAMES[:4]}, JumpReLU(), centred=False, threshold=threshold)


def save_gemma_scope(sae: SAE, path: str | Path, *, standardizer: Standardizer | None = None) -> Path:
    """Write `params.npz` at path, of what `to_jumprelu` makes of the SAE, on activations as the model gives them. Returns the path.

    Raises:
        TypeError: a map that is no JumpReLU (TopK, AbsTopK, a subclass).
        ValueError, RuntimeError: a standardizer that cannot be folded in; thresholds that are not set yet.
    """
    form = affine_form(to_jumprelu(sae), standardizer, what="a Gemma Scope file")
    assert isinstance(form.activation, JumpReLU)
    arrays = {name: value.numpy() for name, value in floats(form).items()}
    arrays["threshold"] = form.activation.threshold.detach().float().cpu().numpy()

    def write(temporary: Path) -> None:
        with open(temporary, "wb") as file:
            np.savez(file, **arrays)

    replace_file(Path(path), write)
    return Path(path)
