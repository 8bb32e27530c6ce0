"""Data sets and their normalisation."""

from splinterp.data.images import Images, load_digits, load_mnist
from splinterp.data.standardizer import Standardizer
from splinterp.data.synthetic import SparseFeatures, SyntheticSamples

__all__ = ["Images", "SparseFeatures", "Standardizer", "SyntheticSamples", "load_digits", "load_mnist"]
