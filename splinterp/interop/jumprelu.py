"""What has one threshold for each latent, as a JumpReLU SAE with an ordinary encoder."""

from __future__ import annotations

import torch

from splinterp._typing import Tensor
from splinterp.activations import BatchTopK, FeatureChoice, JumpReLU, ReLU
from splinterp.encoders import Gated
from splinterp.sae import SAE


@torch.no_grad()
def to_jumprelu(sae: SAE) -> SAE:
    """The same map with a JumpReLU, a linear encoder and a free decoder, in evaluation mode: what geometry and file formats know.

    ReLU has the threshold 0 (the smallest positive number), BatchTopK and FeatureChoice those of inference. A gated encoder becomes
    W_enc exp(r_mag) and b_mag, with the threshold max(b_mag - exp(r_mag) b_enc, 0) (arXiv 2404.16014, appendix G); scores within
    rounding of it may fall on its other side.

    Raises:
        TypeError: a map that has no such form (TopK, AbsTopK, Kronecker, a subclass that makes codes in its own way).
        RuntimeError: thresholds that are not set yet.
    """
    sae.require_plain("a JumpReLU", encoders=(Gated,))
    gated = type(sae.encoder) is Gated
    threshold = _threshold(sae)
    found = SAE(
        sae.d_in,
        sae.n_latents,
        JumpReLU(),
        b_pre=sae.config()["b_pre"],
        dtype=sae.W_enc.dtype,
        device=sae.W_enc.device,
        generator=0,
    )
    gain = sae.r_mag.exp() if gated else torch.ones_like(sae.b_enc)
    found.W_enc.copy_(sae.W_enc * gain)
    found.b_enc.copy_(sae.b_mag if gated else sae.b_enc)
    if gated:
        threshold = (sae.b_mag - gain * (sae.b_enc - threshold)).clamp_min(0.0)
    found.W_dec.copy_(sae.W_dec)
    found.b_dec.copy_(sae.b_dec)
    if found.b_pre is not None and sae.b_pre is not None:
        found.b_pre.copy_(sae.b_pre)
    found.activation.set_threshold(threshold)
    found.about = dict(sae.about)
    return found.eval()


def _threshold(sae: SAE) -> Tensor:
    """What each latent's score has to exceed, (n_latents,)."""
    activation = sae.activation
    if isinstance(activation, JumpReLU):
        return activation.threshold
    if isinstance(activation, BatchTopK | FeatureChoice):
        if torch.isnan(activation.threshold).any():
            raise RuntimeError(f"{type(activation).__name__} has no threshold yet: train it by fit, or call SAE.calibrate(x)")
        return activation.threshold.clamp_min(0.0).expand(sae.n_latents)
    if isinstance(activation, ReLU):
        return torch.zeros_like(sae.b_enc)
    raise TypeError(f"{type(activation).__name__} has no threshold for each latent, so it is no JumpReLU")
