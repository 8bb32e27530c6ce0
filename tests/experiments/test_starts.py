"""The part of the comparison that offers every method two starts."""

from __future__ import annotations

import dataclasses

from experiments import digits, mnist
from experiments.files import read_results
from experiments.grid import SECOND, STARTS
from experiments.report import summary
from experiments.runs import DEFAULT, LATE


def test_every_method_takes_its_better_start(tmp_path):
    config = dataclasses.replace(
        digits.CONFIG, ours=DEFAULT, options=(("b_pre", "fixed"),), k=3, n_latents=96, activations=("TopK", "AbsTopK"),
        shares=(0.05, 0.1), full_from=2.0, early_epochs=2, long_steps=30, seeds=(0, 1), grid=(4e-3, 8e-3), parts=(*SECOND, *STARTS),
    )  # fmt: skip
    args = mnist.arguments(["--out", str(tmp_path)])
    args.parts = STARTS
    results = read_results(mnist.main(config, args, "starts"))
    records = {record["key"]: record for record in read_results(tmp_path / "starts-runs.json")["records"]}
    rows = [row for row in results["rows"] if row["part"] == "starts"]
    assert len(rows) == 6 * 2 * 2  # methods, sizes, budgets; AbsTopK keeps negative scores and has no such start
    chosen = set()
    for row in rows:
        tried = {}
        for record in records.values():
            run = record["run"]
            same = all(run[name] == row[name] for name in ("activation", "n_train", "epochs", "method"))
            if run["role"] == "tuning" and same:
                few = dict(run["options"]).get("init_bias", 0.0)
                tried[few, run["lr"]] = record["val_last" if row["budget"] == "early" else "val_best"]
        assert {few for few, _ in tried} == {0.0, -1.0}
        mine = row["options"].get("init_bias", 0.0), row["lr"]
        assert tried[mine] == min(tried.values())
        chosen.add(mine[0])
    assert chosen == {0.0, -1.0}
    for said, method in (("the default", DEFAULT), ("hold 0.5", LATE)):
        contests = results["contests"][f"{said} against the best control, each at its better start"]
        assert len(contests) == 2 * 2
        assert all(c["ours"].startswith(method) and c["theirs"].startswith("SGD") for c in contests)
    assert "each at its better start" in summary(results)
