"""Sample efficiency on the activations of a language model: standard SGD against PAM-SGD, by the rules of `mnist --preset controlled`.

The default is MiniLM on WikiText-2 (`--data-dir` or `$SPLINTERP_DATA`), layer 3: subsets of 1,000, 9,000 and 36,000 tokens of a pool of
110,000, and the whole pool; TopK and AbsTopK, k = 32 of 1,536 latents; and ReLU along an L1 sweep at 9,000 tokens. Training and
validation documents come from one part of the text, test documents from the other.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from experiments.activations import raw_tokens
from experiments.grid import Config
from experiments.mnist import main
from experiments.options import add_common_options
from experiments.runs import TOKEN_POOL

PARTS = ("sizes", "relu")
CONFIG = Config(
    data="minilm-3", k=32, n_latents=1_536, activations=("TopK", "AbsTopK"), shares=(1_000 / TOKEN_POOL, 9_000 / TOKEN_POOL,
    36_000 / TOKEN_POOL, 1.0), batch_size=256, early_epochs=4, long_steps=2_000, grid=(2e-3, 4e-3, 8e-3, 1.6e-2), seeds=(0, 1, 2, 3),
    seeds_full=(0, 1), relu_shares=(9_000 / TOKEN_POOL,), relu_l1=(3e-4, 1e-3, 3e-3, 1e-2), part_seeds=(0, 1, 2),
)  # fmt: skip


def command(argv: list[str]) -> Path:
    """`python -m experiments llm ...`"""
    parser = argparse.ArgumentParser(
        prog="python -m experiments llm", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--model", default="minilm", help="minilm, a folder, or a name on the Hugging Face hub")
    parser.add_argument("--layer", type=int, default=3)
    parser.add_argument(
        "--data-dir", help="folder with wikitext2/ (default: $SPLINTERP_DATA; without it, Python's documentation)"
    )
    add_common_options(parser)
    args = parser.parse_args(argv)
    config = dataclasses.replace(CONFIG, data=f"{args.model}-{args.layer}")
    raw_tokens(args.model, args.layer, TOKEN_POOL, args.data_dir)  # extracted once, before several processes want it
    return main(config, args, f"llm-{config.data.replace('/', '--')}")
