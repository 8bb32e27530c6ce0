"""splinterp: theory and algorithms for training sparse autoencoders better than plain SGD does."""

import importlib
from typing import Any

from splinterp.activations import AbsTopK, BatchTopK, JumpReLU, ReLU, TopActs, TopK
from splinterp.archetypal import ArchetypalSAE
from splinterp.jacobian_sae import JacobianSAE
from splinterp.sae import SAE, SAEOutput
from splinterp.training import PAMSGD, SGD, BiasAdaptation, DivergenceError, FitResult, fit
from splinterp.transcoder import Transcoder, paired

__version__ = "0.2.0"

__all__ = [
    "PAMSGD",
    "SAE",
    "SGD",
    "AbsTopK",
    "ArchetypalSAE",
    "BatchTopK",
    "BiasAdaptation",
    "DivergenceError",
    "FitResult",
    "JacobianSAE",
    "JumpReLU",
    "ReLU",
    "SAEOutput",
    "TopActs",
    "TopK",
    "Transcoder",
    "fit",
    "paired",
]


_PARTS = (
    "baselines", "data", "decoder", "encoders", "ensembles", "geometry", "inference", "interop", "language", "losses", "metrics",
    "pipeline", "plotting", "sparse_kernels", "training",
)  # fmt: skip
"""Parts that `import splinterp` offers as attributes; each is imported when it is asked for."""


def __getattr__(name: str) -> Any:
    if name in _PARTS:
        return importlib.import_module(f"splinterp.{name}")
    raise AttributeError(f"module 'splinterp' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_PARTS})
