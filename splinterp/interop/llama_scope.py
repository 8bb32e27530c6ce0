"""Folders of Llama Scope (arXiv 2410.20526): `hyperparams.json` and `checkpoints/final.safetensors`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from splinterp._checks import at_least, one_of
from splinterp._files import check_header, entry, read_object, reading, require_file
from splinterp.activations import Activation, JumpReLU, ReLU, TopK
from splinterp.interop.affine import sae_of
from splinterp.sae import SAE

CONFIG, WEIGHTS = "hyperparams.json", "checkpoints/final.safetensors"
ACTIVATIONS = ("jumprelu", "relu", "topk")
NORMS = ("dataset-wise", "inference")


@torch.no_grad()
def load_llama_scope(folder: str | Path) -> tuple[SAE, dict[str, Any]]:
    """Read a folder of Llama Scope as (SAE with a free decoder, in evaluation mode; its hyperparams.json).

    The SAE takes activations as the model gives them: the factor sqrt(d_in) / dataset_average_activation_norm, by which inputs are scaled
    there and outputs scaled back, is folded into the weights, and rows of the decoder are scaled to norm 1 where selection goes by codes
    times these norms, so that codes are in those units. A TopK SAE with a threshold is read as JumpReLU, which is how it is used.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a transcoder, a gated encoder, another activation or normalisation, tensors that are missing, do not fit or hold NaN;
            the message names the file.
    """
    folder = Path(folder)
    path, weights = folder / CONFIG, require_file(folder / WEIGHTS)
    config = read_object(path)
    d_in, n_latents = entry(path, config, "d_model", int), entry(path, config, "d_sae", int)
    with reading(path):
        activation, threshold = _activation(path, config)
        scale = _scale(path, config, d_in)
        if config.get("use_glu_encoder", False):
            raise ValueError("use_glu_encoder=True: scores of a gated encoder are not affine")
    shapes = {"encoder.weight": (n_latents, d_in), "encoder.bias": (n_latents,), "decoder.weight": (d_in, n_latents)}
    has_bias = config.get("use_decoder_bias", True)
    check_header(weights, {**shapes, **({"decoder.bias": (d_in,)} if has_bias else {})}, CONFIG)
    with reading(weights):
        found = {name: value.float() for name, value in load_file(weights).items()}
    W_enc, b_enc, W_dec = found["encoder.weight"].T, found["encoder.bias"], found["decoder.weight"].T
    b_dec = found["decoder.bias"] if has_bias else torch.zeros(d_in)
    if config.get("sparsity_include_decoder_norm", True):
        norms = W_dec.norm(dim=1)
        norms = torch.where(norms > 0, norms, 1.0)
        W_enc, b_enc, W_dec = W_enc * norms, b_enc * norms, W_dec / norms[:, None]
    tensors = {"W_enc": scale * W_enc, "b_enc": b_enc, "W_dec": W_dec / scale, "b_dec": b_dec / scale}
    centred = bool(config.get("apply_decoder_bias_to_pre_encoder", False))
    with reading(path):
        return sae_of(weights, tensors, activation, centred=centred, threshold=threshold), config


def _activation(path: Path, config: dict[str, Any]) -> tuple[Activation, float | None]:
    one_of("act_fn", config.get("act_fn", ""), ACTIVATIONS)
    threshold = config.get("jump_relu_threshold") or 0.0
    if config["act_fn"] == "relu":
        return ReLU(), None
    if config["act_fn"] == "topk" and not threshold > 0:
        return TopK(entry(path, config, "top_k", int)), None
    at_least("jump_relu_threshold", threshold, 0.0)
    return JumpReLU(), float(threshold)


def _scale(path: Path, config: dict[str, Any], d_in: int) -> float:
    """What inputs are multiplied by, and outputs divided."""
    places = [config.get("hook_point_in"), config.get("hook_point_out")]
    if places[0] != places[1]:
        raise ValueError(
            f"hook_point_in={places[0]!r} and hook_point_out={places[1]!r}: only autoencoders are read, no transcoders"
        )
    one_of("norm_activation", config.get("norm_activation", ""), NORMS)
    if config["norm_activation"] == "inference":
        return 1.0
    norms = entry(path, config, "dataset_average_activation_norm", dict)
    known = [float(entry(path, norms, place, (int, float))) for place in ("in", "out")]
    for norm in known:
        at_least("dataset_average_activation_norm", norm, 0.0, strict=True)
    if known[0] != known[1]:
        raise ValueError(f"dataset_average_activation_norm={norms}: in and out are the same place and have one norm")
    return math.sqrt(d_in) / known[0]
