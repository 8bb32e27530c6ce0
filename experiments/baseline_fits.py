"""One baseline (k-means, local PCA, PCA, ICA, NMF) fitted to the images of a seed."""

from __future__ import annotations

import warnings
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from sklearn.decomposition import NMF, PCA, FastICA
from sklearn.exceptions import ConvergenceWarning
from sklearn.pipeline import make_pipeline

from experiments.recipe import digest
from experiments.runs import WIDTHS, Run, split
from splinterp.baselines import KMeansAutoencoder, LocalPCAAutoencoder, PCAAutoencoder
from splinterp.metrics import fvu


@dataclass(frozen=True)
class Fit:
    """One baseline fitted to the images of a seed."""

    data: str
    model: str
    """"PCA", "ICA", "NMF", "k-means", "local PCA centroid", "local PCA residual" or "local PCA power"."""
    n_regions: int
    rank: int
    n_train: int
    seed: int
    source: str = ""
    """The key of the data's `experiments.sources.Source`."""

    @property
    def key(self) -> str:
        """A hash of all fields that differ from their defaults."""
        return digest(self)

    @property
    def cost(self) -> float:
        """Grows with regions and rank; the power search is the slowest."""
        return self.n_train * self.n_regions * (1.0 + self.rank) * (5.0 if self.model == "local PCA power" else 1.0) / 1e4

    def recipe(self) -> str:
        """A hash of the estimator's options that are not neutral."""
        return digest(self.estimator(), 12)

    def estimator(self) -> Any:
        """The unfitted scikit-learn estimator."""
        if self.model == "PCA":
            return PCAAutoencoder(self.rank, random_state=self.seed)
        if self.model == "ICA":
            # Whitened by PCA: FastICA's own whitening multiplies by the sign of the first feature, 0 where a pixel is constant.
            return make_pipeline(
                PCA(self.rank, whiten=True, random_state=self.seed),
                FastICA(whiten=False, max_iter=100, tol=1e-2, random_state=self.seed),
            )
        if self.model == "NMF":
            return NMF(self.rank, init="nndsvda", max_iter=300, random_state=self.seed)
        if self.model == "k-means":
            return KMeansAutoencoder(self.n_regions, n_init=1, random_state=self.seed)
        assign = self.model.removeprefix("local PCA ")
        return LocalPCAAutoencoder(self.n_regions, self.rank, assign, n_init=1, max_iter=50, tol=1e-4, random_state=self.seed)

    @property
    def size(self) -> tuple[int, int]:
        """(parameters, active numbers a sample): a region's number counts as one."""
        d = WIDTHS[self.data]
        if self.model in ("PCA", "ICA", "NMF"):
            return self.rank * d * (2 if self.model == "ICA" else 1) + (0 if self.model == "NMF" else d), self.rank
        sites = self.n_regions * (d + 1) if self.model == "local PCA power" else 0
        return self.n_regions * d * (1 + self.rank) + sites, 1 + self.rank


def measure_fit(task: Fit, data_dir: str | None) -> dict[str, Any]:
    """Errors of a baseline. NMF takes the images as they are, from 0 up: a common scale and shift leave the FVU as it is."""
    run = Run(
        data=task.data, source=task.source, method="", activation="", k=0, n_latents=0, n_train=task.n_train, epochs=0, lr=0.0,
        seed=task.seed,
    )  # fmt: skip
    data = split(run, data_dir)
    x, x_test = (part.numpy().astype(np.float32) for part in (data.x, data.x_test))
    if task.model == "NMF":
        low = min(x.min(), x_test.min())
        x, x_test = x - low, x_test - low
    model = task.estimator()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(x)
        errors = {}
        for name, part in (("train_fvu", x), ("test_fvu", x_test)):
            x_hat = model.inverse_transform(model.transform(part))
            errors[name] = fvu(torch.from_numpy(part), torch.from_numpy(np.asarray(x_hat, dtype=np.float32)))
    return {"key": task.key, "fit": asdict(task), **errors}
