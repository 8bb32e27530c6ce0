"""The sample-efficiency comparison on scikit-learn's digits: minutes of MNIST in seconds, with no download.

The same code, rules and tables as `mnist --preset controlled`, at k = 5 of 64 latents, 3 seeds.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from experiments.grid import Config
from experiments.mnist import main
from experiments.options import add_common_options, changed

CONFIG = Config(
    data="digits", k=5, n_latents=64, activations=("AbsTopK", "TopK"), shares=(0.1, 0.3, 1.0), full_from=2.0,
    early_epochs=10, long_steps=300, seeds=(0, 1, 2), grid=(4e-3, 8e-3, 1.6e-2, 3.2e-2),
)  # fmt: skip


def command(argv: list[str]) -> Path:
    """`python -m experiments digits ...`"""
    parser = argparse.ArgumentParser(prog="python -m experiments digits", description=__doc__)
    add_common_options(parser)
    args = parser.parse_args(argv)
    args.parts = ["sizes"]
    return main(changed(CONFIG, args), args, "digits")
