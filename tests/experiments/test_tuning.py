"""Step sizes: the rule of the comparison on made-up validation curves."""

from __future__ import annotations

import math

import pytest

from experiments.runs import Run
from experiments.tuning import Cell, choose_step_sizes

BASE = Run(data="digits", method="", activation="TopK", k=5, n_latents=64, n_train=100, epochs=1, lr=0.0, seed=0)


class Bench:
    """Runs nothing: validation FVU is a parabola in log lr with its minimum at a step size of each method's own."""

    def __init__(self, optimum):
        self.optimum = optimum
        self.done = []

    def complete(self, runs):
        self.done += [run for run in runs if run not in self.done]

    def get(self, run):
        assert run in self.done
        assert run.role == "tuning"
        return {"val_last": (math.log(run.lr) - math.log(self.optimum[run.method])) ** 2 + 0.001 * run.seed}


def choose(optimum, grid=(2e-3, 4e-3, 8e-3), extend=True, seeds=(100, 101)):
    bench = Bench(optimum)
    cell = Cell(BASE, "val_last", tuple(optimum), grid, extend)
    return choose_step_sizes([cell], seeds, bench.complete, bench.get)[cell], bench


def test_interior_choice_needs_no_extension():
    chosen, bench = choose({"a": 4e-3, "b": 4.1e-3})
    assert chosen == {"a": 4e-3, "b": 4e-3}
    assert {run.lr for run in bench.done} == {2e-3, 4e-3, 8e-3}
    assert len(bench.done) == 12


def test_a_choice_at_the_end_extends_the_grid_of_every_method():
    chosen, bench = choose({"a": 1.6e-2, "b": 4e-3})
    assert chosen == {"a": 1.6e-2, "b": 4e-3}
    trials = {m: sorted(run.lr for run in bench.done if run.method == m and run.seed == 100) for m in "ab"}
    assert trials["a"] == trials["b"] == [2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2]


def test_extension_stops():
    chosen, _ = choose({"a": 1e-9, "b": 1e9})
    assert chosen["a"] == pytest.approx(2e-3 / 8)
    assert chosen["b"] == pytest.approx(8e-3 * 8)
    fixed, _ = choose({"a": 1e9}, extend=False)
    assert fixed == {"a": 8e-3}
