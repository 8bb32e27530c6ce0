"""Normalisation fitted on the training part and kept with the SAE."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from splinterp._atomic import current, locked, replace_files
from splinterp._checks import as_samples, one_of
from splinterp._content import content_hash
from splinterp._files import (
    check_header,
    check_numbers,
    check_sha256,
    entry,
    read_object,
    reading,
    sealed,
    sha256_of,
    tensor_header,
    unsealed,
)
from splinterp._typing import ArrayLike, Tensor
from splinterp._warned import outside
from splinterp.data.store import ActivationStore

TENSORS, CONFIG = "standardizer.safetensors", "standardizer.json"
MODES = ("none", "global", "per_feature", "unit_norm")


class Standardizer:
    """x -> (x - mean) / scale, with statistics of the training part only.

    mode "none": the identity. "global": one mean and one standard deviation over all entries (MNIST).
    "per_feature": each column's own; constant columns are centred, divided by 1 and reported in a warning.
    "unit_norm": no statistics; each sample is divided by its own norm (zero samples stay zero), which `inverse` cannot undo.

    After `fit`: `mean` and `scale`, shape (d_in,), float64 (standard deviations with divisor N).

    Raises:
        ValueError: unknown mode.

    Examples:
        >>> x = torch.tensor([[0.0, 5.0], [2.0, 7.0]])
        >>> Standardizer("per_feature").fit(x).transform(x)
        tensor([[-1., -1.],
                [ 1.,  1.]])
    """

    def __init__(self, mode: str = "global") -> None:
        one_of("mode", mode, MODES)
        self.mode = mode
        self.mean: Tensor | None = None
        self.scale: Tensor | None = None

    def fit(self, x: ArrayLike | ActivationStore) -> Standardizer:
        """Take the statistics of x (n, d_in), or of a store in one pass. Returns self.

        Raises TypeError, ValueError for bad input, non-finite entries, fewer than 2 samples, or data constant as a whole in mode
        "global".
        """
        if not isinstance(x, ActivationStore):
            x = as_samples(x).detach().double()
        if len(x) < 2:
            raise ValueError(f"fitting needs at least 2 samples, got {len(x)}")
        width = x.shape[1]
        mean, scale = torch.zeros(width, dtype=torch.float64), torch.ones(width, dtype=torch.float64)
        if self.mode == "global":
            center, std, smallest, largest = _overall(x)
            if largest == smallest:
                raise ValueError("the data is constant: there is no scale to standardise by")
            mean, scale = center.expand(width).clone(), std.expand(width).clone()
        elif self.mode == "per_feature":
            mean, scale, smallest, largest = _by_column(x)
            constant = largest == smallest
            if constant.any():
                warnings.warn(
                    f"{int(constant.sum())} of {width} columns are constant on the training part: centred, divided by 1",
                    stacklevel=outside(),
                )
                scale[constant] = 1.0
        self.mean, self.scale = mean.cpu(), scale.cpu()
        return self

    def __repr__(self) -> str:
        return f"Standardizer({self.mode!r}{'' if self.mean is None else f', fitted to {len(self.mean)} columns'})"

    def _statistics(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if self.mean is None or self.scale is None:
            raise RuntimeError("this Standardizer has no statistics yet: call fit(x_train)")
        return self.mean.to(x), self.scale.to(x)

    def transform(self, x: ArrayLike) -> Tensor:
        """Normalise x (n, d_in) as a tensor of its own floating dtype (float32 for half precision)."""
        x = as_samples(x, None if self.mean is None else len(self.mean))
        if self.mode == "unit_norm":
            norms = torch.linalg.vector_norm(x, dim=1, keepdim=True, dtype=torch.float64)  # whose squares stay in range
            return x / torch.where(norms > 0, norms, 1.0).to(x.dtype)
        mean, scale = self._statistics(x)
        return (x - mean) / scale

    def fit_transform(self, x: ArrayLike) -> Tensor:
        """`fit(x).transform(x)`."""
        return self.fit(x).transform(x)

    def inverse(self, x: ArrayLike) -> Tensor:
        """Undo `transform`. Raises ValueError in mode "unit_norm", whose norms are not kept."""
        if self.mode == "unit_norm":
            raise ValueError("unit_norm divides each sample by its own norm and cannot be undone")
        x = as_samples(x, None if self.mean is None else len(self.mean))
        mean, scale = self._statistics(x)
        return x * scale + mean

    def fingerprint(self) -> str:
        """A hash of its mode and statistics. Raises RuntimeError before `fit`."""
        if self.mean is None or self.scale is None:
            raise RuntimeError("this Standardizer has no statistics yet: call fit(x_train)")
        return content_hash([self.mode.encode(), self.mean, self.scale])

    def save(self, folder: str | Path) -> None:
        """Write `standardizer.safetensors` and `standardizer.json` into `folder`, in one step. Raises RuntimeError before `fit`."""
        replace_files(Path(folder), self.files())

    def files(self) -> dict[str, Callable[[Path], object] | None]:
        """What writes each file of `save`, the tensors first. Raises RuntimeError before `fit`."""
        if self.mean is None or self.scale is None:
            raise RuntimeError("this Standardizer has no statistics yet: call fit(x_train)")
        tensors, config = {"mean": self.mean, "scale": self.scale}, {"mode": self.mode}

        def write_tensors(path: Path) -> None:
            save_file(tensors, path)
            config["sha256"] = sha256_of(path)

        return {TENSORS: write_tensors, CONFIG: lambda path: path.write_text(json.dumps(sealed(config)) + "\n")}

    @classmethod
    def load(cls, folder: str | Path) -> Standardizer:
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: a file is missing.
            ValueError: statistics that cannot be right (NaN, a scale not above 0), other bytes than were written; the message names
                the file.
        """
        folder = Path(folder)
        with locked(folder):
            path, weights = current(folder, CONFIG), current(folder, TENSORS)
            content = read_object(path)
            with reading(path):
                standardizer = cls(entry(path, content, "mode", str))
            unsealed(path, content)
            header = tensor_header(weights)
            shape = header["mean"][0] if "mean" in header else ()
            if len(shape) != 1:
                raise ValueError(f"mean in {weights} must be of shape (d_in,), not {shape if 'mean' in header else 'missing'}")
            check_header(weights, {"mean": shape, "scale": shape}, "the mean")
            if "sha256" in content:
                check_sha256(weights, content["sha256"])
            with reading(weights):
                tensors = load_file(weights)
        mean, scale = tensors["mean"], tensors["scale"]
        check_numbers(weights, "mean", mean)
        check_numbers(weights, "scale", scale)
        if not bool((scale > 0).all()):
            raise ValueError(
                f"scale in {weights} has {int((scale <= 0).sum())} entries that are not above 0: fit and save it again"
            )
        standardizer.mean, standardizer.scale = mean, scale
        return standardizer


def _by_column(x: Tensor | ActivationStore) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Mean, standard deviation, smallest and largest entry of each column."""
    if isinstance(x, ActivationStore):
        found = x.statistics()
        bad = ~(torch.isfinite(found["min"]) & torch.isfinite(found["max"]))  # a NaN is kept by both
        if bad.any():
            hint = " (float16 ends at 65504: write it as bfloat16 or float32)" if x.manifest["dtype"] == "float16" else ""
            raise ValueError(
                f"the store in {x.folder} has non-finite entries in {int(bad.sum())} of {x.d_in} columns, the first of them column "
                f"{int(bad.nonzero()[0])}: remove or extract them again{hint}"
            )
        return found["mean"], found["std"], found["min"], found["max"]
    return x.mean(0), x.std(0, correction=0), x.amin(0), x.amax(0)


def _overall(x: Tensor | ActivationStore) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The same of all entries together."""
    if isinstance(x, Tensor):
        return x.mean(), x.std(correction=0), x.amin(), x.amax()
    mean, std, smallest, largest = _by_column(x)
    overall = (std.square() + (mean - mean.mean()).square()).mean().sqrt()
    return mean.mean(), overall, smallest.amin(), largest.amax()
