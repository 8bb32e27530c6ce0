"""How PAM-SGD's solve writes each kind of decoder."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch

from splinterp._inference import inference_mode_of
from splinterp._typing import Tensor
from splinterp.decoder import (
    DecoderSolution,
    DecoderStats,
    GCVResult,
    HeldOutResult,
    gcv_ridge,
    held_out_ridge,
    optimality_residual,
    solve_decoder,
    solve_scales,
    tied_scale,
)
from splinterp.decoder.matrix_free import MatrixFreeStats, gcv_ridge_cg, solve_decoder_cg
from splinterp.training.blocks import residual_of

if TYPE_CHECKING:
    from splinterp.training.pam import PAMSGD
    from splinterp.training.pam_state import PAMState


def solve_tied(method: PAMSGD, sae: Any, stats: DecoderStats | MatrixFreeStats) -> None:
    if isinstance(stats, MatrixFreeStats):
        sae.b_dec.copy_(stats.mean_x - stats.mean_acts @ sae.W_dec.double())
        return
    if sae.scale is not None:
        sae.scale.copy_(solve_scales(stats, sae.W_enc.T, sae.scale))
    b_dec = _solve(method, stats, sae.W_dec, sae.b_dec, math.inf, sae.W_dec).b_dec
    sae.b_dec.copy_(b_dec)


def solve_weights(method: PAMSGD, sae: Any, state: PAMState, stats: DecoderStats) -> None:
    prior = None
    if residual_of(sae) is not None:
        if method.scale == "fit":
            sae.scale.fill_(tied_scale(stats, sae.W_enc.T, fallback=float(sae.scale[0])))
        prior = sae.tied_rows()
    ridge = method.ridge
    if ridge == "held_out":
        ridge = _usable(held_out_ridge(stats, _held_out_stats(method, sae, state, stats), prior), prior)
    elif isinstance(ridge, str):
        previous = sae.W_dec if method.prox_dec else None
        chosen = gcv_ridge(stats, prior, prox=method.prox_dec, previous=previous, inflation=method.gcv_inflation)
        ridge = _usable(chosen, prior)
    solution = _solve(method, stats, sae.W_dec, sae.b_dec, ridge, prior)
    state.residual = optimality_residual(
        stats, solution, ridge=ridge, prox=method.prox_dec, previous=sae.W_dec if method.prox_dec else None, prior=prior
    )
    state.ridge = ridge
    _write(sae, prior, solution.W_dec, solution.b_dec)


def solve_matrix_free(method: PAMSGD, sae: Any, state: PAMState, stats: MatrixFreeStats) -> None:
    prior = None if residual_of(sae) is None else sae.tied_rows()
    start, ridge = sae.W_dec, method.ridge
    if isinstance(ridge, str):
        chosen = gcv_ridge_cg(stats, prior, around=state.ridge, start=start)
        ridge = _usable(chosen, prior)
    if math.isinf(ridge):
        W_dec, state.residual = torch.zeros_like(start) if prior is None else prior, 0.0
        b_dec = stats.mean_x - stats.mean_acts @ W_dec.double()
    else:
        previous = sae.W_dec if method.prox_dec else None
        W_dec, b_dec, state.residual, _ = solve_decoder_cg(
            stats, ridge=ridge, prox=method.prox_dec, previous=previous, prior=prior, start=start
        )
    state.ridge = ridge
    _write(sae, prior, W_dec, b_dec)


def _held_out_stats(method: PAMSGD, sae: Any, state: PAMState, stats: DecoderStats) -> DecoderStats:
    if state.held_out is None:
        raise ValueError(
            "ridge='held_out' needs samples that the encoder is not trained on: pass x_val to fit, or set state.held_out"
        )
    found = DecoderStats(stats.n_latents, stats.d_in, dtype=stats.dtype, device=stats.device)
    with inference_mode_of(sae):
        method.gather(sae, state, found, (x.to(sae.W_enc) for x in state.held_out.split(1024)))
    return found


def _usable(chosen: GCVResult | HeldOutResult, prior: Tensor | None) -> float:
    """The chosen ridge; without a prior the largest finite one looked at in place of infinity, since W_dec = 0 would stop the
    encoder for good."""
    if prior is not None or math.isfinite(chosen.ridge):
        return chosen.ridge
    return chosen.path[-2][0] if len(chosen.path) > 1 else 0.0


def _write(sae: Any, prior: Tensor | None, W_dec: Tensor, b_dec: Tensor) -> None:
    if prior is None:
        sae.W_dec.copy_(W_dec)
    else:
        residual_of(sae).copy_(W_dec - prior)
    sae.b_dec.copy_(b_dec)


def _solve(method: PAMSGD, stats: DecoderStats, W: Tensor, b: Tensor, ridge: float, prior: Tensor | None) -> DecoderSolution:
    previous = (W, b) if method.prox_dec or method.bias_prox else None
    bias_ridge = math.inf if method.bias == "separate" else method.bias_ridge  # inf: weights solved as if there were no bias
    solution = solve_decoder(
        stats, ridge=ridge, bias_ridge=bias_ridge, prox=method.prox_dec, bias_prox=method.bias_prox,
        previous=previous, prior=prior,
    )  # fmt: skip
    if method.bias == "separate":
        solution = solution._replace(b_dec=stats.mean_x - stats.mean_acts @ solution.W_dec)
    return solution
