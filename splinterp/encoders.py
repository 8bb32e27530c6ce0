"""How an SAE's affine scores, and its codes from them, are made: parametrisations of the encoder.

`Linear` is the usual one. Another one is a subclass of `Encoder`, in a file of its own: extra parameters, and what it does with them.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch

from splinterp._registry import register
from splinterp._typing import Tensor

REGISTRY: dict[str, type[Encoder]] = {}
"""Every encoder class by its name: what can be saved can be loaded."""


@dataclass(frozen=True)
class Encoder:
    """A parametrisation of the encoder. The SAE has W_enc (d_in, n_latents), b_enc and, perhaps, b_pre in any case.

    A subclass is a frozen dataclass of its options (plain values, saved with the SAE); subclassing registers it.
    """

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        register(REGISTRY, cls)

    @property
    def plain(self) -> bool:
        """Whether scores are x @ W_enc + b_enc and codes their activation, so that sparse kernels may make them."""
        return type(self).pre_acts is Encoder.pre_acts and type(self).acts is Encoder.acts

    def parameters(self, d_in: int, n_latents: int) -> dict[str, Tensor]:
        """Starts of further parameters, by the names under which the SAE is to have them."""
        return {}

    def pre_acts(self, sae: Any, centred: Tensor) -> Tensor:
        """Scores (n, n_latents) of samples less b_pre (n, d_in)."""
        return torch.addmm(sae.b_enc, centred, sae.W_enc)

    def acts(self, sae: Any, pre_acts: Tensor) -> Tensor:
        """Codes (n, n_latents) of scores."""
        return sae.activation(pre_acts)

    def config(self) -> dict[str, Any]:
        """The constructor's arguments, with the class name under "name"."""
        return {"name": type(self).__name__, **asdict(self)}


@dataclass(frozen=True)
class Linear(Encoder):
    """pre_acts = (x - b_pre) @ W_enc + b_enc."""


def encoder_from_config(config: dict[str, Any]) -> Encoder:
    """The inverse of `Encoder.config`. Raises ValueError for an unknown name."""
    arguments = dict(config)
    name = arguments.pop("name", None)
    if name not in REGISTRY:
        raise ValueError(
            f"encoder {name!r} is unknown; known: {', '.join(REGISTRY)}. One of your own is known once its class is imported"
        )
    return REGISTRY[name](**arguments)
