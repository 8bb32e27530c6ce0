"""Reconstruction and sparsity of an SAE over a whole split."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from splinterp._checks import as_samples, check_finite, whole
from splinterp._typing import ArrayLike, Float, Tensor
from splinterp.data.store import ActivationStore
from splinterp.protocol import ForeignModel, SAELike, SparseModel, as_model, inference_mode_of, times_fired


def _constant_error(n: int) -> ValueError:
    return ValueError(f"fvu is undefined: the {n} samples are all equal, so there is no variance to explain")


def fvu(x: ArrayLike, x_hat: ArrayLike) -> float:
    """Fraction of variance unexplained: sum |x - x_hat|^2 / sum |x - mean(x)|^2, over all samples and columns.

    Both are (n, d_in); sums are in float64. 0 is exact, 1 is what the mean alone reaches; it can exceed 1.

    Raises:
        TypeError, ValueError: bad input, different shapes, fewer than 2 samples, constant data.

    Examples:
        >>> fvu(torch.tensor([[0.0], [2.0]]), torch.tensor([[0.0], [1.0]]))
        0.5
    """
    x = as_samples(x, dtype=torch.float64)
    x_hat = as_samples(x_hat, x.shape[1], dtype=torch.float64, device=x.device, name="x_hat")
    if len(x) != len(x_hat):
        raise ValueError(f"x has {len(x)} rows and x_hat has {len(x_hat)}: pass the reconstruction of the same samples")
    if len(x) < 2:
        raise ValueError(f"fvu needs at least 2 samples, got {len(x)}")
    if bool((x.amax(0) == x.amin(0)).all()):
        raise _constant_error(len(x))
    return float((x - x_hat).square().sum()) / float((x - x.mean(0)).square().sum())


def explained_variance(x: ArrayLike, x_hat: ArrayLike) -> float:
    """1 - fvu(x, x_hat), with its errors."""
    return 1.0 - fvu(x, x_hat)


def l0(acts: ArrayLike) -> float:
    """Mean number of non-zero latents a sample, for acts (n, n_latents), n >= 1; negative codes count."""
    acts = _some_acts(acts)
    return float((acts != 0).sum(1, dtype=torch.float64).mean())


def firing_frequencies(acts: ArrayLike) -> Float[Tensor, " n_latents"]:
    """Share of samples on which each latent is non-zero, shape (n_latents,), float64."""
    return (_some_acts(acts) != 0).double().mean(0)


def frac_dead(acts: ArrayLike) -> float:
    """Share of latents that are zero on every sample of acts (n, n_latents)."""
    return float((~(_some_acts(acts) != 0).any(0)).double().mean())


def _some_acts(acts: ArrayLike) -> Tensor:
    acts = as_samples(acts, name="acts")
    if len(acts) == 0:
        raise ValueError("acts has no samples")
    return acts


class Evaluation(NamedTuple):
    """Metrics of an SAE on a split; `frequencies` (n_latents,) is the share of samples on which a latent is non-zero."""

    fvu: float
    l0: float
    frac_dead: float
    frequencies: Tensor


def _check_all(x: Tensor | ActivationStore) -> None:
    """Raise ValueError for samples that are not finite, with the first one's place."""
    if isinstance(x, ActivationStore):
        for part in x.split(4096):
            check_finite(part, f"the store in {x.folder}")
    else:
        check_finite(x)


@torch.no_grad()
def evaluate(sae: SAELike | SparseModel, x: ArrayLike | ActivationStore, batch_size: int = 4096) -> Evaluation:
    """All metrics of `sae` on x (n, d_in), or pairs, a tensor, an array or a store, in one pass of bounded memory, in inference mode.

    x may lie on another device than the SAE; batches are moved. Sums over samples are in float64. The module's training mode
    is restored.

    Raises:
        TypeError, ValueError: bad input, fewer than 2 samples, constant data.
    """
    batch_size = whole("batch_size", batch_size, 1)
    model = as_model(sae)
    x = x.of_width(model.width) if isinstance(x, ActivationStore) else as_samples(x, model.width, finite=False)
    if len(x) < 2:
        raise ValueError(f"evaluation needs at least 2 samples, got {len(x)}")
    device, dtype = model.b_dec.device, model.b_dec.dtype
    if isinstance(x, torch.Tensor) and bool((x.amax(0) == x.amin(0)).all()):
        raise _constant_error(len(x))
    mean = x.statistics()["mean"] if isinstance(x, ActivationStore) else x.mean(0, dtype=torch.float64)
    error = torch.zeros((), dtype=torch.float64, device=device)
    deviation = torch.zeros((), dtype=torch.float64, device=device)
    fired = torch.zeros(model.shape[1], dtype=torch.int64, device=device)
    with inference_mode_of(sae):
        center = model.target(mean.to(device=device, dtype=dtype))
        for i, part in enumerate(x.split(batch_size)):
            part = part.to(device=device, dtype=dtype)
            if i == 0 and isinstance(model, ForeignModel):
                model.check(part[:16])
            try:
                x_hat, code = model.run(part)
            except ValueError:
                _check_all(x)  # which counts rows from the first
                raise
            fired += times_fired(code, len(fired))
            target = model.target(part)
            error += (target - x_hat).square().sum(1).double().sum()
            deviation += (target - center).square().sum(1).double().sum()
    if float(deviation) == 0:
        raise _constant_error(len(x))
    if not math.isfinite(float(error)):
        _check_all(x)
    frequencies = fired.double() / len(x)
    return Evaluation(
        fvu=float(error / deviation),
        l0=float(frequencies.sum()),
        frac_dead=float((fired == 0).double().mean()),
        frequencies=frequencies.cpu(),
    )
