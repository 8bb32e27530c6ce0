"""One forward pass that computes what is asked for, once."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import torch

from splinterp._typing import Float, Tensor
from splinterp.activations import TopActs
from splinterp.protocol import Code, SparseModel, dense, masked, times_fired


class Forward:
    """The forward pass of a batch, lazily: what no loss term reads is not computed, and each thing once.

    The code stays sparse where the model's is, unless a term reads `acts` or `pre_acts`. Everything is differentiable.

    Args:
        model: what codes and decodes.
        x: samples (n, d_in), or pairs.
        scores: compute `pre_acts` first and take the code from them, because a term will read them: one encoder product, not two.
    """

    def __init__(self, model: SparseModel, x: Float[Tensor, "n d_in"], scores: bool = False) -> None:
        self.model, self.x = model, x
        self.scores = scores

    @cached_property
    def target(self) -> Tensor:
        """What is to be reconstructed (n, d_in): x, or its part of pairs."""
        return self.model.target(self.x)

    @cached_property
    def pre_acts(self) -> Tensor:
        """Affine scores (n, n_latents)."""
        return self.model.pre_acts(self.x)

    @cached_property
    def code(self) -> Code:
        """The code, in the model's form."""
        return self.model.code_from(self.pre_acts, self.x) if self.scores else self.model.code(self.x)

    @cached_property
    def acts(self) -> Tensor:
        """The dense code (n, n_latents)."""
        return dense(self.code, self.model.shape[1])

    @cached_property
    def W_dec(self) -> Tensor:  # noqa: N802  (the field's name)
        """The decoder's rows (n_latents, d_in)."""
        return self.model.W_dec

    @cached_property
    def x_hat(self) -> Tensor:
        """The reconstruction (n, d_in)."""
        return self.decode(self.code)

    @cached_property
    def error(self) -> Tensor:
        """target - x_hat, (n, d_in)."""
        return self.target - self.x_hat

    def decode(self, code: Code) -> Tensor:
        """The reconstruction (n, d_in) of any code."""
        if isinstance(code, TopActs) and not self.model.trains_sparse:
            code = dense(code, self.model.shape[1])
        return self.model.decode(code)

    def where(self, keep: Callable[[Tensor, Tensor], Tensor]) -> Code:
        """The code with zeros where `keep(values, latents)` does not hold; both arguments have the shape of the code's values."""
        values = self.values()
        return masked(self.code, keep(values, self.latents().expand_as(values)))

    def values(self) -> Tensor:
        """The code's values: (n, k) where it is sparse, else (n, n_latents)."""
        return self.code.top_acts if isinstance(self.code, TopActs) else self.code

    def latents(self) -> Tensor:
        """The latents that `values` belong to: (n, k) where the code is sparse, else all in order, (n_latents,)."""
        if isinstance(self.code, TopActs):
            return self.code.top_indices
        return torch.arange(self.code.shape[1], device=self.code.device)

    @torch.no_grad()
    def fired(self) -> Tensor:
        """Which latents are non-zero on some sample, bool (n_latents,), without a dense code."""
        return times_fired(self.code, self.model.shape[1]) > 0
