"""Whether an SAE is used on the activations that it was trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from splinterp.data.language_model import LanguageModel
from splinterp.data.standardizer import Standardizer
from splinterp.data.token_rules import TokenRules
from splinterp.protocol import said_of


def check_provenance(
    sae: Any, model: LanguageModel, layer: int | None, site: str | None, standardizer: Standardizer | None
) -> None:
    """Compare what a saved SAE says of itself (`SAE.about`) with where it is put; what it does not say, and a layer or site of None,
    is not compared.

    An SAE that is given activations of another layer, or without its standardizer, reconstructs nothing, and no number says why.

    Raises:
        TypeError: the name of a model in place of one.
        ValueError: another model (by its weights), layer, site or standardizer, with what to pass.
    """
    if isinstance(model, str | Path):
        raise TypeError(f"model is the name {str(model)!r}: pass LanguageModel.load({str(model)!r})")
    about = said_of(sae)
    source = about.get("activations", {})
    for name, given in {"layer": layer, "site": site}.items():
        if given is not None and name in source and source[name] != given:
            raise ValueError(f"this SAE was trained on {name}={source[name]!r}, not {given!r}: pass {name}={source[name]!r}")
    if "weights" in source and source["weights"] != model.weights_hash():
        raise ValueError(
            f"this SAE was trained on activations of {source.get('model', 'another model')}, whose weights {model.name} does not have: "
            "load that model in that revision and dtype"
        )
    expected = about.get("standardizer")
    if expected is not None and standardizer is None:
        raise ValueError(
            "this SAE was trained on standardised activations: pass standardizer=Standardizer.load(folder) of the folder that it was "
            "loaded from, or fold it in (splinterp.interop.fold_standardizer)"
        )
    if standardizer is not None and expected != standardizer.fingerprint() and (expected is not None or source):
        raise ValueError(
            "this SAE was trained with another standardizer"
            if expected is not None
            else "this SAE was saved without a standardizer, on activations as the model gives them: leave the standardizer out"
        )


def rules_of(sae: Any) -> TokenRules:
    """The rules by which the tokens that a saved SAE was trained on were taken, as far as it says so."""
    source = said_of(sae).get("activations", {})
    return TokenRules(**{"keep_special": source.get("keep_special", False), **source.get("rules", {})})
