"""The decoder block: exact least squares from streamed statistics, and the choice of its ridge.

For dictionaries whose Gram matrix does not fit there is `splinterp.decoder.matrix_free`.
"""

from splinterp.decoder.exact import DecoderSolution, optimality_residual, solve_decoder, solve_scales, tied_scale
from splinterp.decoder.groups import group_decoders
from splinterp.decoder.readout import Readout, readout, squared_error
from splinterp.decoder.ridge import GCVResult, HeldOutResult, gcv_ridge, held_out_ridge, solve_by_gcv, solve_by_held_out
from splinterp.decoder.statistics import DecoderStats, Spectrum

__all__ = [
    "DecoderSolution",
    "DecoderStats",
    "GCVResult",
    "HeldOutResult",
    "Readout",
    "Spectrum",
    "gcv_ridge",
    "group_decoders",
    "held_out_ridge",
    "optimality_residual",
    "readout",
    "solve_by_gcv",
    "solve_by_held_out",
    "solve_decoder",
    "solve_scales",
    "squared_error",
    "tied_scale",
]
