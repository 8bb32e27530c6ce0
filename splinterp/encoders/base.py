"""How an SAE's affine scores, and its codes from them, are made: parametrisations of the encoder.

`Linear` is the usual one. Another one is a subclass of `Encoder`, in a file of its own: extra parameters, and what it does with them.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch

from splinterp._registry import register, said
from splinterp._typing import Tensor

REGISTRY: dict[str, type[Encoder]] = {}
"""Every encoder class by its name: what can be saved can be loaded."""
MAKES_CODES = ("pre_acts", "acts", "acts_of")
"""The methods of an encoder that make codes."""


@dataclass(frozen=True)
class Encoder:
    """A parametrisation of the encoder. The SAE has W_enc, b_enc and, perhaps, b_pre in any case.

    A subclass is a frozen dataclass of its options (plain values, saved with the SAE); subclassing registers it. It overrides
    `pre_acts`, and `acts`, or `acts_of` where codes need more of a sample than its scores.
    """

    couples_samples: ClassVar[bool] = True
    """Whether a sample's code depends on the others of its batch; assumed of a subclass that makes codes and does not say."""
    by_latents: ClassVar[bool] = True
    """Whether W_enc has one column for each latent, and b_enc one entry."""
    plain_at_inference: ClassVar[bool] = False
    """Whether, outside of training, scores are x @ W_enc + b_enc and codes their activation."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        register(REGISTRY, cls)

    @property
    def plain(self) -> bool:
        """Whether scores are x @ W_enc + b_enc and codes their activation, so that sparse kernels may make them."""
        return all(getattr(type(self), name) is getattr(Encoder, name) for name in MAKES_CODES)

    @property
    def reads_samples(self) -> bool:
        """Whether codes need more of a sample than its scores."""
        return type(self).acts_of is not Encoder.acts_of

    @property
    def couples(self) -> bool:
        """`couples_samples`, and True for a class that overrides how codes are made without saying it anew."""
        return not self.plain and said(type(self), "couples_samples", MAKES_CODES) is not False

    def check(self, n_latents: int, activation: Any, decoder: str) -> None:
        """Raise TypeError or ValueError where the parametrisation does not go with these."""

    def columns(self, n_latents: int) -> int:
        """Columns of W_enc, and entries of b_enc; other than n_latents needs `by_latents = False`."""
        return n_latents

    def rows(self, W_enc: Tensor) -> Tensor:
        """Where a free decoder with init_dec="transpose" starts, (n_latents, d_in)."""
        return W_enc.T.clone()

    def parameters(self, d_in: int, n_latents: int) -> dict[str, Tensor]:
        """Starts of further parameters, by the names under which the SAE is to have them."""
        return {}

    def of_latents(self) -> dict[str, float]:
        """Of those parameters, the ones with one entry for each latent (n_latents,), and what it starts at."""
        return {}

    def buffers(self, d_in: int, n_latents: int) -> dict[str, Tensor]:
        """The same of what no gradient moves."""
        return {}

    def pre_acts(self, sae: Any, centred: Tensor) -> Tensor:
        """Scores (n, n_latents) of samples less b_pre (n, d_in)."""
        return torch.addmm(sae.b_enc, centred, sae.W_enc)

    def acts(self, sae: Any, pre_acts: Tensor) -> Tensor:
        """Codes (n, n_latents) of scores."""
        return sae.activation(pre_acts)

    def acts_of(self, sae: Any, pre_acts: Tensor, x: Tensor) -> Tensor:
        """Codes of scores, and of the samples (n, d_in) that they are of."""
        return self.acts(sae, pre_acts)

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
