"""What a record is the record of, as a hash that an option which changes nothing does not change.

Only what differs from an option's neutral value is counted. For options listed in NEUTRAL that is the value there, which never
changes: an option whose default is changed then counts at its new default, and runs of the old one keep their records. For an
option that is not listed yet it is its default, so a new option renames nothing; list it when it is added.
"""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import json
import math
from typing import Any

import torch

from splinterp import PAMSGD, SAE, SGD, BiasAdaptation
from splinterp.activations import Activation
from splinterp.losses import SquaredError
from splinterp.training import Racing
from splinterp.training.shorthands import SOLVER_SHORTHANDS, WHEN_SHORTHANDS
from splinterp.training.when import AtEnd, EveryEpoch, EverySteps

_GRADIENT: dict[str, Any] = {
    "lr": 3e-3, "optimizer": "adam", "betas": (0.9, 0.999), "schedule": "cosine", "clip": None, "weight_decay": 0.0,
    "decay_biases": False, "l1": 0.0, "l0": 0.0, "warmup": 0.0, "decay": 0.0, "terms": (SquaredError(),), "penalty_warmup": 0.0,
    "resample": None, "k_start": None, "k_share": 0.1, "bias_lr": 1.0, "decoder_lr": 1.0,
}  # fmt: skip
NEUTRAL: dict[type, dict[str, Any]] = {
    SGD: {**_GRADIENT, "unit_norm_decoder": False, "project_gradient": False},
    PAMSGD: {
        **_GRADIENT, "gradient": "both", "hold": 0.0, "encoder_updates": 1, "prox_enc": 0.0, "prox_dec": 0.0, "bias_prox": 0.0,
        "ridge": "gcv", "gcv_inflation": 1.0, "bias_ridge": 0.0, "bias": "joint", "solve_gap": 50, "decoder_every": None,
        "solve_first": False, "solve_parts": None, "scale": "one", "stats_dtype": torch.float64,
        "readout": False, "racing": Racing(),
    },
    Racing: {"begin": 0.1, "length": 0.05, "margin": 0.005, "otherwise": 0.0},
    BiasAdaptation: {
        "base": SGD(), "lr": None, "target_frequencies": None, "groups": 10, "highest": 0.5, "lowest": 0.001, "gamma_up": 0.01,
        "gamma_down": 0.01, "every": 50, "eps": 1e-6, "bounds": (-1.0, 0.0), "rule": "step", "quantile_samples": None,
        "gain": 1.0,
    },
    SAE: {"decoder": "free", "init": "unit", "init_dec": "transpose", "tie_scale": False, "b_pre": False,
          "init_bias": 0.0, "encoder": None},
}  # fmt: skip
"""Never edit a value that is here; add new options."""


def digest(value: Any, length: int = 16) -> str:
    """A hash of `essence(value)`, in hexadecimal."""
    return hashlib.sha256(json.dumps(essence(value), sort_keys=True).encode()).hexdigest()[:length]


def essence(value: Any) -> Any:
    """`value` as JSON, its options at their neutral values left out; floats to the 7 digits that records keep.

    Dataclasses, activations, scikit-learn estimators, tensors, containers and plain values. Raises TypeError for anything else:
    what has no lasting name cannot name a record.
    """
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int | float):
        return f"{value:.7g}"
    if isinstance(value, list | tuple):
        return [essence(item) for item in value]
    if isinstance(value, dict):
        return {str(key): essence(item) for key, item in value.items()}
    if isinstance(value, torch.dtype):
        return str(value)
    if isinstance(value, type):
        return f"{value.__module__}.{value.__qualname__}"
    if isinstance(value, torch.Tensor):
        content = value.detach().cpu().contiguous()
        return [str(value.dtype), list(value.shape), hashlib.sha256(content.numpy().tobytes()).hexdigest()]
    if isinstance(value, Activation):
        return options_of(type(value), {k: v for k, v in value.config().items() if k != "name"})
    if isinstance(value, PAMSGD):  # by its shorthands, under which its first records were made
        fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if f.name not in ("solver", "when")}
        if value.gradient != "both" and value.hold == "auto":
            fields["hold"] = 0.0  # which it is there, whatever the codes
        if value.decoder_lr is None and (value.gradient != "both" or value.hold == 1 or value.ridge == math.inf):
            fields["decoder_lr"] = 1.0  # likewise
        shorthands = ("ridge", "gcv_inflation", *SOLVER_SHORTHANDS, *WHEN_SHORTHANDS)
        timed = {} if isinstance(value.when, EveryEpoch | EverySteps | AtEnd) else {"when": value.when}
        return options_of(type(value), {**fields, **{name: getattr(value, name) for name in shorthands}, **timed})
    if dataclasses.is_dataclass(value):
        silent = _silent(value) if isinstance(value, BiasAdaptation) else set()
        fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if f.name not in silent}
        if isinstance(value, BiasAdaptation) and value.groups is None and "groups" in fields:
            fields["groups"] = NEUTRAL[BiasAdaptation]["groups"]  # which it is for that many latents
        if isinstance(value, SGD) and type(value).decoder_rate is SGD.decoder_rate and value.decoder_lr is None:
            fields["decoder_lr"] = 1.0  # which it is
        return options_of(type(value), fields)
    if hasattr(value, "get_params"):  # scikit-learn's way to say what an estimator was made with
        return options_of(type(value), value.get_params(deep=False))
    raise TypeError(f"{type(value).__name__} cannot name a record: pass plain values, dataclasses, activations or estimators")


def options_of(made: type, options: dict[str, Any]) -> dict[str, Any]:
    """The essence of what `made(**options)` makes: its name, and the options that are not neutral."""
    known = next((NEUTRAL[base] for base in made.__mro__ if base in NEUTRAL), {})
    neutral = {**_defaults(made), **known}
    kept = {name: essence(value) for name, value in options.items()}
    return {
        "made": made.__name__,
        **{name: e for name, e in kept.items() if name not in neutral or e != essence(neutral[name])},
    }


def _silent(method: BiasAdaptation) -> set[str]:
    """Options that change nothing beside the others, whatever their default is."""
    unused = {"gamma_up", "gamma_down", "eps"} if method.rule == "quantile" else set()
    if method.target_frequencies is not None:
        return unused | {"groups", "highest", "lowest"}
    return unused | ({"lowest"} if method.groups == 1 else set())


def _defaults(made: type) -> dict[str, Any]:
    if dataclasses.is_dataclass(made):
        found = {f.name: f.default for f in dataclasses.fields(made) if f.default is not dataclasses.MISSING}
        makers = {f.name: f.default_factory for f in dataclasses.fields(made) if f.default_factory is not dataclasses.MISSING}
        return {**found, **{name: maker() for name, maker in makers.items()}}
    parameters = inspect.signature(made).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}
