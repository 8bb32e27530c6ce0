"""Bias adaptation: the encoder bias leaves the gradient and follows each latent's firing frequency.

Source: "Taming Polysemanticity in LLMs: Provable Feature Recovery via Sparse Autoencoders", arXiv 2506.14002. One group
is its BA, several are its group bias adaptation, GBA.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ClassVar

import torch

from splinterp._checks import at_least, one_of, whole
from splinterp._typing import ArrayLike, Tensor
from splinterp.data.store import ActivationStore
from splinterp.decoder import Readout
from splinterp.protocol import SAELike, SparseModel, as_model
from splinterp.training.base import GradientOptions, training_data
from splinterp.training.bias_block import fitting_gain, multiply_output, quantile_bias, rms_norm, without_gradient
from splinterp.training.bias_state import BiasState, diverging_with
from splinterp.training.firing import FiringCounter
from splinterp.training.method import PassesOverData
from splinterp.training.pam import PAMSGD
from splinterp.training.sgd import SGD

RULES = ("step", "quantile")
LR = 3e-2
"""Step size of the default base: chosen with the defaults of the bias updates."""


GROUPS = 10
"""Groups of latents where their number is not given, or as many as there are latents."""


@dataclass(frozen=True, kw_only=True)
class BiasAdaptation:
    """Bias adaptation around a gradient method (arXiv 2506.14002): works inside SGD and PAMSGD.

    The base moves everything but the bias; every `every` steps the bias moves towards each latent's target frequency, from counts
    that are streamed (`FiringCounter`). Latents are cut into groups of neighbours with targets in geometric progression. The
    columns of W_enc are rescaled to unit norm after each step, as the bounds on the bias assume; give a tied decoder `tie_scale`.
    The bias is b_enc, or minus the threshold of a JumpReLU, whose b_enc stays 0. With TopK and BatchTopK a latent fires where it
    is kept, and targets are met as far as k lets them; AbsTopK is refused.

    rule="step", as published: a latent that fires too often has its bias lowered by gamma_down times its peak, a silent one has
    it raised by gamma_up times the mean peak of its group's firing latents. There is no step up for a latent that fires too seldom
    but fires, so frequencies settle at or below their targets. Let `every` batches hold many more samples than 1 / lowest:
    a count of one in fewer is already too frequent, and none is silent.
    rule="quantile", this package's own: the bias is such that the latent fires on round(target N) of the training samples, and
    on at least one; ties give the nearest count to that, and no bias above its upper bound lets scores below 0 fire. It needs ReLU
    or JumpReLU. One product x W_enc, as many bytes of scores at a time as 64 MiB hold.

    Where it differs from the paper: `b_pre`, if the SAE has one, stays where it starts (the training mean, in `fit`), because moving it
    by gradients would move every bias, and b_dec is a parameter of its own; where a whole group is silent the mean peak is that of
    all latents, and where all are, the rms norm of the samples; the peak of a TopK latent is over the samples that keep it.

    The start of the output scales is part of the method: where a dictionary of unit rows starts at scale 1, its reconstruction
    overshoots, and features are not found. The defaults of frequencies, gammas, `every`, step size and scales were chosen on five
    synthetic models and recover features of five others (`python -m experiments adaptation`); the published ones are
    `BiasAdaptation(base=SGD(lr=3e-3), highest=0.5, gamma_up=0.01, gamma_down=0.01, every=50, gain=1)`.

    Options:
        base: SGD(...) or PAMSGD(...); SGD at a step size of 0.03 by default. lr: shorthand for the base's; None leaves it.
        target_frequencies: one for each group, or one for each latent (that many groups), in (0, 1]; None takes `groups` of them
            (None: 10, and fewer where there are fewer latents) from `highest` to `lowest` (one group: `highest`). A sequence or a
            single number.
        gamma_up, gamma_down: fractions of a peak. The published 0.01 moves biases by a few tenths in 3,000 steps.
        every: steps between bias updates. eps: a latent below this frequency is silent.
        gain: what the decoder's rows are multiplied by at the start: the output scales of a tied decoder (`tie_scale`), or W_dec. None
            takes the number that fits the training samples best; 1 leaves them as they are.
        bounds: of the bias, in units of the rms norm of the training samples, less b_pre where there is one.
        quantile_samples: most samples that the quantile rule looks at, evenly spaced; None takes all.

    Raises:
        TypeError: another base.
        ValueError: an option out of range, or one that would change nothing.
    """

    couples_batches: ClassVar[bool] = True
    """Frequencies are of whole batches: one process only."""

    @property
    def wants_x_val(self) -> bool:
        """Whether the base chooses by held-out samples."""
        return self.base.wants_x_val

    @property
    def passes_over_data(self) -> bool:
        """Whether the base's solves do."""
        return isinstance(self.base, PassesOverData) and self.base.passes_over_data

    base: Any = field(default_factory=partial(SGD, lr=LR))
    lr: float | None = None
    target_frequencies: float | Sequence[float] | None = None
    groups: int | None = None
    highest: float = 0.1
    lowest: float = 1e-3
    gamma_up: float = 0.3
    gamma_down: float = 0.3
    every: int = 25
    eps: float = 1e-6
    bounds: tuple[float, float] = (-1.0, 0.0)
    gain: float | None = None
    rule: str = "step"
    quantile_samples: int | None = None

    def __post_init__(self) -> None:
        if type(self).loss is not BiasAdaptation.loss:
            raise TypeError(
                f"{type(self).__name__} overrides loss, which the base takes gradients of: override the loss of the base's class"
            )
        if not isinstance(self.base, GradientOptions):
            raise TypeError(f"base is a {type(self.base).__name__}: pass SGD(...) or PAMSGD(...)")
        if self.lr is not None:
            object.__setattr__(self, "base", replace(self.base, lr=self.lr))
            object.__setattr__(self, "lr", None)
        one_of("rule", self.rule, RULES)
        whole("every", self.every, 1)
        for name in ("gamma_up", "gamma_down", "eps"):
            at_least(name, getattr(self, name), 0.0)
        if self.gain is not None:
            at_least("gain", self.gain, 0.0, strict=True)
        low, high = self.bounds
        if not -math.inf < low < high <= 0:
            raise ValueError(
                f"bounds={self.bounds} must be finite, low < high <= 0: a positive bias fires on nothing in particular"
            )
        if self.base.bias_lr != 1:
            raise ValueError(
                f"base.bias_lr={self.base.bias_lr} acts on b_enc, which bias adaptation takes from the gradient: leave it out"
            )
        if isinstance(self.base, PAMSGD) and self.base.hold == "race":
            raise ValueError("base.hold='race' trains two SAEs at a time, whose biases would need two counts: choose a number")
        if isinstance(self.base, PAMSGD) and self.base.decoder_every is not None:
            raise ValueError("base.decoder_every solves before the columns of W_enc are rescaled: use solve_gap instead")
        if self.base.l0:
            raise ValueError(f"base.l0={self.base.l0} acts on thresholds, which bias adaptation moves: set l0=0")
        if self.base.resample is not None:
            raise ValueError("base.resample sets biases and norms of columns, which bias adaptation does: leave it out")
        self._check_targets()
        self._check_rule()

    def _check_targets(self) -> None:
        if self.groups is not None:
            whole("groups", self.groups, 1)
        given = self.target_frequencies
        if given is None:
            if self.groups == 1 and self.lowest != BiasAdaptation.__dataclass_fields__["lowest"].default:
                raise ValueError(f"lowest={self.lowest} changes nothing with one group, whose target is highest: leave it out")
            lowest = self.highest if self.groups == 1 else self.lowest
            if not 0 < lowest <= self.highest <= 1:
                raise ValueError(f"frequencies need 0 < lowest <= highest <= 1, got lowest={lowest}, highest={self.highest}")
            return
        values = (float(given),) if isinstance(given, int | float) else tuple(float(p) for p in given)
        if not values or not all(0 < p <= 1 for p in values):
            raise ValueError(f"target_frequencies={given} must be at least one number, all in (0, 1]")
        fields = BiasAdaptation.__dataclass_fields__
        for name in ("groups", "highest", "lowest"):
            if getattr(self, name) != fields[name].default:
                raise ValueError(f"{name}={getattr(self, name)} changes nothing beside target_frequencies: drop one of them")
        object.__setattr__(self, "target_frequencies", values)

    def _check_rule(self) -> None:
        fields = BiasAdaptation.__dataclass_fields__
        if self.rule == "quantile":
            for name in ("gamma_up", "gamma_down", "eps"):
                if getattr(self, name) != fields[name].default:
                    raise ValueError(f"{name}={getattr(self, name)} changes nothing with rule='quantile': leave it out")
            if self.quantile_samples is not None:
                whole("quantile_samples", self.quantile_samples, 1)
        elif self.quantile_samples is not None:
            raise ValueError(f"quantile_samples={self.quantile_samples} changes nothing with rule='step': leave it out")

    def group_targets(self, n_latents: int | None = None) -> list[float]:
        """Target frequency of each group, highest first unless given otherwise; with `n_latents`, those of so many latents."""
        if isinstance(self.target_frequencies, tuple):
            return list(self.target_frequencies)
        n = self.groups or min(GROUPS, n_latents or GROUPS)
        ratio = 1.0 if n == 1 else (self.lowest / self.highest) ** (1 / (n - 1))
        return [self.highest * ratio**g for g in range(n)]

    def loss(self, sae: SAELike, x: Tensor) -> Tensor:
        """The base's loss of a batch (n, d_in)."""
        return self.base.loss(sae, x)

    def init(
        self,
        sae: SAELike,
        x: ArrayLike | ActivationStore,
        total_steps: int | None = None,
        *,
        x_val: Tensor | ActivationStore | None = None,
    ) -> BiasState:
        """Start training on x (N, d_in) or a store; the bias is moved inside its bounds, W_enc to unit columns.

        Raises TypeError, ValueError: a module, base or data that does not fit, more groups than latents.
        """
        model = as_model(sae)
        n_latents = model.shape[1]
        frequencies = self.group_targets(n_latents)
        if len(frequencies) > n_latents:
            raise ValueError(f"{len(frequencies)} groups for n_latents={n_latents}: choose at most one for each latent")
        self._check_model(model)
        data = training_data(model, x)
        scale = rms_norm(model, data)
        with torch.no_grad():
            self._normalise(model)
            self._set_bias(model, scale, model.bias.value)
        device = model.b_dec.device
        group = torch.arange(n_latents, device=device) * len(frequencies) // n_latents
        targets = torch.tensor(frequencies, dtype=torch.float64, device=device)[group]
        counter = FiringCounter(n_latents, model.b_dec.dtype, device)
        state = BiasState(self.base.init(sae, data, total_steps, x_val=x_val), targets, group, counter, scale)
        state.base.observer = counter.update
        if self.rule == "quantile":
            self.adapt(sae, state)
        if self.gain != 1:  # of the codes that training begins with
            multiply_output(model, fitting_gain(model, data) if self.gain is None else self.gain)
        return state

    def _check_model(self, model: SparseModel) -> None:
        activation = model.nonlinearity
        if activation is not None and activation.signed:
            raise ValueError(
                f"{type(activation).__name__} fires more often with a negative sign as its bias falls: bias adaptation needs codes >= 0"
            )
        if activation is not None and activation.fixes_frequencies:
            raise ValueError(
                f"{type(activation).__name__} fires each latent as often as it says, whatever the bias: use ReLU or JumpReLU"
            )
        if model.encoder_weights() is None:
            raise TypeError(
                f"bias adaptation rescales the columns of W_enc, one for each latent, and {model!r} has none that is a parameter: adapt an "
                "SAE with a Linear encoder, or train this one by its base method"
            )
        if self.rule == "quantile" and not model.bias.by_own_score:
            made = model.parametrisation
            if activation is None or not activation.fires_by_own_score:
                name = model.label if activation is None else type(activation).__name__
            elif made is not None and not made.plain:
                name = f"what the encoder {made} makes of them"
            else:
                name = f"what {model.label} overrides"
            raise ValueError(
                f"rule='quantile' needs ReLU or JumpReLU, whose latents fire by their own scores, not {name}: take rule='step'"
            )

    def step(self, sae: SAELike, state: BiasState, x: Tensor) -> None:
        """The base's step on a batch (n, d_in) with the bias held, and after every `every`-th a bias update."""
        with diverging_with(state), without_gradient(state.base.model.bias.held):
            self.base.step(sae, state.base, x)
        self._normalise(state.base.model)
        if state.base.step % self.every == 0:
            self.adapt(sae, state)

    encoder_step = step

    def read_out(self, sae: SAELike, state: BiasState) -> Readout | None:
        """The base's readout, where it has such a thing."""
        return self.base.read_out(sae, state.base) if isinstance(self.base, PAMSGD) else None

    def end_epoch(self, sae: SAELike, state: BiasState, batches: Iterable[Tensor]) -> None:
        """The base's: for PAMSGD the exact decoder solve, where one is due."""
        with diverging_with(state):
            self.base.end_epoch(sae, state.base, batches)

    @torch.no_grad()
    def adapt(self, sae: SAELike, state: BiasState) -> None:
        """Move the bias once. By "step" the counter must have seen samples (ValueError); it is reset."""
        if self.rule == "quantile":
            bias = quantile_bias(state.base.model, state.data, state.targets, self.quantile_samples)
        else:
            bias = self._stepped(state)
        if state.counter.n_samples:
            state.frequency = state.counter.firing().frequency
            state.counter.reset()
        self._set_bias(state.base.model, state.scale, bias)

    def _stepped(self, state: BiasState) -> Tensor:
        block = state.base.model.bias
        firing = state.counter.firing(block.threshold)
        bias, peak, n_groups = block.value, firing.peak, int(state.group[-1]) + 1
        positive = (peak > 0).to(peak.dtype)
        totals = torch.zeros(2, n_groups, dtype=peak.dtype, device=peak.device)
        totals.index_add_(1, state.group, torch.stack([peak, positive]))
        overall = peak.sum() / positive.sum() if positive.any() else peak.new_tensor(state.scale)
        mean_peak = torch.where(totals[1] > 0, totals[0] / totals[1].clamp_min(1), overall)[state.group]
        lower = bias - self.gamma_down * peak
        raised = bias + self.gamma_up * mean_peak
        bias = torch.where(firing.frequency > state.targets, lower, bias)
        return torch.where(firing.frequency < self.eps, raised, bias)

    def _set_bias(self, model: SparseModel, scale: float, bias: Tensor) -> None:
        low, high = (bound * scale for bound in self.bounds)
        model.bias.write(bias.clamp(low, high))  # a threshold is positive: at a bias of 0 it is the smallest number there is

    @torch.no_grad()
    def _normalise(self, model: SparseModel) -> None:
        W = model.encoder_weights()
        assert W is not None
        W.div_(W.norm(dim=0, keepdim=True).clamp_min(torch.finfo(W.dtype).tiny))
