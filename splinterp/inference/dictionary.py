"""A decoder whose codes are found by a search, and the dictionary that pursuits train (MOD)."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from splinterp._checks import as_samples, at_least, one_of, whole
from splinterp._random import as_generator
from splinterp._typing import ArrayLike, Tensor
from splinterp.decoder import DecoderStats, solve_decoder
from splinterp.inference.pursuits import PURSUITS, check_k
from splinterp.protocol import Code, SparseModel, as_model, dense


class Dictionary(SparseModel):
    """A decoder whose codes are found by a search. It is evaluated as an SAE is (`metrics.evaluate`), and not trained by gradients.

    Args:
        W_dec, b_dec: (m, d), (d,); copied.
        k: latents of a sample.
        pursuit: "omp", "gradient" or "mp".
        nonnegative: whether codes must be.

    Raises:
        ValueError: an unknown pursuit, k below 1 or above m.
    """

    couples_samples = False

    def __init__(self, W_dec: Tensor, b_dec: Tensor, k: int, pursuit: str = "omp", *, nonnegative: bool = True) -> None:
        super().__init__()
        one_of("pursuit", pursuit, PURSUITS)
        self.k, self.pursuit, self.nonnegative = check_k(k, W_dec), pursuit, bool(nonnegative)
        self.W_dec = nn.Parameter(W_dec.detach().clone(), requires_grad=False)
        self.b_dec = nn.Parameter(b_dec.detach().clone(), requires_grad=False)

    @classmethod
    def of(cls, sae: Any, k: int | None = None, pursuit: str = "omp") -> Dictionary:
        """The decoder of an SAE. k: None takes that of its activation; codes are as free of sign as the SAE's.

        Raises ValueError where the SAE has no fixed k and none is given.
        """
        model = as_model(sae)
        k = model.kept if k is None else k
        if k is None:
            raise ValueError(f"{model.label} has no fixed number of latents a sample: pass k")
        signed = model.nonlinearity is not None and model.nonlinearity.signed
        return cls(model.W_dec, model.b_dec, k, pursuit, nonnegative=not signed)

    @property
    def kept(self) -> int | None:
        return self.k

    def code(self, x: Tensor) -> Code:
        return PURSUITS[self.pursuit](x, self.W_dec, self.b_dec, self.k, nonnegative=self.nonnegative)

    def encode(self, x: ArrayLike) -> Tensor:
        """The dense code (n, m) of x (n, d)."""
        return dense(self.code(as_samples(x, self.shape[0], dtype=self.b_dec.dtype, device=self.b_dec.device)), self.shape[1])

    def decode(self, code: Any) -> Tensor:
        return torch.addmm(self.b_dec, dense(code, self.shape[1]), self.W_dec)


@torch.no_grad()
def learn_dictionary(
    x: ArrayLike,
    n_latents: int,
    k: int,
    *,
    iterations: int = 20,
    pursuit: str = "omp",
    nonnegative: bool = True,
    ridge: float = 0.0,
    generator: torch.Generator | int | None = None,
) -> Dictionary:
    """The method of optimal directions (MOD): codes by a pursuit, the decoder by exact least squares, in turn.

    No gradients, and no encoder: the classical baseline of every SAE. Rows start as distinct samples less their mean, b_dec at the
    mean. After each solve a row that no sample uses is replaced by the sample that is reconstructed worst (each by another one).
    Rows have unit norm at the end of each iteration; the next search finds codes for them.

    Args:
        x: samples (n, d), n >= n_latents.
        iterations: of both steps.
        ridge: of the solve, on sums over samples.

    Raises:
        TypeError, ValueError: x that is not (n, d), fewer samples than latents, options out of range.

    Source: Engan, Aase and Husoy 1999, "Method of optimal directions for frame design".
    """
    x = as_samples(x)
    whole("n_latents", n_latents, 1)
    whole("iterations", iterations, 1)
    at_least("ridge", ridge, 0.0)
    at_least("samples (one for each latent)", len(x), n_latents)
    start = x[torch.randperm(len(x), device="cpu", generator=as_generator(generator))[:n_latents]]
    mean = x.mean(0)
    found = Dictionary(F.normalize(start - mean, dim=1), mean, k, pursuit, nonnegative=nonnegative)
    for _ in range(iterations):
        stats, worst = DecoderStats(n_latents, x.shape[1], device=x.device), x.new_zeros(len(x))
        used = torch.zeros(n_latents, dtype=torch.int64, device=x.device)
        for rows in torch.arange(len(x)).split(4096):
            code = found.code(x[rows])
            stats.update(code, x[rows])
            worst[rows] = (x[rows] - found.decode(code)).square().sum(1)
            used += torch.bincount(code.top_indices[code.top_acts != 0], minlength=n_latents)  # type: ignore[union-attr]
        W_dec, b_dec = solve_decoder(stats, ridge=ridge)
        silent = (used == 0).nonzero().flatten()
        W_dec[silent] = (x[worst.topk(len(silent)).indices] - b_dec).to(W_dec)
        found.W_dec.copy_(F.normalize(W_dec, dim=1))
        found.b_dec.copy_(b_dec)
    return found
