"""Terms of a loss: what is minimised, one class a term.

A loss is the sum of `weight * term` over its terms, in the published scale: means over samples, and over d_in too for squared
errors. A method takes any tuple of them (`SGD(terms=(SquaredError(), AuxK(weight=1 / 32)))`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from splinterp._checks import at_least
from splinterp._documented import documented
from splinterp._typing import Tensor
from splinterp.losses.forward import Forward
from splinterp.protocol import Code, SparseModel

State = dict[str, Tensor]


@documented
@dataclass(frozen=True, kw_only=True)
class Term:
    """One term of a loss. A subclass is a frozen dataclass with a `__call__`; its other methods have defaults.

    Raises:
        ValueError: a weight below 0.
    """

    reads_scores: ClassVar[bool] = False
    """Whether it reads `pre_acts`: the code is then taken from them, at the price of a dense array of scores."""
    couples_samples: ClassVar[bool] = False
    """Whether its value of a batch is more than a mean over samples: one process only, and batches are never joined."""

    weight: float = 1.0
    """What multiplies the term's value."""

    def __post_init__(self) -> None:
        at_least("weight", self.weight, 0.0)

    @property
    def name(self) -> str:
        """Of its column in the history."""
        return type(self).__name__

    def check(self, model: SparseModel) -> None:
        """Raise TypeError or ValueError for a model on which the term would not act."""

    def init(self, model: SparseModel) -> State:
        """What it keeps from batch to batch: tensors, changed in place, saved in checkpoints."""
        return {}

    def __call__(self, out: Forward, state: State) -> Tensor:
        """The value on a batch, without the weight."""
        raise NotImplementedError

    def after(self, out: Forward, state: State) -> None:
        """Called once after each batch's gradients, without gradients: the place to update `state`."""

    def row_ridge(self, model: SparseModel, totals: Tensor, n_samples: float) -> Tensor | None:
        """For a penalty on the norms of the decoder's rows: the strengths v (n_latents,) of the quadratic sum_i v_i |w_i|^2
        that touches it from above at the current rows, without the weight, in sums over samples (the loss times N d_in).

        `totals` are the sums of `row_totals` over all samples. Asked for anew after each of a few solves. None: the solve does
        not see the term.
        """
        return None

    def row_totals(self, out: Forward) -> Tensor:
        """What `row_ridge` needs of a batch, summed over its samples, (n_latents,): the penalty's slopes in the rows' norms."""
        raise NotImplementedError


@documented
class Reconstruction(Term):
    """A term that is quadratic in (W_dec, b_dec) at fixed codes: a weighted sum of squared errors of codes.

    The gradient phase and the exact solve read the same `codes`.
    """

    def codes(self, out: Forward) -> Iterator[tuple[float | Tensor, Code]]:
        """(weight, code) of each part; a weight is a number, or one for each sample (n,), none negative."""
        raise NotImplementedError

    def __call__(self, out: Forward, state: State) -> Tensor:
        total: Tensor | None = None
        for weight, code in self.codes(out):
            error = out.error if code is out.code else out.target - out.decode(code)
            squares = error.square()
            part = squares.mean() * weight if not isinstance(weight, Tensor) else (squares.mean(1) * weight).mean()
            total = part if total is None else total + part
        assert total is not None, "a reconstruction has at least one code"
        return total


@documented
@dataclass(frozen=True, kw_only=True)
class SquaredError(Reconstruction):
    """The mean over samples and d_in of |x - x_hat|^2."""

    def codes(self, out: Forward) -> Iterator[tuple[float | Tensor, Code]]:
        yield 1.0, out.code


def needs(model: SparseModel, term: Term, option: str) -> None:
    """Raise ValueError unless the model's activation takes a sparsity penalty: `option` is "allows_l1" or "allows_l0"."""
    activation: Any = model.nonlinearity
    name = term.name.lower()
    if activation is None:
        if option == "allows_l0":
            raise ValueError(f"{name}={term.weight} needs a splinterp SAE with a JumpReLU")
        return
    kind = type(activation).__name__
    if option == "allows_l1" and not activation.allows_l1:
        raise ValueError(f"{name}={term.weight} has no effect on the sparsity of {kind}, which fixes it by k: set {name}=0")
    if activation.stated(option) is None:
        raise ValueError(
            f"{name}={term.weight} acts on what {kind} inherits, and it makes codes in its own way: write a term for it"
        )
    if option == "allows_l0" and not activation.allows_l0:
        raise ValueError(f"{name}={term.weight} needs JumpReLU, not {kind}: set {name}=0")


def needs_scores(model: SparseModel, term: Term, what: str = "pre_acts") -> None:
    """Raise TypeError unless the model has `pre_acts`; `what` of them the term reads."""
    if type(model).pre_acts is SparseModel.pre_acts:
        raise TypeError(f"{term.name} reads {what}: use a splinterp SAE, or a module with pre_acts")


@documented
@dataclass(frozen=True, kw_only=True)
class L1(Term):
    """The mean over samples of |z|_1."""

    def check(self, model: SparseModel) -> None:
        needs(model, self, "allows_l1")

    def __call__(self, out: Forward, state: State) -> Tensor:
        return out.values().abs().sum(1).mean()


@documented
@dataclass(frozen=True, kw_only=True)
class L0(Term):
    """The mean over samples of the number of active latents, by JumpReLU's straight-through estimator (arXiv 2407.14435)."""

    reads_scores: ClassVar[bool] = True

    def check(self, model: SparseModel) -> None:
        needs(model, self, "allows_l0")

    def __call__(self, out: Forward, state: State) -> Tensor:
        activation: Any = out.model.nonlinearity
        return activation.count(out.pre_acts).mean()


@torch.no_grad()
def totals_of(code: Code, n_latents: int) -> Tensor:
    """Each latent's sum of |z| over the samples of a code, (n_latents,)."""
    from splinterp.activations import TopActs

    if isinstance(code, TopActs):
        return code.top_acts.new_zeros(n_latents).index_add_(0, code.top_indices.flatten(), code.top_acts.abs().flatten())
    return code.abs().sum(0)
