"""How an SAE's scores, and its codes from them, are made: parametrisations of the encoder.

`Linear` is the usual one. Another one is a subclass of `Encoder`, in a file of its own: extra parameters, and what it does with them.
"""

from splinterp.encoders.adaptive import AdaptiveK, fit_probe
from splinterp.encoders.afa import TopAFA
from splinterp.encoders.base import REGISTRY, Encoder, Linear, encoder_from_config
from splinterp.encoders.gated import Gated
from splinterp.encoders.kronecker import Kronecker
from splinterp.encoders.noise import InputNoise, Variational

__all__ = [
    "REGISTRY", "AdaptiveK", "Encoder", "Gated", "InputNoise", "Kronecker", "Linear", "TopAFA", "Variational", "encoder_from_config",
    "fit_probe",
]  # fmt: skip
