"""The controlled comparison: sizes, budgets, methods, and the rows of its tables."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from experiments.compare import t_interval
from experiments.runs import DEFAULT, HOLDS, SMALLER_CONTROLS, STEPS, Run, pool_size, start_of
from experiments.store import MissingRunsError, RecordStore
from experiments.tuning import Cell, choose_step_sizes, tuning_error
from splinterp.training.when import NEVER

CONTROLS = ("SGD tied", "SGD untied", "SGD untied from W_enc^T", "SGD tied-residual")
ALL_CONTROLS = (*CONTROLS, *SMALLER_CONTROLS)
"""Those of the second comparison."""
OURS = "PAM"
FINAL = "PAM, one solve at the end"
HELD = "PAM, held"
APART = {
    "final": FINAL, "held": HELD, **{name.removeprefix(f"{DEFAULT}, ").replace(" ", "-"): name for name in (*HOLDS, *STEPS)},
    **{name.replace("SGD tied-residual, ", "sgd-").replace(" ", "-"): name for name in SMALLER_CONTROLS},
}  # fmt: skip
"""What is carried out in every cell of the main table and reported apart, by part. Variants of PAM: tied SGD and one solve at the end; the
residual held at 0 for the first tenth of the steps; and of the second comparison the fixed rules for when it is let in, and for the size
of its steps. Further controls: SGD with smaller ones."""
FIRST = ("sizes", "final", "held")
SECOND = ("sizes", *(part for part, name in APART.items() if name not in (FINAL, HELD)), "longer")
PENALISED = {"relu": ("ReLU", "l1"), "jumprelu": ("JumpReLU", "l0")}
"""Sweeps along a penalty, by part: activation, penalty."""
MORE_TIME = 1.25
"""Of the long budget's steps, for the controls of the part "longer": PAM-SGD's solves and readouts take less time than the quarter that
is added (`bench fit`)."""
IN_EVERY_CELL = ("sizes", *APART)
"""Parts that have a row for every cell of the main table."""
VARIANTS = (
    "PAM published",
    "PAM joint bias",
    "PAM encoder-only, GCV",
    "PAM untied, GCV",
    "PAM encoder-only tied-residual",
)
METRICS = {"early": "val_last", "long": "val_best", "penalised": "val_objective"}
"""What validation chooses the step size by; "penalised" is the long budget under the training objective, penalty included."""
BUDGETS = ("early", "long")
NO_SOLVE: tuple[tuple[str, Any], ...] = (("ridge", 0.0), ("prox_dec", 1e12), ("solve_gap", NEVER))
"""Solves that leave the weights where they are: SGD on a tied-residual decoder, held as PAM-SGD's is."""
CAUSES: tuple[tuple[str, tuple[tuple[str, Any], ...]], ...] = (
    ("SGD tied", ()),
    (OURS, (("ridge", math.inf), ("solve_gap", NEVER))),
    (OURS, (("ridge", math.inf), ("solve_gap", 50))),
    (OURS, (("ridge", math.inf), ("solve_gap", 1))),
    (OURS, (("solve_gap", 200),)),
    (OURS, ()),
    (OURS, (("solve_gap", 1),)),
    (HELD, ()),
    (HELD, NO_SOLVE),
)
"""What the residual and the exact solves do at small sizes, on validation data: a residual held at 0 throughout, with no solve but
the last or with solves of b_dec; let in from the start; let in after the hold, with solves and without."""
TESTS = {"early": "test_last", "long": "test_best", "penalised": "test_last"}


@dataclass(frozen=True)
class Config:
    """Settings of the controlled comparison on one data set."""

    data: str = "mnist"
    source: str = ""
    """The key of the data's `experiments.sources.Source`."""
    ours: str = OURS
    """The entry that verdicts are on."""
    options: tuple[tuple[str, Any], ...] = ()
    """Of every run, of the method or the SAE."""
    parts: tuple[str, ...] = (*FIRST, "causes", "relu", "variants", "ridge")
    pool: int | None = None
    """Images or tokens that training subsets are drawn from; None: all that `pool_size` says."""
    k: int = 15
    n_latents: int = 256
    activations: tuple[str, ...] = ("AbsTopK", "TopK")
    shares: tuple[float, ...] = (0.01, 0.05, 0.25, 1.0)
    """Of the training pool (the training images less the validation images)."""
    full_from: float = 1.0
    """From this share on: `seeds_full`, and two step sizes around the choice at the share before."""
    batch_size: int = 128
    early_epochs: int = 10
    long_steps: int = 2_000
    grid: tuple[float, ...] = (2e-3, 4e-3, 8e-3, 1.6e-2)
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    seeds_full: tuple[int, ...] = (0, 1, 2)
    tuning_seeds: tuple[int, ...] = (100,)
    relu_l1: tuple[float, ...] = (3e-4, 1e-3, 3e-3, 1e-2)
    jumprelu_l0: tuple[float, ...] = (2.5e-4, 1e-3, 4e-3, 1.6e-2)
    relu_grid: tuple[float, ...] | None = None
    """Step sizes of both sweeps; None: `grid`."""
    relu_shares: tuple[float, ...] = (0.05, 0.25)
    relu_methods: tuple[str, ...] = ("SGD tied", "SGD untied", "PAM")
    part_seeds: tuple[int, ...] = (0, 1, 2)
    """Of the sweeps along a penalty and the variants."""
    variant_shares: tuple[float, ...] = (0.05, 0.25)
    variant_activations: tuple[str, ...] = ("AbsTopK",)
    ridges: tuple[float, ...] = (0.0, 100.0, 10_000.0)
    cause_cells: tuple[tuple[str, float, str], ...] = (("AbsTopK", 0.01, "long"), ("TopK", 0.01, "long"))
    """Activation, share, budget."""
    cause_settings: tuple[tuple[str, tuple[tuple[str, Any], ...]], ...] = CAUSES
    cause_lr: float = 8e-3

    def run(self, activation: str, share: float, budget: str, **fields: Any) -> Run:
        """The run at a size and budget: "early" is the paper's epochs, any other at least `long_steps` gradient steps."""
        n_train = round(share * (self.pool or pool_size(self.data)))
        fields["options"] = (*self.options, *fields.get("options", ()))
        run = Run(
            data=self.data, source=self.source, pool=self.pool or 0, method="", activation=activation, k=self.k,
            n_latents=self.n_latents, n_train=n_train, epochs=self.early_epochs, lr=0.0, seed=0, batch_size=self.batch_size, **fields,
        )  # fmt: skip
        if self.ours == DEFAULT:
            run = replace(run, options=(*start_of(run), *run.options))
        if budget != "early":
            run = replace(run, epochs=max(run.epochs, math.ceil(self.long_steps / run.steps_per_epoch)))
        return run


Complete = Callable[[Iterable[Run], str], None]


class Comparison:
    """Carries out tuned comparisons against a store and collects table rows."""

    def __init__(self, config: Config, store: RecordStore, complete: Complete, whole: bool = True) -> None:
        """`whole`: a missing run is an error of `complete`; else the cell of the main table that needs it is left out."""
        self.config, self.store, self.complete, self.whole = config, store, complete, whole
        self.rows: list[dict[str, Any]] = []

    def tune(self, cells: Sequence[Cell], label: str) -> dict[Cell, dict[str, float]]:
        return choose_step_sizes(cells, self.config.tuning_seeds, lambda runs: self.complete(runs, label), self.store.get)

    def _tuned_error(self, cell: Cell, method: str, lr: float) -> float:
        return tuning_error(cell, method, lr, self.config.tuning_seeds, self.store.get)

    def sizes(self) -> None:
        """The main table: controls and PAM at every size, in both budgets."""
        self._at_every_size("sizes", (*CONTROLS, self.config.ours))

    def carry_out(self, part: str) -> None:
        """One part: a variant of `APART`, or the method of this name."""
        if part in APART:
            self._at_every_size(part, (APART[part],))
        else:
            getattr(self, part)()

    def _at_every_size(self, part: str, methods: tuple[str, ...]) -> None:
        config = self.config
        small = [s for s in config.shares if s < config.full_from]
        cells = [
            Cell(config.run(activation, share, budget), METRICS[budget], methods, config.grid)
            for activation in config.activations for share in small for budget in BUDGETS
        ]  # fmt: skip
        full = [s for s in config.shares if s >= config.full_from]
        if not self.whole and not full:
            for cell in cells:
                with suppress(MissingRunsError):
                    self.report(part, self.tune([cell], part), config.seeds)
            return
        choices = self.tune(cells, f"{part}: step sizes")
        self.report(part, choices, config.seeds)
        reference = {(c.base.activation, c.metric): chosen for c, chosen in choices.items() if c.base == config.run(
            c.base.activation, max(small), _budget(c))}  # fmt: skip
        cells = [
            Cell(config.run(activation, share, budget), METRICS[budget], (method,), (lr / 2, lr), extend=False)
            for activation in config.activations for share in full for budget in BUDGETS
            for method, lr in reference[activation, METRICS[budget]].items()
        ]  # fmt: skip
        self.report(part, self.tune(cells, f"{part}, full size: step sizes"), config.seeds_full)

    def longer(self) -> None:
        """The controls with `MORE_TIME` as many steps of the long budget, at the step sizes chosen for it: at least PAM-SGD's time."""
        config = self.config
        cells = [
            Cell(config.run(activation, share, "long"), METRICS["long"], methods, config.grid)
            for activation in config.activations for share in config.shares if share < config.full_from
            for methods in (CONTROLS, *((name,) for name in SMALLER_CONTROLS))
        ]  # fmt: skip
        choices = {
            replace(cell, base=replace(cell.base, epochs=math.ceil(MORE_TIME * cell.base.epochs))): chosen
            for cell, chosen in self.tune(cells, "longer: step sizes").items()
        }
        self.report("longer", choices, config.seeds)

    def relu(self) -> None:
        """l0 against FVU of ReLU along an L1 sweep."""
        self._along_a_penalty("relu", self.config.relu_l1)

    def jumprelu(self) -> None:
        """l0 against FVU of JumpReLU along an L0 sweep."""
        self._along_a_penalty("jumprelu", self.config.jumprelu_l0)

    def _along_a_penalty(self, part: str, strengths: Sequence[float]) -> None:
        """Steps of the long budget, the model at the end, step sizes by the penalised loss."""
        config = self.config
        activation, penalty = PENALISED[part]
        cells = [
            Cell(
                config.run(activation, share, "penalised", options=((penalty, strength),)), METRICS["penalised"], config.relu_methods,
                config.relu_grid or config.grid,
            )
            for share in config.relu_shares for strength in strengths
        ]  # fmt: skip
        self.report(part, self.tune(cells, f"{activation}: step sizes"), config.part_seeds)

    def variants(self) -> None:
        """Other variants of PAM, each with its own step size."""
        config = self.config
        cells = [
            Cell(config.run(activation, share, budget), METRICS[budget], VARIANTS, config.grid)
            for activation in config.variant_activations for share in config.variant_shares for budget in BUDGETS
        ]  # fmt: skip
        self.report("variants", self.tune(cells, "variants: step sizes"), config.part_seeds)

    def causes(self) -> None:
        """Why small sizes are hard for exact solves: one step size, no tuning."""
        config = self.config
        choices = {
            Cell(config.run(activation, share, budget, options=options), METRICS[budget], (method,), ()): {method: config.cause_lr}
            for activation, share, budget in config.cause_cells for method, options in config.cause_settings
        }  # fmt: skip
        self.report("causes", choices, config.part_seeds, role="tuning")

    def ridge(self) -> None:
        """The ridge of the default's solve, in sums over samples, each with its own step size."""
        config = self.config
        cells = [
            Cell(config.run(activation, share, "long", options=(("ridge", ridge),)), METRICS["long"], (OURS,), config.grid)
            for activation in config.variant_activations for share in config.variant_shares for ridge in config.ridges
        ]  # fmt: skip
        self.report("ridge", self.tune(cells, "ridge: step sizes"), config.part_seeds)

    def report(self, part: str, choices: dict[Cell, dict[str, float]], seeds: tuple[int, ...], role: str = "reported") -> None:
        """Carry out the seeds at the chosen step sizes and add a row for each method and cell.

        With role "tuning" the test split is not read, and the rows hold validation FVU.
        """
        self.complete([c.run(m, lr, s, role) for c, chosen in choices.items() for m, lr in chosen.items() for s in seeds], part)
        for cell, chosen in choices.items():
            for method, lr in chosen.items():
                records = [self.store.get(cell.run(method, lr, s, role)) for s in seeds]
                self.rows.append(_row(part, cell, method, lr, seeds, records))


def _budget(cell: Cell) -> str:
    return next(budget for budget, metric in METRICS.items() if metric == cell.metric)


def _row(
    part: str, cell: Cell, method: str, lr: float, seeds: tuple[int, ...], records: list[dict[str, Any]]
) -> dict[str, Any]:
    budget, base = _budget(cell), cell.base
    tests = [r.get(TESTS[budget]) or {"fvu": r[cell.metric], "l0": r["l0"], "frac_dead": r["frac_dead"]} for r in records]
    ridges = [ridge for record in records for ridge in record.get("ridge", ())]
    points: dict[str, Any] = {}
    if budget == "penalised":  # what is compared at equal l0
        val = [(r.get("l0", math.nan), r["val_last"]) for r in records]
        points["by_seed"] = {"test": [(t["l0"], t["fvu"]) for t in tests], "val": val}
    return {
        "part": part, "activation": base.activation, "budget": budget, "n_train": base.n_train, "epochs": base.epochs,
        "steps": base.epochs * base.steps_per_epoch, "options": dict(base.options), "method": method, "lr": lr,
        "seeds": list(seeds), "fvu": [t["fvu"] for t in tests], "l0": t_interval([t["l0"] for t in tests]).mean,
        "frac_dead": t_interval([t["frac_dead"] for t in tests]).mean,
        "val": t_interval([r[cell.metric] for r in records]).mean,
        "train": t_interval([r.get("train_last", math.inf) for r in records]).mean,
        "seconds": t_interval([r.get("seconds", math.nan) for r in records]).mean,
        "ridge_infinite": sum(math.isinf(r) for r in ridges) / len(ridges) if ridges else None,
        **points,
    }  # fmt: skip
