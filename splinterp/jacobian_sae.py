"""Two SAEs around an MLP, trained together so that few latents before it act on each latent behind it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.nn import functional as F

from splinterp._checks import as_samples, whole
from splinterp._random import as_generator
from splinterp._typing import ArrayLike, Float, Tensor
from splinterp.activations import Activation, BlockTopK, TopActs, TopK
from splinterp.decoder import DecoderStats, solve_by_gcv, solve_decoder
from splinterp.decoder.ridge import usable_ridge
from splinterp.metrics.jacobian import MLP, ActiveJacobian, entries, with_slope
from splinterp.protocol import Block, Code
from splinterp.sae import SAE
from splinterp.transcoder import paired

ENTRYWISE: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu, "gelu_tanh": partial(F.gelu, approximate="tanh"), "relu": torch.relu, "silu": F.silu, "tanh": torch.tanh,
}  # fmt: skip
"""Activations that an MLP may have, by the name that a file keeps."""


class JacobianSAE(SAE):
    """An SAE of what goes into an MLP and one of what comes out, as one whose W_enc and W_dec have two blocks:

        samples (x, y) with y = mlp(x),    latents 0 to n_latents / 2 - 1 encode and decode x alone, the others y alone

    With `losses.JacobianL1` they are drawn to dictionaries between which the MLP acts sparsely; without it they are two SAEs side by
    side, which share a step size and a loss. What trains, evaluates, saves or resumes an SAE does so here, on `JacobianSAE.samples(x)`,
    but for readouts, races, resampling and ridges by held-out samples: an exact solve is of both decoders, with one ridge by
    cross-validation, which counts every latent for all columns and so is on the careful side. `halves` gives two plain SAEs. Source:
    Jacobian sparse autoencoders, arXiv 2502.18147 (JSAE), with free decoders and n_latents / 2 = 32 d_in.

    Args:
        d_in: d_before + d_after, the widths of x and y together.
        n_latents: of both blocks together.
        activation: `BlockTopK(k, 2)`: k / 2 latents of each block.
        decoder, b_pre, dtype, device, generator: as of `SAE`.
        mlp: between x and y, in the units of the samples: a standardised x needs the standardizer's map in W_in and b_in. It is
            kept and saved with the SAE, and not trained. Its activation is one of gelu, gelu_tanh, relu, silu, tanh, as a function of
            PyTorch, a module, or by that name.

    Raises:
        TypeError: another activation than BlockTopK of 2 blocks, an MLP's that is none of those.
        ValueError: widths of the MLP that do not fit, an init_bias.

    Examples:
        >>> from splinterp import SGD, fit
        >>> from splinterp.losses import JacobianL1, SquaredError
        >>> g = torch.Generator().manual_seed(0)
        >>> mlp = MLP(torch.randn(6, 9, generator=g), torch.zeros(9), torch.randn(9, 4, generator=g), torch.zeros(4), torch.tanh)
        >>> sae = JacobianSAE(10, 32, BlockTopK(4, 2), mlp=mlp, generator=0)
        >>> samples = sae.samples(torch.randn(300, 6, generator=g))
        >>> history = fit(sae, samples, SGD(terms=(SquaredError(), JacobianL1(weight=0.1))), epochs=2, generator=0).history
        >>> sae.jacobian(samples).values.shape
        torch.Size([300, 2, 2])
    """

    def __init__(
        self, d_in: int, n_latents: int, activation: Activation, decoder: str = "free", *, mlp: MLP | dict[str, Any],
        dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu", generator: torch.Generator | int | None = None,
        **options: Any,
    ) -> None:  # fmt: skip
        if not isinstance(activation, BlockTopK) or activation.blocks != 2:
            raise TypeError(f"activation={activation}: the latents of x and of y are chosen apart: pass BlockTopK(k, 2)")
        if not isinstance(mlp, dict | MLP):
            raise TypeError(f"mlp is a {type(mlp).__name__}: pass splinterp.metrics.MLP(W_in, b_in, W_out, b_out, activation)")
        sizes = mlp if isinstance(mlp, dict) else _sizes(mlp)
        if sizes.get("activation") not in ENTRYWISE:
            raise ValueError(f"activation={sizes.get('activation')!r} of the MLP is none of {', '.join(ENTRYWISE)}")
        if sizes["d_before"] + sizes["d_after"] != d_in:
            raise ValueError(
                f"d_in={d_in} is not the MLP's {sizes['d_before']} + {sizes['d_after']}, its inputs and outputs side by side"
            )
        super().__init__(
            d_in, n_latents, activation, decoder, dtype=dtype, device=device, generator=as_generator(generator), **options
        )
        if not self.encoder.plain or self.scale is not None:
            raise TypeError("a JacobianSAE has a plain encoder and no trained scales: leave encoder and tie_scale out")
        self._sizes = dict(sizes)
        d_before, width, d_after = self.d_before, whole("width", sizes["width"], 1), sizes["d_after"]
        shapes = {"W_in": (d_before, width), "b_in": (width,), "W_out": (width, d_after), "b_out": (d_after,)}
        for name, shape in shapes.items():
            value = torch.zeros(shape) if isinstance(mlp, dict) else getattr(mlp, name).detach().clone()
            self.register_buffer(f"mlp_{name}", value.to(device=device, dtype=dtype))
        with torch.no_grad():
            for rows, latents in self._blocks():  # columns as long as before, and a decoder that starts at their transpose
                columns = self.W_enc[rows, latents]
                columns *= (self.W_enc[:, latents].norm(dim=0) / columns.norm(dim=0)).to(columns)
            if decoder == "free" and self._config["init_dec"] == "transpose":
                self.W_dec.copy_(self.W_enc.T)
            self.project()

    @property
    def d_before(self) -> int:
        """Width of x, the MLP's input."""
        return int(self._sizes["d_before"])

    @property
    def mlp(self) -> MLP:
        """What is between, with its activation."""
        return MLP(self.mlp_W_in, self.mlp_b_in, self.mlp_W_out, self.mlp_b_out, ENTRYWISE[self._sizes["activation"]])

    def samples(self, x: ArrayLike) -> Float[Tensor, "n d_in"]:
        """Inputs (n, d_before) of the MLP with its outputs beside them. Raises TypeError, ValueError: input that does not fit."""
        x = as_samples(x, self.d_before)
        with torch.no_grad():
            return paired(x, self.mlp(x.to(self.W_enc)))

    def halves(self) -> tuple[SAE, SAE]:
        """The SAE of x and the SAE of y, as SAEs with free decoders of their own, which hold copies."""
        found = []
        for rows, latents in self._blocks():
            n_latents, d_in = latents.stop - latents.start, rows.stop - rows.start
            b_pre = "fixed" if self.b_pre is not None else False
            half = SAE(d_in, n_latents, TopK(self._each), "free", b_pre=b_pre, init_bias=0.0, dtype=self.W_enc.dtype,
                       device=self.W_enc.device, generator=0)  # fmt: skip
            with torch.no_grad():
                half.W_enc.copy_(self.W_enc[rows, latents])
                half.b_enc.copy_(self.b_enc[latents])
                half.W_dec.copy_(self.decoder_rows()[latents, rows])
                half.b_dec.copy_(self.b_dec[rows])
                if half.b_pre is not None and self.b_pre is not None:
                    half.b_pre.copy_(self.b_pre[rows])
            found.append(half.eval())
        first, second = found
        return first, second

    def jacobian(self, x: Float[Tensor, "n d_in"], code: Code | None = None) -> ActiveJacobian:
        """As `metrics.active_jacobian` of the two halves, with latents numbered within each; differentiable in all weights. Entries of
        latents whose code is 0 are 0.

        `code`: that of the samples x, where it is known.
        """
        (into, first), (outof, second) = self._blocks()
        code = self.code(x) if code is None else code
        if isinstance(code, TopActs):  # in whatever order
            order = (code.top_indices >= first.stop).sort(dim=1, stable=True).indices[:, : self._each]
            acts, before = code.top_acts.gather(1, order), code.top_indices.gather(1, order)
        else:
            acts, before = code[:, first].topk(self._each, dim=1)
        rows = self.decoder_rows()[first, into]
        hidden = torch.addmm(self.mlp_b_in, self.b_dec[into] + (acts[:, None] @ rows[before])[:, 0], self.mlp_W_in)
        out, slope = with_slope(self.mlp.activation, hidden)
        y = torch.addmm(self.mlp_b_out, out, self.mlp_W_out)
        y = y if self.b_pre is None else y - self.b_pre[outof]
        W_enc = self.W_enc[outof, second]
        largest = torch.addmm(self.b_enc[second], y, W_enc).topk(self._each, dim=1)
        values = entries(rows, self.mlp, slope, W_enc, before, largest.indices)
        fires = (acts > 0)[:, :, None] & (largest.values > 0)[:, None]
        return ActiveJacobian(torch.where(fires, values, 0.0), before, largest.indices)

    @property
    def _each(self) -> int:
        k = self.activation.kept
        assert k is not None
        return k // 2

    def _blocks(self) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
        """(columns of the samples, latents) of x and of y."""
        half = self.n_latents // 2
        return (slice(0, self.d_before), slice(0, half)), (slice(self.d_before, self.d_in), slice(half, self.n_latents))

    @torch.no_grad()
    def project(self) -> None:
        """Zeros outside the two blocks."""
        self._cut(self.W_enc.T, self.own_rows)

    def project_gradients(self) -> None:
        """Zeros outside the two blocks, so that clipping and Muon see the blocks alone."""
        own = self.own_rows
        self._cut(None if self.W_enc.grad is None else self.W_enc.grad.T, None if own is None else own.grad)

    def _cut(self, *weights: Tensor | None) -> None:
        (into, first), (outof, second) = self._blocks()
        for rows in weights:
            if rows is not None:
                rows[first, outof] = 0.0
                rows[second, into] = 0.0

    def decoder_block(self) -> Block:
        """The decoder as a solve sees it: two regressions, one for each block."""
        block = super().decoder_block()
        if not block.weights:
            return block

        def solve(stats: DecoderStats) -> float:
            apart = stats.empty().merge(stats)
            (_, first), (_, second) = self._blocks()
            apart.gram[first, second] = 0.0
            apart.gram[second, first] = 0.0
            self._cut(apart.cross)
            apart.altered()
            solution, chosen = solve_by_gcv(apart, block.prior)
            ridge = usable_ridge(chosen, block.prior)
            if ridge != chosen.ridge:
                solution = solve_decoder(apart, ridge=ridge, prior=block.prior)
            block.write(solution.W_dec.to(self.W_enc), solution.b_dec.to(self.W_enc))
            self.project()  # what rounding left outside
            return 0.0

        cost = self.n_latents**2 / (2 * self.d_in) + 3 * self.n_latents  # three Cholesky factors, as the search has
        return block._replace(solve=solve, solve_cost=cost)

    def config(self) -> dict[str, Any]:
        return {**super().config(), "mlp": dict(self._sizes)}

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, mlp={self._sizes}"


def _sizes(mlp: MLP) -> dict[str, Any]:
    for name in ("W_in", "b_in", "W_out", "b_out"):
        if not isinstance(getattr(mlp, name), Tensor):
            raise TypeError(f"{name} of the MLP is a {type(getattr(mlp, name)).__name__}: pass tensors, torch.as_tensor(...)")
    d_before, width = mlp.W_in.shape
    if mlp.W_out.shape[0] != width or len(mlp.b_in) != width or len(mlp.b_out) != mlp.W_out.shape[1]:
        shapes = {name: tuple(getattr(mlp, name).shape) for name in ("W_in", "b_in", "W_out", "b_out")}
        raise ValueError(f"the MLP's shapes do not fit each other: {shapes}")
    return {"d_before": d_before, "width": width, "d_after": mlp.W_out.shape[1], "activation": _name_of(mlp.activation)}


def _name_of(activation: Any) -> str:
    """The name of an activation that is one of `ENTRYWISE`, judged by what it does."""
    if isinstance(activation, str) and activation in ENTRYWISE:
        return activation
    at = torch.linspace(-4, 4, 33)
    for name, function in ENTRYWISE.items() if callable(activation) else ():
        found = activation(at)
        if isinstance(found, Tensor) and found.shape == at.shape and torch.allclose(found, function(at), atol=1e-6):
            return name
    raise TypeError(f"the MLP's activation {activation!r} is none of {', '.join(ENTRYWISE)}")
