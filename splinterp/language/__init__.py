"""An SAE inside its language model: what it costs, what a latent does and says, and where it fires."""

from splinterp.language.contexts import TopActivating, context_of, top_activating
from splinterp.language.interventions import LatentEffect, LossRecovered, latent_effect, measure_loss
from splinterp.language.logits import Place, TopTokens, ablation_graph, logit_attribution, top_tokens
from splinterp.language.page import LatentCard, dashboard, latent_cards
from splinterp.language.provenance import check_provenance
from splinterp.language.steering import steered, written

__all__ = [
    "LatentCard", "LatentEffect", "LossRecovered", "Place", "TopActivating", "TopTokens", "ablation_graph", "check_provenance",
    "context_of", "dashboard", "latent_cards", "latent_effect", "logit_attribution", "measure_loss", "steered", "top_activating",
    "top_tokens", "written",
]  # fmt: skip
