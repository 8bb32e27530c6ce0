"""splinterp: theory and algorithms for training sparse autoencoders better than plain SGD does."""

from splinterp.activations import AbsTopK, BatchTopK, JumpReLU, ReLU, TopActs, TopK
from splinterp.archetypal import ArchetypalSAE
from splinterp.sae import SAE, SAEOutput
from splinterp.training import PAMSGD, SGD, BiasAdaptation, DivergenceError, FitResult, fit
from splinterp.transcoder import Transcoder, paired

__version__ = "0.1.0"

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
    "JumpReLU",
    "ReLU",
    "SAEOutput",
    "TopActs",
    "TopK",
    "Transcoder",
    "fit",
    "paired",
]
