"""Reconstruction, sparsity and bipolarity of an SAE over a whole split; matching of dictionaries."""

from splinterp.metrics.absorption import absorption, detectors
from splinterp.metrics.bipolarity import Bipolarity, anti_parallel_share, bipolarity
from splinterp.metrics.complexity import DescriptionLength, ErrorPredictability, description_length, error_predictability
from splinterp.metrics.contrast import ContrastScores, contrast_scores
from splinterp.metrics.features import FeatureMatch, match_features, mean_max_cosine
from splinterp.metrics.jacobian import MLP, ActiveJacobian, active_jacobian
from splinterp.metrics.quality import Evaluation, evaluate, explained_variance, firing_frequencies, frac_dead, fvu, l0

__all__ = [
    "MLP",
    "ActiveJacobian",
    "Bipolarity",
    "ContrastScores",
    "DescriptionLength",
    "ErrorPredictability",
    "Evaluation",
    "FeatureMatch",
    "absorption",
    "active_jacobian",
    "anti_parallel_share",
    "bipolarity",
    "contrast_scores",
    "description_length",
    "detectors",
    "error_predictability",
    "evaluate",
    "explained_variance",
    "firing_frequencies",
    "frac_dead",
    "fvu",
    "l0",
    "match_features",
    "mean_max_cosine",
]
