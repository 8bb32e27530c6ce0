"""SAELens folders: `cfg.json` and `sae_weights.safetensors`, as sae-lens 6 writes and reads them.

There z = act((x - b_dec * apply_b_dec_to_input) @ W_enc + b_enc) and x_hat = z @ W_dec + b_dec, on activations as the model gives
them. What this package keeps apart (an input centre, a standardizer, a tied decoder) is folded into those four tensors, exactly.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from splinterp._atomic import current, locked, replace_files
from splinterp._checks import one_of
from splinterp._files import check_header, check_numbers, is_positive_integer, read_object, reading, tensor_header
from splinterp._typing import Tensor
from splinterp.activations import AbsTopK, Activation, BatchTopK, FeatureChoice, JumpReLU, ReLU, TopK
from splinterp.data.standardizer import Standardizer
from splinterp.encoders import Gated
from splinterp.interop.folding import check_standardized, folded_tensors
from splinterp.interop.folding import unit_rows as with_unit_rows
from splinterp.sae import SAE

VERSION = "6.54.0"
"""Of sae-lens, whose format this is; without a version of at least 6.0.0 its loader converts from an older one."""
WEIGHTS, CONFIG = "sae_weights.safetensors", "cfg.json"
ARCHITECTURES = ("standard", "topk", "abstopk", "jumprelu", "gated")


def save_saelens(
    sae: SAE,
    folder: str | Path,
    *,
    standardizer: Standardizer | None = None,
    nonnegative: bool = False,
    unit_rows: bool = False,
    model_name: str = "",
    hook_name: str = "",
    context_size: int | None = None,
    prepend_bos: bool = False,
) -> Path:
    """Write `sae` as a SAELens folder that takes activations as the model gives them. Returns the folder.

    Args:
        standardizer: what the SAE's input was normalised by; folded in. Of mode "unit_norm" it becomes SAELens' own normalisation
            ("constant_norm_rescale"), whose output is scaled back to each sample's norm; `load_saelens` does not read such a folder.
        nonnegative: write an AbsTopK as a TopK of twice as many latents (see `to_nonnegative`), for tools that assume z >= 0.
        unit_rows: scale the rows of W_dec to norm 1, and scores, codes and thresholds with them, as sae-dashboard wants them.
            A TopK or AbsTopK whose rows differ in norm cannot be written so.
        model_name, hook_name, context_size, prepend_bos: metadata that dashboards and benchmarks read.

    BatchTopK becomes a JumpReLU at its threshold, as SAELens itself saves it, and FeatureChoice one at its thresholds. A gated encoder
    does by `to_jumprelu`.

    Raises:
        TypeError: a subclass, encoder or activation that the format cannot describe.
        ValueError: `nonnegative` for another activation than AbsTopK; `unit_rows` for a TopK or AbsTopK whose rows differ in norm.
        RuntimeError: a BatchTopK or FeatureChoice that has no threshold yet.
    """
    folder = Path(folder)
    if type(sae.encoder) is Gated:
        raise TypeError("a gated SAE is written as a JumpReLU: save_saelens(to_jumprelu(sae), ...)")
    sae.require_plain("a SAELens folder")
    check_standardized(sae, standardizer)
    if nonnegative:
        sae = to_nonnegative(sae)
    architecture, extra, options = _described(sae.activation, sae.n_latents)
    by_norm = standardizer is not None and standardizer.mode == "unit_norm"
    folded = folded_tensors(sae, None if by_norm else standardizer)
    if by_norm:  # there samples have the norm sqrt(d_in), here 1
        root = sae.d_in**0.5
        scales = {"W_enc": 1 / root, "W_dec": root, "b_dec": root}
        folded = {name: scales.get(name, 1.0) * value for name, value in folded.items()}
    if unit_rows:
        folded, factors = with_unit_rows(folded, sae.activation)
        extra = {name: value.double().cpu() * factors for name, value in extra.items()}
        if "k" in options:
            options["rescale_acts_by_decoder_norm"] = True  # which is 1 for all, and lets their tools scale rows to norm 1
    tensors = {name: value.detach().float().cpu().contiguous().clone() for name, value in {**folded, **extra}.items()}
    config = {
        "architecture": architecture, "d_in": sae.d_in, "d_sae": sae.n_latents, "dtype": "float32", "device": "cpu",
        "apply_b_dec_to_input": False, "normalize_activations": "constant_norm_rescale" if by_norm else "none",
        "reshape_activations": "none", **options,
        "metadata": {
            # "" would pass SAELens' checks for None, and fail later
            "sae_lens_version": VERSION, "model_name": model_name or None, "hook_name": hook_name or None,
            "context_size": context_size,
            "prepend_bos": prepend_bos,
        },
    }  # fmt: skip
    replace_files(
        folder,
        {
            WEIGHTS: lambda path: save_file(tensors, path),
            CONFIG: lambda path: path.write_text(json.dumps(config, indent=1) + "\n"),
        },
    )
    return folder


def _described(activation: Activation, n_latents: int) -> tuple[str, dict[str, Tensor], dict[str, Any]]:
    """(architecture, tensors besides the four, entries of cfg.json) of an activation."""
    if isinstance(activation, TopK | AbsTopK):
        name = "topk" if isinstance(activation, TopK) else "abstopk"
        return name, {}, {"k": activation.k, "rescale_acts_by_decoder_norm": False}
    if isinstance(activation, ReLU):
        return "standard", {}, {}
    if isinstance(activation, BatchTopK | FeatureChoice):
        if torch.isnan(activation.threshold).any():
            raise RuntimeError(f"{type(activation).__name__} has no threshold yet: train it first")
        return "jumprelu", {"threshold": activation.threshold.expand(n_latents)}, {}
    if isinstance(activation, JumpReLU):
        return "jumprelu", {"threshold": activation.threshold}, {}
    raise ValueError(f"SAELens has no architecture for {type(activation).__name__}")


def load_saelens(folder: str | Path) -> tuple[SAE, dict[str, Any]]:
    """Read a SAELens folder as (SAE with a free decoder, in evaluation mode; its cfg.json).

    A gated SAE is read with `splinterp.encoders.Gated`. `rescale_acts_by_decoder_norm` is folded into the weights; its codes are then
    those that SAELens selects by (a latent whose row of W_dec is 0 never has one). Folders of versions before 6 are read where they hold
    the same map: `activation_fn_str` "topk" is a TopK, and without `architecture` it is "standard".

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: an architecture or activation that is not of the form above (transcoders, tanh-relu), input normalisation,
            an option of the wrong type, tensors that do not fit or hold NaN; the message names the file and the field.
    """
    folder = Path(folder)
    with locked(folder):
        return _load(current(folder, CONFIG), current(folder, WEIGHTS))


def _load(path: Path, weights: Path) -> tuple[SAE, dict[str, Any]]:
    config = read_object(path)
    with reading(path):
        architecture = config.get("architecture", "standard")
        one_of("architecture", architecture, ARCHITECTURES)
        if config.get("normalize_activations") not in (None, False, "none"):
            raise ValueError(
                f"normalize_activations={config['normalize_activations']!r} acts on each sample: it cannot be loaded"
            )
        d_in, d_sae = (_whole(config, name) for name in ("d_in", "d_sae"))
        centred = _flag(config, "apply_b_dec_to_input", default=True)
        activation = _activation(config, architecture)
        kept = isinstance(activation, TopK | AbsTopK)
        rescaled = _flag(config, "rescale_acts_by_decoder_norm", default=False) and kept  # others know no such option
    shapes: dict[str, tuple[int, ...]] = {"W_enc": (d_in, d_sae), "b_enc": (d_sae,), "W_dec": (d_sae, d_in), "b_dec": (d_in,)}
    if architecture == "jumprelu":
        shapes["threshold"] = (d_sae,)
    if architecture == "gated":
        del shapes["b_enc"]
        shapes |= dict.fromkeys(("b_gate", "b_mag", "r_mag"), (d_sae,))
    if "scaling_factor" in tensor_header(weights):  # of versions before 6, which wrote it whether it was used or not
        shapes["scaling_factor"] = (d_sae,)
    check_header(weights, shapes, CONFIG)
    with reading(weights):
        tensors = load_file(weights)
        for name, value in tensors.items():
            check_numbers(weights, name, value, infinite=name in ("b_enc", "threshold"))  # those may silence a latent
        if not bool((tensors.pop("scaling_factor", torch.ones(1)) == 1).all()):
            raise ValueError(f"{weights} has a scaling_factor other than 1, which multiplies codes: it cannot be loaded")
    with reading(path):
        encoder = Gated() if architecture == "gated" else None
        sae = SAE(d_in, d_sae, activation, b_pre=centred, dtype=tensors["W_enc"].dtype, encoder=encoder, generator=0)
    bias = tensors["b_gate" if architecture == "gated" else "b_enc"]
    norms = tensors["W_dec"].norm(dim=1) if rescaled else torch.ones(d_sae)
    with torch.no_grad():
        for name, value in {
            "W_enc": tensors["W_enc"] * norms, "b_enc": bias * norms,
            "W_dec": tensors["W_dec"] / torch.where(norms > 0, norms, 1)[:, None], "b_dec": tensors["b_dec"],
        }.items():  # fmt: skip
            getattr(sae, name).copy_(value)
        if architecture == "gated":
            sae.r_mag.copy_(tensors["r_mag"])
            sae.b_mag.copy_(tensors["b_mag"])
        if sae.b_pre is not None:
            sae.b_pre.copy_(tensors["b_dec"])
        if isinstance(sae.activation, JumpReLU):
            smallest = torch.finfo(tensors["threshold"].dtype).tiny  # a threshold of 0 is a ReLU; ours are positive
            sae.activation.log_threshold.copy_(tensors["threshold"].clamp_min(smallest).log())
    return sae.eval(), config


def _flag(config: dict[str, Any], name: str, default: bool) -> bool:
    value = config.get(name, default)
    if not isinstance(value, bool):
        raise ValueError(f"{name}={value!r} must be true or false")
    return value


def _whole(config: dict[str, Any], name: str) -> int:
    value = config.get(name)
    if not is_positive_integer(value):
        raise ValueError(f"{name}={value!r} must be a whole number of at least 1")
    assert value is not None
    return int(value)


def _activation(config: dict[str, Any], architecture: str) -> Activation:
    older = config.get("activation_fn_str", config.get("activation_fn"))  # of versions before 6
    known = ("relu", "topk") if architecture != "jumprelu" else ("relu",)
    if older is not None and older not in known:
        raise ValueError(
            f"activation_fn_str={older!r} with architecture={architecture!r} cannot be loaded; known: {', '.join(map(repr, known))}"
        )
    if architecture == "jumprelu":
        return JumpReLU()
    if architecture == "gated" or (architecture == "standard" and older != "topk"):
        return ReLU()
    k = _k(config)
    return AbsTopK(k) if architecture == "abstopk" else TopK(k)


def _k(config: dict[str, Any]) -> int:
    options = config.get("activation_fn_kwargs")
    if options is not None and not isinstance(options, dict):
        raise ValueError(f"activation_fn_kwargs={options!r} must be an object")
    found = {name: part["k"] for name, part in (("k", config), ("activation_fn_kwargs.k", options or {})) if "k" in part}
    if not found:
        raise ValueError("neither k nor activation_fn_kwargs.k says how many latents are kept")
    for name, k in found.items():
        _whole({name: k}, name)
    if len(set(found.values())) > 1:
        raise ValueError(
            f"k={found['k']!r} and activation_fn_kwargs.k={found['activation_fn_kwargs.k']!r} differ: which one holds?"
        )
    return int(next(iter(found.values())))


@torch.no_grad()
def to_nonnegative(sae: SAE) -> SAE:
    """The same map as a TopK SAE of 2 n_latents latents: W_enc' = [W, -W], b_enc' = [b, -b], W_dec' = [D; -D], the same k.

    Latent m of the result is latent m where it is positive, latent n_latents + m where it is negative: exact, because both are
    never among the k largest positive scores (barring scores of 0).

    Raises:
        ValueError: another activation than AbsTopK.
    """
    if not isinstance(sae.activation, AbsTopK):
        raise ValueError(f"only AbsTopK has negative codes, not {type(sae.activation).__name__}")
    found = SAE(
        sae.d_in, 2 * sae.n_latents, TopK(sae.activation.k), b_pre=sae.config()["b_pre"], dtype=sae.W_enc.dtype,
        device=sae.W_enc.device, generator=0,
    )  # fmt: skip
    found.W_enc.copy_(torch.cat([sae.W_enc, -sae.W_enc], dim=1))
    found.b_enc.copy_(torch.cat([sae.b_enc, -sae.b_enc]))
    found.W_dec.copy_(torch.cat([sae.W_dec, -sae.W_dec]))
    found.b_dec.copy_(sae.b_dec)
    if found.b_pre is not None and sae.b_pre is not None:
        found.b_pre.copy_(sae.b_pre)
    found.about = dict(sae.about)
    return found.eval()
