"""Baselines that bound an SAE: PCA, k-means and local-PCA autoencoders, and the price an SAE pays against them."""

from splinterp.baselines.estimators import KMeansAutoencoder, PCAAutoencoder
from splinterp.baselines.local_pca import LocalPCAAutoencoder
from splinterp.baselines.price import (
    InterpretabilityPrice,
    LocalPCABound,
    interpretability_price,
    local_pca_bound,
    reconstruct_by_region,
)

__all__ = [
    "InterpretabilityPrice",
    "KMeansAutoencoder",
    "LocalPCAAutoencoder",
    "LocalPCABound",
    "PCAAutoencoder",
    "interpretability_price",
    "local_pca_bound",
    "reconstruct_by_region",
]
