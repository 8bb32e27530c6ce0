"""An SAE with its input's normalisation inside, for tools that know none."""

from __future__ import annotations

import copy

import torch

from splinterp._typing import Tensor
from splinterp.data.standardizer import Standardizer
from splinterp.sae import SAE


@torch.no_grad()
def folded_tensors(sae: SAE, standardizer: Standardizer | None) -> dict[str, Tensor]:
    """W_enc, b_enc, W_dec, b_dec (float64, on the CPU) of the same map on activations as the model gives them, without an input centre.

    Raises:
        ValueError: a standardizer of mode "unit_norm", which no affine map replaces.
        RuntimeError: one without statistics.
    """
    W_enc, b_enc, W_dec, b_dec = (t.double().cpu() for t in (sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec))
    if sae.b_pre is not None:
        b_enc = b_enc - sae.b_pre.double().cpu() @ W_enc
    if standardizer is not None:
        if standardizer.mode == "unit_norm":
            raise ValueError("a unit_norm standardizer divides each sample by its own norm, which no weights can hold")
        if standardizer.mean is None or standardizer.scale is None:
            raise RuntimeError("this Standardizer has no statistics yet: call fit(x_train)")
        mean, scale = standardizer.mean.double(), standardizer.scale.double()
        b_enc = b_enc - (mean / scale) @ W_enc
        W_enc = W_enc / scale[:, None]
        W_dec, b_dec = W_dec * scale, b_dec * scale + mean
    return {"W_enc": W_enc, "b_enc": b_enc, "W_dec": W_dec, "b_dec": b_dec}


def check_standardized(sae: SAE, standardizer: Standardizer | None) -> None:
    """Raises ValueError where an SAE says that it was trained on standardised activations, and no standardizer is given."""
    if standardizer is None and "standardizer" in sae.about:
        raise ValueError(
            "this SAE was trained on standardised activations, which other tools do not know of: to fold that in, pass "
            "standardizer=Standardizer.load(folder) of the folder that it was loaded from; or delete sae.about['standardizer'] to write it "
            "as it is"
        )


@torch.no_grad()
def fold_standardizer(sae: SAE, standardizer: Standardizer) -> SAE:
    """The SAE of the same codes, and of the reconstruction mapped back, on activations as the model gives them: with a free decoder and
    without an input centre, in evaluation mode. Thresholds and k stay.

    Raises:
        TypeError: a subclass, or an encoder that is not affine.
        ValueError, RuntimeError: a standardizer of mode "unit_norm", or without statistics.
    """
    sae.require_plain("folding a standardizer in")
    found = SAE(
        sae.d_in,
        sae.n_latents,
        copy.deepcopy(sae.activation),
        b_pre=False,
        dtype=sae.W_enc.dtype,
        device=sae.W_enc.device,
        generator=0,
    )
    found.activation.load_state_dict(sae.activation.state_dict())
    for name, value in folded_tensors(sae, standardizer).items():
        getattr(found, name).copy_(value)
    found.about = {name: value for name, value in sae.about.items() if name != "standardizer"}
    return found.eval()
