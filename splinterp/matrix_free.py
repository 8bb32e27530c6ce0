"""The older name of `splinterp.decoder.matrix_free`."""

from splinterp.decoder.matrix_free import CGSolution, MatrixFreeStats, gcv_ridge_cg, held_out_ridge_cg, solve_decoder_cg

__all__ = ["CGSolution", "MatrixFreeStats", "gcv_ridge_cg", "held_out_ridge_cg", "solve_decoder_cg"]
