"""What a run by bias adaptation carries along."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from splinterp._typing import Tensor
from splinterp.training.firing import FiringCounter
from splinterp.training.train_state import DivergenceError, copy_whole


class BiasState:
    """State of a base method (as attributes: step, loss, ridge, optimizer, ...) and what bias adaptation adds to it."""

    def __init__(self, base: Any, targets: Tensor, group: Tensor, counter: FiringCounter, scale: float) -> None:
        self.base = base
        """TrainState or PAMState."""
        self.targets = targets
        """Target frequency of each latent, shape (n_latents,), float64."""
        self.group = group
        """Index of each latent's group, shape (n_latents,)."""
        self.counter = counter
        """Firing since the last bias update."""
        self.scale = scale
        """Rms norm of the training samples, less b_pre where there is one: what the bounds multiply."""
        self.frequency: Tensor | None = None
        """Frequencies that the last bias update was made from (None before the first)."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "base" not in self.__dict__:  # while it is being copied or unpickled
            raise AttributeError(name)
        return getattr(self.base, name)

    def check_finite(self) -> None:
        """Raise DivergenceError if the last loss is not finite (waits for a GPU)."""
        with diverging_with(self):
            self.base.check_finite()

    def log(self) -> dict[str, float]:
        """The base's columns of the history."""
        return self.base.log()

    def set_training(self, training: bool) -> None:
        """The base's."""
        self.base.set_training(training)

    def join(self, processes: Any) -> None:
        """Raises ValueError: frequencies are of whole batches."""
        raise ValueError("BiasAdaptation looks at whole batches: train with it in one process")

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to continue, without the data."""
        counter = {"n_samples": self.counter.n_samples, "fired": self.counter.fired, "largest": self.counter.largest}
        return {"base": self.base.state_dict(), "counter": counter, "scale": self.scale, "frequency": self.frequency}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Continue from `state_dict()`."""
        self.base.load_state_dict(saved["base"])
        self.counter.n_samples = saved["counter"]["n_samples"]
        copy_whole(self.counter.fired, saved["counter"]["fired"], "counts of firing")
        copy_whole(self.counter.largest, saved["counter"]["largest"], "largest codes")
        self.scale = saved["scale"]
        self.frequency = None if saved["frequency"] is None else saved["frequency"].to(self.targets.device)


@contextmanager
def diverging_with(state: BiasState) -> Iterator[None]:
    """A DivergenceError from inside carries this state, not the base's."""
    try:
        yield
    except DivergenceError as error:
        raise DivergenceError(error.step, state) from None
