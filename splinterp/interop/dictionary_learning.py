"""Folders of dictionary_learning: `ae.pt` and `config.json`, as its version 0.1 writes and reads them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from splinterp._atomic import replace_files
from splinterp._checks import one_of
from splinterp._files import entry, is_positive_integer, read_object, reading, require_file
from splinterp._typing import Tensor
from splinterp.activations import Activation, BatchTopK, JumpReLU, ReLU, TopK
from splinterp.data.standardizer import Standardizer
from splinterp.encoders import Gated
from splinterp.interop.affine import affine_form, floats, sae_of
from splinterp.sae import SAE

WEIGHTS, CONFIG = "ae.pt", "config.json"
TRAINERS = {
    "AutoEncoder": "StandardTrainer", "AutoEncoderTopK": "TopKTrainer", "BatchTopKSAE": "BatchTopKTrainer",
    "JumpReluAutoEncoder": "JumpReluTrainer",
}  # fmt: skip
CLASSES = (*TRAINERS, "AutoEncoderNew", "MatryoshkaBatchTopKSAE", "GatedAutoEncoder")
SHAPES = {
    "AutoEncoder": ("encoder.weight", "encoder.bias", "decoder.weight", "bias"),
    "AutoEncoderNew": ("encoder.weight", "encoder.bias", "decoder.weight", "decoder.bias"),
    "AutoEncoderTopK": ("encoder.weight", "encoder.bias", "decoder.weight", "b_dec"),
    "BatchTopKSAE": ("encoder.weight", "encoder.bias", "decoder.weight", "b_dec"),
    "MatryoshkaBatchTopKSAE": ("W_enc", "b_enc", "W_dec", "b_dec"),
    "JumpReluAutoEncoder": ("W_enc", "b_enc", "W_dec", "b_dec"),
    "GatedAutoEncoder": ("encoder.weight", "gate_bias", "decoder.weight", "decoder_bias"),
}
"""Of each class, the names of the encoder's weights, its bias, the decoder's weights, and its bias."""


def save_dictionary_learning(
    sae: SAE, folder: str | Path, *, standardizer: Standardizer | None = None, model_name: str = "", layer: int | None = None,
    submodule_name: str = "",
) -> Path:  # fmt: skip
    """Write `sae` as a folder for its `load_dictionary`, on activations as the model gives them. Returns the folder.

    ReLU becomes its AutoEncoder, TopK its AutoEncoderTopK, BatchTopK its BatchTopKSAE, JumpReLU its JumpReluAutoEncoder; an AbsTopK is
    written as a TopK of twice as many latents (`to_nonnegative`), a gated SAE as a JumpReLU (`to_jumprelu`).

    Args:
        standardizer: what the SAE's input was normalised by; folded in.
        model_name, layer, submodule_name: metadata of its `config.json`.

    Raises:
        TypeError: a subclass, encoder or activation that the format cannot describe.
        ValueError, RuntimeError: a standardizer that cannot be folded in; a BatchTopK without a threshold.
    """
    form = affine_form(sae, standardizer, what="a dictionary_learning folder")
    kind = _class_of(form.activation)
    known = floats(form)
    tensors: dict[str, Tensor] = {}
    if kind == "JumpReluAutoEncoder":
        assert isinstance(form.activation, JumpReLU)
        tensors = {**known, "threshold": form.activation.threshold.detach().float().cpu().clone()}
    else:
        names = SHAPES[kind]
        values = (known["W_enc"].T, form.centred().float(), known["W_dec"].T, known["b_dec"])
        tensors = {name: value.contiguous() for name, value in zip(names, values, strict=True)}
    trainer: dict[str, Any] = {
        "trainer_class": TRAINERS[kind], "dict_class": kind, "activation_dim": form.W_enc.shape[0], "dict_size": form.W_enc.shape[1],
        "lm_name": model_name, "layer": layer, "submodule_name": submodule_name,
    }  # fmt: skip
    if isinstance(form.activation, TopK | BatchTopK):
        trainer["k"] = form.activation.k
        tensors["k"] = torch.tensor(form.activation.k, dtype=torch.int32)
        threshold = float(form.activation.threshold) if isinstance(form.activation, BatchTopK) else -1.0
        tensors["threshold"] = torch.tensor(threshold)
    replace_files(
        Path(folder),
        {
            WEIGHTS: lambda path: torch.save(tensors, path),
            CONFIG: lambda path: path.write_text(json.dumps({"trainer": trainer, "buffer": {}}, indent=1) + "\n"),
        },
    )
    return Path(folder)


def _class_of(activation: Activation) -> str:
    kinds = {ReLU: "AutoEncoder", TopK: "AutoEncoderTopK", BatchTopK: "BatchTopKSAE", JumpReLU: "JumpReluAutoEncoder"}
    if type(activation) not in kinds:
        raise TypeError(f"dictionary_learning has no class for {type(activation).__name__}")
    return kinds[type(activation)]


def load_dictionary_learning(folder: str | Path) -> tuple[SAE, dict[str, Any]]:
    """Read a folder of dictionary_learning as (SAE with a free decoder, in evaluation mode; its config.json).

    Its classes AutoEncoder, AutoEncoderNew, AutoEncoderTopK, BatchTopKSAE, MatryoshkaBatchTopKSAE (all groups), JumpReluAutoEncoder and
    GatedAutoEncoder (with `splinterp.encoders.Gated`). A BatchTopK whose threshold was never set gets none here either.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: another class, tensors that are missing, do not fit or hold NaN; the message names the file.
    """
    folder = Path(folder)
    path, weights = folder / CONFIG, require_file(folder / WEIGHTS)
    config = read_object(path)
    trainer = entry(path, config, "trainer", dict)
    with reading(path):
        kind = trainer.get("dict_class")
        one_of("dict_class", kind, CLASSES)
    with reading(weights):
        found = torch.load(weights, map_location="cpu", weights_only=True)
        if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
            raise ValueError(f"{weights} holds no tensors by name")
        missing = [name for name in (*SHAPES[kind], *_further(kind)) if name not in found]
        if missing:
            raise ValueError(f"{weights} has no {missing[0]}, which a {kind} has")
        activation = _activation(kind, found, trainer)
    tensors = dict(zip(("W_enc", "b_enc", "W_dec", "b_dec"), (found[name] for name in SHAPES[kind]), strict=True))
    if SHAPES[kind][0] == "encoder.weight":
        tensors["W_enc"], tensors["W_dec"] = tensors["W_enc"].T, tensors["W_dec"].T
    threshold = found["threshold"] if kind in ("JumpReluAutoEncoder", *BATCHED) else None
    if kind in BATCHED and float(found["threshold"]) < 0:
        threshold = None
    centred = kind not in ("AutoEncoderNew", "JumpReluAutoEncoder")
    if kind == "GatedAutoEncoder":
        return _gated(weights, tensors, found), config
    return sae_of(weights, tensors, activation, centred=centred, threshold=threshold), config


BATCHED = ("BatchTopKSAE", "MatryoshkaBatchTopKSAE")


def _further(kind: str) -> tuple[str, ...]:
    if kind == "GatedAutoEncoder":
        return ("r_mag", "mag_bias")
    return ("threshold",) if kind in ("JumpReluAutoEncoder", *BATCHED) else ()


def _activation(kind: str, found: dict[str, Tensor], trainer: dict[str, Any]) -> Activation:
    if kind == "JumpReluAutoEncoder":
        return JumpReLU()
    if kind not in ("AutoEncoderTopK", *BATCHED):
        return ReLU()
    k = int(found["k"]) if "k" in found else trainer.get("k")
    if not is_positive_integer(k):
        raise ValueError(f"k={k!r} must be a whole number of at least 1")
    assert k is not None
    return TopK(int(k)) if kind == "AutoEncoderTopK" else BatchTopK(int(k))


@torch.no_grad()
def _gated(weights: Path, tensors: dict[str, Tensor], found: dict[str, Tensor]) -> SAE:
    """A gated SAE: the encoder's bias is the gate's."""
    plain = sae_of(weights, tensors, ReLU(), centred=True)
    sae = SAE(plain.d_in, plain.n_latents, ReLU(), b_pre="fixed", dtype=plain.W_enc.dtype, encoder=Gated(), generator=0)
    for name in ("W_enc", "b_enc", "W_dec", "b_dec", "b_pre"):
        getattr(sae, name).copy_(getattr(plain, name))
    for name, value in {"r_mag": found["r_mag"], "b_mag": found["mag_bias"]}.items():
        if value.shape != sae.b_enc.shape:
            raise ValueError(f"{name} in {weights} has shape {tuple(value.shape)}, not {tuple(sae.b_enc.shape)}")
        getattr(sae, name).copy_(value)
    return sae.eval()
