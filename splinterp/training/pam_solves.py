"""The exact solve as a method does it: which codes it goes by, and where its sums are gathered."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch

from splinterp._typing import Tensor
from splinterp.decoder import DecoderStats
from splinterp.decoder.matrix_free import MatrixFreeStats
from splinterp.losses.forward import Forward
from splinterp.losses.terms import Reconstruction, SquaredError, Term
from splinterp.protocol import SAELike, SparseModel, sample_blocks
from splinterp.training.batches import rows_of
from splinterp.training.pam_state import PAMState
from splinterp.training.solver import DecoderSolver
from splinterp.training.train_state import DivergenceError, TrainState
from splinterp.training.when import GRAM_LATENTS

MATRIX_FREE_FROM = GRAM_LATENTS
"""Latents from which solves of k-sparse codes are matrix-free: the Gram matrix would have 512 MiB in float64."""


class Solves:
    """A decoder step by the method's `solver` and loss terms."""

    if TYPE_CHECKING:
        solver: DecoderSolver

        @property
        def loss_terms(self) -> tuple[Term, ...]: ...

        def penalty_share(self, state: TrainState | None) -> float: ...

    @torch.no_grad()
    def decoder_step(self, sae: SAELike, state: PAMState, batches: Iterable[Tensor]) -> None:
        """Solve for the decoder exactly on all samples of `batches`, in one pass.

        The objective is that of the reconstruction terms: each of their codes, by its weight. TopK and AbsTopK dictionaries of at least
        `MATRIX_FREE_FROM` latents are solved by conjugate gradients instead (`splinterp.decoder.matrix_free`), in the SAE's dtype,
        unless a term, or an option of the bias or of GCV, needs the Gram matrix.

        Raises ValueError if there are none, DivergenceError if a code is not finite.
        """
        d_in, n_latents = state.model.shape
        b_dec = state.model.b_dec
        stats: Any
        if self.matrix_free(state.model):
            stats = MatrixFreeStats(n_latents, d_in, dtype=b_dec.dtype, device=b_dec.device)
        else:
            stats = self.solver.statistics(state.model, rows_of(batches, len(state.data)))
        own = batches if state.processes is None else state.processes.deal(batches)
        state.totals = self.no_totals(state.model)
        self.gather(sae, state, stats, (x.to(device=b_dec.device, dtype=b_dec.dtype) for x in own), state.totals)
        if state.processes is not None:
            state.processes.merge_stats(stats)
            state.processes.sum_(state.totals.values())
        self.solve(sae, state, stats)
        if state.processes is not None:  # the same solve everywhere, and the same bits
            state.processes.broadcast_(p.detach() for p in sae.parameters())

    @property
    def reconstructions(self) -> tuple[Reconstruction, ...]:
        """The terms that the solve minimises."""
        return tuple(term for term in self.loss_terms if isinstance(term, Reconstruction))

    @property
    def row_penalties(self) -> tuple[Term, ...]:
        """The other terms that the solve sees, by `row_ridge`."""
        return tuple(term for term in self.loss_terms if type(term).row_ridge is not Term.row_ridge)

    def no_totals(self, model: SparseModel) -> dict[str, Tensor]:
        """Sums of no samples for each of `row_penalties`, by name."""
        return {
            term.name: torch.zeros(model.shape[1], dtype=torch.float64, device=model.b_dec.device)
            for term in self.row_penalties
        }

    @torch.no_grad()
    def gather(
        self, sae: SAELike, state: PAMState, stats: Any, batches: Iterable[Tensor], totals: dict[str, Tensor] | None = None
    ) -> None:
        """Add the current codes of `batches` to statistics, and what penalties on rows need to `totals`.

        Raises DivergenceError if a code is not finite.
        """
        terms = self.reconstructions
        scores = any(term.reads_scores for term in (*terms, *(() if totals is None else self.row_penalties)))
        for x in sample_blocks(state.model, batches, alone=any(term.couples_samples for term in terms)):
            out = Forward(state.model, x, scores)
            if not torch.isfinite(out.values()).all():
                raise DivergenceError(state.step, state)
            again = False
            for term in terms:
                for weight, code in term.codes(out):
                    share = weight * term.weight
                    if again or isinstance(share, Tensor) or share != 1:
                        stats.update(code, out.target, share, again)
                    else:
                        stats.update(code, out.target)
                    again = True
            if totals is not None:
                for penalty in self.row_penalties:
                    totals[penalty.name] += penalty.row_totals(out)

    def matrix_free(self, model: SparseModel) -> bool:
        """Whether a solve for this model's decoder forms no Gram matrix."""
        large = model.shape[1] >= MATRIX_FREE_FROM and self.reconstructions == (SquaredError(),) and not self.row_penalties
        return large and self.solver.matrix_free(model)

    @torch.no_grad()
    def solve(self, sae: SAELike, state: PAMState, stats: DecoderStats | MatrixFreeStats) -> None:
        """Solve for the decoder from statistics of the current codes. Raises ValueError if they are empty."""
        if stats.n_samples == 0:
            raise ValueError("the statistics are empty: there were no samples to solve for")

        def row_ridge() -> Tensor | None:
            total, rising = None, self.penalty_share(state)
            for term in self.row_penalties:
                found = term.row_ridge(state.model, state.totals[term.name], stats.n_samples)
                if found is not None:
                    total = term.weight * rising * found + (0.0 if total is None else total)
            return total

        self.solver.solve(state, stats, lambda found, batches: self.gather(sae, state, found, batches), row_ridge)
        self.after_solve(state)

    def after_solve(self, state: PAMState) -> None:
        """What a solve changes besides the decoder."""
        state.since_solve, state.epochs_since_solve, state.in_epoch, state.held = 0, 0, False, False
        state.solves += 1
