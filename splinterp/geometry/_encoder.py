"""The encoder of an SAE as geometry sees it: float64 scores, and what makes a latent active."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from splinterp._typing import Array
from splinterp.activations import AbsTopK, BatchTopK, JumpReLU, ReLU, TopK
from splinterp.sae import SAE


class Encoder(NamedTuple):
    """Scores `x @ weights.T + biases` and the rule that picks the active latents."""

    weights: Array
    """(n_latents, d_in): rows are columns of W_enc."""
    biases: Array
    """(n_latents,): b_enc, or b_enc - b_pre @ W_enc."""
    kind: str
    """"threshold": active where score > threshold; "topk": the k largest if positive; "abstopk": the k largest |score|."""
    k: int
    """Latents chosen; 0 for "threshold"."""
    threshold: Array
    """(n_latents,), of "threshold"; BatchTopK also takes a score equal to it."""


def encoder_of(sae: SAE) -> Encoder:
    """Read an SAE's encoder.

    Raises:
        TypeError: not an SAE of this package, or an activation geometry does not know.
        ValueError: the SAE is not on the CPU.
        RuntimeError: a BatchTopK without its inference threshold, or in training mode, where the region of a sample
            depends on its batch.
    """
    if not isinstance(sae, SAE):
        raise TypeError(f"geometry needs a splinterp.SAE, not {type(sae).__name__}")
    sae.require_plain("geometry")
    if sae.W_enc.device.type != "cpu":
        raise ValueError(f"the SAE is on {sae.W_enc.device}; geometry runs on the CPU: call sae.cpu()")
    weights, biases = _array(sae.W_enc).T.copy(), _array(sae.b_enc)
    if sae.b_pre is not None:
        biases = biases - weights @ _array(sae.b_pre)
    activation, nothing = sae.activation, np.zeros(len(weights))
    arrays = weights, biases
    if isinstance(activation, TopK):
        return Encoder(*arrays, "topk", activation.k, nothing)
    if isinstance(activation, AbsTopK):
        return Encoder(*arrays, "abstopk", activation.k, nothing)
    if isinstance(activation, ReLU):
        return Encoder(*arrays, "threshold", 0, nothing)
    if isinstance(activation, JumpReLU):
        return Encoder(*arrays, "threshold", 0, _array(activation.threshold))
    if isinstance(activation, BatchTopK):
        if activation.training or torch.isnan(activation.threshold):
            raise RuntimeError(
                "regions of a BatchTopK SAE are those of its inference threshold: train it, then call sae.eval()"
            )
        return Encoder(*arrays, "threshold", 0, np.full(len(weights), max(float(activation.threshold), 0.0)))
    raise TypeError(f"geometry does not know the activation {type(activation).__name__}")


def signed(weights: Array, biases: Array) -> tuple[Array, Array]:
    """The 2 n_latents signed sites, ordered [+w; -w], and their biases."""
    return np.concatenate([weights, -weights]), np.concatenate([biases, -biases])


def decoder_of(sae: SAE) -> tuple[Array, Array]:
    """(W_dec, b_dec) in float64."""
    return _array(sae.W_dec), _array(sae.b_dec)


def _array(parameter: torch.Tensor) -> Array:
    return parameter.detach().to(torch.float64).numpy().copy()  # a copy: later training does not reach it
