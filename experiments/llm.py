"""Sample efficiency on the activations of a language model: standard SGD against PAM-SGD.

  --preset quick (default)  a small form of the comparison, in minutes on two cores
  --preset controlled       by the rules of `mnist --preset controlled`: subsets of 1,000, 9,000 and 36,000 tokens of a pool of 110,000,
                            and the whole pool; TopK and AbsTopK, k = 32 of 1,536 latents; ReLU along an L1 sweep at 9,000 tokens
  --preset centred          the same with centred SAEs, PAM-SGD at the defaults of today, subsets of 1,000, 9,000 and 36,000 tokens, and
                            seeds that no choice has seen
  --preset paper            the published grid (size, k, encoder updates, activation, weight decay, mu) on a small scale
  --preset paper-gemma      the authors' configuration: Gemma 2 2B, layer 12, last tokens of 10,000 texts (a GPU, access to the hub)

MiniLM, layer 3, unless --model and --layer say otherwise. The text is WikiText-2 where --data-dir or $SPLINTERP_DATA names a folder, else
Python's documentation (paper-gemma: WikiText-103 from the hub), which the quick preset can do with. Training and validation
documents come from one part of it, test documents from the other.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from experiments.activations import last_tokens, raw_tokens
from experiments.errors import UsageError
from experiments.grid import CAUSES, CONTROLS, FIRST, OURS, SECOND, Config
from experiments.mnist import add_parts, check_parts, main, parts_of
from experiments.options import add_common_options, changed
from experiments.paper import LANGUAGE_MODEL, SMALL_LANGUAGE_MODEL, PaperConfig
from experiments.runs import DEFAULT, OPEN, SLOWER, TOKEN_POOL, pool_size
from experiments.sources import LAST, source_of, split_name
from experiments.texts import add_text_options, location

CONFIG = Config(
    data="minilm-3", parts=(*FIRST, "causes", "relu"),
    k=32, n_latents=1_536, activations=("TopK", "AbsTopK"), shares=(1_000 / TOKEN_POOL, 9_000 / TOKEN_POOL,
    36_000 / TOKEN_POOL, 1.0), batch_size=256, early_epochs=4, long_steps=2_000, grid=(2e-3, 4e-3, 8e-3, 1.6e-2), seeds=(0, 1, 2, 3),
    seeds_full=(0, 1), relu_shares=(9_000 / TOKEN_POOL,), relu_l1=(1e-3, 3e-3, 1e-2, 3e-2), part_seeds=(0, 1, 2),
    relu_grid=(2e-3, 4e-3, 8e-3),
    cause_cells=tuple((activation, n / TOKEN_POOL, budget) for n, budget in ((1_000, "long"), (9_000, "early"), (9_000, "long"))
                      for activation in ("TopK", "AbsTopK")),
    cause_settings=(*(c for c in CAUSES if ("solve_gap", 1) not in c[1]), (OURS, (("ridge", "held_out"),))),
)  # fmt: skip

QUICK_POOL = 27_000
"""Tokens: Python's documentation has them."""
QUICK = dataclasses.replace(
    CONFIG, pool=QUICK_POOL, k=16, n_latents=768, activations=("TopK",), shares=(1_000 / QUICK_POOL, 9_000 / QUICK_POOL), full_from=2.0,
    long_steps=600, grid=(4e-3, 8e-3), seeds=(0, 1, 2), relu_shares=(9_000 / QUICK_POOL,), relu_l1=(1e-3, 3e-3),
    cause_cells=(("TopK", 9_000 / QUICK_POOL, "early"),),
)  # fmt: skip
CENTRED = dataclasses.replace(
    CONFIG, ours=DEFAULT, options=(("b_pre", "fixed"),), parts=(*SECOND, "relu", "jumprelu"), full_from=2.0, shares=CONFIG.shares[:3],
    seeds=(10, 11, 12, 13), tuning_seeds=(110,), relu_methods=(*CONTROLS, SLOWER, DEFAULT, OPEN), part_seeds=(10, 11, 12),
)  # fmt: skip
PRESETS: dict[str, Config | PaperConfig] = {
    "quick": QUICK, "controlled": CONFIG, "centred": CENTRED, "paper": SMALL_LANGUAGE_MODEL, "paper-gemma": LANGUAGE_MODEL,
}  # fmt: skip


def with_pool(config: Config, pool: int) -> Config:
    """The same sizes drawn from another pool; the whole of it stays the whole. Raises UsageError: a pool smaller than a size."""
    before = config.pool or pool_size(config.data)
    largest = round(max((share for share in config.shares if share < 1), default=0) * before)
    if pool <= largest:
        raise UsageError(f"--pool {pool:,}: subsets of {largest:,} tokens are drawn from it; take more")

    def scaled(share: float) -> float:
        return share if share == 1 else share * before / pool

    return dataclasses.replace(
        config, pool=pool, shares=tuple(map(scaled, config.shares)), relu_shares=tuple(map(scaled, config.relu_shares)),
        cause_cells=tuple((activation, scaled(share), budget) for activation, share, budget in config.cause_cells),
    )  # fmt: skip


def command(argv: list[str]) -> Path:
    """`python -m experiments llm ...`"""
    parser = argparse.ArgumentParser(
        prog="python -m experiments llm", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--preset", choices=PRESETS, default="quick")
    add_parts(parser)
    parser.add_argument("--model", help="minilm, a folder, or a name on the Hugging Face hub")
    parser.add_argument("--layer", type=int)
    parser.add_argument(
        "--pool", type=int, help="tokens that training subsets of the same sizes are drawn from (default: the preset's)"
    )
    add_text_options(parser)
    add_common_options(parser)
    args = parser.parse_args(argv)
    config = PRESETS[args.preset]
    check_parts(parser, args, parts_of(config))
    args.parts = args.parts or (["sizes"] if args.preset == "quick" else list(parts_of(config)))
    model, layer = split_name(config.data)
    model, layer = args.model or model, layer if args.layer is None else args.layer
    last = LAST if config.data.endswith(LAST) else ""
    config = dataclasses.replace(config, data=f"{model}-{layer}{last}")
    if args.pool is not None:
        if not isinstance(config, Config):
            parser.error(f"--pool: the preset {args.preset} has the published sizes; take another --preset")
        config = with_pool(config, args.pool)
    config = changed(config, args)
    args.data_dir = location(args.text, args.data_dir, last=bool(last))
    source = source_of(config.data, args.data_dir)
    pool = (isinstance(config, Config) and config.pool) or pool_size(config.data)
    read = last_tokens if last else raw_tokens
    suffix = "" if args.preset == "controlled" else f"-{args.preset}"
    name = f"llm-{model.replace('/', '--')}-{layer}{suffix}"
    # extracted once, before several processes want it
    return main(config, args, name, lambda: read(model, layer, pool, args.data_dir, source.key))
