"""Training: one loop, and methods that say which block moves how."""

from splinterp.protocol import SAELike
from splinterp.training.base import GradientOptions
from splinterp.training.bias_adaptation import BiasAdaptation
from splinterp.training.bias_state import BiasState
from splinterp.training.distributed import ProcessGroup, WorkerLostError
from splinterp.training.firing import FiringCounter
from splinterp.training.fit import FitResult, fit
from splinterp.training.inspection import start_at_mean
from splinterp.training.loggers import CSVLogger, TensorBoardLogger, WandbLogger, several
from splinterp.training.method import Method, State
from splinterp.training.muon import Muon
from splinterp.training.pam import PAMSGD
from splinterp.training.pam_state import PAMState
from splinterp.training.race import Race, Racing
from splinterp.training.resampling import Resampling
from splinterp.training.rules import GCV, Auto, HeldOut
from splinterp.training.sgd import SGD
from splinterp.training.solver import DecoderSolver
from splinterp.training.streaming import StreamingPAMSGD
from splinterp.training.train_state import DivergenceError, Silence, TrainState
from splinterp.training.when import AtEnd, EveryEpoch, EverySteps, Refresh, When

__all__ = [
    "GCV",
    "PAMSGD",
    "SGD",
    "AtEnd",
    "Auto",
    "BiasAdaptation",
    "BiasState",
    "CSVLogger",
    "DecoderSolver",
    "DivergenceError",
    "EveryEpoch",
    "EverySteps",
    "FiringCounter",
    "FitResult",
    "GradientOptions",
    "HeldOut",
    "Method",
    "Muon",
    "PAMState",
    "ProcessGroup",
    "Race",
    "Racing",
    "Refresh",
    "Resampling",
    "SAELike",
    "Silence",
    "State",
    "StreamingPAMSGD",
    "TensorBoardLogger",
    "TrainState",
    "WandbLogger",
    "When",
    "WorkerLostError",
    "fit",
    "several",
    "start_at_mean",
]
