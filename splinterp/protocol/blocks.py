"""Parts of a model as others see them: the decoder as a solve does, the bias as bias adaptation does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import nn

from splinterp._typing import Float, Tensor


class Block(NamedTuple):
    """The decoder as a solve sees it: x_hat = acts @ W_dec + b_dec."""

    weights: tuple[nn.Parameter, ...]
    """Its own weights: W_dec, a residual, or none where W_dec is the encoder's."""
    bias: tuple[nn.Parameter, ...]
    """The parameter that b_dec is, or is a view of; none where it is computed."""
    scales: nn.Parameter | None
    """Trained output scales (n_latents,), where there are any."""
    prior: Tensor | None
    """W_dec where the own weights are 0, (n_latents, d_in): what a ridge pulls to. None: 0."""
    write: Callable[[Tensor, Tensor], None]
    """write(W_dec, b_dec) makes the decoder this one; what cannot move is left."""
    solve: Callable[[Any], float] | None = None
    """Where rows may not be anything: solve(stats), from `DecoderStats`, writes the best decoder there is and returns how far it can be
    from the minimum, as a share of the samples' sum of squares."""
    solve_cost: float = 0.0
    """Of that solve, beside one pass over the samples: in samples that a gradient step goes by."""

    @property
    def tied(self) -> bool:
        """Whether W_dec is the encoder's alone, so that a solve moves the bias (and the scales) only."""
        return not self.weights and self.prior is not None

    @property
    def residual(self) -> nn.Parameter | None:
        """The weights that are added to the encoder's, where there are such."""
        return self.weights[0] if self.weights and self.prior is not None else None


class BiasBlock(NamedTuple):
    """What makes a latent fire more or less often, as bias adaptation sees it."""

    value: Float[Tensor, " n_latents"]
    """b_enc, or minus the threshold of an activation that has its own."""
    write: Callable[[Tensor], None]
    """Make the bias this."""
    held: tuple[nn.Parameter, ...]
    """Parameters that no gradient may move while the bias is adapted: those above, and an input centre, which would shift all."""
    threshold: Tensor | None
    """The activation's own threshold (n_latents,)."""
    by_own_score: bool
    """Whether a latent fires by its own score alone, whatever the others do."""
