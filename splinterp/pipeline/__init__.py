"""From a language model and text to a trained SAE in a folder, in Python, from a file, or by `python -m splinterp train`."""

from splinterp.pipeline.plan import Plan
from splinterp.pipeline.runner import Outcome, train

__all__ = ["Outcome", "Plan", "train"]
