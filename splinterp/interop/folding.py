"""An SAE with its input's normalisation inside, for tools that know none."""

from __future__ import annotations

import copy

import torch

from splinterp._typing import Tensor
from splinterp.activations import AbsTopK, Activation, TopK
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


ONE_NORM = 1e-5
"""By how much, relatively, rows of the decoder of a TopK may differ in norm and be scaled alike: rounding of float32 weights."""


def unit_rows(tensors: dict[str, Tensor], activation: Activation) -> tuple[dict[str, Tensor], Tensor]:
    """The same map with rows of W_dec of norm 1: (the four tensors, what codes and thresholds are multiplied by, (n_latents,)).

    Rows of zeros stay. A TopK or AbsTopK selects by scores, which a factor of its own for each latent would reorder, so its rows have to
    have one norm already.

    Raises:
        ValueError: a TopK or AbsTopK whose rows differ in norm, or are 0.
    """
    norms = tensors["W_dec"].norm(dim=1)
    factors = torch.where(norms > 0, norms, 1.0)
    if isinstance(activation, TopK | AbsTopK):
        least, most = float(norms.min()), float(norms.max())
        if not least > 0 or most / least - 1 > ONE_NORM:
            raise ValueError(
                f"unit_rows=True: {type(activation).__name__} selects by scores, so that only rows of W_dec of one norm can be scaled "
                f"to 1, and these have norms of {least:.3g} to {most:.3g}; write it without unit_rows, or train with another activation"
            )
        factors = torch.full_like(norms, most)
    scaled = {
        "W_enc": tensors["W_enc"] * factors, "b_enc": tensors["b_enc"] * factors, "W_dec": tensors["W_dec"] / factors[:, None],
        "b_dec": tensors["b_dec"],
    }  # fmt: skip
    return scaled, factors


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
