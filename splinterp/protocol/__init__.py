"""What a module must offer to be trained, evaluated and looked into here, and the wrapper for modules that offer less.

`SparseModel` is the interface that the rest of the package reads: codes, decoding, the decoder as a solve sees it, the encoder's
parameters, the bias. `SAE` is one. Any other `nn.Module` with the few names of `SAELike` becomes one by `as_model`.
"""

from splinterp.protocol.blocks import BiasBlock, Block
from splinterp.protocol.code import Code, dense, masked, times_fired
from splinterp.protocol.foreign import ForeignModel, as_model, said_of, sharing
from splinterp.protocol.model import NAMES, SAELike, SparseModel, alike, full_precision, inference_mode_of
from splinterp.protocol.samples import sample_blocks

__all__ = [
    "NAMES",
    "BiasBlock",
    "Block",
    "Code",
    "ForeignModel",
    "SAELike",
    "SparseModel",
    "alike",
    "as_model",
    "dense",
    "full_precision",
    "inference_mode_of",
    "masked",
    "said_of",
    "sample_blocks",
    "sharing",
    "times_fired",
]
