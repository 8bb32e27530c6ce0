"""What else was proposed for the training of SAEs, by PAM-SGD and by SGD: Muon, noise on the inputs, fewer latents, smaller decoder steps.

Validation data only. Centred SAEs, the long budget, checkpoint of lowest validation FVU; each way at each step size, the best of
them reported, with its change against the same method as it is. Noise is in standard deviations of the samples.
--set extras="as it is,Muon" tries some of them, what changes are counted from ("as it is" or "decoder_lr 1") first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from experiments import opening
from experiments.choices import concluded, data_parser, run_on, store_of
from experiments.errors import UsageError
from experiments.opening import Way, tried
from experiments.report import table
from experiments.runs import DEFAULT, Run, start_of

METHODS = ("SGD tied", "SGD tied-residual", DEFAULT)
FEWER = "half as many latents"
EVEN = "decoder_lr 1"
"""The default of all but PAM-SGD under TopK; changes may be counted from it too."""
OPEN = "decoder_lr 0.1 with hold 0"
"""Where codes are dense, which have another hold by default."""
EXTRAS: dict[str, tuple[tuple[str, Any], ...]] = {
    "as it is": (),
    "Muon": (("optimizer", "muon"),),
    "noise 0.2": (("input_noise", 0.2),),
    "noise 0.5": (("input_noise", 0.5),),
    "Muon and noise 0.2": (("optimizer", "muon"), ("input_noise", 0.2)),
    FEWER: (),
    EVEN: (opening.EVEN,),
    "decoder_lr 0.3": (("decoder_lr", 0.3),),
    "decoder_lr 0.1": (("decoder_lr", 0.1),),
    OPEN: (("decoder_lr", 0.1), ("hold", 0.0)),
}
"""Names without commas, which --set reads as the ends of items."""


@dataclass(frozen=True)
class Config(opening.Config):
    """What is run."""

    grid: tuple[float, ...] = (2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2)
    sizes: tuple[int, ...] = (550, 2_750, 13_750)
    extras: tuple[str, ...] = tuple(extra for extra in EXTRAS if extra not in (EVEN, OPEN))
    pool: int = 0

    def __post_init__(self) -> None:
        unknown = [extra for extra in self.extras if extra not in EXTRAS]
        if unknown or self.extras[:1] not in [("as it is",), (EVEN,)]:
            raise UsageError(
                f"extras={','.join(self.extras)}: name 'as it is' or '{EVEN}' first, then some of {', '.join(list(EXTRAS)[1:])}"
            )

    @property
    def ways(self) -> Mapping[str, Way]:
        return {f"{m}; {e}": (m, EXTRAS[e]) for m in METHODS for e in self.extras if _goes_with(m, e)}

    def run(self, cell: tuple[str, str, int], way: str, lr: float, seed: int) -> Run:
        run = replace(super().run(cell, way, lr, seed), pool=self.pool)
        if way.endswith(FEWER):
            run = replace(run, n_latents=run.n_latents // 2)
        return replace(run, options=(*start_of(run), *run.options))


def _step_size(row: dict[str, Any]) -> str:
    """The best one, with a star at an end of the grid."""
    tried = [float(lr) for lr in row["by_lr"]]
    return f"{row['lr']:g}{'*' if row['lr'] in (min(tried), max(tried)) else ''}"


def _goes_with(method: str, extra: str) -> bool:
    if extra == OPEN:
        return method == DEFAULT
    return method != "SGD tied" or extra == EVEN or "decoder" not in extra


CONFIGS = {
    "mnist": Config(),
    "minilm": Config("minilm-3", k=32, n_latents=1_536, batch_size=256, grid=(2e-3, 4e-3, 8e-3, 1.6e-2), sizes=(9_000, 36_000)),
    "gpt2": Config("small-gpt2-1", k=32, n_latents=1_536, batch_size=256, sizes=(9_000,), pool=72_000, extras=(
        EVEN, "decoder_lr 0.3", "decoder_lr 0.1", OPEN,
    )),
}  # fmt: skip
"""Validation data of what other choices were made on too."""


def render(results: dict[str, Any], markdown: bool = False) -> str:
    """Errors by method and way, the change against the method as it is, and the step sizes; * marks those at an end of the grid."""
    rows = {(*r["cell"], r["way"]): r for r in results["candidates"]}
    lines, extras = [], results["config"]["extras"]
    for budget, activation, n in dict.fromkeys(tuple(r["cell"]) for r in results["candidates"]):
        for method in METHODS:
            as_it_is = rows[budget, activation, n, f"{method}; {extras[0]}"]
            line = [activation, f"{n:,}", method, f"{as_it_is['val']:.4f} ({_step_size(as_it_is)})"]
            for extra in extras[1:]:
                row = rows.get((budget, activation, n, f"{method}; {extra}"))
                line.append("" if row is None else f"{100 * (row['val'] / as_it_is['val'] - 1):+.1f} % ({_step_size(row)})")
            lines.append(line)
    header = ["activation", "N", "method", *extras]
    title = f"{results['config']['data']}: validation FVU, its change, and step sizes (* at an end of the grid)"
    return f"{title}\n\n{table(header, lines, markdown, keys=3)}"


def main(config: Config, out: Path, data_dir: str | None = None, jobs: int = 1, device: str = "cpu") -> Path:
    """Run what is missing, write `candidates-DATA.json`, print the table. Returns the results file."""
    store, source = store_of("candidates", config.data, out, data_dir, pool=config.pool or None)
    config = replace(config, source=source.key)
    rows = tried(config, store, "candidates", jobs=jobs, device=device, data_dir=data_dir)
    return concluded(store, "candidates", config, {"candidates": rows}, render)


def command(argv: list[str]) -> Path:
    """`python -m experiments candidates --data mnist | minilm | gpt2`"""
    return run_on(main, CONFIGS, data_parser("candidates", __doc__, CONFIGS).parse_args(argv))
