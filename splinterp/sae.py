"""The sparse autoencoder: x -> pre_acts -> acts -> x_hat, with a free, tied or tied-residual decoder."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.utils import parametrize

from splinterp._checks import as_samples
from splinterp._meant import answers
from splinterp._random import as_generator, position_of
from splinterp._read_only import read_only
from splinterp._registry import register
from splinterp._typing import ArrayLike, Float, Tensor
from splinterp.activations import Activation, GroupedActs, RowTop, TopActs
from splinterp.activations._gradients import sparse_gradients
from splinterp.activations.base import as_activation
from splinterp.encoders import Encoder, Linear
from splinterp.protocol import BiasBlock, Block, Code, alike, dense, full_precision, inference_mode_of
from splinterp.sae_files import KINDS, SavedSAE, load_sae
from splinterp.sae_parts import bias_of, decoded_in_parts, decoder_of
from splinterp.sae_start import FEW_LATENTS, OTHERS, check_options, checked_columns, started_bias
from splinterp.sparse_kernels import autocast_dtype, decode_sparse, kept_scores, takes_triton

SPARSE_GAIN = 8
"""On a CPU an entry of a dense product has about an eighth of the cost of a sparse one (measured)."""
TRITON_GAIN = 32
"""On a GPU: of the ratio of float32 operations to bytes a second of current cards (estimated, not measured)."""
MAKES_SCORES = ("pre_acts", "encode", "_centred")
"""The methods that make dense codes."""


class SAEOutput(NamedTuple):
    """What an SAE returns: reconstruction, sparse code, affine scores."""

    x_hat: Float[Tensor, "n d_in"]
    acts: Float[Tensor, "n n_latents"]
    pre_acts: Float[Tensor, "n n_latents"]


class SAE(SavedSAE):
    """A sparse autoencoder; samples are rows.

        pre_acts = (x - b_pre) @ W_enc + b_enc        W_enc (d_in, n_latents), b_enc (n_latents,), b_pre (d_in,) optional
        acts     = activation(pre_acts)
        x_hat    = acts @ W_dec + b_dec               W_dec (n_latents, d_in), b_dec (d_in,)

    `W_dec` is a parameter ("free"), `W_enc.T` ("tied") or `W_enc.T + residual` ("tied_residual", the residual is a
    parameter that starts at 0). With `tie_scale`, row m of `W_enc.T` is multiplied by a trained `scale[m]`, starting at 1.

    A subclass may override `pre_acts`, `encode`, `decode`, `forward`, ...: training and evaluation go by what it overrides, and no
    faster way goes around it; a `forward` that is not `decode(encode(x))` cannot be trained. `W_dec` of the tied kinds is computed
    and can be read, not written. Subclasses are registered, so that what is saved can be loaded.

    NumPy and half-precision input is converted to the SAE's dtype. Input is checked for non-finite entries on the
    CPU; on a GPU the check would wait for the device, and `fit` makes it once for the whole data set instead.

    Args:
        d_in: input width.
        n_latents: dictionary size.
        activation: one of ReLU, JumpReLU, TopK, AbsTopK, BatchTopK; copied, so one object can serve several SAEs.
        decoder: "free", "tied" or "tied_residual".
        init: "unit": W_enc ~ N(0, 1 / d_in); "mnist-paper": W_enc ~ 0.1 N(0, 1) (arXiv 2505.11836).
        init_dec: start of a free W_dec: "transpose" (W_enc.T) or "random" (0.01 N(0, 1)).
        init_bias: start of b_enc for all latents but the first d_in, in units of scores (their standard deviation is about 1 at the
            start for samples of variance 1). Below 0, these are rare at first and d_in latents do most of the coding. None: -1 where the
            activation keeps at least a sixth of d_in latents, all of which compete (TopK, BatchTopK), and
            there are more latents than d_in (for samples of other units than 1 `fit` multiplies it by these); else 0. With
            so many active latents a random overcomplete dictionary may never become as good as one of d_in latents.
        tie_scale: trained output scale of each latent, for the tied kinds.
        b_pre: the encoder's input centre, which starts at 0 and which `fit` sets to the training mean, so that a shift of the data
            changes nothing. "fixed" keeps it there; True trains it from there; False has none: data whose mean is large beside
            their deviations then kill latents.
        dtype, device: of the parameters.
        encoder: how scores and codes are made (`splinterp.encoders`); None: `Linear()`.
        generator: CPU generator, or an int that seeds one; W_enc is drawn first, in float32 on the CPU, so that every decoder kind
            and device starts from the same W_enc. None means one seeded by a draw from torch's global generator, so that
            `torch.manual_seed` decides.

    Raises:
        ValueError: sizes below 1, k > n_latents, an unknown or inapplicable option.

    Examples:
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
    b_pre: Tensor | None
    scale: nn.Parameter | None
    residual: nn.Parameter | None
    _few_by_default: bool = False
    about: dict[str, Any]
    """What it is of (model, layer, site, standardizer, training), as `save` wrote it; {} where nothing was said."""

    @answers(OTHERS)
    def __init__(
        self,
        d_in: int,
        n_latents: int,
        activation: Activation,
        decoder: str = "free",
        *,
        init: str = "unit",
        init_dec: str = "transpose",
        init_bias: float | None = None,
        tie_scale: bool = False,
        b_pre: bool | str = "fixed",
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        encoder: Encoder | None = None,
        generator: torch.Generator | int | None = None,
    ) -> None:
        super().__init__()
        self.about = {}
        check_options(d_in, n_latents, decoder, init, init_dec, tie_scale, b_pre)
        b_pre = "fixed" if b_pre == "fixed" else bool(b_pre)  # 1 is equal to True
        activation = as_activation(activation)
        self.d_in, self.n_latents, self.decoder = int(d_in), int(n_latents), decoder
        device = torch.device(device)
        g = as_generator(generator)
        self.drawn_from = None if generator is None else position_of(g)
        std = d_in**-0.5 if init == "unit" else 0.1
        self.encoder = Linear() if encoder is None else encoder
        columns = checked_columns(self.encoder, n_latents, activation, decoder)
        W_enc = std * torch.randn(d_in, columns, dtype=torch.float32, device="cpu", generator=g)
        init_bias, self._few_by_default = started_bias(init_bias, self.d_in, self.n_latents, activation, self.encoder)
        b_enc = torch.zeros(columns, device="cpu")
        b_enc[self.d_in :] = init_bias

        def parameter(value: Tensor) -> nn.Parameter:
            return nn.Parameter(value.to(device=device, dtype=dtype))

        self.W_enc = nn.Parameter(parameter(W_enc.T.contiguous()).T)  # kept by latents, for sparse products
        self.b_enc = parameter(b_enc)
        self.b_dec = parameter(torch.zeros(d_in, device=device))
        if b_pre == "fixed":
            self.register_buffer("b_pre", parameter(torch.zeros(d_in, device=device)).detach())
        else:
            self.register_parameter("b_pre", parameter(torch.zeros(d_in, device=device)) if b_pre else None)
        self.register_parameter("scale", parameter(torch.ones(n_latents, device=device)) if tie_scale else None)
        self.register_parameter("residual", None)
        if decoder == "free":
            W_dec = self.encoder.rows(self.W_enc.detach())
            if init_dec == "random":
                W_dec = 0.01 * torch.randn(n_latents, d_in, dtype=torch.float32, device="cpu", generator=g)
            self.register_parameter("W_dec", parameter(W_dec))
        elif decoder == "tied_residual":
            self.register_parameter("residual", parameter(torch.zeros(n_latents, d_in, device=device)))
        self.activation = activation.bind(n_latents, dtype, device)
        for name, start in self.encoder.parameters(d_in, n_latents).items():
            self.register_parameter(name, parameter(start))
        for name, start in self.encoder.buffers(d_in, n_latents).items():
            self.register_buffer(name, start.to(device=device, dtype=dtype if start.is_floating_point() else start.dtype))
        self._config = {"d_in": self.d_in, "n_latents": self.n_latents, "decoder": decoder, "init": init, "init_dec": init_dec,
                        "init_bias": init_bias, "tie_scale": tie_scale, "b_pre": b_pre}  # fmt: skip

    @torch.no_grad()
    def start_in_units(self, rms: Callable[[], float]) -> Callable[[], None]:
        waited, b_enc = self._few_by_default, self.b_enc.detach().clone()

        @torch.no_grad()
        def undo() -> None:
            self.b_enc.copy_(b_enc)
            self._few_by_default = waited

        if self._waits_for_units and self.b_enc.requires_grad:
            unit = rms()
            if unit > 0 and not 0.5 <= unit <= 2:  # nearer to 1 it is as good, and reported runs are reproduced
                self.b_enc[self.d_in :].mul_(unit)
        self._few_by_default = False  # the samples have been seen
        return undo

    @property
    def _waits_for_units(self) -> bool:
        """Whether b_enc is as the default of dense codes has it before the samples are known."""
        return self._few_by_default and bool((self.b_enc[self.d_in :] == FEW_LATENTS).all())

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        register(KINDS, cls)

    def __getattr__(self, name: str) -> Any:
        # nn.Module looks parameters up here; the tied kinds have no W_dec parameter and derive it instead.
        if name == "W_dec" and self.__dict__.get("decoder", "free") != "free":
            return read_only(self.decoder_rows())
        return super().__getattr__(name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "W_dec" and self.__dict__.get("decoder", "free") != "free":
            raise AttributeError(COMPUTED.format(self.decoder))
        super().__setattr__(name, value)

    def tied_rows(self) -> Float[Tensor, "n_latents d_in"]:
        """The encoder's part of a tied decoder: W_enc.T, its rows scaled by `scale` where there is one."""
        return self.W_enc.T if self.scale is None else self.scale[:, None] * self.W_enc.T

    def decoder_rows(self) -> Float[Tensor, "n_latents d_in"]:
        """W_dec, as products take it."""
        if self.decoder == "free":
            return self.W_dec
        return self.tied_rows() if self.residual is None else self.tied_rows() + self.residual

    def pre_acts(self, x: ArrayLike) -> Tensor:
        """Affine scores (n, n_latents) of x (n, d_in). Raises TypeError, ValueError for input that does not fit."""
        scores = self.encoder.pre_acts(self, self._centred(x))
        return scores.to(self.W_enc.dtype)  # under autocast the product alone is lowered

    def _centred(self, x: ArrayLike) -> Tensor:
        """What is encoded of samples, less b_pre."""
        x = self._checked(x)
        return x if self.b_pre is None else x - self.b_pre

    def _checked(self, x: ArrayLike) -> Tensor:
        """What is encoded of samples, checked."""
        weights = self.W_enc
        x = as_samples(x, self._width_of(x), dtype=weights.dtype, device=weights.device, finite=weights.device.type == "cpu")
        return self.inputs(x)

    def _width_of(self, x: Any) -> int:
        """Columns that samples to be encoded should have."""
        return self.d_in

    def encode(self, x: ArrayLike) -> Tensor:
        """The code `acts` (n, n_latents) of x (n, d_in)."""
        return self._acts(self.pre_acts(x), x)

    def _acts(self, pre_acts: Tensor, x: ArrayLike) -> Tensor:
        if self.encoder.reads_samples:
            return self.encoder.acts_of(self, pre_acts, self._checked(x))
        return self.encoder.acts(self, pre_acts)

    def encode_top(self, x: ArrayLike) -> TopActs:
        """The sparse form of `encode(x)`, without an array of n x n_latents. Raises TypeError for activations without a fixed k."""
        if self._makes_codes and isinstance(self.activation, RowTop) and self.activation.selects:
            lower = autocast_dtype(self.W_enc.device)
            training = self.training and torch.is_grad_enabled()  # where it does not matter which of equal scores is kept
            select = self.activation.select if training else self.activation.select_settled
            kept = kept_scores(self._centred(x), self.W_enc, self.b_enc, select, self.activation.k, lower)
            return GroupedActs.of(self.activation.keep(kept.values), kept.top_indices, kept.by_latent)
        if self._makes_codes or not isinstance(self.activation, RowTop):
            return self.activation.top(self.pre_acts(x))
        return self.activation._read_off(self.encode(x))

    @property
    def _makes_codes(self) -> bool:
        """Whether codes are made as this class makes them: nothing of it is overridden."""
        return self.encoder.plain and not overrides(self, *MAKES_SCORES)

    def require_plain(self, purpose: str, pairs: bool = False, encoders: Collection[type[Encoder]] = ()) -> None:
        """Raise TypeError unless the map is x -> activation(x @ W_enc + b_enc) @ W_dec + b_dec with an activation of this package:
        what reads the weights alone would go around anything else. `pairs`: its output may be of another kind than x; `encoders`: of these
        kinds it may have one."""
        if self.pairs and not pairs:
            raise TypeError(f"{purpose} is of an SAE that reconstructs its input, and a {type(self).__name__} does not")
        rows = ("decoder_rows", "tied_rows") if self.decoder == "free" else ()  # else W_dec is what they return
        changed = [name for name in ("pre_acts", "encode", "code", "decode", "forward", *rows) if overrides(self, name)]
        what = f"{type(self).__name__} overrides {', '.join(changed)}" if changed else ""
        if not (self.encoder.plain or self.encoder.plain_at_inference or type(self.encoder) in encoders):
            what = f"its encoder is a {type(self.encoder).__name__}"
        if not self.activation.known:
            what = f"its activation is a {type(self.activation).__name__}, which makes codes in its own way"
        if what:
            raise TypeError(f"{purpose} goes by the weights and the activation's kind, and {what}")

    @property
    def trains_sparse(self) -> bool:
        """Whether training and evaluation take the k-sparse form of codes: a TopK or AbsTopK of few latents, on a CPU or on a GPU with
        Triton, nothing of it overridden."""
        cpu = self.W_enc.device.type == "cpu"
        gain = SPARSE_GAIN if cpu else TRITON_GAIN
        few = isinstance(self.activation, RowTop) and self.activation.selects and gain * self.activation.k <= self.n_latents
        able = (cpu or takes_triton(self.W_enc)) and self.W_enc.dtype in (torch.float32, torch.float64)
        return few and able and self._makes_codes and not overrides(self, "encode_top", "decode", "code", "code_from", "run")

    def code(self, x: ArrayLike) -> Code:
        """The code of x (n, d_in) in the form that costs less."""
        return self.encode_top(x) if self.trains_sparse else self.encode(x)

    def code_from(self, pre_acts: Tensor, x: Tensor) -> Code:
        """The code of the scores of samples x, in the form of `code`. Raises TypeError where `encode` is overridden."""
        if overrides(self, "encode", "encode_top"):
            raise TypeError(
                f"{type(self).__name__} overrides encode, so codes are not made of pre_acts: drop the term that reads them"
            )
        return self.activation.top(pre_acts) if self.trains_sparse else self._acts(pre_acts, x)

    def decode_top(self, top: TopActs) -> Float[Tensor, "n d_in"]:
        """The reconstruction from the sparse form of a code. Raises ValueError for an index of no latent."""
        by_latent = top.by_latent if isinstance(top, GroupedActs) else None
        return decode_sparse(top.top_acts, top.top_indices, self.decoder_rows(), self.b_dec, by_latent)

    def reconstruct(self, x: ArrayLike) -> tuple[Float[Tensor, "n d_in"], TopActs]:
        """x_hat and the sparse code of x (n, d_in). Raises TypeError for activations without a fixed k."""
        top = self.encode_top(x)
        return self.decode_top(top), top

    def run(self, x: Tensor) -> tuple[Tensor, Code]:
        if overrides(self, "forward"):
            out = self(x)
            return out[0], out[1]
        return super().run(x)

    def decode(self, acts: Any) -> Float[Tensor, "n d_in"]:
        """The reconstruction acts @ W_dec + b_dec of a code (n, n_latents), or of its sparse form."""
        if isinstance(acts, TopActs):
            return self.decode_top(acts)
        return torch.addmm(self.b_dec, acts, self.decoder_rows()).to(self.W_enc.dtype)

    def decode_nested(self, code: Code, depth: Tensor, n_parts: int) -> Sequence[Tensor]:
        changed = overrides(self, "decode", "decode_top", "decoder_rows", "tied_rows", "forward")
        found = None if changed else decoded_in_parts(self, code, depth, n_parts)
        return super().decode_nested(code, depth, n_parts) if found is None else found

    def forward(self, x: ArrayLike) -> SAEOutput:
        """Encode and decode x (n, d_in)."""
        pre_acts = self.pre_acts(x)
        if self.trains_sparse and not overrides(self, "decode_top"):
            top = self.activation.top(pre_acts)
            return SAEOutput(self.decode_top(top), dense(top, self.n_latents), pre_acts)
        acts = self.encode(x) if overrides(self, "encode") else self._acts(pre_acts, x)
        return SAEOutput(self.decode(acts), acts, pre_acts)

    @torch.no_grad()
    def calibrate(self, x: ArrayLike, rows: int = 4096) -> SAE:
        """Set what inference needs and gradients do not train, the thresholds of BatchTopK and FeatureChoice, from training samples x.
        Returns self."""
        if type(self.activation).calibrate is not Activation.calibrate:
            x = as_samples(x, self._width_of(x), finite=False)
            self.activation.calibrate((self.pre_acts(part.to(self.W_enc)) for part in x.split(rows)), len(x))
        return self

    @property
    def nonlinearity(self) -> Activation:
        return self.activation

    @property
    def parametrisation(self) -> Encoder:
        return self.encoder

    @property
    def couples_samples(self) -> bool:
        return self.activation.couples or self.encoder.couples or overrides(self, *MAKES_SCORES)

    @property
    def center(self) -> Tensor | None:
        return self.b_pre

    @property
    def own_rows(self) -> Tensor | None:
        """The decoder's own weights (n_latents, d_in): W_dec, or the residual; None where it has none."""
        return self.W_dec if self.decoder == "free" else self.residual

    def decoder_block(self) -> Block:
        """The decoder as a solve sees it."""
        return decoder_of(self)

    def encoder_parameters(self) -> list[nn.Parameter]:
        return [self.W_enc, self.b_enc]

    def encoder_weights(self) -> nn.Parameter | None:
        return self.W_enc if self.encoder.by_latents else None

    def encoder_bias(self) -> nn.Parameter | None:
        return self.b_enc if self.encoder.by_latents else None

    def latent_parameters(self) -> list[tuple[nn.Parameter, float]]:
        return [(getattr(self, name), start) for name, start in self.encoder.of_latents().items()]

    @property
    def kept(self) -> int | None:
        return self.activation.kept

    def keeping(self, k: int) -> AbstractContextManager[None]:
        return self.activation.keeping(k)

    @property
    def bias(self) -> BiasBlock:
        return bias_of(self, by_own_score=self.activation.fires_by_own_score and self._makes_codes)

    def squared_error_gradients(self, x: Tensor, moved: Collection[int]) -> Tensor | None:
        plain = self.trains_sparse and self.scale is None and self.W_enc.T.is_contiguous()
        if (
            not plain
            or parametrize.is_parametrized(self)  # whose parameters are others
            or not self.activation.has_gradients
            or overrides(self, "decode_top", "forward", "tied_rows", "decoder_rows")
        ):
            return None
        return sparse_gradients(self, x, moved)

    def check(self, x: Tensor) -> None:
        """Raises TypeError where an overridden `forward` is not `decode(code)`: training would go by the latter."""
        if not overrides(self, "forward"):
            return
        # what selects from batches may have no other way yet
        with torch.no_grad(), inference_mode_of(self, training=self.activation.couples), full_precision(x):
            ours, theirs = self.decode(self.code(x)), self(x)[0]
        if not alike(ours, theirs):
            raise TypeError(
                f"{type(self).__name__} overrides forward, whose x_hat is not decode(encode(x)): training and solves go by encode and "
                "decode, so override those instead"
            )

    def extra_repr(self) -> str:
        encoder = "" if self.encoder == Linear() else f", encoder={self.encoder}"
        centre = "" if self._config["b_pre"] == "fixed" else f", b_pre={self._config['b_pre']}"
        return f"d_in={self.d_in}, n_latents={self.n_latents}, decoder={self.decoder!r}{centre}{encoder}"

    @classmethod
    def load(cls, folder: str | Path, device: torch.device | str = "cpu") -> SAE:
        """Read an SAE written by `save`, in evaluation mode.

        Raises:
            FileNotFoundError: a file is missing.
            ValueError: another format, tensors that do not fit the configuration or hold NaN, other bytes than were written; the
                message names the file.
        """
        return load_sae(folder, device)


KINDS["SAE"] = SAE
COMPUTED = "W_dec of a {} SAE is computed from W_enc: write into W_enc, or the residual, or use decoder='free'"


def overrides(sae: SAE, *names: str) -> bool:
    """Whether the object's class, or the object itself, has its own version of one of these methods of SAE."""
    kind: Any = type(sae)
    return _overrides(kind, names) or any(name in sae.__dict__ for name in names)


@functools.cache
def _overrides(kind: Any, names: tuple[str, ...]) -> bool:
    return any(getattr(kind, name) is not getattr(SAE, name) for name in names)
