"""The older name of `splinterp.language.contexts`."""

from splinterp.language.contexts import TopActivating, context_of, top_activating

__all__ = ["TopActivating", "context_of", "top_activating"]
