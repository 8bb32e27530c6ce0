"""How an SAE starts: its options, checked, and the biases of dense codes."""

from __future__ import annotations

import math

from splinterp._checks import one_of, whole
from splinterp.activations import Activation, BlockTopK
from splinterp.activations._dense import is_dense
from splinterp.encoders import Encoder

OTHERS = {
    **dict.fromkeys(("d_sae", "dict_size", "d_hidden", "d_dict", "nb_concepts", "num_latents", "n_features"), "n_latents"),
    **dict.fromkeys(("d_model", "activation_dim", "input_dim", "input_shape"), "d_in"),
    **dict.fromkeys(("activation_fn", "nonlinearity", "architecture"), "activation, such as TopK(k=32)"),
    **dict.fromkeys(("k", "top_k", "topk"), "activation=TopK(k=...)"), "threshold": "activation=JumpReLU(threshold=...)",
    **dict.fromkeys(("seed", "random_state", "rng"), "generator"), "tied": "decoder='tied'",
    "apply_b_dec_to_input": "b_pre", "normalize_decoder": "SGD(unit_norm_decoder=True)",
}  # fmt: skip
"""What some options are called elsewhere, and what takes their place."""
DECODERS = ("free", "tied", "tied_residual")
FEW_LATENTS = -1.0
"""`init_bias` where it is not given and codes are dense."""


def check_options(
    d_in: int, n_latents: int, decoder: str, init: str, init_dec: str, tie_scale: bool, b_pre: bool | str
) -> None:
    """Raise TypeError, ValueError for options of an SAE that are none, or do not go together."""
    whole("d_in", d_in, 1)
    whole("n_latents", n_latents, 1)
    one_of("decoder", decoder, DECODERS)
    one_of("init", init, ("unit", "mnist-paper"))
    one_of("init_dec", init_dec, ("transpose", "random"))
    one_of("b_pre", b_pre, (False, True, "fixed"))
    if decoder == "free" and tie_scale:
        raise ValueError("tie_scale=True needs decoder='tied' or 'tied_residual': a free decoder has its own scale")
    if decoder != "free" and init_dec != "transpose":
        raise ValueError(f"init_dec={init_dec!r} needs decoder='free': decoder={decoder!r} starts at W_enc.T")


def checked_columns(encoder: Encoder, n_latents: int, activation: Activation, decoder: str) -> int:
    """How many columns W_enc has. Raises TypeError, ValueError where the encoder does not go with the others."""
    encoder.check(n_latents, activation, decoder)
    columns = encoder.columns(n_latents)
    if not encoder.by_latents and decoder != "free":
        raise ValueError(
            f"decoder={decoder!r} needs one column of W_enc for each latent, and {type(encoder).__name__} has {columns} for "
            f"all {n_latents}: use decoder='free'"
        )
    return columns


def started_bias(
    init_bias: float | None, d_in: int, n_latents: int, activation: Activation, encoder: Encoder
) -> tuple[float, bool]:
    """b_enc of the latents after the first d_in at the start, and whether it is the default of dense codes. Raises ValueError."""
    if init_bias is None:
        competes = bool(activation.stated("competes")) and not activation.signed
        few = n_latents > d_in and competes and encoder.by_latents and is_dense(activation, d_in)
        return (FEW_LATENTS if few else 0.0), few
    if init_bias:
        _check_init_bias(init_bias, d_in, n_latents, activation, encoder)
    return float(init_bias), False


def _check_init_bias(init_bias: float, d_in: int, n_latents: int, activation: Activation, encoder: Encoder) -> None:
    if not math.isfinite(init_bias) or init_bias > 0:
        raise ValueError(f"init_bias={init_bias!r} must be a finite number, at most 0: latents are to be rare at first")
    if n_latents <= d_in:
        raise ValueError(
            f"init_bias={init_bias!r} is of the latents after the first d_in={d_in}, and there are {n_latents} in all: "
            "leave it out"
        )
    if activation.signed:
        raise ValueError(
            f"init_bias={init_bias!r} makes no latent rare under {type(activation).__name__}, which keeps negative scores too: leave "
            "it out"
        )
    if activation.fixes_frequencies:
        raise ValueError(
            f"init_bias={init_bias!r} makes no latent rare under {type(activation).__name__}, which fixes how often each fires: "
            "leave it out"
        )
    if isinstance(activation, BlockTopK) and activation.blocks > 1:
        raise ValueError(
            f"init_bias={init_bias!r} would silence whole blocks of {activation}, which choose their latents apart: leave it out"
        )
    if not encoder.by_latents:
        raise ValueError(
            f"init_bias={init_bias!r} is of latents, and {type(encoder).__name__} has no b_enc for each: leave it out"
        )
