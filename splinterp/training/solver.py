"""The exact solve of PAM-SGD: the decoder's objective, its ridge, and how the solution is written."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch

from splinterp._checks import at_least, one_of
from splinterp._documented import documented
from splinterp._typing import Tensor
from splinterp.decoder import (
    DecoderSolution,
    DecoderStats,
    GCVResult,
    HeldOutResult,
    gcv_ridge,
    optimality_residual,
    solve_by_gcv,
    solve_by_held_out,
    solve_decoder,
    solve_scales,
    tied_scale,
)
from splinterp.decoder.matrix_free import MatrixFreeStats, gcv_ridge_cg, held_out_ridge_cg, solve_decoder_cg
from splinterp.decoder.ridge import usable_ridge
from splinterp.protocol import Block, SparseModel, inference_mode_of
from splinterp.training.batches import evenly_spaced
from splinterp.training.pam_state import PAMState
from splinterp.training.rules import ENOUGH, GCV, Auto, HeldOut, Rule, named

Stats = TypeVar("Stats", DecoderStats, MatrixFreeStats)
Gather = Callable[[Any, Iterable[Tensor]], None]
"""gather(stats, batches) adds the current codes of batches to statistics."""
RowRidge = Callable[[], Tensor | None]
"""What penalties on the decoder's rows pull the rows by, (n_latents,), at the decoder as it is; None where there are none."""
CALIBRATED = 10_000
"""Training samples that set what inference needs before held-out samples are coded."""
RIDGE_SAMPLES = 1_000
"""Held-out samples by which a ridge is chosen, or a quarter of the training samples if those are more: it is one number, and their codes
are to cost less than the solve's."""
WELL_DETERMINED = 2
"""Samples a latent from which products may be taken in float32."""
RESIDUAL_COLUMNS = 8
"""Random combinations of the decoder's columns that the optimality of a solve is told by."""
ROW_STEPS = 5
"""Solves for penalties on rows, each by the quadratics that touch them at the rows before it."""


@documented
@dataclass(frozen=True, kw_only=True)
class DecoderSolver:
    """How PAM-SGD solves for the decoder. All strengths multiply sums over samples.

    Raises:
        ValueError: an option out of range, or two that exclude each other.
    """

    ridge: float | Rule = field(default=Auto())
    """Pull of a free W_dec to 0, of a tied-residual one to W_enc.T: a number, or the rule that chooses it at each solve."""
    bias: str = "joint"
    """Either "joint": weights and bias solved together, or "separate": weights without a bias, then it (as published)."""
    bias_ridge: float = 0.0
    """Pull of b_dec to 0."""
    prox: float = 0.0
    """Pull of W_dec to its value before the solve."""
    bias_prox: float = 0.0
    """Pull of b_dec to its value before the solve."""
    scale: str = "one"
    """Either "one", or "fit": the solve of a tied-residual SAE with `tie_scale` sets all scales to the best common one."""
    dtype: torch.dtype = torch.float64
    """Of the solve's sums; float64 keeps GCV reliable for fewer samples than latents. Where there are at least twice as many samples,
    products within a block of samples are of the SAE's own dtype."""

    def __post_init__(self) -> None:
        one_of("bias", self.bias, ("joint", "separate"))
        one_of("scale", self.scale, ("one", "fit"))
        for name, value in {"prox_dec": self.prox, "bias_prox": self.bias_prox, "bias_ridge": self.bias_ridge}.items():
            at_least(name, value, 0.0)
        if isinstance(self.ridge, Rule):
            rule = named(self.ridge)
            if self.bias_ridge or self.bias_prox or self.bias == "separate":
                raise ValueError(
                    f"ridge={rule!r} assumes an unpenalised joint bias: set bias_ridge=0, bias_prox=0, bias='joint', or give the ridge as "
                    "a number"
                )
            if rule == "held_out" and self.prox:
                raise ValueError("ridge='held_out' takes no prox_dec and no gcv_inflation")
        else:
            at_least("ridge", self.ridge, 0.0)
            object.__setattr__(self, "ridge", float(self.ridge))  # of NumPy, or a tensor of one number
        if self.bias == "separate" and (self.bias_ridge or self.bias_prox):
            raise ValueError("bias='separate' takes no bias_ridge or bias_prox")

    @property
    def wants_x_val(self) -> bool:
        """Whether the ridge is chosen by held-out samples."""
        return isinstance(self.ridge, HeldOut)

    @property
    def chooses(self) -> bool:
        """Whether a rule chooses the ridge, and no other strength is given."""
        return isinstance(self.ridge, Rule) and not self.prox

    @property
    def plain(self) -> bool:
        """Whether nothing is asked for but the squared error."""
        return isinstance(self.ridge, Auto) and not self.prox and self.plain_bias

    @property
    def plain_bias(self) -> bool:
        """Whether the bias is solved for with the weights, and nothing pulls it."""
        return self.bias == "joint" and not (self.bias_ridge or self.bias_prox)

    def rule(self, state: PAMState) -> float | GCV | HeldOut:
        """What the ridge is chosen by in this run."""
        if not isinstance(self.ridge, Auto):
            return self.ridge
        n_held_out = 0 if state.held_out is None else len(state.held_out)
        return HeldOut() if n_held_out >= ENOUGH and not self.prox else GCV()

    def statistics(self, model: SparseModel, n_samples: int) -> DecoderStats:
        """Empty ones for the codes of so many samples."""
        d_in, n_latents = model.shape
        own = model.b_dec.dtype
        lower = own == torch.float32 and n_samples >= WELL_DETERMINED * n_latents
        return DecoderStats(n_latents, d_in, dtype=self.dtype, device=model.b_dec.device, products=own if lower else None)

    def matrix_free(self, model: SparseModel) -> bool:
        """Whether a solve for the squared error of this model's codes needs no Gram matrix."""
        block = model.decoder_block()
        if not model.trains_sparse or block.scales is not None or block.solve is not None:
            return False
        inflated = isinstance(self.ridge, GCV) and self.ridge.inflation != 1
        return self.plain_bias and not inflated and (self.chooses or isinstance(self.ridge, int | float))

    def solve(
        self, state: PAMState, stats: DecoderStats | MatrixFreeStats, gather: Gather, row_ridge: RowRidge = lambda: None
    ) -> None:
        """Solve from statistics of the current codes, write the decoder, and set `state.ridge` and `state.residual`."""
        block = state.model.decoder_block()
        if block.solve is not None:
            state.residual = block.solve(stats)
        elif block.tied:
            self._solve_tied(state, block, stats)
        elif isinstance(stats, MatrixFreeStats):
            self._solve_matrix_free(state, block, stats, gather)
        else:
            self._solve_weights(state, block, stats, gather, row_ridge)

    def _solve_tied(self, state: PAMState, block: Block, stats: DecoderStats | MatrixFreeStats) -> None:
        if isinstance(stats, MatrixFreeStats):
            W_dec = state.model.W_dec
            block.write(W_dec, (stats.mean_x - stats.mean_acts @ W_dec.double()).to(W_dec))
            return
        if block.scales is not None:
            rows = state.model.encoder_weights()
            assert rows is not None
            block.scales.copy_(solve_scales(stats, rows.T, block.scales))
        W_dec, b_dec = state.model.W_dec, state.model.b_dec
        block.write(W_dec, self._exact(stats, W_dec, b_dec, math.inf, W_dec).b_dec)

    def _solve_weights(self, state: PAMState, block: Block, stats: DecoderStats, gather: Gather, row_ridge: RowRidge) -> None:
        model = state.model
        if self.scale == "fit":
            rows = model.encoder_weights()
            assert block.scales is not None
            assert rows is not None
            block.scales.fill_(tied_scale(stats, rows.T, fallback=float(block.scales[0])))
            block = model.decoder_block()
        W, b, pulls = model.W_dec, model.b_dec, row_ridge()
        chosen: GCVResult | HeldOutResult | None = None
        solution: DecoderSolution | None = None
        rule = self.rule(state)
        if isinstance(rule, HeldOut):
            held_out = held_out_stats(state, stats, gather, held_out_samples(stats.n_samples))
            solution, chosen = solve_by_held_out(stats, held_out, block.prior, around=state.ridge)
        elif isinstance(rule, GCV) and self.prox:
            chosen = gcv_ridge(stats, block.prior, prox=self.prox, previous=W, inflation=rule.inflation)
        elif isinstance(rule, GCV):
            solution, chosen = solve_by_gcv(stats, block.prior, inflation=rule.inflation, around=state.ridge)
        ridge = rule if chosen is None else usable_ridge(chosen, block.prior)
        assert isinstance(ridge, int | float)
        if pulls is not None:
            W, b = W.clone(), b.clone()
        if solution is None or chosen is None or ridge != chosen.ridge or pulls is not None:
            solution = self._exact(stats, W, b, ridge, block.prior, pulls)
        for _ in range(0 if pulls is None else ROW_STEPS - 1):
            block.write(solution.W_dec, solution.b_dec)
            pulls = row_ridge()
            solution = self._exact(stats, W, b, ridge, block.prior, pulls)
        state.residual = optimality_residual(
            stats, solution, ridge=ridge, prox=self.prox, previous=W if self.prox else None, prior=block.prior,
            row_ridge=pulls, columns=RESIDUAL_COLUMNS,
        )  # fmt: skip
        state.ridge = float(ridge)
        block.write(solution.W_dec, solution.b_dec)

    def _solve_matrix_free(self, state: PAMState, block: Block, stats: MatrixFreeStats, gather: Gather) -> None:
        start, rule = state.model.W_dec, self.rule(state)
        if isinstance(rule, int | float):
            ridge = float(rule)
        elif isinstance(rule, HeldOut):
            held_out = held_out_stats(state, stats, gather, held_out_samples(stats.n_samples))
            ridge = usable_ridge(held_out_ridge_cg(stats, held_out, block.prior, around=state.ridge, start=start), block.prior)
        else:
            ridge = usable_ridge(gcv_ridge_cg(stats, block.prior, around=state.ridge, start=start), block.prior)
        if math.isinf(ridge):
            W_dec, state.residual = torch.zeros_like(start) if block.prior is None else block.prior, 0.0
            b_dec = stats.mean_x - stats.mean_acts @ W_dec.double()
        else:
            previous = start if self.prox else None
            W_dec, b_dec, state.residual, _ = solve_decoder_cg(
                stats, ridge=ridge, prox=self.prox, previous=previous, prior=block.prior, start=start
            )
        state.ridge = ridge
        block.write(W_dec, b_dec)

    def _exact(
        self, stats: DecoderStats, W: Tensor, b: Tensor, ridge: float, prior: Tensor | None, rows: Tensor | None = None
    ) -> DecoderSolution:
        previous = (W, b) if self.prox or self.bias_prox else None
        bias_ridge = math.inf if self.bias == "separate" else self.bias_ridge  # inf: weights solved as if there were no bias
        solution = solve_decoder(
            stats, ridge=ridge, bias_ridge=bias_ridge, prox=self.prox, bias_prox=self.bias_prox, previous=previous, prior=prior,
            row_ridge=rows,
        )  # fmt: skip
        if self.bias == "separate":
            solution = solution._replace(b_dec=stats.mean_x - stats.mean_acts @ solution.W_dec)
        return solution


def held_out_stats(state: PAMState, stats: Stats, gather: Gather, most: int | None = None) -> Stats:
    """Statistics of the codes of the held-out samples, or of at most so many of them (evenly spaced), like those of the training samples.
    Raises ValueError: there are no such samples."""
    if state.held_out is None:
        raise ValueError(
            "ridge='held_out' needs samples that the encoder is not trained on: pass x_val to fit, or set state.held_out"
        )
    found = stats.empty()
    x_val = state.held_out if most is None else evenly_spaced(state.held_out, most)
    state.model.calibrate(state.data[:CALIBRATED])  # the threshold of a BatchTopK is of the encoder as it is
    with inference_mode_of(state.model):
        gather(found, (x.to(state.model.b_dec) for x in x_val.split(1024)))
    return found


def held_out_samples(n_samples: float) -> int:
    """The most that a ridge is chosen by, beside so many training samples."""
    return max(RIDGE_SAMPLES, int(n_samples / 4))
