"""What the experiments on MNIST or MiniLM that choose a default share: their store of runs, and their command line."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from experiments.activations import raw_tokens
from experiments.options import MNIST_HELP, add_common_options, add_data_dir, changed
from experiments.runs import Run, pool_size, run_from_record
from experiments.sources import IMAGES, Source, source_of, split_name
from experiments.store import RecordStore
from experiments.texts import location


@dataclass(frozen=True)
class Choice:
    """The settings of such an experiment that all have."""

    data: str = "mnist"
    source: str = ""
    """The key of the data's `experiments.sources.Source`."""
    k: int = 15
    n_latents: int = 256

    def validation_run(self, **fields: Any) -> Run:
        """A run whose record has no test error."""
        return Run(data=self.data, source=self.source, k=self.k, n_latents=self.n_latents, role="tuning", **fields)


def store_of(
    experiment: str,
    data: str,
    out: Path,
    data_dir: str | None,
    parse: Callable[[dict[str, Any]], Any] = run_from_record,
    pool: int | None = None,
) -> tuple[RecordStore, Source]:
    """The records of an experiment's runs on `data`, and where these come from."""
    source = source_of(data, data_dir)

    def prepare() -> None:  # extracted once, before several processes want it
        if data not in IMAGES:
            raw_tokens(*split_name(data), pool or pool_size(data), data_dir, source.key)

    return RecordStore(out, f"{experiment}-{data}-runs", parse, source, prepare), source


def concluded(store: RecordStore, name: str, config: Choice, tables: dict[str, Any], render: Callable[..., str]) -> Path:
    """Write `NAME-DATA.json`, the tables and the settings, and print it with where the runs are. Returns its path."""
    store.merge(asdict(config))
    results = {**tables, "config": asdict(config)}
    path = store.write_results(f"{name}-{config.data}", results)
    print(f"{render(results)}\n\n{store.report()}\nwritten: {path}")
    return path


def data_parser(experiment: str, description: str | None, names: Mapping[str, Any]) -> argparse.ArgumentParser:
    """A parser with --data, one of `names`, where its files are, and the common options."""
    parser = argparse.ArgumentParser(
        prog=f"python -m experiments {experiment}", description=description, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", choices=names, default="mnist", help="data to train on (default: mnist)")
    add_data_dir(parser, f"{MNIST_HELP}; for language models: with wikitext2/")
    add_common_options(parser)
    return parser


def run_on(main: Callable[..., Path], configs: Mapping[str, Any], args: argparse.Namespace, text: str | None = None) -> Path:
    """main(config, out, data_dir, jobs, device) for what `data_parser` has read."""
    data_dir = args.data_dir if configs[args.data].data in IMAGES else location(text, args.data_dir)
    config = changed(configs[args.data], args)
    return main(config, args.out, data_dir, args.jobs, args.device)
