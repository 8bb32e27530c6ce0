"""Activations of an SAE, each the proximal map of a penalty.

`rho(u) = argmin_z 1/2 |z - u|^2 + R(z)` for every activation here (AbsTopK paper, arXiv 2510.00404, section 3);
`regularizer` returns R, so the claim can be tested. A TopK always applies ReLU to what it keeps.
"""

from __future__ import annotations

from typing import Any

from splinterp.activations.base import REGISTRY, Activation, GroupedActs, TopActs
from splinterp.activations.batch_topk import BatchTopK
from splinterp.activations.block_topk import BlockTopK
from splinterp.activations.feature_choice import FeatureChoice
from splinterp.activations.relu import JumpReLU, ReLU
from splinterp.activations.topk import AbsTopK, RowTop, TopK

__all__ = [
    "ACTIVATIONS",
    "AbsTopK",
    "Activation",
    "BatchTopK",
    "BlockTopK",
    "FeatureChoice",
    "GroupedActs",
    "JumpReLU",
    "ReLU",
    "RowTop",
    "TopActs",
    "TopK",
    "activation_from_config",
]

ACTIVATIONS = REGISTRY
"""Activation classes by name; a subclass of `Activation` joins them."""


def activation_from_config(config: dict[str, Any]) -> Activation:
    """The inverse of `Activation.config`. Raises ValueError for an unknown name."""
    arguments = dict(config)
    name = arguments.pop("name", None)
    known = [k for k, cls in REGISTRY.items() if not k.startswith("_") and cls is not RowTop]
    if name not in known:
        raise ValueError(
            f"activation {name!r} is unknown; known: {', '.join(known)}. One of your own is known once its class is imported"
        )
    if name == "BatchTopK":
        arguments.pop("momentum", None)  # of files written when the threshold was a running mean
    return REGISTRY[name](**arguments)
