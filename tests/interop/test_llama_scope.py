"""Folders of Llama Scope, against the forward pass that its authors describe, written down here."""

from __future__ import annotations

import json
import math

import pytest
import torch
from safetensors.torch import save_file

from splinterp.interop import load_any, load_llama_scope

D, M = 6, 20
CONFIG = {
    "d_model": D, "d_sae": M, "act_fn": "jumprelu", "jump_relu_threshold": 0.3, "top_k": 4, "norm_activation": "dataset-wise",
    "dataset_average_activation_norm": {"in": 17.125, "out": 17.125}, "use_decoder_bias": True,
    "apply_decoder_bias_to_pre_encoder": False, "sparsity_include_decoder_norm": True, "use_glu_encoder": False,
    "hook_point_in": "blocks.3.hook_resid_post", "hook_point_out": "blocks.3.hook_resid_post",
}  # fmt: skip


def tensors():
    g = torch.Generator().manual_seed(0)
    return {
        "encoder.weight": torch.randn(M, D, generator=g), "encoder.bias": 0.2 * torch.randn(M, generator=g),
        "decoder.weight": torch.randn(D, M, generator=g), "decoder.bias": torch.randn(D, generator=g),
    }  # fmt: skip


def write(folder, t, **changes):
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    config = {name: value for name, value in {**CONFIG, **changes}.items() if value is not None}
    (folder / "hyperparams.json").write_text(json.dumps(config))
    if not config["use_decoder_bias"]:
        t = {name: value for name, value in t.items() if name != "decoder.bias"}
    save_file({name: value.contiguous() for name, value in t.items()}, folder / "checkpoints" / "final.safetensors")
    return config


def reconstructed(x, t, config):
    """Scale the input, choose by codes times decoder norms, decode, scale back."""
    factor = 1.0
    if config["norm_activation"] == "dataset-wise":
        factor = math.sqrt(D) / config["dataset_average_activation_norm"]["in"]
    b_dec = t["decoder.bias"] if config["use_decoder_bias"] else torch.zeros(D)
    scaled = factor * x - (b_dec if config["apply_decoder_bias_to_pre_encoder"] else 0)
    pre = scaled @ t["encoder.weight"].T + t["encoder.bias"]
    norms = t["decoder.weight"].norm(dim=0) if config["sparsity_include_decoder_norm"] else torch.ones(M)
    scores = pre * norms
    if config["act_fn"] == "relu":
        chosen = scores > 0
    elif config["act_fn"] == "topk" and not config["jump_relu_threshold"]:
        chosen = torch.zeros_like(scores).scatter(1, scores.topk(config["top_k"]).indices, 1.0).bool() & (scores > 0)
    else:
        chosen = scores > config["jump_relu_threshold"]
    return ((pre * chosen) @ t["decoder.weight"].T + b_dec) / factor


@pytest.mark.parametrize(
    "changes",
    [
        {}, {"act_fn": "relu"}, {"act_fn": "topk", "jump_relu_threshold": 0.0}, {"act_fn": "topk"}, {"norm_activation": "inference"},
        {"use_decoder_bias": False}, {"apply_decoder_bias_to_pre_encoder": True}, {"sparsity_include_decoder_norm": False},
        {"sparsity_include_decoder_norm": False, "act_fn": "topk", "jump_relu_threshold": 0.0},
    ],
    ids=str,
)  # fmt: skip
def test_it_is_the_map_that_is_described(changes, tmp_path):
    t = tensors()
    config = write(tmp_path, t, **changes)
    x = 5 * torch.randn(50, D, generator=torch.Generator().manual_seed(1))
    sae, said = load_llama_scope(tmp_path)
    assert said == config
    with torch.no_grad():
        torch.testing.assert_close(sae(x).x_hat, reconstructed(x, t, config), rtol=1e-4, atol=1e-4)
    assert not sae.training
    loaded = load_any(tmp_path)
    assert loaded.format == "llama_scope"
    assert loaded.standardizer is None
    torch.testing.assert_close(loaded.sae(x).x_hat, sae(x).x_hat)


def test_half_precision_and_a_latent_without_a_row(tmp_path):
    t = tensors()
    t["decoder.weight"][:, 3] = 0
    config = write(tmp_path, {name: value.bfloat16() for name, value in t.items()})
    sae, _ = load_llama_scope(tmp_path)
    assert sae.W_enc.dtype == torch.float32
    assert torch.isfinite(sae.W_dec).all()
    x = torch.randn(20, D, generator=torch.Generator().manual_seed(1))
    rounded = {name: value.bfloat16().float() for name, value in t.items()}
    with torch.no_grad():
        torch.testing.assert_close(sae(x).x_hat, reconstructed(x, rounded, config), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"act_fn": "gelu"}, "act_fn='gelu' is unknown"), ({"use_glu_encoder": True}, "not affine"),
        ({"hook_point_out": "blocks.3.hook_mlp_out"}, "no transcoders"), ({"norm_activation": "token-wise"}, "norm_activation='token"),
        ({"dataset_average_activation_norm": None}, "dataset_average_activation_norm"),
        ({"dataset_average_activation_norm": {"in": 1.0, "out": 2.0}}, "have one norm"),
        ({"dataset_average_activation_norm": {"in": 0.0, "out": 0.0}}, "dataset_average_activation_norm=0"),
        ({"d_sae": None}, "no entry 'd_sae'"), ({"d_sae": M + 1}, "hyperparams.json says"),
        ({"act_fn": "topk", "jump_relu_threshold": 0.0, "top_k": None}, "no entry 'top_k'"),
        ({"act_fn": "topk", "jump_relu_threshold": 0.0, "top_k": 99}, "k"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_refused_by_name(changes, message, tmp_path):
    write(tmp_path, tensors(), **changes)
    with pytest.raises(ValueError, match=message):
        load_llama_scope(tmp_path)


def test_damaged_tensors_are_named(tmp_path):
    t = tensors()
    write(tmp_path, {name: value for name, value in t.items() if name != "encoder.bias"})
    with pytest.raises(ValueError, match=r"encoder\.bias"):
        load_llama_scope(tmp_path)
    write(tmp_path, {**t, "encoder.weight": t["encoder.weight"] * torch.nan})
    with pytest.raises(ValueError, match="W_enc"):
        load_llama_scope(tmp_path)
    (tmp_path / "checkpoints" / "final.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="final.safetensors is missing"):
        load_llama_scope(tmp_path)
