"""The encoder of an SAE as geometry sees it: float64 scores, and what makes a latent active."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch

from splinterp._typing import Array
from splinterp.activations import AbsTopK, BatchTopK, FeatureChoice, JumpReLU, ReLU, TopK
from splinterp.geometry._local import Local
from splinterp.sae import SAE


class Encoder(NamedTuple):
    """Scores `(x - centre) @ weights.T + biases` and the rule that picks the active latents."""

    weights: Array
    """(n_latents, d_in): rows are columns of W_enc."""
    biases: Array
    """(n_latents,): b_enc."""
    kind: str
    """"threshold": active where score > threshold; "topk": the k largest if positive; "abstopk": the k largest |score|."""
    k: int
    """Latents chosen; 0 for "threshold"."""
    threshold: Array
    """(n_latents,), of "threshold"; BatchTopK also takes a score equal to it."""
    centre: Array
    """(d_in,): b_pre or 0. It is not folded into the biases, where a large one would cost the digits of small scores."""

    def scored(self) -> Local:
        """The scores, ready to be computed."""
        return Local.of(self.centre, self.weights, self.biases)

    def offsets(self) -> Array:
        """(n_latents,): the scores at x = 0."""
        return self.biases - self.weights @ self.centre


def encoder_of(sae: Any) -> Encoder:
    """Read an SAE's encoder.

    Raises:
        TypeError: not an SAE of this package, or an activation geometry does not know.
        ValueError: the SAE is not on the CPU.
        RuntimeError: a BatchTopK without its inference threshold, or in training mode, where the region of a sample
            depends on its batch.
    """
    if not isinstance(sae, SAE):
        raise TypeError(
            f"geometry needs a splinterp.SAE, not {type(sae).__name__}: splinterp.interop.affine_sae makes one of a module with an affine "
            "encoder"
        )
    sae.require_plain("geometry", pairs=True)
    if sae.W_enc.device.type != "cpu":
        raise ValueError(f"the SAE is on {sae.W_enc.device}; geometry runs on the CPU: call sae.cpu()")
    weights, biases = _array(sae.W_enc).T.copy(), _array(sae.b_enc)
    centre = np.zeros(weights.shape[1]) if sae.b_pre is None else _array(sae.b_pre)
    activation, nothing = sae.activation, np.zeros(len(weights))
    arrays = weights, biases
    if isinstance(activation, TopK):
        return Encoder(*arrays, "topk", activation.k, nothing, centre)
    if isinstance(activation, AbsTopK):
        return Encoder(*arrays, "abstopk", activation.k, nothing, centre)
    if isinstance(activation, ReLU):
        return Encoder(*arrays, "threshold", 0, nothing, centre)
    if isinstance(activation, JumpReLU):
        return Encoder(*arrays, "threshold", 0, _array(activation.threshold), centre)
    if isinstance(activation, BatchTopK | FeatureChoice):
        if activation.training or torch.isnan(activation.threshold).any():
            raise RuntimeError(
                f"regions of a {type(activation).__name__} SAE are those of its inference threshold: train it, then call sae.eval()"
            )
        threshold = np.maximum(np.broadcast_to(_array(activation.threshold), len(weights)), 0.0)
        return Encoder(*arrays, "threshold", 0, threshold, centre)
    raise TypeError(f"geometry does not know the activation {type(activation).__name__}")


def signed(weights: Array, biases: Array) -> tuple[Array, Array]:
    """The 2 n_latents signed sites, ordered [+w; -w], and their biases."""
    return np.concatenate([weights, -weights]), np.concatenate([biases, -biases])


def decoder_of(sae: SAE) -> tuple[Array, Array]:
    """(W_dec, b_dec) in float64."""
    return _array(sae.W_dec), _array(sae.b_dec)


def _array(parameter: torch.Tensor) -> Array:
    return parameter.detach().to(torch.float64).numpy().copy()  # a copy: later training does not reach it
