"""Random diagrams and SAEs for the geometric claims: general position, ties on a lattice, repeated and collinear sites."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import strategies as st

from splinterp import SAE, AbsTopK, JumpReLU, ReLU, TopK
from splinterp.geometry import PowerDiagram

seeds = st.integers(0, 2**32 - 1)


@st.composite
def diagrams(draw, d=None, max_sites=8, kinds=("general", "lattice", "repeated", "collinear")):
    """A PowerDiagram; all but "general" have ties that are exact in float64."""
    rng = np.random.default_rng(draw(seeds))
    d = draw(st.integers(1, 8)) if d is None else d
    n = draw(st.integers(1, max_sites))
    order = draw(st.integers(1, n))
    kind = draw(st.sampled_from(kinds))
    if kind == "general":
        return PowerDiagram(rng.normal(size=(n, d)), 0.5 * rng.normal(size=n), order)
    sites = rng.integers(-2, 3, size=(n, d)).astype(float)
    weights = 2.0 * rng.integers(-1, 2, size=n)
    if kind == "repeated":
        copies = rng.integers(0, n, size=n)
        sites, weights = sites[copies], weights[copies]
    elif kind == "collinear":
        sites = sites[:, :1] * rng.integers(-2, 3, size=d)
    return PowerDiagram(sites, weights, order)


def random_sae(activation: str, d: int, m: int, k: int, seed: int, dead: int = 0, b_pre: bool = False) -> SAE:
    """A float64 SAE with random biases; the last `dead` latents have zero weights and a bias of -1."""
    g = torch.Generator().manual_seed(seed)
    made = {"TopK": lambda: TopK(k), "AbsTopK": lambda: AbsTopK(k), "ReLU": ReLU, "JumpReLU": lambda: JumpReLU(0.3)}
    sae = SAE(d, m, made[activation](), init_dec="random", b_pre=b_pre, dtype=torch.float64, generator=g)
    with torch.no_grad():
        sae.b_enc.copy_(0.5 * torch.randn(m, generator=g))
        sae.b_dec.copy_(torch.randn(d, generator=g))
        sae.W_dec.copy_(torch.randn(m, d, generator=g))
        if b_pre:
            sae.b_pre.copy_(torch.randn(d, generator=g))
        if dead:
            sae.W_enc[:, m - dead :] = 0
            sae.b_enc[m - dead :] = -1 if activation != "AbsTopK" else 0
    return sae


@st.composite
def saes(draw, activations=("TopK", "AbsTopK", "ReLU", "JumpReLU"), min_d=1, max_d=8, max_latents=10):
    m = draw(st.integers(1, max_latents))
    k = draw(st.integers(1, m))
    dead = draw(st.sampled_from([0, 0, 0, m // 3]))
    return random_sae(draw(st.sampled_from(activations)), draw(st.integers(min_d, max_d)), m, k, draw(seeds), dead,
                      draw(st.booleans()))  # fmt: skip


def normal_points(rng_seed: int, n: int, d: int, scale: float = 1.0) -> np.ndarray:
    return scale * np.random.default_rng(rng_seed).normal(size=(n, d))
