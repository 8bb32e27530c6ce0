"""Whether an SAE is used on the activations that it was trained on."""

from __future__ import annotations

from typing import Any

from splinterp.data.language_model import LanguageModel
from splinterp.data.standardizer import Standardizer
from splinterp.protocol import said_of


def check_provenance(sae: Any, model: LanguageModel, layer: int, site: str, standardizer: Standardizer | None) -> None:
    """Compare what a saved SAE says of itself (`SAE.about`) with where it is put; what it does not say is not compared.

    An SAE that is given activations of another layer, or without its standardizer, reconstructs nothing, and no number says why.

    Raises:
        ValueError: another model (by its weights), layer, site or standardizer, with what to pass.
    """
    about = said_of(sae)
    source = about.get("activations", {})
    for name, given in {"layer": layer, "site": site}.items():
        if name in source and source[name] != given:
            raise ValueError(f"this SAE was trained on {name}={source[name]!r}, not {given!r}: pass {name}={source[name]!r}")
    if "weights" in source and source["weights"] != model.weights_hash():
        raise ValueError(
            f"this SAE was trained on activations of {source.get('model', 'another model')}, whose weights {model.name} does not have: "
            "load that model (and revision)"
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
