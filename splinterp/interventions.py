"""The older name of `splinterp.language.interventions`."""

from splinterp.language.interventions import LatentEffect, LossRecovered, latent_effect, measure_loss

__all__ = ["LatentEffect", "LossRecovered", "latent_effect", "measure_loss"]
