"""Trained SAEs out to the formats of other tools, and back."""

from splinterp.interop.anyone import Loaded, load_any, load_from_hub, save_to_hub
from splinterp.interop.dictionary_learning import load_dictionary_learning, save_dictionary_learning
from splinterp.interop.folding import fold_standardizer
from splinterp.interop.foreign import affine_sae
from splinterp.interop.gemma_scope import load_gemma_scope, save_gemma_scope
from splinterp.interop.jumprelu import to_jumprelu
from splinterp.interop.llama_scope import load_llama_scope
from splinterp.interop.overcomplete import load_overcomplete
from splinterp.interop.saelens import load_saelens, save_saelens, to_nonnegative
from splinterp.interop.sparsify import load_sparsify, save_sparsify

__all__ = [
    "Loaded", "affine_sae", "fold_standardizer", "load_any", "load_dictionary_learning", "load_from_hub", "load_gemma_scope",
    "load_llama_scope", "load_overcomplete", "load_saelens", "load_sparsify", "save_dictionary_learning", "save_gemma_scope",
    "save_saelens", "save_sparsify", "save_to_hub", "to_jumprelu", "to_nonnegative",
]  # fmt: skip
