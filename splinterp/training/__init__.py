"""Training: one loop, and methods that say which block moves how."""

from splinterp.training.base import DivergenceError, GradientOptions, TrainState
from splinterp.training.bias_adaptation import BiasAdaptation, BiasState
from splinterp.training.blocks import SAELike
from splinterp.training.distributed import ProcessGroup, WorkerLostError
from splinterp.training.firing import FiringCounter
from splinterp.training.fit import FitResult, fit
from splinterp.training.pam import PAMSGD
from splinterp.training.pam_state import PAMState
from splinterp.training.sgd import SGD
from splinterp.training.streaming import StreamingPAMSGD

__all__ = [
    "PAMSGD",
    "SGD",
    "BiasAdaptation",
    "BiasState",
    "DivergenceError",
    "FiringCounter",
    "FitResult",
    "GradientOptions",
    "PAMState",
    "ProcessGroup",
    "SAELike",
    "StreamingPAMSGD",
    "TrainState",
    "WorkerLostError",
    "fit",
]
