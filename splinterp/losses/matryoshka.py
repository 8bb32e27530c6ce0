"""Matryoshka: every prefix of the dictionary reconstructs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from splinterp._checks import at_least, whole
from splinterp._documented import documented
from splinterp._random import drawing_from, seeded_state
from splinterp._typing import Tensor
from splinterp.losses.forward import Forward
from splinterp.losses.nested import Nested, check_increasing, nested_error
from splinterp.losses.terms import Reconstruction, State
from splinterp.protocol import Code, SparseModel, masked


def prefix_depth(out: Forward, widths: Sequence[int]) -> Tensor:
    """The first of the prefixes of these widths that has each of `out.latents()`."""
    return torch.bucketize(out.latents(), torch.tensor(widths, device=out.target.device), right=True)


@documented
@dataclass(frozen=True, kw_only=True)
class Matryoshka(Nested):
    """The sum over prefixes p of u_p times the mean over samples and d_in of |x - z[:, :p] W_dec[:p] - b_dec|^2.

    The code is made once, over the whole dictionary; the whole of it is the last prefix. Weights go by prefixes, the empty one
    first where it counts. Source: arXiv 2503.17547 (whose code counts the empty prefix).

    Raises:
        ValueError: widths that do not increase, as `Nested`; on a model, widths beyond n_latents.
    """

    widths: tuple[int, ...] = (64, 256)
    """Of the prefixes; n_latents need not be among them."""
    empty: bool = False
    """Count the prefix of no latents, whose reconstruction is b_dec."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_increasing("widths", self.widths)

    def sizes(self, model: SparseModel) -> tuple[int, ...]:
        if self.widths[-1] > model.shape[1]:
            raise ValueError(f"widths={self.widths} go beyond n_latents={model.shape[1]}")
        return tuple(sorted({*self.widths, model.shape[1], *((0,) if self.empty else ())}))

    def depth(self, out: Forward) -> Tensor:
        return prefix_depth(out, self.sizes(out.model))


@documented
@dataclass(frozen=True, kw_only=True)
class RandomMatryoshka(Reconstruction):
    """Matryoshka whose prefixes are drawn anew for each batch: the mean over `n_prefixes` of them, and the whole dictionary, of the mean
    square |x - z[:, :p] W_dec[:p] - b_dec|^2.

    p = ceil(n_latents u^(1 / shape)), u uniform, one from each of n_prefixes equal parts of (0, 1], so that
    P(p <= i) = (i / n_latents)^shape: a small shape takes small prefixes. No latent is at the edge of a group, so the order of
    importance has no steps. A solve takes the middles of those parts in place of draws. Source: N. Anabeshima, Matryoshka sparse
    autoencoders (2024), whose prefixes are random; arXiv 2503.17547 for the term.

    Raises:
        ValueError: n_prefixes below 1, a shape not above 0.
    """

    n_prefixes: int = 9
    """Prefixes a batch, besides the whole dictionary."""
    shape: float = 0.5
    """Above 0: the smaller, the smaller the prefixes; 1: all widths alike."""
    seed: int = 0
    """Of the draws."""

    def __post_init__(self) -> None:
        super().__post_init__()
        whole("n_prefixes", self.n_prefixes, 1)
        at_least("shape", self.shape, 0.0, strict=True)

    def init(self, model: SparseModel) -> State:
        """`generator`: the state of a CPU generator, uint8."""
        return {"generator": seeded_state(self.seed)}

    def _widths(self, n_latents: int, within: Tensor) -> tuple[list[int], list[float]]:
        """Prefixes and their shares, for places within the parts, (n_prefixes,) in [0, 1)."""
        u = (torch.arange(self.n_prefixes, dtype=torch.float64) + within) / self.n_prefixes
        drawn = (n_latents * u ** (1 / self.shape)).ceil().long().clamp(1, n_latents)
        widths, counts = torch.cat([drawn, torch.tensor([n_latents])]).unique(return_counts=True)
        return widths.tolist(), (counts / (self.n_prefixes + 1)).tolist()

    def codes(self, out: Forward) -> Iterator[tuple[float | Tensor, Code]]:
        widths, shares = self._widths(out.model.shape[1], torch.full((self.n_prefixes,), 0.5))
        for width, share in zip(widths, shares, strict=True):
            yield share, masked(out.code, out.latents() < width)

    def __call__(self, out: Forward, state: State) -> Tensor:
        with drawing_from(state["generator"]) as generator:
            within = torch.rand(self.n_prefixes, device="cpu", generator=generator, dtype=torch.float64)
        widths, shares = self._widths(out.model.shape[1], within)
        return nested_error(out, prefix_depth(out, widths), shares)
