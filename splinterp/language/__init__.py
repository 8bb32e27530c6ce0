"""An SAE inside its language model: what it costs, what a latent does, and where a latent fires."""

from splinterp.language.contexts import TopActivating, context_of, top_activating
from splinterp.language.interventions import LatentEffect, LossRecovered, latent_effect, measure_loss
from splinterp.language.provenance import check_provenance

__all__ = [
    "LatentEffect",
    "LossRecovered",
    "TopActivating",
    "check_provenance",
    "context_of",
    "latent_effect",
    "measure_loss",
    "top_activating",
]
