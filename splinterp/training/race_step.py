"""What PAM-SGD does in a race."""

from __future__ import annotations

import math
from contextlib import nullcontext
from typing import Any

from splinterp._typing import Tensor
from splinterp.training.optimizers import evaluated
from splinterp.training.race import OPEN, TIED, Arm, Race, Racing
from splinterp.training.reading import readout_of


def plan(racing: Racing, state: Any, batch_size: int) -> None:
    """Plan the race of a run whose first batch is here. The losing arm's steps are taken from those of the schedule."""
    assert state.total_steps is not None
    state.race = racing.plan(state.total_steps, math.ceil(len(state.data) / batch_size))
    state.total_steps -= state.race.length
    state.held = state.race.length > 0 or racing.otherwise > 0


def race_step(method: Any, sae: Any, state: Any, race: Race, x: Tensor) -> None:
    """A step of both arms on a batch, after the open arm's first solve where they part, and before the decision where they end."""
    if race.other is None:
        race.other = Arm.copied(state)
        with race.open_arm(state):
            if race.begin:
                method.timed(state, lambda: method.decoder_step(sae, state, state.data.split(state.batch_size)))
            state.held = False
    at = state.step
    with race.open_arm(state):
        method.step_of_one(sae, state, x)
    state.step = at
    method.step_of_one(sae, state, x)
    if state.step == race.end:
        method.timed(state, lambda: _decide(method, sae, state, race))


def _decide(method: Any, sae: Any, state: Any, race: Race) -> None:
    """End the race with the arm that is better after a readout."""
    assert race.other is not None
    scores = {}
    for arm in (OPEN, TIED):
        with race.open_arm(state) if arm == OPEN else nullcontext(), evaluated(state.optimizer):
            scores[arm] = readout_of(method, sae, state).score
    if race.judge(scores) == OPEN:
        race.other.swap(state)
    race.other = None
