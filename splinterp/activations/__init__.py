"""Activations of an SAE, each the proximal map of a penalty.

`rho(u) = argmin_z 1/2 |z - u|^2 + R(z)` for every activation here (AbsTopK paper, arXiv 2510.00404, section 3);
`regularizer` returns R, so the claim can be tested. A TopK always applies ReLU to what it keeps.
"""

from __future__ import annotations

from typing import Any

from splinterp._checks import one_of
from splinterp.activations.base import Activation, TopActs
from splinterp.activations.batch_topk import BatchTopK
from splinterp.activations.relu import JumpReLU, ReLU
from splinterp.activations.topk import AbsTopK, RowTop, TopK

__all__ = [
    "ACTIVATIONS",
    "AbsTopK",
    "Activation",
    "BatchTopK",
    "JumpReLU",
    "ReLU",
    "RowTop",
    "TopActs",
    "TopK",
    "activation_from_config",
]

ACTIVATIONS: dict[str, type[Activation]] = {cls.__name__: cls for cls in (ReLU, JumpReLU, TopK, AbsTopK, BatchTopK)}


def activation_from_config(config: dict[str, Any]) -> Activation:
    """The inverse of `Activation.config`. Raises ValueError for an unknown name."""
    arguments = dict(config)
    name = arguments.pop("name", None)
    one_of("activation name", name, ACTIVATIONS)
    return ACTIVATIONS[name](**arguments)
