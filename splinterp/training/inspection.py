"""What is looked at in the data before the first step, and the mean that training starts from."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable

import torch

from splinterp._checks import check_finite
from splinterp._typing import ArrayLike, Tensor
from splinterp._warned import outside
from splinterp.data.store import ActivationStore
from splinterp.protocol import SAELike, SparseModel, as_model, said_of
from splinterp.training.base import training_data

OUTLIER_RATIO = 100.0
HELD_OUT = 50, 5_000
"""Least and most samples that are set aside for a method that chooses by held-out ones."""


def inspect(
    model: SparseModel, data: Tensor | ActivationStore, x_val: Tensor | ActivationStore | None, looked_at: int
) -> Tensor:
    """The mean (d_in,) of training samples, float64. Warns of units, outliers and offsets; `looked_at` of them are evaluated.

    Raises ValueError for entries that are not finite, squares beyond the dtype's range, and rows that are all equal.
    """
    mean, kinds = mean_of(data), _kinds(model)
    measured = _norms(data, mean, kinds)
    for name, part in kinds.items():
        own, (norms, deviations) = part(mean), measured[name]
        check_scale(deviations, len(own), model.b_dec.dtype, name)
        check_rounding(own, deviations, model.b_dec.dtype, name)
        warn_outliers(norms, name)
        _check_varies(part(data[:looked_at]), len(data), name)
        if x_val is not None and not varies(map(part, x_val.split(4096))):
            raise ValueError(
                f"the {len(x_val)} rows of {name}_val are all equal, and fvu is over their variance: pass samples that differ"
            )
        if name != "y" and model.center is None and not model.reads_b_dec(data[:16].to(model.b_dec)):
            _warn_offset(own, deviations)
    return mean


def _kinds(model: SparseModel) -> dict[str, Callable[[Tensor], Tensor]]:
    """What is looked at by itself, by name: samples, or the two kinds that pairs are of."""
    return {"x": model.inputs, "y": model.target} if model.pairs else {"x": lambda x: x}


def varies(parts: Iterable[Tensor]) -> bool:
    """Whether two samples differ, in blocks (n, d) of them."""
    first = None
    for part in parts:
        first = part[:1] if first is None else first
        if bool((part != first).any()):
            return True
    return False


USUAL_SCALE = 3e-3, 1e3
"""Root mean squares of entries between which step sizes, start and Adam's eps mean what they are tuned for."""


def check_scale(deviations: Tensor, d_in: int, dtype: torch.dtype, name: str = "x") -> None:
    """Raise ValueError if squares of typical deviations from the mean, of these norms (n,), leave the dtype's range; warn if the data
    are in units that the defaults of training are not meant for."""
    rms = float(deviations.median()) / math.sqrt(d_in)
    range_of, advice = torch.finfo(dtype), "standardise them first (splinterp.data.Standardizer)"
    if 0 < rms < math.sqrt(range_of.tiny) * 1e3 or rms > math.sqrt(range_of.max) * 1e-3:
        kind = str(dtype).removeprefix("torch.")
        raise ValueError(
            f"entries of {name} vary by the order of {rms:.2g}, and their squares leave the range of {kind}: {advice}"
        )
    if 0 < rms < USUAL_SCALE[0] or rms > USUAL_SCALE[1]:
        warnings.warn(
            f"entries of {name} vary by the order of {rms:.2g}: step sizes, the start and Adam's eps are for data of order 1; {advice}",
            stacklevel=outside(),
        )


ROUNDED = 0.1
"""Rounding over deviations from which too little of the samples is left."""


def check_rounding(mean: Tensor, deviations: Tensor, dtype: torch.dtype, name: str = "x") -> None:
    """Raise ValueError where a dtype rounds samples by a tenth of their typical deviation from the mean, (n,) norms, or more."""
    typical, lost = float(deviations.median()), torch.finfo(dtype).eps * float(mean.norm())
    if 0 < typical * ROUNDED < lost:
        kind = str(dtype).removeprefix("torch.")
        raise ValueError(
            f"the mean of {name} is {float(mean.norm()) / typical:.2g} times as long as its deviations, of which {kind} keeps too little: "
            f"subtract the mean first, in float64, or take an SAE of a wider dtype"
        )


def warn_outliers(norms: Tensor, name: str = "x") -> None:
    """Warn if a sample's norm, of the norms (n,), is over 100 times their median: it would dominate every squared error."""
    median = float(norms.median())
    worst = int(norms.argmax())
    if median > 0 and float(norms[worst]) > OUTLIER_RATIO * median:
        warnings.warn(
            f"{name}[{worst}] has norm {float(norms[worst]):.3g}, over {OUTLIER_RATIO:.0f} times the median {median:.3g}: "
            "it dominates the loss; standardise the data or drop the sample",
            stacklevel=outside(),
        )


OFFSET = 2.0
"""Norm of the mean over the median distance from it, above which an encoder that does not centre is warned of."""


def _warn_offset(mean: Tensor, deviations: Tensor) -> None:
    typical = float(deviations.median())
    ratio = float(mean.norm()) / typical if typical > 0 else 0.0
    if ratio > OFFSET:
        warnings.warn(
            f"the mean of x is {ratio:.1f} times as long as its deviations, and the encoder sees x uncentred: latents die of it; "
            'take SAE(b_pre="fixed"), or subtract the mean first',
            stacklevel=outside(),
        )


def _check_varies(looked_at: Tensor, n: int, name: str) -> None:
    """fvu is over the variance of the samples looked at: found before training rather than after an epoch."""
    if not varies([looked_at]):
        few = len(looked_at) < n
        advice = "shuffle the rows, or raise train_eval_samples" if few else "there is nothing to train on"
        raise ValueError(
            f"the {'first ' if few else ''}{len(looked_at)} rows of {name} are all equal, and fvu is over their variance: {advice}"
        )


def _norms(
    data: Tensor | ActivationStore, mean: Tensor, kinds: dict[str, Callable[[Tensor], Tensor]]
) -> dict[str, tuple[Tensor, Tensor]]:
    """Of each kind of columns: of the samples, and of their deviations from the mean, float64 (n,): squares of small float32 numbers
    vanish."""
    found: dict[str, list[Tensor]] = {name: [] for name in kinds}
    for rows in data.split(4096):
        if isinstance(data, ActivationStore):
            check_finite(rows, f"the store in {data.folder}")
        for name, part in kinds.items():
            own = part(rows)
            norms = torch.linalg.vector_norm(own, dim=1, dtype=torch.float64)
            found[name].append(torch.stack([norms, torch.linalg.vector_norm(own.double() - part(mean).to(own.device), dim=1)]))
    return {name: (both[0], both[1]) for name, both in ((name, torch.cat(parts, 1)) for name, parts in found.items())}


def warn_other_source(sae: SAELike, store: ActivationStore) -> None:
    """Warn where a store holds other activations than the SAE says that it is of, which it would go on saying."""
    said, found = said_of(sae), dict(store.about)
    ours = dict(said.get("activations", {}))
    if "standardizer" in said:
        ours["standardizer"] = said["standardizer"]
        found["standardizer"] = None if store.standardizer is None else store.standardizer.fingerprint()
    other = next(
        (n for n in ("weights", "layer", "site", "standardizer") if n in ours and n in found and ours[n] != found[n]), None
    )
    if other is not None:
        warnings.warn(
            f"the SAE says that it is of other activations (another {other}, in sae.about) than those of the store in {store.folder}, "
            "which it is trained on now: save it with its standardizer and about={'activations': store.about}",
            stacklevel=outside(),
        )


def mean_of(data: Tensor | ActivationStore) -> Tensor:
    """Of samples (N, d_in), float64."""
    return data.mean(0, dtype=torch.float64) if isinstance(data, Tensor) else data.statistics()["mean"]


def start_at_mean(sae: SAELike, x: ArrayLike | ActivationStore) -> None:
    """Set b_dec, and the input centre b_pre where there is one, to the mean of training samples x (N, d_in); frozen parameters stay. The
    start that an SAE of dense codes has by default (`SAE`, `init_bias`) is brought into the units of x.

    `fit` begins with it; a loop of one's own should too: without it a mean that is large beside the deviations kills latents.

    Raises:
        TypeError, ValueError: samples that do not fit.
    """
    data = training_data(as_model(sae), x)
    start_at(sae, data, mean_of(data))


@torch.no_grad()
def start_at(sae: SAELike, data: Tensor | ActivationStore, mean: Tensor) -> Callable[[], None]:
    """`start_at_mean` for a mean that is known. Returns what undoes it."""
    model = as_model(sae)
    moved = [(t, t.detach().clone()) for t in (sae.b_dec, model.center) if t is not None]
    undo_units = model.start_in_units(lambda: encoded_rms(model, data, mean))
    for center, own in ((sae.b_dec, model.target(mean)), (model.center, model.inputs(mean))):
        if center is not None and (
            center.requires_grad or not isinstance(center, torch.nn.Parameter)
        ):  # a frozen parameter stays
            center.copy_(own)

    @torch.no_grad()
    def undo() -> None:
        undo_units()
        for tensor, value in moved:
            tensor.copy_(value)

    return undo


def encoded_rms(model: SparseModel, data: Tensor | ActivationStore, mean: Tensor) -> float:
    """The order of the deviations from their mean, of entries of what is encoded of training samples: the mean of the rows' norms, over
    sqrt(d_in), in which a few rows of huge norm count less than in a mean of squares."""
    total, width = 0.0, 1
    for part in data.split(4096):
        encoded = model.inputs(part).double() - model.inputs(mean.to(part.device))
        width = encoded.shape[1]
        total += float(torch.linalg.vector_norm(encoded, dim=1).sum())
    return total / len(data) / math.sqrt(width)


def set_aside(data: Tensor | ActivationStore, method: str) -> tuple[Tensor, Tensor]:
    """(training samples, held-out samples): a twentieth of the rows, drawn with a fixed seed, for a method that chooses by them.

    Warns of it. Raises ValueError: a store, or too few samples.
    """
    why = f"{method} chooses by held-out samples"
    if isinstance(data, ActivationStore):
        raise ValueError(f"{why}, which are not set aside of a store: pass x_val, a store or an array of other samples")
    n, least, most = len(data), *HELD_OUT
    if n < 4 * least:
        raise ValueError(f"{why}, and of {n} samples there are too few to set {least} aside: pass x_val")
    held_out = min(max(round(n / 20), least), most)
    order = torch.randperm(n, device="cpu", generator=torch.Generator().manual_seed(0)).to(data.device)
    warnings.warn(
        f"{why}: {held_out:,} of the {n:,} samples are set aside for that; pass x_val to choose them", stacklevel=outside()
    )
    return data[order[held_out:].sort().values], data[order[:held_out].sort().values]
