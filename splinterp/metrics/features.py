"""Matching dictionaries: learned features against true ones, or against those of another seed."""

from __future__ import annotations

from typing import NamedTuple

import torch
from scipy.optimize import linear_sum_assignment

from splinterp._checks import as_samples, at_least
from splinterp._documented import documented
from splinterp._typing import ArrayLike, Float, Int, Tensor

BLOCK_ENTRIES = 2**24


@documented
class FeatureMatch(NamedTuple):
    """Which learned rows match the true ones; cosines lie in [-1, 1], in [0, 1] if signs do not count."""

    cosine: Float[Tensor, " n_true"]
    """Best cosine of each true feature with any learned one; 0 for rows of zeros."""
    nearest: Int[Tensor, " n_true"]
    """The learned feature that has it."""
    assignment: Int[Tensor, " n_true"]
    """The learned feature of the one-to-one matching of largest total cosine (Hungarian); -1 where learned ones run out."""
    assigned_cosine: Float[Tensor, " n_true"]
    """The cosine of that pair; 0 for the unmatched."""

    def recovery(self, threshold: float = 0.9, one_to_one: bool = False) -> float:
        """Share of true features whose cosine is above `threshold`: the feature recovery rate.

        `one_to_one` counts the matching, so that no learned feature serves two true ones.
        """
        return float(((self.assigned_cosine if one_to_one else self.cosine) > threshold).double().mean())


def match_features(learned: ArrayLike, true: ArrayLike, signed: bool = True) -> FeatureMatch:
    """Match the rows of two dictionaries by cosine; rows are normalised inside.

    Args:
        learned: (n_learned, d), such as `sae.W_dec`.
        true: (n_true, d).
        signed: False takes absolute cosines: a feature may be found upside down.

    The best cosines are computed in blocks; the one-to-one matching holds one (n_true, n_learned) table.

    Raises:
        TypeError, ValueError: bad input, different widths, no rows.

    Examples:
        >>> found = match_features(torch.tensor([[0.0, 2.0], [1.0, 0.1]]), torch.eye(2))
        >>> found.nearest.tolist(), found.recovery(0.9)
        ([1, 0], 1.0)
    """
    true = unit_rows(true, "true")
    learned = unit_rows(learned, "learned", true.shape[1])
    cosine, nearest = _best(learned, true, signed)
    table = _cosines(true, learned, signed)
    rows, columns = linear_sum_assignment(table.numpy(), maximize=True)
    assignment = torch.full((len(true),), -1)
    assigned = torch.zeros(len(true), dtype=torch.float64)
    rows, columns = torch.from_numpy(rows), torch.from_numpy(columns)
    assignment[rows] = columns
    assigned[rows] = table[rows, columns]
    return FeatureMatch(cosine, nearest, assignment, assigned)


def mean_max_cosine(one: ArrayLike, other: ArrayLike, signed: bool = True) -> float:
    """Mean over the features (rows) of `one` of the best cosine with any of `other`: consistency between seeds, in blocks.

    Not symmetric: average both directions where neither dictionary is the reference. Raises as `match_features` does.
    """
    one = unit_rows(one, "one")
    return float(_best(unit_rows(other, "other", one.shape[1]), one, signed)[0].mean())


def unit_rows(rows: ArrayLike, name: str, width: int | None = None) -> Tensor:
    rows = as_samples(rows, width, dtype=torch.float64, name=name).detach().cpu()
    at_least(f"rows of {name}", len(rows), 1)
    return torch.nn.functional.normalize(rows, dim=1, eps=1e-300)


def _cosines(true: Tensor, learned: Tensor, signed: bool) -> Tensor:
    cosines = true @ learned.T
    return cosines if signed else cosines.abs()


def _best(learned: Tensor, true: Tensor, signed: bool) -> tuple[Tensor, Tensor]:
    parts = [_cosines(part, learned, signed).max(dim=1) for part in true.split(max(1, BLOCK_ENTRIES // len(learned)))]
    return torch.cat([part.values for part in parts]), torch.cat([part.indices for part in parts])
