"""PAM-SGD: gradients on the encoder (and, if wanted, the decoder), exact least squares on the decoder.

Source: SplInterp, arXiv 2505.11836, Algorithm 3.1. The tied-residual decoder, the ridge by GCV and the gradient phase
on both blocks are this package's own.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from splinterp._checks import at_least, one_of
from splinterp._typing import ArrayLike, Tensor
from splinterp.activations import TopActs
from splinterp.data.store import ActivationStore
from splinterp.decoder import DecoderStats
from splinterp.decoder.matrix_free import MatrixFreeStats
from splinterp.sae import SAE
from splinterp.training.base import DivergenceError, GradientOptions, training_data
from splinterp.training.blocks import SAELike, codes_of, decoder_weights, encoder_parameters, residual_of, sharing
from splinterp.training.pam_solves import solve_matrix_free, solve_tied, solve_weights
from splinterp.training.pam_state import PAMState

MATRIX_FREE_FROM = 8_192
"""Latents from which solves of k-sparse codes are matrix-free: the Gram matrix would have 512 MiB in float64."""
NEVER = 10**9
"""Steps between solves, where there is only the last one."""


@dataclass(frozen=True, kw_only=True)
class PAMSGD(GradientOptions):
    """Alternate a gradient phase with an exact decoder solve.

    The defaults are the variant we recommend, best with `SAE(decoder="tied_residual")`: gradients on every block, an
    exact solve after every epoch (but at least 50 steps apart), its ridge by GCV; on a language model's activations
    `hold=0.1` is better (see experiments/RESULTS.md). `PAMSGD.published()` is the paper's
    algorithm. To drive it by hand: `encoder_step` (which `fit` calls as `step`) on batches, `decoder_step` when you
    want the solve; `end_epoch` is `decoder_step` where one is due.

    All strengths multiply sums over the N training samples; the gradient phase, whose loss is a mean, divides them by
    N d_in. The solve minimises over weights and bias together: a free W_dec is pulled to 0 by `ridge`, a tied-residual
    one to W_enc.T; of a tied decoder only b_dec moves (and its scales, where it has them).

    Raises:
        ValueError: an option out of range, or two that exclude each other.
    """

    gradient: str = "both"
    """Blocks the gradient phase moves: "both"; "tied": all but the residual of a tied-residual decoder, which moves by solves alone;
    or "encoder" (the decoder, bias and all, moves by solves alone)."""
    hold: float = 0.0
    """Share of the steps for which the residual of a tied-residual decoder stays as it starts, at 0, and nothing is solved; the first
    solve after it decides by its ridge whether the residual comes in. (Let in from the start it is fitted to an encoder that has
    learned nothing, which then learns around it.) 0: let in from the first step. Where the number of steps is unknown, any other
    share means until the first solve."""
    encoder_updates: int = 1
    """Gradient updates on each batch; steps and the schedule count batches."""
    prox_enc: float = 0.0
    """Pull of W_enc and b_enc to their values at the last solve; multiplies a sum over samples."""
    prox_dec: float = 0.0
    """Pull of W_dec to its value before the solve; multiplies a sum over samples."""
    bias_prox: float = 0.0
    """Pull of b_dec to its value before the solve; multiplies a sum over samples."""
    ridge: float | str = "gcv"
    """Ridge of the solve, multiplying a sum over samples; "gcv": chosen at each solve by cross-validation; "held_out": by the error on
    samples that the encoder has not seen, the x_val of `fit` (or set `state.held_out`)."""
    gcv_inflation: float = 1.0
    """Factor on the decoder's degrees of freedom in GCV, at least 1; larger values choose larger ridges."""
    bias_ridge: float = 0.0
    """Pull of b_dec to 0 in the solve; multiplies a sum over samples."""
    bias: str = "joint"
    """Either "joint": weights and bias solved together, or "separate": weights without a bias, then it (as published)."""
    solve_gap: int = 50
    """Least number of steps between two solves at ends of epochs, but for gradient="encoder". On few samples an epoch is a few
    steps, and solving that often raised the validation error of TopK (not of AbsTopK). The last epoch always ends on a
    solve. Where the decoder moves by solves alone, and where the number of steps is unknown, every epoch does."""
    decoder_every: int | None = None
    """Solve after every so many steps, and at the end of an epoch that did not end on one, whatever `solve_gap`."""
    solve_first: bool = False
    """Solve at the start of each epoch instead of its end: the decoder is then evaluated stale (as published for LLMs)."""
    scale: str = "one"
    """Either "one", or "fit": the solve of a tied-residual SAE with `tie_scale` sets all scales to the best common one."""
    stats_dtype: torch.dtype = torch.float64
    """Of the solve's sums; float64 keeps GCV reliable for fewer samples than latents."""

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("gradient", self.gradient, ("both", "tied", "encoder"))
        one_of("bias", self.bias, ("joint", "separate"))
        one_of("scale", self.scale, ("one", "fit"))
        at_least("encoder_updates", self.encoder_updates, 1)
        at_least("gcv_inflation", self.gcv_inflation, 1.0)
        at_least("solve_gap", self.solve_gap, 1)
        at_least("hold", self.hold, 0.0)
        if self.hold > 1:
            raise ValueError(f"hold={self.hold} is a share of the steps: at most 1")
        if self.hold and self.gradient != "both":
            raise ValueError(f"hold={self.hold} acts only with gradient='both', not gradient={self.gradient!r}")
        for name in ("prox_enc", "prox_dec", "bias_prox", "bias_ridge"):
            at_least(name, getattr(self, name), 0.0)
        if isinstance(self.ridge, str):
            one_of("ridge", self.ridge, ("gcv", "held_out"))
            if self.bias_ridge or self.bias_prox or self.bias == "separate":
                raise ValueError(
                    f"ridge={self.ridge!r} assumes an unpenalised joint bias: set bias_ridge=0, bias_prox=0, bias='joint'"
                )
            if self.ridge == "held_out" and (self.prox_dec or self.gcv_inflation != 1):
                raise ValueError("ridge='held_out' takes no prox_dec and no gcv_inflation")
        else:
            at_least("ridge", self.ridge, 0.0)
            if self.gcv_inflation != 1:
                raise ValueError(f"gcv_inflation={self.gcv_inflation} acts only with ridge='gcv', not ridge={self.ridge}")
        if self.bias == "separate" and (self.bias_ridge or self.bias_prox):
            raise ValueError("bias='separate' takes no bias_ridge or bias_prox")
        if self.decoder_every is not None:
            at_least("decoder_every", self.decoder_every, 1)
            if self.solve_first:
                raise ValueError("solve_first=True and decoder_every exclude each other: drop one")

    @classmethod
    def published(
        cls,
        *,
        mu: float = 0.0,
        nu: float = 0.0,
        weight_decay: float = 0.0,
        n_samples: int | None = None,
        d_in: int | None = None,
        **options: Any,
    ) -> PAMSGD:
        """The algorithm of arXiv 2505.11836 as its scripts run it; `options` override.

        Encoder-only gradients at a constant step size, weights solved without the bias, and the decay entering the
        solve squared. mu and nu are the paper's strengths (its loss is a mean), converted by N d_in to sums.

        Raises ValueError: mu or nu without `n_samples` and `d_in`.
        """
        if (mu or nu) and (n_samples is None or d_in is None):
            raise ValueError("mu and nu are strengths of a mean loss: pass n_samples and d_in to convert them")
        size = (n_samples or 0) * (d_in or 0)
        defaults: dict[str, Any] = {
            "gradient": "encoder", "schedule": "constant", "ridge": weight_decay**2, "bias": "separate",
            "weight_decay": weight_decay, "prox_enc": mu * size, "prox_dec": nu * size,
        }  # fmt: skip
        return cls(**{**defaults, **options})

    @classmethod
    def final_solve(cls, **options: Any) -> PAMSGD:
        """Tied SGD, then one exact solve for the residual, its ridge chosen on held-out samples; `options` override.

        For few samples seen many times: a decoder of its own overfits in training, and changes what the encoder learns.
        """
        defaults: dict[str, Any] = {"gradient": "tied", "solve_gap": NEVER, "ridge": "held_out"}
        return cls(**{**defaults, **options})

    def init(self, sae: SAELike, x: ArrayLike | ActivationStore, total_steps: int | None = None) -> PAMState:
        """Start training on x (N, d_in) or a store. `total_steps` (batches) sets the schedule's length; None: constant step size.

        Raises TypeError, ValueError: a module or data that does not fit.
        """
        self.check_module(sae)
        if self.scale == "fit" and not (isinstance(sae, SAE) and sae.decoder == "tied_residual" and sae.scale is not None):
            raise ValueError("scale='fit' needs SAE(decoder='tied_residual', tie_scale=True)")
        tied = isinstance(sae, SAE) and sae.decoder == "tied"
        weights, bias = decoder_weights(sae), sharing(sae, sae.b_dec)
        if not bias or not (weights or tied):
            raise TypeError(f"a solve writes W_dec and b_dec, which {type(sae).__name__} shares with W_enc or computes")
        if tied and (self.prox_dec or self.ridge not in ("gcv", 0.0)):
            raise ValueError(f"ridge={self.ridge}, prox_dec={self.prox_dec} do not act on a tied decoder: leave them out")
        if not tied and residual_of(sae) is None and self.ridge == math.inf:
            raise ValueError("ridge=inf would hold a free W_dec at 0: choose a finite ridge or decoder='tied_residual'")
        scales = [sae.scale] if isinstance(sae, SAE) and sae.scale is not None else []
        if (self.gradient == "tied" or self.hold) and residual_of(sae) is None:
            option = "gradient='tied'" if self.gradient == "tied" else f"hold={self.hold}"
            raise ValueError(f"{option} holds a residual: it needs SAE(decoder='tied_residual')")
        fixed = {"both": [], "tied": weights, "encoder": [*weights, *bias, *scales]}[self.gradient]
        optimizer = self.make_optimizer(sae, fixed=fixed)
        ridge = None if tied or isinstance(self.ridge, str) else float(self.ridge)
        state = PAMState(
            optimizer, training_data(sae, x), total_steps, ridge=ridge, held=self.hold > 0,
            wants_held_out=self.ridge == "held_out",
        )  # fmt: skip
        self._set_anchor(sae, state)
        return state

    def step(self, sae: SAELike, state: PAMState, x: Tensor) -> None:
        """The gradient phase on a batch (n, d_in). Raises DivergenceError."""
        if self.solve_first and not state.in_epoch and not self.waits(state):
            self.decoder_step(sae, state, state.data.split(len(x)))
        state.in_epoch = True
        for _ in range(self.encoder_updates):
            self.gradient_update(sae, state, x)
        state.step += 1
        state.since_solve += 1
        if self.decoder_every is not None and state.step % self.decoder_every == 0 and not self.waits(state):
            self.decoder_step(sae, state, state.data.split(len(x)))

    encoder_step = step

    def end_epoch(self, sae: SAELike, state: PAMState, batches: Iterable[Tensor]) -> None:
        """The exact solve on all `batches`, if one is due: see `hold`, `solve_gap`, `decoder_every` and `solve_first`."""
        state.in_epoch = False
        if self.waits(state):
            return
        rests = self.gradient != "encoder" and self.decoder_every is None and state.total_steps is not None and not state.held
        unfinished = state.total_steps is not None and state.step < state.total_steps
        due = state.since_solve > 0 and not (rests and unfinished and state.since_solve < self.solve_gap)
        if due and not self.solve_first:
            self.decoder_step(sae, state, batches)

    def waits(self, state: PAMState) -> bool:
        """Whether the residual is held and its share of the steps is not over."""
        return state.held and state.total_steps is not None and state.step < self.hold * state.total_steps

    @torch.no_grad()
    def decoder_step(self, sae: SAELike, state: PAMState, batches: Iterable[Tensor]) -> None:
        """Solve for the decoder exactly on all samples of `batches`, in one pass.

        TopK and AbsTopK dictionaries of at least `MATRIX_FREE_FROM` latents are solved by conjugate gradients instead
        (`splinterp.decoder.matrix_free`), in the SAE's dtype, unless an option of the bias or of GCV needs the Gram matrix.

        Raises ValueError if there are none, DivergenceError if a code is not finite.
        """
        W_dec = sae.W_dec
        stats: Any
        if self._matrix_free(sae):
            stats = MatrixFreeStats(*W_dec.shape, dtype=W_dec.dtype)
        else:
            stats = DecoderStats(*W_dec.shape, dtype=self.stats_dtype, device=W_dec.device)
        own = batches if state.processes is None else state.processes.deal(batches)
        self.gather(sae, state, stats, (x.to(device=W_dec.device, dtype=W_dec.dtype) for x in own))
        if state.processes is not None:
            state.processes.merge_stats(stats)
        self.solve(sae, state, stats)
        if state.processes is not None:  # the same solve everywhere, and the same bits
            state.processes.broadcast_(p.detach() for p in sae.parameters())

    @torch.no_grad()
    def gather(self, sae: SAELike, state: PAMState, stats: Any, batches: Iterable[Tensor]) -> None:
        """Add the current codes of `batches` to statistics. Raises DivergenceError if one is not finite."""
        for x, acts in codes_of(sae, batches):
            if not torch.isfinite(acts.top_acts if isinstance(acts, TopActs) else acts).all():
                raise DivergenceError(state.step, state)
            stats.update(acts, x)

    def _matrix_free(self, sae: SAELike) -> bool:
        if not isinstance(sae, SAE) or sae.n_latents < MATRIX_FREE_FROM or not sae.trains_sparse or sae.scale is not None:
            return False
        if sae.W_enc.device.type != "cpu":  # its products with codes are a CPU's; a GPU forms the Gram matrix
            return False
        plain_bias = self.bias == "joint" and not (self.bias_ridge or self.bias_prox)
        return (
            plain_bias
            and self.ridge != "held_out"
            and (self.ridge != "gcv" or (self.prox_dec == 0 and self.gcv_inflation == 1))
        )

    @torch.no_grad()
    def solve(self, sae: SAELike, state: PAMState, stats: DecoderStats | MatrixFreeStats) -> None:
        """Solve for the decoder from statistics of the current codes. Raises ValueError if they are empty."""
        if stats.n_samples == 0:
            raise ValueError("the statistics are empty: there were no samples to solve for")
        if isinstance(sae, SAE) and sae.decoder == "tied":
            solve_tied(self, sae, stats)
        elif isinstance(stats, MatrixFreeStats):
            solve_matrix_free(self, sae, state, stats)
        else:
            solve_weights(self, sae, state, stats)
        state.since_solve, state.in_epoch, state.held = 0, False, False
        self._set_anchor(sae, state)

    def _set_anchor(self, sae: SAELike, state: PAMState) -> None:
        if self.prox_enc:
            state.anchor = [p.detach().clone() for p in encoder_parameters(sae)]

    def adjust_gradients(self, sae: SAELike, state: PAMState) -> None:
        """Add the gradients of prox_enc and of the last solve's ridge; an infinite ridge holds a residual at 0, as `hold` does.

        Before the first solve with ridge="gcv" there is no ridge yet, and none acts.
        """
        size = self.solved_numbers(state)  # strengths of sums become strengths of the mean loss
        if self.prox_enc and state.anchor is not None:
            for p, anchor in zip(encoder_parameters(sae), state.anchor, strict=True):
                if p.grad is not None:
                    p.grad.add_(p.detach() - anchor.to(p), alpha=2 * self.prox_enc / size)
        residual = residual_of(sae)
        if residual is not None and (state.held or state.ridge == math.inf):
            residual.grad = None
        elif state.ridge and self.gradient == "both":
            for p in decoder_weights(sae):
                if p.grad is not None:
                    p.grad.add_(p.detach(), alpha=2 * state.ridge / size)

    def solved_numbers(self, state: PAMState) -> float:
        """N d_in: the numbers that the strengths' sums run over."""
        return state.data.numel()
