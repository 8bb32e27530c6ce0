"""Trained SAEs out to the formats of other tools, and back."""

from splinterp.interop.folding import fold_standardizer
from splinterp.interop.jumprelu import to_jumprelu
from splinterp.interop.saelens import load_saelens, save_saelens, to_nonnegative

__all__ = ["fold_standardizer", "load_saelens", "save_saelens", "to_jumprelu", "to_nonnegative"]
