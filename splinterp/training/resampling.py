"""Resampling: latents that have fallen silent start again at what the others leave unexplained.

Source: Bricken et al. 2023, "Towards Monosemanticity", appendix on neuron resampling. As there: the sample is drawn with probability
proportional to the square of its loss, the encoder column has 0.2 of the mean norm of those of living latents, the bias is 0, the decoder
row has norm 1, and the optimizer's moments of all of these are forgotten. Unlike there the new direction is that of the sample's
residual x - x_hat, not of the sample, and no two latents start at the same sample.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from splinterp._checks import share_of_steps, whole
from splinterp._documented import documented
from splinterp._typing import Float, Int, Tensor
from splinterp.data.store import ActivationStore
from splinterp.protocol import SparseModel, sharing
from splinterp.training.optimizers import TwoModes
from splinterp.training.train_state import DivergenceError, Silence, TrainState

LENGTH = 0.2
"""Norm of a new encoder column, in mean norms of those of living latents."""
ROWS = 4096
"""Samples whose residuals are computed at a time."""


@documented
@dataclass(frozen=True, kw_only=True)
class Resampling:
    """Re-initialise, every `every` steps, the latents that fired on none of the last `dead_after` training samples.

    Each gets the direction of the residual of a training sample, drawn with probability proportional to its squared error's square: as
    encoder column, at 0.2 of the mean norm of the living latents' columns, and as decoder row, of norm 1 (a tied decoder has the
    column as its row; a residual starts at 0 again). b_enc becomes 0, an output scale 1, a threshold of JumpReLU 0.2 of the living latents'
    mean; other parameters that an encoder may have stay. Where there are fewer samples with an error than silent latents, the rest wait.

    Firing is counted by batches, once for each gradient that is taken of one, and needs their codes: the fused kernel of TopK and
    AbsTopK gives none, so that it rests until the last resampling. Nothing is resampled after the last step.

    Raises:
        TypeError, ValueError: an option out of range.
    """

    every: int
    """Steps between resamplings."""
    dead_after: int
    """A latent is dead if it has been silent for so many training samples."""
    until: float = 0.5
    """Share of the steps after which it stops, so that what is new has time to learn."""
    samples: int = 8_192
    """Training samples whose errors are looked at: all, or so many drawn with replacement, duplicates left out."""
    seed: int = 0
    """Of the draws."""

    def __post_init__(self) -> None:
        for name in ("every", "dead_after", "samples", "seed"):
            object.__setattr__(self, name, whole(f"resample: {name}", getattr(self, name), 0 if name == "seed" else 1))
        share_of_steps("resample: until", self.until, strict=True)
        if self.samples > 2**24:
            raise ValueError(f"resample: samples={self.samples} is more than can be drawn from: at most {2**24}")

    def start(self, model: SparseModel, optimizer: Any, total_steps: int | None) -> Silence:
        """What is kept from step to step.

        Raises TypeError, ValueError: a model whose encoder or decoder rows cannot be written, an optimizer that keeps parameters of its
        own, an unknown number of steps, or too few of them for one resampling.
        """
        name = model.label
        if model.pairs:
            raise TypeError(
                f"resample starts a latent along a residual, which of {name} is no input: leave it out, or use the term AuxK"
            )
        if model.encoder_weights() is None or model.encoder_bias() is None:
            raise TypeError(
                f"resample writes into the columns of W_enc and b_enc, one for each latent, and {name} has none that are parameters: leave "
                "resample out"
            )
        block = model.decoder_block()
        if block.solve is not None or model.constrained:
            raise TypeError(
                f"resample writes rows and columns of weights, which {name} holds in sets: leave it out, or use the term AuxK"
            )
        if not block.weights and not block.tied and not sharing(model, model.W_dec):
            raise TypeError(f"resample writes into W_dec, which {name} computes: make it a parameter")
        if isinstance(optimizer, TwoModes):
            raise ValueError(
                f"resample writes into parameters of which {type(optimizer).__name__} keeps copies: take another optimizer"
            )
        if total_steps is None:
            raise ValueError(
                f"resample: until={self.until} is a share of the steps, whose number is not known: pass total_steps"
            )
        if self.last(total_steps) == 0:
            raise ValueError(
                f"resample: every={self.every} never comes within until={self.until} of {total_steps} steps: lower every"
            )
        device = model.b_dec.device
        silent = torch.zeros(model.shape[1], dtype=torch.int64, device=device)
        return Silence(silent, torch.Generator().manual_seed(self.seed))

    def last(self, total_steps: int) -> int:
        """The last step before which latents are resampled; 0: none."""
        return min(math.floor(self.until * total_steps), total_steps - 1) // self.every * self.every

    def counts(self, state: TrainState) -> bool:
        """Whether the coming batch's code has to be counted."""
        return state.total_steps is not None and state.step < self.last(state.total_steps)

    def count(self, state: TrainState, fired: Tensor, n_samples: int) -> None:
        """Count a batch of which the latents `fired`, bool (n_latents,). Raises ValueError if no latent can be dead in time."""
        assert state.silence is not None
        assert state.total_steps is not None
        if state.step == 0 and self.last(state.total_steps) * n_samples < self.dead_after:
            raise ValueError(
                f"resample: dead_after={self.dead_after} samples are not seen in the {self.last(state.total_steps)} steps before the last "
                f"resampling, in batches of {n_samples}: lower dead_after or raise until"
            )
        state.silence.samples += n_samples
        state.silence.samples[fired] = 0

    def due(self, state: TrainState) -> bool:
        """Whether latents are to be looked through before the coming step."""
        assert state.silence is not None
        assert state.total_steps is not None
        now = 0 < state.step <= self.last(state.total_steps) and state.step % self.every == 0
        return now and state.silence.done != state.step

    @torch.no_grad()
    def revive(self, state: TrainState) -> list[tuple[nn.Parameter, Tensor]]:
        """Re-initialise the latents that are dead. Returns the parameters written to, with masks of the entries.

        Raises DivergenceError if a residual is not finite.
        """
        assert state.silence is not None
        silence, model = state.silence, state.model
        silence.done = state.step
        dead = silence.samples >= self.dead_after
        latents = dead.nonzero().flatten()
        if not len(latents):
            return []
        with torch.autocast(model.b_dec.device.type, enabled=False):
            directions = self._residuals(state, len(latents))
        latents = latents[: len(directions)]
        if not len(latents):
            return []
        living = ~dead if bool((~dead).any()) else torch.ones_like(dead)
        touched = list(_write(model, latents, directions, living))
        silence.samples[latents] = 0
        silence.revived += len(latents)
        return _forget(state.optimizer, touched, latents)

    def _residuals(self, state: TrainState, most: int) -> Float[Tensor, "n d_in"]:
        """Unit residuals of at most so many different training samples."""
        assert state.silence is not None
        generator = state.silence.generator
        residuals = []
        for x in _chosen(state.data, self.samples, generator).split(ROWS):
            x = x.to(state.model.b_dec)
            residuals.append(x - state.model.run(x)[0])
        residual = torch.cat(residuals)
        loss = residual.double().square().mean(1).cpu()
        if not bool(torch.isfinite(loss).all()):
            raise DivergenceError(state.step, state)
        odds = (loss / loss.max().clamp_min(torch.finfo(loss.dtype).tiny)).square()
        n = min(most, int((odds > 0).sum()))
        drawn = torch.multinomial(odds, n, generator=generator) if n else torch.zeros(0, dtype=torch.int64)
        return nn.functional.normalize(residual[drawn.to(residual.device)], dim=1)


def _chosen(data: Tensor | ActivationStore, n: int, generator: torch.Generator) -> Tensor:
    if len(data) <= n:
        return data[0 : len(data)]
    rows = torch.randint(len(data), (n,), device="cpu", generator=generator).unique()
    return data[rows.to(data.device) if isinstance(data, Tensor) else rows]


def _write(
    model: SparseModel, latents: Int[Tensor, " n"], directions: Float[Tensor, "n d_in"], living: Tensor
) -> Iterator[tuple[Tensor, int]]:
    """Write the new latents; yields what was written into, with the axis of the latents."""
    W_enc, b_enc, block, activation = model.encoder_weights(), model.encoder_bias(), model.decoder_block(), model.nonlinearity
    assert W_enc is not None
    assert b_enc is not None
    W_enc[:, latents] = (LENGTH * W_enc[:, living].norm(dim=0).mean() * directions).T
    yield W_enc, 1
    b_enc[latents] = 0.0
    yield b_enc, 0
    for further, start in model.latent_parameters():
        further[latents] = start
        yield further, 0
    if block.residual is not None:
        block.residual[latents] = 0.0
        yield block.residual, 0
    elif block.weights:
        model.W_dec[latents] = directions
        yield model.W_dec, 0
    if block.scales is not None:
        block.scales[latents] = 1.0
        yield block.scales, 0
    own = None if activation is None else activation.threshold_parameter
    if own is not None:
        assert activation is not None
        assert model.bias.threshold is not None
        threshold = model.bias.threshold.clone()
        threshold[latents] = LENGTH * threshold[living].mean()
        activation.set_threshold(threshold)
        yield own, 0


def _forget(
    optimizer: torch.optim.Optimizer, touched: list[tuple[Tensor, int]], latents: Int[Tensor, " n"]
) -> list[tuple[nn.Parameter, Tensor]]:
    """Set the optimizer's tensors to 0 at the entries of latents. What was written into may be a view of a parameter, in any layout."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    entries = []
    for view, axis in touched:
        storage = view.untyped_storage()
        mask = torch.zeros(storage.nbytes() // view.element_size(), dtype=torch.bool, device=view.device)
        mask.as_strided(view.shape, view.stride(), view.storage_offset()).index_fill_(axis, latents, True)
        for p in parameters:
            if p.untyped_storage().data_ptr() != storage.data_ptr():
                continue
            own = mask.as_strided(p.shape, p.stride(), p.storage_offset())
            entries.append((p, own))
            for value in optimizer.state.get(p, {}).values():
                if isinstance(value, torch.Tensor) and value.shape == p.shape:
                    value.masked_fill_(own, 0)
    return entries
