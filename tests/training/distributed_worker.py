"""What tests/training/test_distributed.py starts in each process: train, and write the parameters."""

from __future__ import annotations

import os
import sys
import traceback
import weakref
from datetime import timedelta

import torch
from torch import distributed as dist

from splinterp import PAMSGD, SAE, SGD, ReLU, TopK, fit
from splinterp.losses import RowNormL1, SquaredError
from splinterp.training import ProcessGroup, pam_solves

DIES_AT = 3
METHODS = {
    "sgd": (lambda: SGD(lr=1e-2, l1=1e-3, clip=0.1), ReLU, "free"),
    "pam": (lambda: PAMSGD(lr=1e-2, solve_gap=1), lambda: TopK(2), "tied_residual"),
    "rows": (
        lambda: PAMSGD(lr=1e-2, solve_gap=1, ridge=1.0, terms=(SquaredError(), RowNormL1(weight=1e-2))),
        ReLU,
        "tied_residual",
    ),
    "matrix-free": (lambda: PAMSGD(lr=1e-2, solve_gap=1, ridge=3.0), lambda: TopK(2), "free"),
}


def train(name: str, processes: ProcessGroup | None, checkpoint: str | None = None, how: str = "") -> SAE:
    """The run that every number of processes must agree on; 81 rows and batches of 16 leave one process an empty share."""
    make, activation, decoder = METHODS[name]
    if name == "matrix-free":
        pam_solves.MATRIX_FREE_FROM = 24
    g = torch.Generator().manual_seed(1)
    x = torch.randn(81, 6, generator=g, dtype=torch.float64) @ torch.randn(6, 6, generator=g, dtype=torch.float64)
    sae = SAE(6, 24, activation(), decoder, dtype=torch.float64, generator=g)

    if how == "shards" and processes is not None:
        x = processes.share(x)

    def callback(row: dict[str, float]) -> None:
        if how == "dies" and row["epoch"] == DIES_AT:
            os._exit(7)

    seed = None if how == "drawn" else 0
    fit(sae, x, make(), epochs=5, batch_size=16, generator=seed, processes=processes, checkpoint=checkpoint, resume=checkpoint is not None,
        callback=callback)  # fmt: skip
    return sae


def main(name: str, out: str, how: str) -> None:
    """`callback` runs in the first process alone, so a death is the first one's; the other must report it."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=timedelta(seconds=120))
    processes = ProcessGroup()
    checkpoint = f"{out}.checkpoint" if how == "dies" or os.path.exists(f"{out}.checkpoint") else None
    try:
        sae = train(name, processes, checkpoint, how)
    except Exception:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)  # an ordinary end may be aborted by gloo's threads, whose group the traceback keeps alive
    torch.save(sae.state_dict(), f"{out}.{processes.rank}")
    group = weakref.ref(dist.group.WORLD)
    dist.destroy_process_group()
    assert group() is None, "the group outlives its end, and with it gloo's threads, which may abort a process that is ending"


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], "".join(sys.argv[3:]))
