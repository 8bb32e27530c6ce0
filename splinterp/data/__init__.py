"""Data sets and their normalisation."""

from splinterp.data.images import Images, load_digits, load_mnist
from splinterp.data.standardizer import Standardizer

__all__ = ["Images", "Standardizer", "load_digits", "load_mnist"]
