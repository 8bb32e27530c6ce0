"""Anyone's SAE with an affine encoder as one of this package, for geometry and whatever else reads weights."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import nn

from splinterp._typing import Tensor
from splinterp.activations import AbsTopK, Activation, BatchTopK, JumpReLU, ReLU, TopK
from splinterp.interop.affine import sae_of
from splinterp.sae import SAE

NAMES = {
    "W_enc": ("W_enc", "encoder.weight"), "b_enc": ("b_enc", "encoder.bias"), "W_dec": ("W_dec", "decoder.weight"),
    "b_dec": ("b_dec", "decoder.bias", "bias"),
}  # fmt: skip
"""Where modules keep the four tensors; those of a linear layer are turned."""
SAMPLES = 64
CLOSE = 1e-3


@torch.no_grad()
def affine_sae(
    module: nn.Module, activation: Activation | None = None, *, centre: Tensor | str | None = None, threshold: Tensor | float | None = None,
    check: bool = True,
) -> SAE:  # fmt: skip
    """A module that computes activation((x - centre) @ W_enc + b_enc) @ W_dec + b_dec as an `SAE` in float64 on the CPU, evaluating.

    Its tensors are `W_enc` (d_in, n_latents) or `encoder.weight` (n_latents, d_in), `b_enc` or `encoder.bias` (zeros if there is none),
    `W_dec` (n_latents, d_in) or `decoder.weight` (d_in, n_latents), `b_dec`, `decoder.bias` or `bias`. An SAELens SAE says the rest
    itself.

    Args:
        activation: how codes are chosen: TopK(k), AbsTopK(k), ReLU(), JumpReLU(), BatchTopK(k).
        centre: what the encoder subtracts: (d_in,), or "b_dec"; None: nothing.
        threshold: of a JumpReLU (n_latents,) or a BatchTopK.
        check: compare what both make of random samples about the centre.

    Raises:
        TypeError: no activation, a module without such tensors, an SAELens architecture that is not affine.
        ValueError: tensors that do not fit; another map than the module's.
    """
    if activation is None:
        activation, centre, threshold = _said(module)
    found = {name: _tensor(module, name) for name in NAMES}
    missing = [name for name, value in found.items() if value is None and name != "b_enc"]
    if missing:
        raise TypeError(
            f"{type(module).__name__} has none of {', '.join(NAMES[missing[0]])}, where its {missing[0]} is looked for"
        )
    tensors = {name: value.detach().double().cpu() for name, value in found.items() if value is not None}
    tensors.setdefault("b_enc", torch.zeros(tensors["W_enc"].shape[1], dtype=torch.float64))
    level = threshold.detach().double().cpu() if isinstance(threshold, Tensor) else threshold
    if isinstance(activation, JumpReLU | BatchTopK) and level is None:
        raise TypeError(f"a {type(activation).__name__} needs its threshold: pass threshold=")
    sae = sae_of(Path(type(module).__name__), tensors, activation, centred=centre is not None, threshold=level)
    if isinstance(centre, Tensor) and sae.b_pre is not None:
        if centre.shape != sae.b_pre.shape:
            raise ValueError(f"centre has shape {tuple(centre.shape)}, not {tuple(sae.b_pre.shape)}")
        sae.b_pre.copy_(centre.detach().double().cpu())
    elif centre is not None and not isinstance(centre, Tensor) and centre != "b_dec":
        raise ValueError(f"centre={centre!r} must be a tensor (d_in,), 'b_dec' or None")
    if check:
        _compare(module, sae)
    return sae


def _tensor(module: nn.Module, name: str) -> Tensor | None:
    for path in NAMES[name]:
        value: Any = module
        for part in path.split("."):
            value = getattr(value, part, None)
        if isinstance(value, Tensor):
            return value.T if path.endswith(".weight") else value
    return None


def _said(module: Any) -> tuple[Activation, str | None, Tensor | None]:
    """(activation, centre, threshold) of an SAELens SAE."""
    architecture = getattr(getattr(module, "cfg", None), "architecture", None)
    if not callable(architecture):
        raise TypeError(
            f"{type(module).__name__} does not say how it chooses its codes: pass activation=TopK(k), AbsTopK(k), ReLU(), JumpReLU() or "
            "BatchTopK(k)"
        )
    name, cfg = architecture(), module.cfg
    known = {"standard": ReLU, "topk": lambda: TopK(int(cfg.k)), "abstopk": lambda: AbsTopK(int(cfg.k)), "jumprelu": JumpReLU}
    if name not in known:
        raise TypeError(
            f"SAELens' architecture {name!r} has no affine encoder with a choice that geometry knows: {', '.join(known)} have"
        )
    if cfg.normalize_activations not in (None, "none"):
        raise TypeError(
            f"normalize_activations={cfg.normalize_activations!r} is no part of an affine map: fold it into the weights first"
        )
    if getattr(cfg, "rescale_acts_by_decoder_norm", False):
        raise TypeError(
            "rescale_acts_by_decoder_norm=True: save it and read it by load_saelens, which folds that into the weights"
        )
    found: Any = known[name]
    return found(), "b_dec" if cfg.apply_b_dec_to_input else None, module.threshold if name == "jumprelu" else None


def _compare(module: nn.Module, sae: SAE) -> None:
    """Raise ValueError where a module makes something else of samples than the SAE."""
    spread = sae.b_pre if sae.b_pre is not None else sae.b_dec
    x = spread + (1 + spread.abs().mean()) * torch.randn(
        SAMPLES, sae.d_in, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    same: Any = copy.deepcopy(module).double().cpu().eval()  # of which rounding is none of its own
    forward = type(module).forward is not nn.Module.forward
    made: Any = same(x) if forward else same.encode(x) @ sae.W_dec + sae.b_dec
    for name in ("x_hat", "sae_out", "reconstruction"):
        made = getattr(made, name, made)
    made = made[0] if isinstance(made, tuple | list) else made
    expected = sae(x).x_hat
    if not isinstance(made, Tensor) or made.shape != expected.shape:
        raise ValueError(
            f"{type(module).__name__} returns no reconstruction of {tuple(expected.shape)} to compare with: pass check=False"
        )
    rows = (made.double().cpu() - expected).norm(dim=1) > CLOSE * (1 + expected.norm(dim=1))
    if int(rows.sum()) > SAMPLES // 10:  # a sample near a boundary may fall on its other side in another precision
        raise ValueError(
            f"{type(module).__name__} makes something else of {int(rows.sum())} of {SAMPLES} samples than an SAE of its tensors: check "
            "the activation, centre and threshold, or look for what else it does"
        )
