"""Folders of sparsify (eai-sparsify): `cfg.json` and `sae.safetensors`, as its version 1.3 writes and reads them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from splinterp._atomic import replace_files
from splinterp._checks import one_of
from splinterp._files import check_header, entry, read_object, reading, require_file, tensor_header
from splinterp.activations import TopK
from splinterp.data.standardizer import Standardizer
from splinterp.interop.affine import affine_form, floats, sae_of
from splinterp.sae import SAE

WEIGHTS, CONFIG = "sae.safetensors", "cfg.json"


def save_sparsify(sae: SAE, folder: str | Path, *, standardizer: Standardizer | None = None) -> Path:
    """Write `sae` as a folder for `SparseCoder.load_from_disk`, on activations as the model gives them. Returns the folder.

    The format knows TopK alone; an AbsTopK is written as a TopK of twice as many latents (`to_nonnegative`).

    Raises:
        TypeError: a subclass, encoder or activation that the format cannot describe.
        ValueError, RuntimeError: a standardizer that cannot be folded in.
    """
    form = affine_form(sae, standardizer, what="a sparsify folder")
    if not isinstance(form.activation, TopK):
        raise TypeError(f"sparsify keeps the k largest codes: it has no {type(form.activation).__name__}")
    d_in, n_latents = form.W_enc.shape
    known = floats(form)
    tensors = {
        "encoder.weight": known["W_enc"].T.contiguous(), "encoder.bias": form.centred().float().contiguous(),
        "W_dec": known["W_dec"].clone(), "b_dec": known["b_dec"],
    }  # fmt: skip
    config = {
        "activation": "topk", "expansion_factor": max(1, n_latents // d_in), "normalize_decoder": False, "num_latents": n_latents,
        "k": form.activation.k, "multi_topk": False, "skip_connection": False, "transcode": False, "d_in": d_in,
    }  # fmt: skip
    replace_files(
        Path(folder),
        {
            WEIGHTS: lambda path: save_file(tensors, path),
            CONFIG: lambda path: path.write_text(json.dumps(config, indent=1) + "\n"),
        },
    )
    return Path(folder)


def load_sparsify(folder: str | Path) -> tuple[SAE, dict[str, Any]]:
    """Read a folder of sparsify as (TopK SAE with a free decoder, in evaluation mode; its cfg.json).

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a transcoder, a skip connection, another activation than topk, tensors that are missing, do not fit or hold NaN; the
            message names the file.
    """
    folder = Path(folder)
    path, weights = folder / CONFIG, require_file(folder / WEIGHTS)
    config = read_object(path)
    with reading(path):
        one_of("activation", config.get("activation", "topk"), ("topk",))
        for name in ("transcode", "skip_connection"):
            if config.get(name, False):
                raise ValueError(f"{name}={config[name]!r}: only autoencoders without a skip connection are read")
    d_in, k = entry(path, config, "d_in", int), entry(path, config, "k", int)
    with reading(weights):
        header = tensor_header(weights)
    n_latents = header["encoder.weight"][0][0] if "encoder.weight" in header else 0
    shapes = {"encoder.weight": (n_latents, d_in), "encoder.bias": (n_latents,), "W_dec": (n_latents, d_in), "b_dec": (d_in,)}
    check_header(weights, shapes, CONFIG)
    with reading(weights):
        found = load_file(weights)
    tensors = {
        "W_enc": found["encoder.weight"].T, "b_enc": found["encoder.bias"], "W_dec": found["W_dec"], "b_dec": found["b_dec"],
    }  # fmt: skip
    with reading(path):
        return sae_of(weights, tensors, TopK(k), centred=True), config
