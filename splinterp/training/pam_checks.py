"""What PAM-SGD refuses, with advice: options that exclude each other, and decoders that cannot be solved for."""

from __future__ import annotations

import math
from typing import Any

from splinterp._checks import at_least, one_of, share_of_steps, whole
from splinterp._typing import Tensor
from splinterp.protocol import Block, SAELike, SparseModel
from splinterp.training.rules import HeldOut
from splinterp.training.train_state import ENTRYWISE


def check_options(method: Any) -> None:
    """Raise TypeError, ValueError for options out of range, or some that exclude each other."""
    one_of("gradient", method.gradient, ("both", "tied", "encoder"))
    if method.decoder_lr not in (None, 1) and (method.hold == 1 or method.ridge == math.inf):
        what = "hold=1" if method.hold == 1 else "ridge=inf"
        raise ValueError(
            f"decoder_lr={method.decoder_lr} changes nothing with {what}, which keeps the residual at 0: leave it out"
        )
    whole("encoder_updates", method.encoder_updates, 1)
    at_least("prox_enc", method.prox_enc, 0.0)
    if isinstance(method.hold, str):
        one_of("hold", method.hold, ("auto", "race"))
    else:
        share_of_steps("hold", method.hold)
    if method.hold not in (0, "auto") and method.gradient != "both":
        raise ValueError(f"hold={method.hold!r} acts only with gradient='both', not gradient={method.gradient!r}")
    if method.hold == "race" and not _raceable(method):
        raise ValueError(
            "hold='race' keeps two sets of parameters: it needs an optimizer='adam', 'adamw', 'sgd' or 'muon', a schedule by name, "
            "and no resample"
        )
    if method._readouts_asked and method._why_no_readouts:
        raise ValueError(f"{method._readouts_asked} {method._why_no_readouts}")


def _raceable(method: Any) -> bool:
    """Whether there could be two sets of parameters with these options."""
    known = isinstance(method.optimizer, str) or method.optimizer in ENTRYWISE
    return known and method.resample is None and isinstance(method.schedule, str)


def check_codes(model: SparseModel, x: Tensor) -> None:
    """Raise TypeError where a solve would move the codes that it was solved for."""
    if model.reads_b_dec(x):
        raise TypeError(
            f"{model.label}.encode reads b_dec, which a solve writes: the codes that it was solved for would change with it. Let encode "
            "subtract a tensor of its own, called b_pre (fit starts it at the mean too), or train it by SGD"
        )


def check_block(method: Any, sae: SAELike, model: SparseModel, block: Block) -> None:
    """Raise TypeError, ValueError unless the decoder can be solved for with these options."""
    if method.scale == "fit" and not (block.residual is not None and block.scales is not None):
        raise ValueError("scale='fit' needs SAE(decoder='tied_residual', tie_scale=True)")
    if not block.bias or not (block.weights or block.tied):
        raise TypeError(f"a solve writes W_dec and b_dec, which {type(sae).__name__} shares with W_enc or computes")
    known = {id(p) for p in sae.parameters()}
    if not all(id(p) in known for p in (*block.weights, *block.bias)):
        raise TypeError(
            f"a solve writes W_dec and b_dec, and of {model.label} one is computed from other parameters: remove its parametrization "
            "(torch.nn.utils.parametrize.remove_parametrizations), or train it by SGD"
        )
    parts = getattr(method.when, "parts", None)
    if parts is not None and parts > 1 and not method.solver.chooses:
        raise ValueError(
            f"solve_parts={parts} takes a ridge that is chosen at each solve, without prox_dec: strengths that are given multiply sums "
            "over all samples; leave solve_parts out, or ridge and prox_dec"
        )
    for p in (*block.weights, *block.bias):
        if not p.requires_grad:
            raise ValueError(
                f"a solve writes W_dec and b_dec, and one of {model.label}'s is frozen (requires_grad=False): train it by SGD"
            )
    if block.solve is not None and not method.solver.plain:
        raise ValueError(
            f"{model.label} has a decoder solve of its own, which takes no ridge, prox_dec and options of the bias: leave them out"
        )
    if block.solve is not None and method.row_penalties:
        raise ValueError(
            f"{method.row_penalties[0].name} is a penalty on the decoder's rows, which its solve of {model.label} does not see: leave it "
            "out, or train by SGD"
        )
    if block.tied and (method.prox_dec or isinstance(method.solver.ridge, HeldOut) or method.ridge not in ("auto", "gcv", 0.0)):
        raise ValueError(f"ridge={method.ridge}, prox_dec={method.prox_dec} do not act on a tied decoder: leave them out")
    if block.prior is None and method.ridge == math.inf:
        raise ValueError("ridge=inf would hold a free W_dec at 0: choose a finite ridge or decoder='tied_residual'")
