"""Variants of SAEs as compositions of parts, and what each is to be compared with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from experiments.runs import THRESHOLDS
from splinterp import AbsTopK, BatchTopK, JumpReLU, ReLU, TopK
from splinterp.activations import Activation, FeatureChoice
from splinterp.archetypal import ARCHETYPAL
from splinterp.encoders import AdaptiveK, Encoder, Gated, Kronecker
from splinterp.losses import (
    L0,
    AuxK,
    GateError,
    GateL1,
    HierarchicalTopK,
    Matryoshka,
    OrtSAE,
    PAnneal,
    PreActs,
    RowNormL1,
    SquaredError,
    Tanh,
    Term,
)  # fmt: skip

MEMBERS = 4
"""Of ensembles: each has its share of the latents, and of k."""


@dataclass(frozen=True)
class Setting:
    """What a variant is made for: its knob (k, or the weight of a penalty), the sizes, and the number of steps."""

    knob: float
    d_in: int
    n_latents: int
    steps: int

    @property
    def k(self) -> int:
        """The knob of those that fix the number of latents."""
        return int(self.knob)


@dataclass(frozen=True)
class Parts:
    """What a variant is made of."""

    activation: Activation
    terms: tuple[Term, ...] = (SquaredError(),)
    encoder: Encoder | None = None
    options: dict[str, Any] = field(default_factory=dict)
    """Of the method."""
    decoder: str = "tied_residual"
    """Of `SAE`, or "archetypal": rows near mixtures of twice as many centroids of the samples as there are latents."""


@dataclass(frozen=True)
class Variant:
    """A way to make an SAE, and what it is to be compared with."""

    family: str
    make: Callable[[Setting], Parts]
    limit: str
    """The variant that it is in a limit, at equal l0 the control; its own name for that one itself."""
    knob: str = "k"
    """The list of knobs that it has (of `variants.Config`)."""
    kind: str = ""
    """"bagging", "boosting", or "" for a single SAE."""


def _prefixes(s: Setting) -> tuple[int, ...]:
    return tuple(sorted({max(1, s.n_latents // share) for share in (16, 8, 4, 2)}))


def _levels(s: Setting) -> tuple[int, ...]:
    return tuple(sorted({max(1, s.k // share) for share in (8, 4, 2, 1)}))


def _heads(s: Setting) -> Kronecker:
    return Kronecker(heads=s.n_latents // 8, left=2, right=4)


WARM = {"penalty_warmup": 0.05}


def _feature_choice(s: Setting) -> Parts:
    """Zipf's law, its shift the first of 0, 1, 3, 7, ... at which the first latent need not fire more than once on a sample."""
    if s.k >= s.n_latents:  # all of them fire always
        return Parts(FeatureChoice(s.k, exponent=0.0))
    shift = 0.0
    while float(FeatureChoice(s.k, shift=shift).shares_of(s.n_latents, s.k).max()) > 1:
        shift = 2 * shift + 1
    return Parts(FeatureChoice(s.k, shift=shift))


def _tanh(s: Setting) -> Parts:
    terms = (SquaredError(), Tanh(weight=s.knob), PreActs(weight=3e-6 / max(s.d_in, 1)))  # published on sums over d_in
    return Parts(ReLU(), terms, options={"penalty_warmup": 1.0})


def _annealed(s: Setting) -> Parts:
    penalty = PAnneal(weight=s.knob, power=0.5, begin=s.steps // 3, until=s.steps, row_norms=True)
    return Parts(ReLU(), (SquaredError(), penalty), options=WARM)


VARIANTS: dict[str, Variant] = {
    "TopK": Variant("TopK", lambda s: Parts(TopK(s.k)), "TopK"),
    "TopK, free decoder": Variant("TopK", lambda s: Parts(TopK(s.k), decoder="free"), "TopK"),
    "AbsTopK": Variant("TopK", lambda s: Parts(AbsTopK(s.k)), "TopK"),
    "Matryoshka": Variant("TopK", lambda s: Parts(TopK(s.k), (Matryoshka(widths=_prefixes(s)),)), "TopK"),
    "HierarchicalTopK": Variant("TopK", lambda s: Parts(TopK(s.k), (HierarchicalTopK(levels=_levels(s)),)), "TopK"),
    "OrtSAE": Variant("TopK", lambda s: Parts(TopK(s.k), (SquaredError(), OrtSAE())), "TopK"),
    "AuxK": Variant("TopK", lambda s: Parts(TopK(s.k), (SquaredError(), AuxK())), "TopK"),
    "Kronecker": Variant("TopK", lambda s: Parts(TopK(s.k), encoder=_heads(s), decoder="free"), "TopK, free decoder"),
    "archetypal": Variant("TopK", lambda s: Parts(TopK(s.k), decoder=ARCHETYPAL), "TopK, free decoder"),
    "AdaptiveK": Variant(
        "TopK", lambda s: Parts(ReLU(), encoder=AdaptiveK(max(1, s.k // 2), 2 * s.k - max(1, s.k // 2))), "TopK"
    ),
    "bagging": Variant("TopK", lambda s: Parts(TopK(max(1, s.k // MEMBERS))), "TopK", kind="bagging"),
    "boosting": Variant("TopK", lambda s: Parts(TopK(max(1, s.k // MEMBERS))), "TopK", kind="boosting"),
    "BatchTopK": Variant("BatchTopK", lambda s: Parts(BatchTopK(s.k)), "BatchTopK"),
    "Feature Choice": Variant("BatchTopK", _feature_choice, "BatchTopK"),
    "Matryoshka, BatchTopK": Variant("BatchTopK", lambda s: Parts(BatchTopK(s.k), (Matryoshka(widths=_prefixes(s)),)), "BatchTopK"),
    "OrtSAE, BatchTopK": Variant("BatchTopK", lambda s: Parts(BatchTopK(s.k), (SquaredError(), OrtSAE())), "BatchTopK"),
    "ReLU, L1": Variant("ReLU", lambda s: Parts(ReLU(), (SquaredError(), RowNormL1(weight=s.knob)), options=WARM), "ReLU, L1", "l1"),
    "tanh": Variant("ReLU", _tanh, "ReLU, L1", "tanh"),
    "p-annealing": Variant("ReLU", _annealed, "ReLU, L1", "p"),
    "Gated": Variant(
        "ReLU", lambda s: Parts(ReLU(), (SquaredError(), GateError(), GateL1(weight=s.knob, row_norms=True)), Gated(), WARM),
        "ReLU, L1", "gate",
    ),
    "JumpReLU": Variant(
        "ReLU", lambda s: Parts(JumpReLU(*THRESHOLDS), (SquaredError(), L0(weight=s.knob)), options=WARM), "ReLU, L1", "l0",
    ),
}  # fmt: skip
