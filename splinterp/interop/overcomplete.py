"""SAEs of Overcomplete, from the state that its users keep: `torch.save(sae.state_dict(), path)`; it has no format of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch.nn import functional as F

from splinterp._checks import at_least, one_of
from splinterp._files import reading, require_file
from splinterp._typing import Tensor
from splinterp.activations import Activation, JumpReLU
from splinterp.interop.affine import sae_of
from splinterp.sae import SAE

State = Mapping[str, Tensor]
EPS = 1e-8
NORMALIZATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "l2": lambda rows: rows / (rows.norm(dim=1, keepdim=True) + EPS), "l1": lambda rows: rows / (rows.norm(p=1, dim=1, keepdim=True) + EPS),
    "max_l2": lambda rows: rows / rows.norm(dim=1).max(), "max_l1": lambda rows: rows / rows.norm(p=1, dim=1).max(),
    "identity": lambda rows: rows,
}  # fmt: skip
"""By the names of its DictionaryLayer."""
LINEAR, NORM = "encoder.final_block.0.", "encoder.final_block.1."
NORM_PARTS = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
NORM_EPS = 1e-5


@torch.no_grad()
def load_overcomplete(
    weights: str | Path | State, activation: Activation | None = None, *, threshold: float | None = None, normalization: str = "l2",
    delta: float = 1.0,
) -> SAE:  # fmt: skip
    """Read an SAE of Overcomplete as an SAE with a free decoder, in evaluation mode; its b_dec is 0, since Overcomplete has none.

    Encoders that are affine: "linear", those with BatchNorm, which is folded in as it is when evaluating, and what `tied` and `untied`
    make. Dictionaries: DictionaryLayer and RelaxedArchetypalDictionary, with their multiplier.

    Args:
        weights: a file of `torch.save(sae.state_dict(), path)`, or that state.
        activation: how codes are chosen, which the state does not say: `TopK(sae.top_k)`, `ReLU()`; of its BatchTopKSAE `JumpReLU()` with
            `threshold=float(sae.running_threshold)`. A JumpSAE has its thresholds in the state, and is told by them.
        normalization: of the rows of a DictionaryLayer, by its name there: "l2", "max_l2", "l1", "max_l1" or "identity".
        delta: of a RelaxedArchetypalDictionary, the largest norm of a row's deviation from its hull.

    Raises:
        FileNotFoundError: no such file.
        TypeError: no activation, and none in the state.
        ValueError: an encoder that is not affine, a dictionary of another kind, tensors that do not fit or hold NaN.
    """
    one_of("normalization", normalization, tuple(NORMALIZATIONS))
    at_least("delta", delta, 0.0)
    path, state = _state(weights)
    with reading(path):
        decoder = _decoder(state, normalization, delta)
        encoder, b_enc = _encoder(state, decoder)
    if "thresholds" in state:
        if activation is not None or threshold is not None:
            raise ValueError(f"{path} is of a JumpSAE, which has its thresholds: pass neither activation nor threshold")
        activation = JumpReLU()
    elif activation is None:
        raise TypeError(f"{path} does not say how codes are chosen: pass activation=TopK(sae.top_k), say")
    elif isinstance(activation, JumpReLU) and threshold is None:
        raise TypeError("a JumpReLU needs its threshold: pass threshold=float(sae.running_threshold)")
    level: Tensor | float | None = state["thresholds"].exp() if "thresholds" in state else threshold
    tensors = {"W_enc": encoder.T, "b_enc": b_enc, "W_dec": decoder, "b_dec": decoder.new_zeros(decoder.shape[1])}
    return sae_of(path, tensors, activation, centred=False, threshold=level)


def _state(weights: str | Path | State) -> tuple[Path, dict[str, Tensor]]:
    if isinstance(weights, Mapping):
        path, found = Path("the state"), weights
    else:
        path = require_file(Path(weights))
        with reading(path):
            found = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(found, Mapping) or not all(isinstance(value, Tensor) for value in found.values()):
        raise ValueError(f"{path} holds no tensors by name: keep it by torch.save(sae.state_dict(), path)")
    return path, {name: value.detach().cpu() for name, value in found.items()}


def _decoder(state: State, normalization: str, delta: float) -> Tensor:
    """Rows as they are when evaluating, (n_latents, d_in)."""
    if "dictionary._weights" in state:
        rows = NORMALIZATIONS[normalization](state["dictionary._weights"])
    elif {"dictionary.W", "dictionary.C", "dictionary.Relax"} <= set(state):
        shares = state["dictionary.W"].relu()
        shares = shares / (shares.sum(1, keepdim=True) + EPS)
        off = state["dictionary.Relax"]
        rows = shares @ state["dictionary.C"] + off * (delta / off.norm(dim=1, keepdim=True)).clamp(max=1)
    else:
        raise ValueError("has neither dictionary._weights nor dictionary.W, .C and .Relax")
    return rows * state.get("dictionary.multiplier", torch.zeros(())).exp()


def _encoder(state: State, decoder: Tensor) -> tuple[Tensor, Tensor]:
    """(n_latents, d_in) and its bias."""
    own = {name for name in state if name.startswith("encoder.") and not name.startswith("encoder.tied_to.")}
    zeros = decoder.new_zeros(decoder.shape[0])
    if own <= {"encoder.weight", "encoder.bias"}:
        return state.get("encoder.weight", decoder), state.get("encoder.bias", zeros)
    norm = {name.removeprefix(NORM) for name in own if name.startswith(NORM)}
    if {name for name in own if not name.startswith(NORM)} != {LINEAR + "weight", LINEAR + "bias"} or not norm <= {*NORM_PARTS}:
        raise ValueError(f"its encoder is not affine: it has {', '.join(sorted(own))}")
    weight, bias = state[LINEAR + "weight"], state[LINEAR + "bias"]
    if not norm:
        return weight, bias
    if "running_mean" not in norm:
        raise ValueError("its encoder is not affine: LayerNorm divides each sample's scores by their own deviation")

    def normed(rows: Tensor) -> Tensor:
        mean, var, gain, shift = (state.get(NORM + name) for name in ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(rows, mean, var, gain, shift, eps=NORM_EPS)

    at_zero = normed(bias[None])
    return (normed(weight.T + bias) - at_zero).T, at_zero[0]
