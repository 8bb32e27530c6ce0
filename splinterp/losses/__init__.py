"""What is minimised: terms of a loss, each a small class of its own, over one lazy forward pass."""

from splinterp.losses.blocks import Blocks, Mutual
from splinterp.losses.dead_latents import AuxK
from splinterp.losses.forward import Forward
from splinterp.losses.gate import GateError, GateL1, GateReconstruction
from splinterp.losses.hierarchical import HierarchicalTopK
from splinterp.losses.jacobian import JacobianL1
from splinterp.losses.matryoshka import Matryoshka, RandomMatryoshka
from splinterp.losses.orthogonality import OrtSAE
from splinterp.losses.penalties import GaussianPrior, NormMatch, PAnneal, PreActs
from splinterp.losses.row_norms import RowNormL1, Tanh
from splinterp.losses.terms import L0, L1, Reconstruction, SquaredError, Term
from splinterp.losses.tilted import Tilted

__all__ = [
    "L0",
    "L1",
    "AuxK",
    "Blocks",
    "Forward",
    "GateError",
    "GateL1",
    "GateReconstruction",
    "GaussianPrior",
    "HierarchicalTopK",
    "JacobianL1",
    "Matryoshka",
    "Mutual",
    "NormMatch",
    "OrtSAE",
    "PAnneal",
    "PreActs",
    "RandomMatryoshka",
    "Reconstruction",
    "RowNormL1",
    "SquaredError",
    "Tanh",
    "Term",
    "Tilted",
]
