"""What every file format here holds: four tensors on activations as the model gives them, and an activation."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from splinterp._files import check_numbers
from splinterp._typing import Float, Tensor
from splinterp.activations import AbsTopK, Activation, BatchTopK, JumpReLU
from splinterp.data.standardizer import Standardizer
from splinterp.encoders import Gated
from splinterp.interop.folding import check_standardized, folded_tensors
from splinterp.interop.jumprelu import to_jumprelu
from splinterp.interop.saelens import to_nonnegative
from splinterp.sae import SAE


class AffineForm(NamedTuple):
    """z = activation(x @ W_enc + b_enc), x_hat = z @ W_dec + b_dec; float64, on the CPU."""

    W_enc: Float[Tensor, "d_in n_latents"]
    b_enc: Float[Tensor, " n_latents"]
    W_dec: Float[Tensor, "n_latents d_in"]
    b_dec: Float[Tensor, " d_in"]
    activation: Activation
    """With its thresholds, where it has some."""

    def centred(self) -> Float[Tensor, " n_latents"]:
        """The encoder's bias where the encoder sees x - b_dec."""
        return self.b_enc + self.b_dec @ self.W_enc


@torch.no_grad()
def affine_form(sae: SAE, standardizer: Standardizer | None = None, *, what: str) -> AffineForm:
    """An SAE in that form, its standardizer folded in; a gated one as a JumpReLU, an AbsTopK as a TopK of twice as many latents.

    Raises:
        TypeError: a subclass or an encoder that has no such form.
        ValueError, RuntimeError: a standardizer of mode "unit_norm", or without statistics; thresholds that are not set yet.
    """
    check_standardized(sae, standardizer)
    if type(sae.encoder) is Gated:
        sae = to_jumprelu(sae)
    sae.require_plain(what)
    if isinstance(sae.activation, AbsTopK):
        sae = to_nonnegative(sae)
    if isinstance(sae.activation, BatchTopK) and bool(torch.isnan(sae.activation.threshold).any()):
        raise RuntimeError("BatchTopK has no threshold yet: train it by fit, or call SAE.calibrate(x)")
    return AffineForm(**folded_tensors(sae, standardizer), activation=sae.activation)


@torch.no_grad()
def sae_of(
    path: Path, tensors: Mapping[str, Tensor], activation: Activation, *, centred: bool, threshold: Tensor | float | None = None
) -> SAE:
    """An SAE with a free decoder, in evaluation mode, of W_enc (d_in, n_latents), b_enc, W_dec (n_latents, d_in) and b_dec.

    `centred`: the encoder sees x - b_dec. `threshold`: of a JumpReLU (n_latents,) or a BatchTopK.

    Raises:
        ValueError: tensors that do not fit each other, or hold NaN; the message names the file.
    """
    W_enc = tensors["W_enc"]
    if W_enc.ndim != 2:
        raise ValueError(f"W_enc in {path} has shape {tuple(W_enc.shape)}, not (d_in, n_latents)")
    d_in, n_latents = W_enc.shape
    for name, shape in {"b_enc": (n_latents,), "W_dec": (n_latents, d_in), "b_dec": (d_in,)}.items():
        if tuple(tensors[name].shape) != shape:
            raise ValueError(f"{name} in {path} has shape {tuple(tensors[name].shape)}, not {shape}")
    for name, value in tensors.items():
        check_numbers(path, name, value, infinite=name == "b_enc")  # one of -inf silences its latent
    dtype = W_enc.dtype if W_enc.dtype in (torch.float32, torch.float64) else torch.float32
    sae = SAE(d_in, n_latents, activation, b_pre="fixed" if centred else False, dtype=dtype, generator=0)
    for name in ("W_enc", "b_enc", "W_dec", "b_dec"):
        getattr(sae, name).copy_(tensors[name])
    if sae.b_pre is not None:
        sae.b_pre.copy_(sae.b_dec)
    if threshold is not None:
        found = torch.as_tensor(threshold, dtype=dtype)
        check_numbers(path, "threshold", found.reshape(-1), infinite=True)
        if isinstance(sae.activation, JumpReLU):
            if found.shape not in ((), (n_latents,)):
                raise ValueError(f"threshold in {path} has shape {tuple(found.shape)}, not ({n_latents},)")
            sae.activation.set_threshold(found.expand(n_latents).clamp_min(torch.finfo(dtype).tiny))
        else:
            sae.activation.threshold.copy_(found)  # type: ignore[operator]
    return sae.eval()


def floats(form: AffineForm) -> dict[str, Any]:
    """The four tensors in float32, contiguous."""
    return {name: getattr(form, name).float().contiguous() for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
