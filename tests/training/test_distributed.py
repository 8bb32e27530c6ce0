"""Training in two processes equals training in one."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from splinterp import PAMSGD, SAE, SGD, BatchTopK, BiasAdaptation, ReLU, TopK, fit
from splinterp.training import ProcessGroup, pam_solves
from tests.training import distributed_worker

ROOT = Path(__file__).resolve().parents[2]


def torchrun(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m",
               "tests.training.distributed_worker", *arguments]  # fmt: skip
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)


# One method is enough for every day, and PAM-SGD shares both its gradients and its solves.
@pytest.mark.parametrize(
    "name", [pytest.param(m, marks=() if m == "pam" else pytest.mark.slow) for m in distributed_worker.METHODS]
)
def test_two_processes_equal_one(name, tmp_path, monkeypatch):
    monkeypatch.setattr(pam_solves, "MATRIX_FREE_FROM", pam_solves.MATRIX_FREE_FROM)  # restored after the run here
    done = torchrun(name, str(tmp_path / "sae"))
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (torch.load(tmp_path / f"sae.{rank}") for rank in (0, 1))
    alone = distributed_worker.train(name, None).state_dict()
    for key, value in alone.items():
        assert torch.equal(first[key], second[key])
        tolerance = 1e-3 if name == "matrix-free" else 1e-7
        torch.testing.assert_close(first[key], value, rtol=tolerance, atol=tolerance)


def pair(*arguments: str) -> list[subprocess.CompletedProcess[str]]:
    """The two processes without torchrun, whose agent may end the survivor before it has said a word."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    environment = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}
    started = [
        subprocess.Popen([sys.executable, "-m", "tests.training.distributed_worker", *arguments], cwd=ROOT, text=True,
                         stderr=subprocess.PIPE, env={**environment, "RANK": str(rank)})
        for rank in range(2)
    ]  # fmt: skip
    errors = [process.communicate(timeout=240)[1] for process in started]
    return [subprocess.CompletedProcess(p.args, p.returncode, "", e) for p, e in zip(started, errors, strict=True)]


@pytest.mark.slow
def test_a_death_is_reported_and_the_run_goes_on_from_the_checkpoint(tmp_path):
    out = str(tmp_path / "sae")
    dead, survivor = pair("pam", out, "dies")
    assert dead.returncode == 7
    assert survivor.returncode not in (0, 7)
    assert "WorkerLostError" in survivor.stderr
    assert "resume=True" in survivor.stderr
    checkpoint = torch.load(f"{out}.checkpoint", weights_only=True)
    assert checkpoint["epoch"] == distributed_worker.DIES_AT - 1
    resumed = torchrun("pam", out)
    assert resumed.returncode == 0, resumed.stderr[-3000:]
    alone = distributed_worker.train("pam", None).state_dict()
    for key, value in torch.load(f"{out}.0").items():
        torch.testing.assert_close(value, alone[key], rtol=1e-7, atol=1e-7)


class OneOfTwo(ProcessGroup):
    """A group without communication: what is refused is refused before any."""

    def __init__(self) -> None:
        self.group, self.rank, self.size = None, 0, 2

    def broadcast_(self, tensors) -> None:
        pass

    def first_difference(self, values, device) -> None:
        return None


class Talking(ProcessGroup):
    """One process of two: the first leaves its numbers, the second compares its own with them."""

    def __init__(self, rank: int, left: list[torch.Tensor]) -> None:
        self.group, self.rank, self.size, self.left = None, rank, 2, left

    def sum_(self, tensors) -> None:
        if self.rank == 0:
            self.left += [t.clone() for t in tensors]
            raise InterruptedError
        for tensor, other in zip(tensors, self.left, strict=True):
            tensor.add_(other)
        assert self.left


X = torch.randn(40, 4, generator=torch.Generator().manual_seed(0))
BEGIN = {"x": X, "method": SGD(lr=1e-2), "generator": 3, "epochs": 2, "batch_size": 8, "x_val": X[:9], "k": 2}
DIFFERENT = {
    "its shard": ({"x": X[::2]}, "another x .*all of the data; each takes its own rows"),
    "shuffled rows": ({"x": X.flip(0)}, "another x "),
    "x_val": ({"x_val": X[:8]}, "another x_val .*held-out"),
    "no x_val": ({"x_val": None}, "another x_val "),
    "seed": ({"generator": 4}, "another order of the data .*same seed"),
    "step size": ({"method": SGD(lr=2e-2)}, "another method .*same arguments"),
    "method": ({"method": PAMSGD(lr=1e-2)}, "another method "),
    "k": ({"k": 3}, "another sae "),
    "batch size": ({"batch_size": 4}, "another batch_size "),
    "epochs": ({"epochs": 3}, "another number of steps "),
}


@pytest.mark.parametrize("name", [*DIFFERENT, "a checkpoint of one host"])
def test_processes_that_begin_with_different_things_are_told_apart(name, tmp_path):
    different, message = DIFFERENT.get(name, ({}, "another step to begin at .*same checkpoint"))
    left: list[torch.Tensor] = []
    for rank, own in enumerate(({}, different)):
        begin = {**BEGIN, **own}
        sae = SAE(4, 8, TopK(begin.pop("k")), generator=rank)
        if name not in DIFFERENT:
            begin |= {"checkpoint": tmp_path / f"{rank}.pt", "resume": True}
            if rank == 0:
                with pytest.raises(InterruptedError):
                    fit(SAE(4, 8, TopK(2), generator=0), **begin, callback=_interrupt)
        expected = pytest.raises(InterruptedError) if rank == 0 else pytest.raises(ValueError, match=f"process 1 has {message}")
        with expected:
            fit(sae, begin.pop("x"), begin.pop("method"), **begin, processes=Talking(rank, left))


def _interrupt(row) -> None:
    if row["epoch"] == 2:
        raise InterruptedError


@pytest.mark.slow
def test_a_shard_for_each_process_is_refused_by_both(tmp_path):
    for process in pair("pam", str(tmp_path / "sae"), "shards"):
        assert process.returncode == 1
        assert "process 1 has another x than process 0: pass every process all of the data" in process.stderr


@pytest.mark.slow
def test_an_order_that_is_drawn_is_the_first_processs(tmp_path):
    assert [process.returncode for process in pair("pam", str(tmp_path / "sae"), "drawn")] == [0, 0]
    first, second = (torch.load(tmp_path / f"sae.{rank}") for rank in (0, 1))
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_what_looks_at_whole_batches_is_refused():
    x = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="BatchTopK selects from whole batches"):
        fit(SAE(4, 8, BatchTopK(2)), x, SGD(), processes=OneOfTwo())
    with pytest.raises(ValueError, match="BiasAdaptation looks at whole batches"):
        fit(SAE(4, 8, ReLU(), "tied"), x, BiasAdaptation(base=SGD(), groups=2, gain=1), processes=OneOfTwo())
    with pytest.raises(RuntimeError, match="init_process_group"):
        ProcessGroup()
