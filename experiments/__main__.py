"""`python -m experiments NAME [options]`; without a name, lists the experiments."""

from __future__ import annotations

import importlib
import sys

from experiments.errors import guarded

EXPERIMENTS = {
    "adaptation": "where bias adaptation at its defaults recovers features: ten synthetic models",
    "atoms": "dictionary atoms and reconstructions of SAEs trained on MNIST",
    "looks": "reconstructions over training, codes, encoder beside decoder of SAEs trained on MNIST",
    "abstopk": "one latent for two poles: signs of the codes on a language model's activations",
    "baselines": "SAEs beside k-means, local PCA, PCA, ICA, NMF; the price of interpretability: --data digits | mnist",
    "bench": "speed and memory, as ratios within one run: bench train, solve, scale, ...",
    "bridge": "from k-means through SAEs to local PCA, in the plane",
    "centring": "whether the encoder should see samples less their mean: --data mnist | minilm",
    "dead": "latents that die, and remedies: --data mnist | minilm",
    "llm": "sample efficiency on a language model's activations: --preset quick | controlled | centred | paper | paper-gemma",
    "digits": "sample efficiency on scikit-learn's digits, a minute or two, no download",
    "tables": "print the tables of a results file: tables mnist-controlled [--markdown] [--summary | --counts]",
    "geometry": "regions and slices of SAEs trained on MNIST by SGD and PAM-SGD",
    "recovery": "recovery of known features: bias adaptation beside TopK and L1, resonance, seeds",
    "small_gpt2": "train the small GPT-2 that the others take, once, and say where it is kept",
    "biases": "the encoder's bias: its start, its step size; how many latents: --data mnist | minilm | gpt2",
    "lines": "regions on the way from one image of MNIST to another, of SAEs trained by SGD and PAM-SGD",
    "learning": "learning curves of SGD and PAM-SGD, against steps and seconds: --data mnist | minilm",
    "solves": "when PAM-SGD should solve for the decoder: --data mnist | minilm",
    "opening": "when the residual should be let in; readouts and races: --data mnist | minilm",
    "candidates": "what else was proposed, for every method: Muon, noise, fewer latents, decoder steps: --data mnist | minilm | gpt2",
    "variants": "the field's variants of SAEs by SGD and PAM-SGD: --data mnist | minilm | tree",
    "mnist": "sample efficiency on MNIST: --preset controlled | centred | paper",
}


def main(argv: list[str]) -> int:
    """Run the named experiment; returns the exit status."""
    if not argv or argv[0] not in EXPERIMENTS:
        if argv and argv[0] not in ("-h", "--help"):
            print(f"unknown experiment {argv[0]!r}\n", file=sys.stderr)
        print(
            "usage: python -m experiments NAME [options]\n\n" + "\n".join(f"  {n:12}{text}" for n, text in EXPERIMENTS.items())
        )
        return 0 if argv and argv[0] in ("-h", "--help") else 2
    return guarded(
        f"python -m experiments {argv[0]}", lambda: importlib.import_module(f"experiments.{argv[0]}").command(argv[1:])
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
