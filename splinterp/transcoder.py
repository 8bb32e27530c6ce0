"""Transcoders: sparse codes of one activation that reconstruct another, a layer's output from its input, say."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from splinterp._checks import as_samples, whole
from splinterp._random import as_generator
from splinterp._typing import ArrayLike, Float, Tensor
from splinterp.activations import Activation
from splinterp.encoders import Encoder, TopAFA
from splinterp.sae import SAE


def paired(x: ArrayLike, y: ArrayLike) -> Float[Tensor, "n width"]:
    """Samples of a transcoder: x (n, d_in) and y (n, d_out) side by side, in the dtype of x.

    Standardise x and y before, each by itself. Raises TypeError, ValueError: not samples in rows, different numbers of them.
    """
    x = as_samples(x)
    y = as_samples(y, dtype=x.dtype, device=x.device, name="y")
    if len(x) != len(y):
        raise ValueError(f"x has {len(x)} rows and y has {len(y)}: pass the inputs and the outputs of the same samples")
    return torch.cat([x, y], dim=1)


class Transcoder(SAE):
    """y_hat = activation((x - b_pre) @ W_enc + b_enc) @ W_dec + b_dec, W_dec (n_latents, d_out) and b_dec (d_out,).

    It is trained and evaluated as an SAE is, by every method and term, on samples from `paired(x, y)`; errors are of y, and an exact
    solve is of y on the codes. `encode` and `forward` take pairs, or x alone. The decoder is free. Geometry has the regions of its
    encoder; formats for SAEs and resampling refuse it. Source: Transcoders find interpretable LLM feature circuits, arXiv 2406.11944
    (with ReLU and L1).

    Args:
        d_in, d_out: widths of x and y.
        n_latents, activation, b_pre, dtype, device, encoder, generator, init: as of `SAE`. W_dec starts at 0.01 N(0, 1).

    Raises:
        ValueError: sizes below 1, another decoder than "free"; TypeError: `TopAFA`, whose norms are of what x reconstructs.

    Examples:
        >>> from splinterp import TopK, PAMSGD, fit
        >>> x = torch.randn(300, 6, generator=torch.Generator().manual_seed(0))
        >>> transcoder = Transcoder(6, 12, TopK(2), d_out=4, generator=0)
        >>> history = fit(transcoder, paired(x, x[:, :4].relu()), PAMSGD(), epochs=3, generator=0).history
        >>> transcoder(x).x_hat.shape
        torch.Size([300, 4])
    """

    def __init__(
        self, d_in: int, n_latents: int, activation: Activation, decoder: str = "free", *, d_out: int, init_dec: str = "random",
        dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu", encoder: Encoder | None = None,
        generator: torch.Generator | int | None = None, **options: Any,
    ) -> None:  # fmt: skip
        whole("d_out", d_out, 1)
        if decoder != "free" or init_dec != "random":
            raise ValueError(
                f"decoder={decoder!r} with init_dec={init_dec!r}: y is no mirror of x, so a transcoder's decoder is free and starts at "
                "random: leave both out"
            )
        if isinstance(encoder, TopAFA):
            raise TypeError("TopAFA takes as many latents as the norm of x asks for, which says nothing of y: take TopK")
        g = as_generator(generator)
        super().__init__(d_in, n_latents, activation, "free", init_dec="random", dtype=dtype, device=device, encoder=encoder,
                         generator=g, **options)  # fmt: skip
        self.d_out = int(d_out)
        W_dec = 0.01 * torch.randn(n_latents, d_out, dtype=torch.float32, device="cpu", generator=g)
        self.W_dec = nn.Parameter(W_dec.to(device=device, dtype=dtype))
        self.b_dec = nn.Parameter(torch.zeros(d_out, device=device, dtype=dtype))

    @property
    def width(self) -> int:
        return self.d_in + self.d_out

    @property
    def pairs(self) -> bool:
        return True

    def inputs(self, x: Tensor) -> Tensor:
        return x[..., : self.d_in]

    def target(self, x: Tensor) -> Tensor:
        return x[..., self.d_in :]

    def _width_of(self, x: Any) -> int:
        alone = getattr(x, "ndim", 0) == 2 and x.shape[1] == self.d_in
        return self.d_in if alone else self.width

    def config(self) -> dict[str, Any]:
        return {**super().config(), "d_out": self.d_out}

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, d_out={self.d_out}"
