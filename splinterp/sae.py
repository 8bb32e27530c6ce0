"""The sparse autoencoder: x -> pre_acts -> acts -> x_hat, with a free, tied or tied-residual decoder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from splinterp._atomic import replace_file
from splinterp._checks import as_samples, at_least, one_of
from splinterp._typing import ArrayLike, Float, Tensor
from splinterp.activations import Activation, RowTop, TopActs, activation_from_config
from splinterp.sparse_kernels import Transposed, autocast_dtype, decode_sparse, kept_scores, takes_triton

if TYPE_CHECKING:
    from splinterp.data.standardizer import Standardizer

DECODERS = ("free", "tied", "tied_residual")
FORMAT = "splinterp-sae-1"
SPARSE_GAIN = 8
"""On a CPU an entry of a dense product has about an eighth of the cost of a sparse one (measured)."""
TRITON_GAIN = 32
"""On a GPU: of the ratio of float32 operations to bytes a second of current cards (estimated, not measured)."""


class SAEOutput(NamedTuple):
    """What an SAE returns: reconstruction, sparse code, affine scores."""

    x_hat: Float[Tensor, "n d_in"]
    acts: Float[Tensor, "n n_latents"]
    pre_acts: Float[Tensor, "n n_latents"]


class SAE(nn.Module):
    """A sparse autoencoder; samples are rows.

        pre_acts = (x - b_pre) @ W_enc + b_enc        W_enc (d_in, n_latents), b_enc (n_latents,), b_pre (d_in,) optional
        acts     = activation(pre_acts)
        x_hat    = acts @ W_dec + b_dec               W_dec (n_latents, d_in), b_dec (d_in,)

    `W_dec` is a parameter ("free"), `W_enc.T` ("tied") or `W_enc.T + residual` ("tied_residual", the residual is a
    parameter that starts at 0). With `tie_scale`, row m of `W_enc.T` is multiplied by a trained `scale[m]`, starting at 1.

    NumPy and half-precision input is converted to the SAE's dtype. Input is checked for non-finite entries on the
    CPU; on a GPU the check would wait for the device, and `fit` makes it once for the whole data set instead.

    Args:
        d_in: input width.
        n_latents: dictionary size.
        activation: one of ReLU, JumpReLU, TopK, AbsTopK, BatchTopK; copied, so one object can serve several SAEs.
        decoder: "free", "tied" or "tied_residual".
        init: "unit": W_enc ~ N(0, 1 / d_in); "mnist-paper": W_enc ~ 0.1 N(0, 1) (arXiv 2505.11836).
        init_dec: start of a free W_dec: "transpose" (W_enc.T) or "random" (0.01 N(0, 1)).
        tie_scale: trained output scale of each latent, for the tied kinds.
        b_pre: give the encoder an input centre (it starts at 0; `fit` moves it to the training mean).
        dtype, device: of the parameters.
        generator: CPU generator; W_enc is drawn first, in float32 on the CPU, so that every decoder kind and device
            starts from the same W_enc. None means a new generator seeded with 0.

    Raises:
        ValueError: sizes below 1, k > n_latents, an unknown or inapplicable option.

    >>> from splinterp import TopK
    >>> sae = SAE(d_in=4, n_latents=8, activation=TopK(2), decoder="tied_residual")
    >>> x_hat, acts, pre_acts = sae(torch.ones(3, 4))
    >>> x_hat.shape, acts.shape, int((acts != 0).sum(1).max())
    (torch.Size([3, 4]), torch.Size([3, 8]), 2)
    """

    W_enc: nn.Parameter
    b_enc: nn.Parameter
    b_dec: nn.Parameter
    W_dec: Tensor
    b_pre: nn.Parameter | None
    scale: nn.Parameter | None
    residual: nn.Parameter | None

    def __init__(
        self,
        d_in: int,
        n_latents: int,
        activation: Activation,
        decoder: str = "free",
        *,
        init: str = "unit",
        init_dec: str = "transpose",
        tie_scale: bool = False,
        b_pre: bool = False,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        at_least("d_in", d_in, 1)
        at_least("n_latents", n_latents, 1)
        one_of("decoder", decoder, DECODERS)
        one_of("init", init, ("unit", "mnist-paper"))
        one_of("init_dec", init_dec, ("transpose", "random"))
        if decoder == "free" and tie_scale:
            raise ValueError("tie_scale=True needs decoder='tied' or 'tied_residual': a free decoder has its own scale")
        if decoder != "free" and init_dec != "transpose":
            raise ValueError(f"init_dec={init_dec!r} needs decoder='free': decoder={decoder!r} starts at W_enc.T")
        self.d_in, self.n_latents, self.decoder = int(d_in), int(n_latents), decoder
        device = torch.device(device)
        g = generator if generator is not None else torch.Generator().manual_seed(0)
        std = d_in**-0.5 if init == "unit" else 0.1
        W_enc = std * torch.randn(d_in, n_latents, generator=g)

        def parameter(value: Tensor) -> nn.Parameter:
            return nn.Parameter(value.to(device=device, dtype=dtype))

        self.W_enc = nn.Parameter(parameter(W_enc.T.contiguous()).T)  # kept by latents, for sparse products
        self.b_enc = parameter(torch.zeros(n_latents))
        self.b_dec = parameter(torch.zeros(d_in))
        self.register_parameter("b_pre", parameter(torch.zeros(d_in)) if b_pre else None)
        self.register_parameter("scale", parameter(torch.ones(n_latents)) if tie_scale else None)
        self.register_parameter("residual", None)
        if decoder == "free":
            random = init_dec == "random"
            W_dec = 0.01 * torch.randn(n_latents, d_in, generator=g) if random else self.W_enc.detach().T.clone()
            self.register_parameter("W_dec", parameter(W_dec))
        elif decoder == "tied_residual":
            self.register_parameter("residual", parameter(torch.zeros(n_latents, d_in)))
        self.activation = activation.bind(n_latents, dtype, device)
        self._config = {"d_in": self.d_in, "n_latents": self.n_latents, "decoder": decoder, "init": init, "init_dec": init_dec,
                        "tie_scale": tie_scale, "b_pre": b_pre}  # fmt: skip

    def __getattr__(self, name: str) -> Any:
        # nn.Module looks parameters up here; the tied kinds have no W_dec parameter and derive it instead.
        if name == "W_dec" and self.__dict__.get("decoder", "free") != "free":
            return self.tied_rows() if self.residual is None else self.tied_rows() + self.residual
        return super().__getattr__(name)

    def tied_rows(self) -> Float[Tensor, "n_latents d_in"]:
        """The encoder's part of a tied decoder: W_enc.T, its rows scaled by `scale` where there is one."""
        return self.W_enc.T if self.scale is None else self.scale[:, None] * self.W_enc.T

    def pre_acts(self, x: ArrayLike) -> Tensor:
        """Affine scores (n, n_latents) of x (n, d_in). Raises TypeError, ValueError for input that does not fit."""
        scores = torch.addmm(self.b_enc, self._centred(x), self.W_enc)
        return scores.to(self.W_enc.dtype)  # under autocast the product alone is lowered

    def _centred(self, x: ArrayLike) -> Tensor:
        """Checked samples less b_pre."""
        x = as_samples(x, self.d_in, dtype=self.W_enc.dtype, device=self.W_enc.device, finite=self.W_enc.device.type == "cpu")
        return x if self.b_pre is None else x - self.b_pre

    def encode(self, x: ArrayLike) -> Tensor:
        """The code `acts` (n, n_latents) of x (n, d_in)."""
        return self.activation(self.pre_acts(x))

    def encode_top(self, x: ArrayLike) -> TopActs:
        """The sparse form of `encode(x)`, without an array of n x n_latents. Raises TypeError for activations without a fixed k."""
        return self._encode_top(x)[0]

    def _encode_top(self, x: ArrayLike) -> tuple[TopActs, Transposed | None]:
        if not isinstance(self.activation, RowTop):
            return self.activation.top(self.pre_acts(x)), None
        lower = autocast_dtype(self.W_enc.device)
        kept = kept_scores(self._centred(x), self.W_enc, self.b_enc, self.activation.select, self.activation.k, lower)
        return TopActs(self.activation.keep(kept.values), kept.top_indices), kept.by_latent

    @property
    def trains_sparse(self) -> bool:
        """Whether training takes the k-sparse products: a TopK or AbsTopK of few latents, on a CPU or on a GPU with Triton."""
        cpu = self.W_enc.device.type == "cpu"
        gain = SPARSE_GAIN if cpu else TRITON_GAIN
        few = isinstance(self.activation, RowTop) and gain * self.activation.k <= self.n_latents
        return few and (cpu or takes_triton(self.W_enc)) and self.W_enc.dtype in (torch.float32, torch.float64)

    def decode_top(self, top: TopActs) -> Float[Tensor, "n d_in"]:
        """The reconstruction from the sparse form of a code."""
        return decode_sparse(top.top_acts, top.top_indices, self.W_dec, self.b_dec)

    def reconstruct(self, x: ArrayLike) -> tuple[Float[Tensor, "n d_in"], TopActs]:
        """x_hat and the sparse code of x (n, d_in), as training uses them. Raises TypeError for activations without a fixed k."""
        top, by_latent = self._encode_top(x)
        return decode_sparse(top.top_acts, top.top_indices, self.W_dec, self.b_dec, by_latent), top

    def decode(self, acts: Float[Tensor, "n n_latents"]) -> Float[Tensor, "n d_in"]:
        """The reconstruction acts @ W_dec + b_dec."""
        return torch.addmm(self.b_dec, acts, self.W_dec).to(self.W_enc.dtype)

    def forward(self, x: ArrayLike) -> SAEOutput:
        """Encode and decode x (n, d_in)."""
        pre_acts = self.pre_acts(x)
        acts = self.activation(pre_acts)
        return SAEOutput(self.decode(acts), acts, pre_acts)

    def extra_repr(self) -> str:
        return f"d_in={self.d_in}, n_latents={self.n_latents}, decoder={self.decoder!r}"

    def save(self, folder: str | Path, standardizer: Standardizer | None = None) -> None:
        """Write `sae.safetensors` and `sae.json` (and the standardizer beside them) into `folder`.

        Each file is written under a temporary name and renamed.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {name: value.detach().cpu().contiguous() for name, value in self.state_dict().items()}
        replace_file(folder / "sae.safetensors", lambda path: save_file(tensors, path))
        dtype = str(self.W_enc.dtype).removeprefix("torch.")
        config = {"format": FORMAT, "dtype": dtype, **self._config, "activation": self.activation.config()}
        replace_file(folder / "sae.json", lambda path: path.write_text(json.dumps(config, indent=1) + "\n"))
        if standardizer is not None:
            standardizer.save(folder)

    @classmethod
    def load(cls, folder: str | Path, device: torch.device | str = "cpu") -> SAE:
        """Read an SAE written by `save`, in evaluation mode.

        Raises:
            FileNotFoundError: a file is missing.
            ValueError: another format, or tensors that do not fit the configuration.
        """
        path = Path(folder) / "sae.json"
        config = json.loads(path.read_text())
        if config.pop("format", None) != FORMAT:
            raise ValueError(f"{path} is not of the format {FORMAT!r}")
        activation = activation_from_config(config.pop("activation"))
        dtype = getattr(torch, config.pop("dtype"))
        sae = cls(activation=activation, dtype=dtype, device=device, **config)
        try:
            sae.load_state_dict(load_file(Path(folder) / "sae.safetensors", device=str(device)))
        except RuntimeError as error:
            raise ValueError(f"the tensors in {folder} do not fit sae.json: {error}") from error
        return sae.eval()
