"""Archetypal SAEs: every row of the decoder is a mixture of given points, data's centroids say, or near one."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import nn

from splinterp._checks import as_samples, at_least, whole
from splinterp._random import as_generator
from splinterp._typing import ArrayLike, Float, Tensor
from splinterp.activations import Activation
from splinterp.decoder import DecoderStats
from splinterp.decoder.hull import solve_in_hull, to_ball, to_simplex
from splinterp.protocol import Block
from splinterp.sae import SAE

ARCHETYPAL = "archetypal"
SOLVE_STEPS = 100
"""The most that a solve in training takes, from the rows as they are."""


@torch.no_grad()
def centroids(x: ArrayLike, n_points: int, random_state: int = 0) -> Float[Tensor, "n_points d_in"]:
    """Points for an `ArchetypalSAE`: the k-means centroids of x (n, d_in) less the mean of x, which b_dec has.

    Raises ValueError: fewer samples than points.
    """
    from sklearn.cluster import MiniBatchKMeans  # deferred: importing the package should not load it

    x = as_samples(x)
    whole("n_points", n_points, 1)
    if len(x) < n_points:
        raise ValueError(f"n_points={n_points} centroids of {len(x)} samples: take at most as many points as samples")
    means = MiniBatchKMeans(int(n_points), random_state=random_state, n_init=1, batch_size=4096)
    found = means.fit((x - x.mean(0)).cpu().numpy()).cluster_centers_
    return torch.from_numpy(np.asarray(found)).to(x)


class ArchetypalSAE(SAE):
    """An SAE whose decoder rows stay at the data:

        W_dec = exp(log_scale) (mixing @ points + deviation),    rows of mixing on the simplex,    |deviation_i| <= relaxation

    with trained `mixing` (n_latents, n_points), `deviation` (n_latents, d_in) and a common `log_scale`; `points` are kept. Gradient steps
    are followed by a projection, and PAM-SGD's solve is of the constrained problem (`splinterp.decoder.hull.solve_in_hull`;
    `state.residual` is its duality gap, as a share of the samples' sum of squares). The set takes the place of a ridge and of readouts.
    It is trained, saved, loaded and resumed like any other; geometry and file formats read its W_dec. Every forward pass multiplies
    mixing by points: n_latents n_points d_in multiplications. Source: RA-SAE, arXiv 2502.12892 (relaxation 1; 0: A-SAE).

    Args:
        d_in, n_latents, activation, b_pre, dtype, device, encoder, generator: as of `SAE`.
        points: (n_points, d_in), about the mean of the data (`centroids(x, n)`), or their number: of zeros, to be loaded.
        relaxation: the longest deviation, in units of the points.

    W_dec starts at points drawn without repetition (where there are fewer than latents, halfway between two drawn ones), at a scale at
    which its rows have norm 1 on average; W_enc starts at its rows, scaled to norm 1.

    Raises:
        ValueError: points of another width, none of them, or all 0; a negative relaxation; another decoder than "archetypal".

    Examples:
        >>> from splinterp import PAMSGD, TopK, fit
        >>> x = torch.randn(400, 6, generator=torch.Generator().manual_seed(0))
        >>> sae = ArchetypalSAE(6, 12, TopK(2), points=centroids(x, 30), relaxation=0.1, generator=0)
        >>> history = fit(sae, x, PAMSGD(), epochs=3, generator=0).history
        >>> bool((sae.mixing >= 0).all()), bool((sae.deviation.norm(dim=1) <= 0.1 + 1e-6).all())
        (True, True)
    """

    mixing: nn.Parameter
    deviation: nn.Parameter
    log_scale: nn.Parameter
    points: Tensor

    def __init__(
        self, d_in: int, n_latents: int, activation: Activation, decoder: str = ARCHETYPAL, *, points: ArrayLike | int,
        relaxation: float = 1.0, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu",
        generator: torch.Generator | int | None = None, **options: Any,
    ) -> None:  # fmt: skip
        if decoder != ARCHETYPAL or options.get("tie_scale") or options.get("init_dec", "transpose") != "transpose":
            raise ValueError(
                f"decoder={decoder!r}: an ArchetypalSAE's decoder is mixed of points and has one scale: leave decoder, tie_scale and "
                "init_dec out"
            )
        at_least("relaxation", relaxation, 0.0)
        if isinstance(points, torch.Tensor | np.ndarray):
            P = as_samples(points, d_in, name="points").detach().cpu().clone()  # its own: what is passed may change
            if not len(P):
                raise ValueError("points has no rows: a decoder is mixed of at least one point")
            if not bool(P.any()):
                raise ValueError("points are all 0: pass the centroids of data about their mean")
        else:
            P = torch.zeros(whole("points", points, 1), d_in)  # to be loaded
        g = as_generator(generator)
        super().__init__(d_in, n_latents, activation, "tied", dtype=dtype, device=device, generator=g, **options)
        if not self.encoder.by_latents:
            raise ValueError(f"an ArchetypalSAE starts W_enc at its rows, and {type(self.encoder).__name__} has other columns")
        self.decoder, self.relaxation = ARCHETYPAL, float(relaxation)
        mixing = _drawn(n_latents, len(P), g)
        rows = mixing.to(P) @ P
        norms = rows.norm(dim=1, keepdim=True)
        start = rows / norms.clamp_min(torch.finfo(rows.dtype).tiny)
        start = torch.where(norms > 0, start, self.W_enc.detach().T.to(start))  # at a point at 0 there is no direction

        def own(value: Tensor) -> Tensor:
            return value.to(device=device, dtype=dtype)

        self.register_buffer("points", own(P))
        self.mixing = nn.Parameter(own(mixing))
        self.deviation = nn.Parameter(own(torch.zeros(n_latents, d_in)))
        self.log_scale = nn.Parameter(own(-(norms.mean() if norms.any() else norms.new_ones(())).log()))
        with torch.no_grad():
            self.W_enc.copy_(start.T)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "W_dec" and "points" in self.__dict__.get("_buffers", {}):
            raise AttributeError("W_dec of an ArchetypalSAE is mixed of points: write into mixing, deviation or log_scale")
        super().__setattr__(name, value)

    def tied_rows(self) -> Float[Tensor, "n_latents d_in"]:
        """W_dec: no part of it is the encoder's."""
        with torch.autocast(self.mixing.device.type, enabled=False):
            return self.log_scale.exp() * torch.addmm(self.deviation, self.mixing, self.points)

    @property
    def shape(self) -> tuple[int, int]:
        return self.d_in, self.n_latents

    @torch.no_grad()
    def project(self) -> None:
        """Put `mixing` and `deviation` back into their sets."""
        self.mixing.copy_(to_simplex(self.mixing))
        self.deviation.copy_(to_ball(self.deviation, self.relaxation))

    def decoder_block(self) -> Block:
        """The decoder as a solve sees it, with a solve of its own."""

        def write(W_dec: Tensor, b_dec: Tensor) -> None:
            self.b_dec.copy_(b_dec)

        def solve(stats: DecoderStats) -> float:
            start = self.mixing.detach(), self.deviation.detach()
            found = solve_in_hull(
                stats, self.points, self.relaxation, float(self.log_scale.exp()), start=start, max_steps=SOLVE_STEPS
            )
            self.mixing.copy_(found.mixing)
            self.deviation.copy_(found.deviation)
            self.b_dec.copy_(found.b_dec)
            self.project()  # what was cut to the SAE's dtype
            return found.gap

        return Block((self.mixing, self.deviation, self.log_scale), (self.b_dec,), None, None, write, solve, self._solve_cost)

    @property
    def _solve_cost(self) -> float:
        # a step has 2 n_latents d_in (n_latents + n_points) multiplications, a sample of a gradient step about 6 n_latents d_in
        return SOLVE_STEPS * (self.n_latents + len(self.points)) / 3

    @torch.no_grad()
    def multiply_output(self, gain: float) -> bool:
        self.log_scale.add_(math.log(gain))
        return True

    def config(self) -> dict[str, Any]:
        return {**super().config(), "decoder": ARCHETYPAL, "points": len(self.points), "relaxation": self.relaxation}

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, points={len(self.points)}, relaxation={self.relaxation}"


def _drawn(n_latents: int, n_points: int, generator: torch.Generator) -> Float[Tensor, "n_latents n_points"]:
    """Mixing at the start: points without repetition, then midpoints of two drawn ones."""
    order = torch.randperm(n_points, device="cpu", generator=generator)[:n_latents]
    mixing = torch.zeros(n_latents, n_points)
    mixing[torch.arange(len(order)), order] = 1.0
    for i in range(len(order), n_latents):
        mixing[i, torch.randint(n_points, (1,), device="cpu", generator=generator)] += 0.5
        mixing[i, torch.randint(n_points, (1,), device="cpu", generator=generator)] += 0.5
    return mixing
