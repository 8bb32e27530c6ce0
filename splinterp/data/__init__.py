"""Data sets, their normalisation, and activations of language models."""

from splinterp.data.extract import Activations, extract_activations, extract_places
from splinterp.data.images import Images, load_digits, load_mnist
from splinterp.data.language_model import LanguageModel
from splinterp.data.manifest import CorruptStoreError
from splinterp.data.standardizer import Standardizer
from splinterp.data.store import ActivationStore
from splinterp.data.store_writer import StoreWriter
from splinterp.data.stream import ActivationStream
from splinterp.data.synthetic import SparseFeatures, SyntheticSamples
from splinterp.data.text import TokenSequences, pack_tokens, python_documentation, text_from_datasets, text_from_files
from splinterp.data.token_rules import TokenRules
from splinterp.data.tree import FeatureTree

__all__ = [
    "ActivationStore", "ActivationStream", "Activations", "CorruptStoreError", "FeatureTree", "Images", "LanguageModel",
    "SparseFeatures", "Standardizer", "StoreWriter", "SyntheticSamples", "TokenRules", "TokenSequences", "extract_activations",
    "extract_places", "load_digits", "load_mnist", "pack_tokens", "python_documentation", "text_from_datasets", "text_from_files",
]  # fmt: skip
