"""Extraction of activations against the model's own forward passes up to the layer.

The floor runs the transformer's layers up to the one wanted on the same padded batches, and does nothing with what comes out.
Extraction keeps the tokens that are not special or padding, and returns them or writes a store with checksums.
"""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path
from typing import Any

import torch

from experiments.benches.timing import interleaved
from splinterp.data import LanguageModel, extract_activations, pack_tokens, python_documentation
from splinterp.data._passes import fitting_batch, length_batches, padded

LAYERS, TOKENS, CONTEXT = (3, 6), 60_000, 128


def run(quick: bool, device: str) -> dict[str, Any]:
    """Layers of MiniLM, to memory and to disk."""
    model = LanguageModel.load("minilm", device=device)
    sequences = pack_tokens(model.tokenizer, python_documentation(), CONTEXT)
    sequences = sequences.take(0, (600 if quick else TOKENS) // CONTEXT)
    size = fitting_batch(model, max(map(len, sequences.ids)))
    batches = [padded([sequences.ids[i] for i in batch]) for batch in length_batches(sequences.ids, size)]
    kept = sum(not flag for row in sequences.special for flag in row)
    rows = []
    for layer in LAYERS:
        short = truncated(model, layer)

        def floor(short: torch.nn.Module = short) -> None:
            with torch.inference_mode():
                for ids, mask in batches:
                    short(input_ids=ids.to(device), attention_mask=mask.to(device))

        def to_memory(layer: int = layer) -> None:
            extract_activations(model, sequences, layer, batch_tokens=size)

        def to_disk(layer: int = layer) -> None:
            with tempfile.TemporaryDirectory() as folder:
                extract_activations(model, sequences, layer, batch_tokens=size, folder=Path(folder) / "store")

        seconds = interleaved({"forward passes alone": floor, "to memory": to_memory, "to a store": to_disk})
        rows += [
            [layer, name, f"{t:.2f}", f"{kept / t:,.0f}", f"{t / seconds['forward passes alone']:.3f}"]
            for name, t in seconds.items()
        ]
    header = ["layer", "what", "seconds", "tokens a second", "over forward"]
    title = f"MiniLM on {kept:,} tokens in sequences of up to {CONTEXT}, {size:,} tokens a batch"
    return {"bench": "extract", "tables": [{"title": title, "header": header, "rows": rows}]}


def truncated(model: LanguageModel, layer: int) -> torch.nn.Module:
    """The transformer with its first `layer` layers only."""
    copied = copy.deepcopy(model.model)
    copied.encoder.layer = copied.encoder.layer[:layer]
    return copied
