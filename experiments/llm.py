"""Sample efficiency on the activations of a language model: standard SGD against PAM-SGD.

  --preset quick (default)  a small form of the comparison, in minutes on two cores
  --preset controlled       by the rules of `mnist --preset controlled`: subsets of 1,000, 9,000 and 36,000 tokens of a pool of 110,000,
                            and the whole pool; TopK and AbsTopK, k = 32 of 1,536 latents; ReLU along an L1 sweep at 9,000 tokens
  --preset paper            the published grid (size, k, encoder updates, activation, weight decay, mu) on a small scale
  --preset paper-gemma      the authors' configuration: Gemma 2 2B, layer 12, last tokens of 10,000 texts (a GPU, access to the hub)

MiniLM, layer 3, unless --model and --layer say otherwise. Training and validation documents come from one part of WikiText-2
(`--data-dir` or `$SPLINTERP_DATA`; without it, Python's documentation), test documents from the other.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from experiments.activations import raw_tokens
from experiments.grid import CAUSES, IN_EVERY_CELL, OURS, Config
from experiments.mnist import main
from experiments.options import add_common_options
from experiments.paper import LANGUAGE_MODEL, SMALL_LANGUAGE_MODEL, PaperConfig
from experiments.runs import LAST, TOKEN_POOL

PARTS = (*IN_EVERY_CELL, "causes", "relu")
PAPER_PARTS = ("sizes", "encoder_updates", "k", "weight_decay", "mu_nu_pull")
CONFIG = Config(
    data="minilm-3", k=32, n_latents=1_536, activations=("TopK", "AbsTopK"), shares=(1_000 / TOKEN_POOL, 9_000 / TOKEN_POOL,
    36_000 / TOKEN_POOL, 1.0), batch_size=256, early_epochs=4, long_steps=2_000, grid=(2e-3, 4e-3, 8e-3, 1.6e-2), seeds=(0, 1, 2, 3),
    seeds_full=(0, 1), relu_shares=(9_000 / TOKEN_POOL,), relu_l1=(1e-3, 3e-3, 1e-2, 3e-2), part_seeds=(0, 1, 2),
    relu_grid=(2e-3, 4e-3, 8e-3),
    cause_cells=tuple((activation, n / TOKEN_POOL, budget) for n, budget in ((1_000, "long"), (9_000, "early"), (9_000, "long"))
                      for activation in ("TopK", "AbsTopK")),
    cause_settings=(*(c for c in CAUSES if ("solve_gap", 1) not in c[1]), (OURS, (("ridge", "held_out"),))),
)  # fmt: skip

QUICK = dataclasses.replace(
    CONFIG, k=16, n_latents=768, activations=("TopK",), shares=(1_000 / TOKEN_POOL, 9_000 / TOKEN_POOL), full_from=2.0, long_steps=600,
    grid=(4e-3, 8e-3), seeds=(0, 1, 2), relu_l1=(1e-3, 3e-3),
)  # fmt: skip
PRESETS: dict[str, Config | PaperConfig] = {
    "quick": QUICK, "controlled": CONFIG, "paper": SMALL_LANGUAGE_MODEL, "paper-gemma": LANGUAGE_MODEL,
}  # fmt: skip


def command(argv: list[str]) -> Path:
    """`python -m experiments llm ...`"""
    parser = argparse.ArgumentParser(
        prog="python -m experiments llm", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--preset", choices=PRESETS, default="quick")
    known = dict.fromkeys((*PARTS, *PAPER_PARTS))
    parser.add_argument("--parts", nargs="+", choices=known, help="some parts of the preset (default: all; of quick: sizes)")
    parser.add_argument("--model", help="minilm, a folder, or a name on the Hugging Face hub")
    parser.add_argument("--layer", type=int)
    parser.add_argument(
        "--data-dir", help="folder with wikitext2/ (default: $SPLINTERP_DATA; without it, Python's documentation)"
    )
    add_common_options(parser)
    args = parser.parse_args(argv)
    config = PRESETS[args.preset]
    if isinstance(config, PaperConfig):
        config = dataclasses.replace(config, parts=args.parts and tuple(args.parts))
    unknown = set(args.parts or ()) - set(PAPER_PARTS if isinstance(config, PaperConfig) else PARTS)
    if unknown:
        parser.error(f"--preset {args.preset} has no part {', '.join(sorted(unknown))}")
    args.parts = args.parts or (["sizes"] if args.preset == "quick" else list(PARTS))
    model, layer = config.data.removesuffix(LAST).rsplit("-", 1)
    model, layer = args.model or model, str(args.layer or layer)
    last = LAST if config.data.endswith(LAST) else ""
    config = dataclasses.replace(config, data=f"{model}-{layer}{last}")
    if not last:  # extracted once, before several processes want it
        raw_tokens(model, int(layer), TOKEN_POOL, args.data_dir)
    suffix = "" if args.preset == "controlled" else f"-{args.preset}"
    return main(config, args, f"llm-{model.replace('/', '--')}-{layer}{suffix}")
