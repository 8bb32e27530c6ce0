"""One run of feature recovery: data of known features, an SAE, a method, and how much of the truth was found."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch

from experiments.recipe import digest
from splinterp import PAMSGD, SAE, SGD, AbsTopK, BiasAdaptation, DivergenceError, JumpReLU, ReLU, TopK, fit
from splinterp.activations import Activation
from splinterp.data import SparseFeatures
from splinterp.metrics import anti_parallel_share, bipolarity, evaluate, match_features, mean_max_cosine

GAIN = 0.05
"""Output gain at the start, of every method: at 1, 2,048 unit rows overshoot, and latents die of it."""
THRESHOLDS = (0.8, 0.9, 0.95)
N_HELD_OUT = 5_000
GAMMAS: dict[str, Any] = {"gamma_up": 0.1, "gamma_down": 0.1}
PUBLISHED_GAMMAS: dict[str, Any] = {"gamma_up": 0.01, "gamma_down": 0.01}
TARGETS: dict[str, Any] = {"highest": 0.02, "lowest": 1e-3}


@dataclass(frozen=True)
class Row:
    """A method of the comparison: the SAE's activation and decoder, and what makes the training method of a step size.

    Tied and tied-residual decoders have output scales.
    """

    activation: Callable[[], Activation]
    decoder: str
    method: Callable[..., Any]

    def recipe(self) -> str:
        """A hash of what the row means today: its options that are not neutral."""
        return digest([self.activation(), self.decoder, self.method(lr=1e-3), GAIN], 12)


def _topk(k: int) -> Row:
    return Row(partial(TopK, k), "free", partial(SGD, unit_norm_decoder=True))


def _adapted(
    activation: Callable[[], Activation] = JumpReLU, base: Callable[..., Any] = SGD, decoder: str = "tied", **options: Any
) -> Row:
    """Bias adaptation of a tied SAE with output scales, or of a tied-residual one."""

    def method(lr: float) -> BiasAdaptation:
        return BiasAdaptation(base=base(lr=lr), every=50, gain=1.0, **options)  # every row starts at an output gain of GAIN

    return Row(activation, decoder, method)


PAM = partial(PAMSGD, solve_gap=1_000, hold=0.0, decoder_lr=1.0, readout=False, ridge="gcv")
"""A solve takes seconds at 2,048 latents: after the first 1,000 steps, and so on to the end."""
ROWS: dict[str, Row] = {
    "TopK, k = 20": _topk(20),
    "TopK, k = 30": _topk(30),
    "TopK, k = 50": _topk(50),
    "TopK, k = 20, tied": Row(partial(TopK, 20), "tied", SGD),
    "TopK, k = 20, tied-residual": Row(partial(TopK, 20), "tied_residual", SGD),
    "TopK, k = 20, PAM": Row(partial(TopK, 20), "tied_residual", PAM),
    "ReLU, L1 3e-4": Row(ReLU, "free", partial(SGD, unit_norm_decoder=True, l1=3e-4)),
    "ReLU, L1 1e-3": Row(ReLU, "free", partial(SGD, unit_norm_decoder=True, l1=1e-3)),
    "ReLU, L1 3e-3": Row(ReLU, "free", partial(SGD, unit_norm_decoder=True, l1=3e-3)),
    "ReLU, L1 1e-2": Row(ReLU, "free", partial(SGD, unit_norm_decoder=True, l1=1e-2)),
    "BA": _adapted(groups=1, highest=0.02, **GAMMAS),
    "GBA": _adapted(**TARGETS, **GAMMAS),
    "GBA, ReLU": _adapted(ReLU, **TARGETS, **GAMMAS),
    "GBA, quantile rule": _adapted(**TARGETS, rule="quantile", quantile_samples=4096),
    "GBA, tied-residual": _adapted(decoder="tied_residual", **TARGETS, **GAMMAS),
    "GBA, PAM": _adapted(base=PAM, decoder="tied_residual", **TARGETS, **GAMMAS),
    "GBA, published gamma": _adapted(**TARGETS, **PUBLISHED_GAMMAS),
    "GBA, 10 % to 0.1 %": _adapted(highest=0.1, lowest=1e-3, **GAMMAS),
    "GBA, too frequent: 50 % to 10 %": _adapted(highest=0.5, lowest=0.1, **GAMMAS),
    "GBA, too rare: 0.1 % to 0.01 %": _adapted(highest=1e-3, lowest=1e-4, **GAMMAS),
    "AbsTopK, k = 20": Row(partial(AbsTopK, 20), "free", partial(SGD, unit_norm_decoder=True)),
}


@dataclass(frozen=True)
class Recovery:
    """One task; equal tasks have equal keys."""

    row: str
    """Of ROWS."""
    lr: float
    steps: int
    seed: int
    """Of the features, the samples, the initial weights and the data order, each its own stream."""
    role: str = "reported"
    """"reported", "tuning", or "consistency": three starts on the same samples."""
    n_features: int = 128
    d_in: int = 42
    sparsity: tuple[int, ...] = (3, 20)
    signs: bool = False
    n_samples: int = 40_000
    n_latents: int = 2_048
    batch_size: int = 256
    target: float | None = None
    """One target frequency in place of the row's."""

    @property
    def key(self) -> str:
        """A hash of all fields that differ from their defaults."""
        return digest(self)

    @property
    def cost(self) -> float:
        """Grows with the steps and the width."""
        starts = 3 if self.role == "consistency" else 1
        return starts * self.steps * self.n_latents * self.d_in * (3.0 if "PAM" in self.row else 1.0)

    def recipe(self) -> str:
        """A hash of what the row means today."""
        return ROWS[self.row].recipe()


def task_from_record(record: dict[str, Any]) -> Recovery | None:
    """The task that a record is of; None if its row is not among ROWS any more."""
    fields = dict(record["task"])
    return Recovery(**{**fields, "sparsity": tuple(fields["sparsity"])}) if fields["row"] in ROWS else None


def start(task: Recovery, init_seed: int, device: str = "cpu") -> SAE:
    """The SAE of a task: unit decoder rows, the same for every row at a seed, at an output gain of GAIN."""
    row = ROWS[task.row]
    sae = SAE(
        task.d_in, task.n_latents, row.activation(), row.decoder, tie_scale=row.decoder != "free", b_pre=True, init_bias=0.0,
        generator=torch.Generator().manual_seed(10_000 + init_seed), device=device,
    )  # fmt: skip
    with torch.no_grad():
        sae.W_enc.copy_(sae.W_enc / sae.W_enc.norm(dim=0))
        if sae.scale is not None:
            sae.scale.fill_(GAIN)
        else:
            sae.W_dec.copy_(sae.W_enc.T)
            sae.W_enc.mul_(GAIN)
    return sae


def trained(task: Recovery, x: torch.Tensor, init_seed: int, device: str) -> tuple[SAE, Any, float]:
    """(SAE, the method's state, seconds). Raises DivergenceError."""
    sae = start(task, init_seed, device)
    method = ROWS[task.row].method(lr=task.lr)
    if task.target is not None:
        names = ("rule", "gamma_up", "gamma_down", "every", "gain")
        options = {name: getattr(method, name) for name in names}
        method = BiasAdaptation(base=method.base, target_frequencies=task.target, **options)
    epochs = max(1, round(task.steps / math.ceil(len(x) / task.batch_size)))
    result = fit(
        sae, x, method, epochs=epochs, batch_size=task.batch_size, log_every=epochs, train_eval_samples=2_000,
        generator=torch.Generator().manual_seed(20_000 + init_seed),
    )  # fmt: skip
    return sae.eval(), result.state, result.history[-1]["seconds"]


def measure(task: Recovery, data_dir: str | None = None, device: str = "cpu") -> dict[str, Any]:
    """Train and compare with the truth. A diverged run is a result: it recovers nothing."""
    g = torch.Generator().manual_seed(task.seed)
    model = SparseFeatures(task.n_features, task.d_in, list(task.sparsity), signs=task.signs, generator=g)
    x, held_out = model.sample(task.n_samples, g).x, model.sample(N_HELD_OUT, g).x
    record: dict[str, Any] = {"key": task.key, "task": asdict(task)}
    try:
        if task.role == "consistency":
            return record | _consistency(task, x, held_out, device)
        sae, state, seconds = trained(task, x.to(device), task.seed, device)
    except DivergenceError as error:
        nothing = {"consistency": [math.nan] * 3, "untrained": [math.nan] * 3, "live": [0] * 3}
        return record | nothing | {
            "diverged_at": error.step, "mean_cosine": 0.0, "recovery": dict.fromkeys(map(str, THRESHOLDS), 0.0),
        }  # fmt: skip
    measured = evaluate(sae, held_out)
    match = match_features(sae.W_dec.detach(), model.features, signed=not task.signs)
    live = measured.frequencies > 0
    record |= {
        "seconds": round(seconds, 2), "mean_cosine": float(match.cosine.mean()),
        "recovery": {str(t): match.recovery(t) for t in THRESHOLDS}, "one_to_one": match.recovery(0.9, one_to_one=True),
        "fvu": measured.fvu, "l0": measured.l0, "frac_dead": measured.frac_dead,
        "median_frequency": _median(measured.frequencies[live]),
        "matched_frequency": _median(measured.frequencies[match.nearest[match.cosine > 0.9]]),
    }  # fmt: skip
    if hasattr(state, "group"):
        record["groups"] = _groups(state, measured.frequencies, match.nearest[match.cosine > 0.9])
    if task.signs:
        record["poles"] = _poles(sae, model, held_out, live)
    return record


def _median(values: torch.Tensor) -> float:
    return float(values.median()) if len(values) else math.nan


def _groups(state: Any, frequencies: torch.Tensor, matched: torch.Tensor) -> list[dict[str, float]]:
    """Target and median frequency reached of each group, and how many true features it recovers at 0.9."""
    group = state.group.cpu()
    found = []
    for index in range(int(group[-1]) + 1):
        chosen = group == index
        found.append({
            "target": float(state.targets.cpu()[chosen][0]), "reached": float(frequencies[chosen].median()),
            "matched": int((group[matched] == index).sum()),
        })  # fmt: skip
    return found


def _poles(sae: SAE, model: SparseFeatures, held_out: torch.Tensor, live: torch.Tensor) -> dict[str, Any]:
    """Features of random signs: those found at both poles by two latents, the latents' minority shares, and twins."""
    rows = sae.W_dec.detach()
    both = torch.minimum(match_features(rows, model.features).cosine, match_features(rows, -model.features).cosine)
    signs = bipolarity(sae, held_out)
    return {
        "both_poles": float((both > 0.9).double().mean()), "twins": anti_parallel_share(rows, live),
        "minority": signs.summary(20), "minority_weighted": signs.summary(20, weighted=True),
    }  # fmt: skip


def _consistency(task: Recovery, x: torch.Tensor, held_out: torch.Tensor, device: str) -> dict[str, Any]:
    """Mean best cosine between the live latents of three starts, both directions, for each of the pairs."""
    dictionaries = []
    for init_seed in range(3):
        sae, _, _ = trained(task, x.to(device), 1_000 + init_seed, device)
        dictionaries.append(sae.W_dec.detach().cpu()[evaluate(sae, held_out).frequencies > 0])
    untrained = [start(task, 1_000 + i).W_dec.detach()[: len(d)] for i, d in enumerate(dictionaries)]
    return {
        "consistency": _likeness(dictionaries), "untrained": _likeness(untrained), "live": [len(d) for d in dictionaries],
    }  # fmt: skip


def _likeness(dictionaries: list[torch.Tensor]) -> list[float]:
    """Mean best cosine, both directions averaged, of each pair; NaN beside a dictionary without rows."""
    found = []
    for one, other in itertools.combinations(dictionaries, 2):
        both = len(one) and len(other)
        found.append((mean_max_cosine(one, other) + mean_max_cosine(other, one)) / 2 if both else math.nan)
    return found
