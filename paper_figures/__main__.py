"""`python -m paper_figures NAME [NAME ...] | --all | --list`: draw figures from results files."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from experiments.errors import UsageError, guarded
from experiments.files import COMMITTED, ROOT, read_results

OUT = ROOT / "results" / "figures"
"""Ignored by git; committed figures are in paper_figures/figures."""
COMPUTED = ("", "python -m paper_figures NAME")
ATOMS = ("atoms-mnist.json", "python -m experiments atoms --data-dir FOLDER")
CONTROLLED = ("mnist-controlled.json", "python -m experiments mnist --data-dir FOLDER --jobs 2")
MAIN = "sizes sgd-decoder_lr-0.3 sgd-decoder_lr-0.1"
"""Parts of the second comparison that verdicts go by."""
CENTRED = ("mnist-centred.json", "python -m experiments mnist --preset centred --data-dir FOLDER --jobs 2")
CENTRED_LLM, CENTRED_LLM_4, CENTRED_LLM_5 = (
    (f"llm-minilm-{layer}-centred.json",
     f"python -m experiments llm --preset centred --parts {MAIN} --layer {layer} --data-dir FOLDER --jobs 2")
    for layer in (1, 4, 5)
)  # fmt: skip
GPT2 = tuple(
    (f"llm-small-gpt2-{layer}-centred.json",
     f"python -m experiments llm --preset centred --parts {MAIN} --model small-gpt2 --layer {layer} --pool 72000 --data-dir FOLDER "
     "--jobs 2")
    for layer in (1, 2, 3, 4)
)  # fmt: skip
HEADLINE = (CENTRED, CENTRED_LLM_5, CENTRED_LLM_4, CENTRED_LLM, *GPT2)
"""Several files: the figure is of all of them."""
LEARNING = ("learning-mnist.json", "python -m experiments learning --data-dir FOLDER")
BASELINES = ("baselines-mnist.json", "python -m experiments baselines --data mnist --data-dir FOLDER --jobs 2")
BRIDGE = ("bridge.json", "python -m experiments bridge")
GEOMETRY = ("geometry-mnist.json", "python -m experiments geometry --data-dir FOLDER --jobs 2")
LOOKS = ("looks-mnist.json", "python -m experiments looks --data-dir FOLDER")
LINES = ("lines-mnist.json", "python -m experiments lines --data-dir FOLDER --jobs 2")
LLM = ("llm-minilm-3.json", "python -m experiments llm --preset controlled --data-dir FOLDER --jobs 2")
SIGNS = ("abstopk.json", "python -m experiments abstopk --layers 1 3 5 --data-dir FOLDER --jobs 2")
SIGNS_GPT2 = ("abstopk-small-gpt2.json", "python -m experiments abstopk --model small-gpt2 --layers 1 3 --jobs 2")
LLM_PAPER = ("llm-minilm-3-paper.json", "python -m experiments llm --preset paper --data-dir FOLDER --jobs 2")
RECOVERY = ("recovery.json", "python -m experiments recovery --jobs 2")
FAMILIES = ("variants-tree.json", "python -m experiments variants --data tree --jobs 2")
FAMILIES_MINILM = ("variants-minilm-3.json", "python -m experiments variants --data minilm --data-dir FOLDER --jobs 2")
FAMILIES_MNIST = ("variants-mnist.json", "python -m experiments variants --data mnist --data-dir FOLDER --jobs 2")
PAPER = ("mnist-paper.json", "python -m experiments mnist --preset paper --data-dir FOLDER --jobs 2")


Source = tuple[str, str]
"""A results file, and the command that makes it."""


def _figures() -> dict[str, tuple[Callable[..., Any], Source | tuple[Source, ...]]]:
    from paper_figures import (
        atoms,
        bridge,
        curves,
        diagrams,
        families,
        key_ideas,
        learning,
        lines,
        looks,
        prices,
        recovery,
        signs,
        slices,
        verdicts,
    )

    published = "with the published settings, on"
    settings = curves.settings
    return {
        "key_ideas": (key_ideas.key_ideas, CENTRED),
        "partitions": (diagrams.partitions, COMPUTED),
        "orders": (diagrams.orders, COMPUTED),
        "plane_slice": (diagrams.plane_slice, COMPUTED),
        "atoms": (atoms.atoms, ATOMS),
        "sample_efficiency": (curves.sample_efficiency, CONTROLLED),
        "sample_efficiency_centred": (curves.sample_efficiency, CENTRED),
        "sample_efficiency_llm": (curves.sample_efficiency, LLM),
        "headline": (verdicts.headline, HEADLINE),
        "learning": (learning.learning, LEARNING),
        "verdicts": (verdicts.verdicts, CONTROLLED),
        "verdicts_centred": (verdicts.verdicts, CENTRED),
        "verdicts_llm": (verdicts.verdicts, LLM),
        "verdicts_centred_llm": (verdicts.verdicts, CENTRED_LLM),
        "verdicts_centred_llm_4": (verdicts.verdicts, CENTRED_LLM_4),
        "verdicts_centred_llm_5": (verdicts.verdicts, CENTRED_LLM_5),
        "llm_paper_sizes": (curves.paper_sizes, LLM_PAPER),
        "llm_ablations": (curves.ablations, LLM_PAPER),
        "sparsity": (curves.sparsity, CONTROLLED),
        "sparsity_llm": (curves.sparsity, LLM),
        "sparsity_centred": (curves.sparsity, CENTRED),
        "variants": (curves.variants, CONTROLLED),
        "ridge": (curves.ridge, CONTROLLED),
        "paper_sizes": (curves.paper_sizes, PAPER),
        "paper_updates": (partial(settings, part="encoder_updates", xlabel="encoder updates a batch",
                                  what=f"Encoder updates a batch {published}"), PAPER),
        "paper_weight_decay": (partial(settings, part="weight_decay", xlabel="weight decay",
                                       what=f"Weight decay (squared in the decoder solve) {published}"), PAPER),
        "paper_mu_nu": (partial(settings, part="mu_nu", xlabel=r"$\mu = \nu$ (as coded: L2 on $W_{\mathrm{enc}}$, $b_{\mathrm{enc}}$)",
                                what=f"mu = nu as the scripts have it, L2 on the encoder, {published}"), PAPER),
        "paper_mu_nu_pull": (partial(settings, part="mu_nu_pull", xlabel=r"$\mu = \nu$ (pull to the previous block)",
                                     what=f"mu = nu as the paper's text has it, a proximal pull, {published}"), PAPER),
        "signs": (signs.signs, SIGNS),
        "signs_small_gpt2": (signs.signs, SIGNS_GPT2),
        "bridge": (bridge.bridge, BRIDGE),
        "price": (prices.price, BASELINES),
        "baselines": (prices.baselines, BASELINES),
        "recovery": (recovery.recovery, RECOVERY),
        "resonance": (recovery.resonance, RECOVERY),
        "families": (families.families, FAMILIES),
        "families_mnist": (families.families, FAMILIES_MNIST),
        "families_minilm": (families.families, FAMILIES_MINILM),
        "slices": (slices.slices, GEOMETRY),
        "slice_errors": (slices.slice_errors, GEOMETRY),
        "region_growth": (slices.region_growth, GEOMETRY),
        "lines": (lines.lines, LINES),
        "reconstructions": (looks.reconstructions, LOOKS),
        "codes": (looks.codes, LOOKS),
        "filters": (looks.filters, LOOKS),
    }  # fmt: skip


def main(argv: list[str]) -> int:
    """Draw what is asked; returns the exit status (1 if a results file is missing)."""
    parser = argparse.ArgumentParser(prog="python -m paper_figures", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--all", action="store_true", help="every figure")
    parser.add_argument("--list", action="store_true", help="list the figures and the results files they read")
    parser.add_argument(
        "--results", type=Path, help="results file, or folder of results files, to read instead of the committed ones"
    )
    parser.add_argument(
        "--out", type=Path, default=OUT, help="folder of the figures (default: results/figures, which git ignores)"
    )
    args = parser.parse_args(argv)
    figures = _figures()
    if args.list or not (args.names or args.all):
        for name, (_, source) in figures.items():
            for file, made_by in _sources(source):
                print(f"{name:25} reads {file}, made by: {made_by}" if file else f"{name:25} computed")
        return 0
    unknown = [name for name in args.names if name not in figures]
    if unknown:
        parser.error(f"unknown figure {unknown[0]!r}; known: {', '.join(figures)}")
    if args.results is not None and not args.results.exists():
        parser.error(f"{args.results} is neither a results file nor a folder of them")
    several = [name for name in (figures if args.all else args.names) if not isinstance(figures[name][1][0], str)]
    if several and args.results is not None and not args.results.is_dir():
        parser.error(f"{several[0]} is drawn from several files: pass a folder of them as --results")
    missing = 0
    for name in figures if args.all else args.names:
        draw, source = figures[name]
        missing += not _draw(name, draw, source, args.results, args.out)
    return 1 if missing else 0


def _results_path(given: Path | None, file: str) -> Path:
    if given is None:
        return COMMITTED / file
    return given / file if given.is_dir() else given


def _sources(source: Source | tuple[Source, ...]) -> tuple[Source, ...]:
    return (source,) if isinstance(source[0], str) else source


def _draw(
    name: str, draw: Callable[[Any], Any], source: Source | tuple[Source, ...], given: Path | None, out: Path
) -> bool:  # fmt: skip
    from paper_figures.style import command_line, save, styled

    found: list[dict[str, Any]] = []
    said: list[str] = []
    for file, command in _sources(source):
        if not file:
            found.append({})
            said.append(f"Computed by: `{command.replace('NAME', name)}`.")
            continue
        path = _results_path(given, file)
        if not path.exists():
            print(f"{name}: {path} is missing; make it with: {command}", file=sys.stderr)
            return False
        try:
            found.append(read_results(path))
        except (ValueError, OSError) as error:
            raise UsageError(f"{path} is no results file: {error}") from error
        said.append(f"Results: {path.name}, made by: `{command_line(found[-1]['command'])}`.")
    with styled():
        figure, caption = draw(*found)
        paths = save(figure, out, name, caption + "\n\n" + "\n".join(said))
    print(f"{name}: {', '.join(str(p) for p in paths)}")
    return True


def run(argv: list[str]) -> int:
    """`main`, with what a user meets told without a traceback."""
    status = []
    return guarded("python -m paper_figures", lambda: status.append(main(argv))) or status[0]


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
