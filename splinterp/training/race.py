"""The race: whether a residual is let in is decided in the run, by two arms that train on the same batches."""

from __future__ import annotations

import copy
import math
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from splinterp._checks import at_least, share_of_steps
from splinterp._documented import documented
from splinterp._typing import Tensor
from splinterp.training.train_state import check_moments, copy_whole, lay_out_moments

SHORTEST, LONGEST = 30, 0.15
"""Steps of an arm below which nothing is to be seen, and the share of the steps above which a race costs too much."""
OWN = (
    "ridge", "residual", "anchor", "since_solve", "epochs_since_solve", "solves", "in_epoch", "held", "totals", "terms", "loss", "values",
)  # fmt: skip
"""Fields of the state that each arm has for itself."""
PASSING = ("loss", "values")
"""Those that say what the last step was."""
TIED, OPEN = "tied", "open"


@dataclass
class Race:
    """Plan and course of a race. An arm's steps begin at `begin` and are `length`, of which the loser's are lost."""

    begin: int
    length: int
    """0: there is none."""
    margin: float
    other: Arm | None = None
    """The arm that rests, while they run: the open one between steps."""
    winner: str | None = None
    scores: dict[str, float] = field(default_factory=dict)
    """The least held-out error of each arm, after a readout."""

    @property
    def end(self) -> int:
        """The step after the last one of the race."""
        return self.begin + self.length

    def runs_at(self, step: int) -> bool:
        """Whether the coming step is one of both arms."""
        return self.length > 0 and self.begin <= step < self.end

    @contextmanager
    def open_arm(self, state: Any) -> Iterator[None]:
        """Inside, the open arm is the one that moves."""
        assert self.other is not None
        self.other.swap(state)
        try:
            yield
        finally:
            self.other.swap(state)

    def judge(self, scores: dict[str, float]) -> str:
        """Who goes on: the open arm only where it is better by the margin."""
        self.scores = scores
        wins = math.isfinite(self.margin) and scores[OPEN] < (1 - self.margin) * scores[TIED]
        self.winner = OPEN if wins else TIED
        return self.winner


@documented
@dataclass(frozen=True, kw_only=True)
class Racing:
    """How a race is run, as shares of the steps.

    Raises:
        ValueError: a share that is not below 1, a length of 0, or a margin below 0.
    """

    begin: float = 0.1
    """What both arms have in common, as tied SGD; at its end the open one is solved for. 0: they part at the first step."""
    length: float = 0.05
    """What each arm has of its own, but at least one epoch: before the second visit of a sample nothing shows of overfitting."""
    margin: float = 0.005
    """Share by which the open arm's error has to be lower: the tied one is the simpler. `math.inf`: tied in any case."""
    otherwise: float = 0.0
    """`hold`, at most 1, where there are too few steps to race: fewer than 30 of an arm, or an epoch of more than 15 % of them."""

    def __post_init__(self) -> None:
        if not 0 <= self.begin < 1:
            raise ValueError(f"racing: begin={self.begin} is a share of the steps, at least 0 and below 1")
        if not 0 < self.length < 1:
            raise ValueError(f"racing: length={self.length} is a share of the steps, above 0 and below 1")
        at_least("margin", self.margin, 0.0)
        share_of_steps("racing: otherwise", self.otherwise)

    def plan(self, total_steps: int, steps_per_epoch: int) -> Race:
        """The race of a run of so many steps, those of the losing arm counted; of length 0 where there are too few."""
        length = max(round(self.length * total_steps), steps_per_epoch)
        begin = math.ceil(self.begin * (total_steps - length))
        if not SHORTEST <= length <= max(LONGEST, self.length) * total_steps or begin + 2 * length > total_steps:
            return Race(0, 0, self.margin)
        return Race(begin, length, self.margin)


@dataclass
class Arm:
    """All that an arm has for itself: parameters and buffers, what the optimizer keeps of them, fields of the state."""

    tensors: dict[str, Tensor]
    moments: Any
    fields: dict[str, Any]

    @classmethod
    def copied(cls, state: Any) -> Arm:
        """As the running one is."""
        return cls(
            {name: t.detach().clone() for name, t in _tensors(state).items()},
            defaultdict(
                dict, {p: {key: _copied(value) for key, value in kept.items()} for p, kept in state.optimizer.state.items()}
            ),
            {name: copy.deepcopy(vars(state)[name]) for name in OWN},
        )

    def swap(self, state: Any) -> None:
        """Run with this arm, and keep here what ran."""
        torch.clear_autocast_cache()  # which knows tensors by the object, not by what they hold
        for name, tensor in _tensors(state).items():
            tensor.data, self.tensors[name] = self.tensors[name], tensor.data
        state.optimizer.state, self.moments = self.moments, state.optimizer.state
        for name in OWN:
            own = vars(state)[name]
            setattr(state, name, self.fields[name])
            self.fields[name] = own


def _copied(value: Any) -> Any:
    return value.clone() if isinstance(value, torch.Tensor) else copy.deepcopy(value)


def _tensors(state: Any) -> dict[str, Tensor]:
    assert state.sae is not None
    return {**dict(state.sae.named_parameters()), **dict(state.sae.named_buffers())}


def saved_race(state: Any) -> dict[str, Any] | None:
    """Everything needed to go on with a race, as `torch.load(weights_only=True)` reads it."""
    race = state.race
    if race is None:
        return None
    found: dict[str, Any] = {name: getattr(race, name) for name in ("begin", "length", "margin", "winner", "scores")}
    if race.other is None:
        return found
    race.other.swap(state)
    optimizer = state.optimizer.state_dict()
    race.other.swap(state)
    fields = {name: value for name, value in race.other.fields.items() if name not in PASSING}
    return {**found, "other": {"tensors": race.other.tensors, "optimizer": optimizer, "fields": fields}}


def load_race(state: Any, saved: dict[str, Any] | None) -> None:
    """Go on with what `saved_race` gave. Raises ValueError for a tensor of another shape."""
    if saved is None:
        state.race = None
        return
    state.race = Race(saved["begin"], saved["length"], saved["margin"], None, saved["winner"], saved["scores"])
    other = saved.get("other")
    if other is None:
        return
    arm = state.race.other = Arm.copied(state)
    for name, tensor in arm.tensors.items():
        copy_whole(tensor, other["tensors"][name], f"{name} of the other arm")
    check_moments(state.optimizer, other["optimizer"])
    arm.swap(state)
    state.optimizer.load_state_dict(other["optimizer"])
    lay_out_moments(state.optimizer)
    arm.swap(state)
    for ours, theirs in zip(arm.fields["terms"], other["fields"].pop("terms"), strict=True):
        for name, value in theirs.items():
            copy_whole(ours[name], value, f"{name} of a loss term of the other arm")
    arm.fields.update(other["fields"])
