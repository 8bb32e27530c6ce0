"""Codes by sparse coding in place of an encoder: pursuits over the rows of a decoder, and the dictionary that they train (MOD).

An encoder makes a code in one product; what it loses against a search for a code is the amortisation gap.
"""

from splinterp.inference.dictionary import Dictionary, learn_dictionary
from splinterp.inference.least_squares import least_squares_codes
from splinterp.inference.pursuits import PURSUITS as PURSUITS
from splinterp.inference.pursuits import gradient_pursuit, matching_pursuit, orthogonal_matching_pursuit

__all__ = [
    "Dictionary",
    "gradient_pursuit",
    "learn_dictionary",
    "least_squares_codes",
    "matching_pursuit",
    "orthogonal_matching_pursuit",
]
