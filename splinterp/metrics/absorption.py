"""Absorption: a latent that is silent where its feature is there, because another one carries the feature along."""

from __future__ import annotations

import torch

from splinterp._checks import as_samples, at_least
from splinterp._typing import ArrayLike, Float, Tensor
from splinterp.metrics.features import unit_rows

MOST_MAINS, GAIN = 10, 0.03


def detectors(acts: ArrayLike, active: ArrayLike) -> list[int]:
    """The latents that say together, one of them firing, where a feature is active: the best by F1, and others while each adds 0.03.

    acts (n, n_latents), active (n,) bool. At most 10; none where nothing is active.
    """
    fires = as_samples(acts, name="acts") != 0
    truth = torch.as_tensor(active).bool()
    found: list[int] = []
    union, best = torch.zeros_like(truth), 0.0
    while len(found) < MOST_MAINS:
        either = fires | union[:, None]
        hits = (either & truth[:, None]).sum(0).double()
        f1 = 2 * hits / (either.sum(0) + truth.sum()).clamp_min(1).double()
        at = int(f1.argmax())
        if float(f1[at]) <= best + (GAIN if found else 0.0):
            break
        best = float(f1[at])
        found.append(at)
        union = either[:, at]
    return found


def absorption(
    x: ArrayLike,
    acts: ArrayLike,
    W_dec: ArrayLike,
    features: ArrayLike,
    active: ArrayLike,
    *,
    b_dec: ArrayLike | None = None,
    cosine: float = 0.025,
    share: float = 0.4,
    most: int = 3,
) -> Float[Tensor, " n_features"]:
    """Of the samples on which each feature is active, the share on which it is absorbed, float64; NaN for a feature never active.

    A feature is absorbed in a sample if all of its `detectors` are silent, and the `most` active latents with the largest part in its
    direction p, of those with cos(z_i w_i, p) >= `cosine`, make at least `share` of the sample's own: sum z_i <w_i, p> >= share
    <x - b_dec, p>, which must be positive. That is SAEBench's measure (arXiv 2503.09532, after 2409.14507) with the known truth in place
    of probes.

    Args:
        x: samples (n, d).
        acts: their codes (n, n_latents).
        W_dec: rows (n_latents, d); b_dec (d,), None for 0.
        features: directions (n_features, d).
        active: where each feature is there (n, n_features), bool.

    Raises:
        TypeError, ValueError: bad input, shapes that do not fit, most below 1.
    """
    at_least("most", most, 1)
    x = as_samples(x, dtype=torch.float64)
    acts = as_samples(acts, dtype=torch.float64, name="acts")
    rows = as_samples(W_dec, x.shape[1], dtype=torch.float64, name="W_dec").detach()
    directions = unit_rows(features, "features", x.shape[1])
    active = torch.as_tensor(active).bool()
    if acts.shape != (len(x), len(rows)) or active.shape != (len(x), len(directions)):
        raise ValueError(
            f"acts {tuple(acts.shape)} and active {tuple(active.shape)} must be ({len(x)}, {len(rows)}) and ({len(x)}, {len(directions)})"
        )
    if b_dec is not None:
        x = x - torch.as_tensor(b_dec).detach().double()
    along = rows @ directions.T  # (n_latents, n_features)
    cosines = along / rows.norm(dim=1, keepdim=True).clamp_min(1e-300)
    found = torch.full((len(directions),), torch.nan, dtype=torch.float64)
    for feature in range(len(directions)):
        here = active[:, feature]
        if not bool(here.any()):
            continue
        mains = detectors(acts, here)
        silent = (acts[here][:, mains] == 0).all(1)
        near = acts[here].sign() * cosines[:, feature] >= cosine  # a negative code points the other way
        parts = torch.where(near, acts[here] * along[:, feature], 0.0).topk(min(most, len(rows)), dim=1).values
        own = x[here] @ directions[feature]
        carried = (own > 0) & (parts.clamp_min(0.0).sum(1) >= share * own)
        found[feature] = (silent & carried).double().mean()
    return found
