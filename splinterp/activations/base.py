"""What every activation is, and the sparse form of its codes."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Any, ClassVar, NamedTuple

import torch
from torch import nn

from splinterp._registry import register, said
from splinterp._typing import Float, Int, Tensor
from splinterp.sparse_kernels import Transposed


class TopActs(NamedTuple):
    """The sparse form of `acts`: row r has `top_acts[r, j]` at latent `top_indices[r, j]` and zeros elsewhere.

    Indices in a row are distinct and in no particular order; a kept value may be 0 (TopK of negative scores).
    """

    top_acts: Float[Tensor, "n k"]
    top_indices: Int[Tensor, "n k"]

    def with_values(self, values: Float[Tensor, "n k"]) -> TopActs:
        """Other values at the same latents."""
        return TopActs(values, self.top_indices)


class GroupedActs(TopActs):
    """A sparse code whose entries have been grouped by latent, which products with its transpose would else do again."""

    by_latent: Transposed | None = None

    @classmethod
    def of(cls, values: Tensor, indices: Tensor, by_latent: Transposed | None) -> GroupedActs:
        """The code with its grouping (`transpose_code` of the indices)."""
        code = cls(values, indices)
        code.by_latent = by_latent
        return code

    def with_values(self, values: Tensor) -> TopActs:
        return GroupedActs.of(values, self.top_indices, self.by_latent)


def as_activation(value: Any) -> Activation:
    """`value` where it is an activation. Raises TypeError, with one that would work, for its class or its name."""
    if isinstance(value, Activation):
        return value
    kind = value if isinstance(value, type) else None
    if isinstance(value, str):
        wanted = value.lower().replace("_", "").replace("-", "")
        kind = next((known for name, known in REGISTRY.items() if name.lower() == wanted), None)
    if kind is None or not issubclass(kind, Activation):
        what = repr(value) if isinstance(value, str) else f"a {type(value).__name__}"
        raise TypeError(f"activation is {what}: pass an object, TopK(k=32) or ReLU(), say")
    own = list(inspect.signature(kind.__init__).parameters.values())[1:]
    needs = [p.name for p in own if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    call = f"{kind.__name__}({', '.join(f'{name}=32' if name == 'k' else f'{name}=...' for name in needs)})"
    raise TypeError(
        f"activation is {'the class ' + kind.__name__ if isinstance(value, type) else repr(value)}: pass an object, {call}"
    )


REGISTRY: dict[str, type[Activation]] = {}
"""Every activation class by its name: what can be saved can be loaded."""


MAKES_CODES = ("forward", "top", "select", "keep")
"""The methods of an activation that make its codes."""


class Activation(nn.Module):
    """Base of the activations: a map from `pre_acts (n, n_latents)` to `acts` of the same shape.

    A subclass defines `forward`, and `config` if it has arguments; subclassing registers it, so that an SAE which has it can be saved
    and loaded (where its class is imported). It says what it can do by class attributes: `allows_l1` / `allows_l0`, which sparsity
    penalty of the training methods it can take; `signed`, whether codes can be negative; `couples_samples`, whether a sample's code
    depends on the others of its batch (assumed of a subclass that does not say, so that its batches are never joined or shared);
    `by_own_score`, whether a latent fires by its own score alone; `fixes_frequencies`, whether it says how often each latent fires;
    `competes`, whether all latents compete for a fixed number of places, so that a bias below the others' makes a latent rare.
    """

    allows_l1: ClassVar[bool] = False
    allows_l0: ClassVar[bool] = False
    signed: ClassVar[bool] = False
    couples_samples: ClassVar[bool] = True
    by_own_score: ClassVar[bool] = False
    fixes_frequencies: ClassVar[bool] = False
    competes: ClassVar[bool] = False

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        register(REGISTRY, cls)

    def bind(self, n_latents: int, dtype: torch.dtype, device: torch.device) -> Activation:
        """Return an independent copy for an SAE of `n_latents` latents.

        Raises ValueError where the activation does not fit that many latents.
        """
        return copy.deepcopy(self).to(device=device, dtype=dtype)

    def config(self) -> dict[str, Any]:
        """The constructor's arguments, with the class name under "name"."""
        return {"name": type(self).__name__}

    def top(self, pre_acts: Float[Tensor, "n n_latents"]) -> TopActs:
        """The sparse form of `acts`. Raises TypeError for activations without a fixed number of active latents."""
        raise TypeError(f"{type(self).__name__} has no fixed number of active latents; use the dense acts")

    @property
    def known(self) -> bool:
        """Whether codes are made as a class of this package makes them, which geometry and file formats go by."""
        made_by = {c for c in type(self).__mro__ for name in MAKES_CODES if name in c.__dict__}
        return not self.patched and all(c.__module__.startswith(("splinterp.", "torch.")) for c in made_by)

    @property
    def patched(self) -> bool:
        """Whether the object itself has hooks, or methods of its own, that its class does not tell of."""
        return bool(self._forward_hooks or self._forward_pre_hooks) or any(name in self.__dict__ for name in MAKES_CODES)

    def stated(self, option: str) -> Any:
        """The class's own answer to `option`, and None where how codes are made is overridden without saying it anew."""
        if self.patched:
            return None
        if self.known:
            return getattr(type(self), option)
        return said(type(self), option, MAKES_CODES)

    @property
    def fires_by_own_score(self) -> bool:
        """`by_own_score`, and False for a class that overrides how codes are made without saying it anew."""
        return bool(self.stated("by_own_score"))

    @property
    def kept(self) -> int | None:
        """How many latents of a sample are kept (on average), where their number is fixed; None where it is not."""
        return None

    def keeping(self, k: int) -> AbstractContextManager[None]:
        """Inside, k latents are kept in place of `kept`. Raises TypeError where their number is not fixed."""
        raise TypeError(f"{type(self).__name__} has no fixed number of latents to keep")

    @property
    def couples(self) -> bool:
        """`couples_samples`, and True for a class that overrides how codes are made without saying it anew."""
        return self.stated("couples_samples") is not False

    @property
    def threshold_parameter(self) -> nn.Parameter | None:
        """The parameter of thresholds of its own, one a latent, where it has any."""
        return None

    def set_threshold(self, threshold: Float[Tensor, " n_latents"]) -> None:
        """Make the thresholds these; what is not above 0 becomes the smallest number that is."""
        raise TypeError(f"{type(self).__name__} has no thresholds of its own")

    def calibrate(self, scores: Iterable[Float[Tensor, "n n_latents"]], n_samples: int) -> None:
        """Set what inference needs and gradients do not train, from `pre_acts` of `n_samples` training samples in blocks."""

    def regularizer(self, acts: Float[Tensor, "n n_latents"]) -> Float[Tensor, " n"]:
        """R(z) of each sample, `inf` where z is not feasible."""
        raise NotImplementedError

    def extra_repr(self) -> str:
        return ", ".join(f"{key}={value!r}" for key, value in self.config().items() if key != "name")


def _infeasible(condition: Tensor) -> Tensor:
    return torch.where(condition, math.inf, 0.0)
