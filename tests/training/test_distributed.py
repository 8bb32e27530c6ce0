"""Training in two processes equals training in one."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from splinterp import SAE, SGD, BatchTopK, BiasAdaptation, ReLU, fit
from splinterp.training import ProcessGroup, pam
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
    monkeypatch.setattr(pam, "MATRIX_FREE_FROM", pam.MATRIX_FREE_FROM)  # restored after the run here
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


def test_what_looks_at_whole_batches_is_refused():
    x = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="BatchTopK selects from whole batches"):
        fit(SAE(4, 8, BatchTopK(2)), x, SGD(), processes=OneOfTwo())
    with pytest.raises(ValueError, match="BiasAdaptation looks at whole batches"):
        fit(SAE(4, 8, ReLU(), "tied"), x, BiasAdaptation(base=SGD(), groups=2), processes=OneOfTwo())
    with pytest.raises(RuntimeError, match="init_process_group"):
        ProcessGroup()
