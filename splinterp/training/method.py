"""What `fit` asks of a training method and of its state."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable


@runtime_checkable
class State(Protocol):
    """What `fit` asks of a method's state."""

    def log(self) -> dict[str, float]:
        """The method's columns of the history, `loss` among them."""

    def check_finite(self) -> None:
        """Raise DivergenceError where the last loss is not finite."""

    def set_training(self, training: bool) -> None:
        """Before steps (True), and before evaluation and an epoch's end (False): for optimizers that have two modes."""

    def join(self, processes: Any) -> None:
        """Share every batch with other processes from now on (asked of methods that do not couple batches)."""

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to continue, as `torch.load(weights_only=True)` reads it."""

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Continue from `state_dict()`."""


@runtime_checkable
class Method(Protocol):
    """What `fit` asks of a training method, all of it; one that is `ReadsOut` too is asked for readouts."""

    @property
    def couples_batches(self) -> bool:
        """Whether it looks at whole batches, so that one process trains."""

    @property
    def wants_x_val(self) -> bool:
        """Whether it chooses by held-out samples, so that `fit` needs x_val."""

    def init(self, sae: Any, x: Any, total_steps: int | None = None, *, x_val: Any = None) -> Any:
        """Start; returns a `State`."""

    def step(self, sae: Any, state: Any, x: Any) -> Any:
        """Train on a batch. Returns how many of the steps that `fit` was asked for this was; anything but a positive int: one."""

    def end_epoch(self, sae: Any, state: Any, batches: Any) -> None:
        """Finish a pass over the `batches`."""


@runtime_checkable
class ReadsOut(Protocol):
    """A training method whose history rows may be of another decoder than the one that is trained."""

    def read_out(self, sae: Any, state: Any) -> Any:
        """The `splinterp.decoder.Readout` that a row is to be of, or None."""


@runtime_checkable
class PassesOverData(Protocol):
    """A training method that says whether it goes over all of the data now and then, which a stream does not let it."""

    @property
    def passes_over_data(self) -> bool:
        """Whether it does."""


def check_method(method: Any) -> None:
    """Raises TypeError, with what is missing, unless `method` is a training method."""
    if isinstance(method, type):
        raise TypeError(f"method is the class {method.__name__}: pass an object of it, {method.__name__}()")
    if isinstance(method, str):
        raise TypeError(f"method={method!r} is a string: pass an object, PAMSGD() or SGD(lr=1e-3), say")
    if not isinstance(method, Method):
        missing = [name for name in METHOD_NAMES if name not in dir(method)]
        raise TypeError(
            f"{type(method).__name__} is no training method: it lacks {', '.join(missing)}; see splinterp.training.Method"
        )


METHOD_NAMES = ("couples_batches", "wants_x_val", "init", "step", "end_epoch")
STATE_NAMES = ("log", "check_finite", "set_training", "join", "state_dict", "load_state_dict")
