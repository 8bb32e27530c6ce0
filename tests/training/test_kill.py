"""Kill -9 during training on a store, then resume: the same final weights as an undisturbed run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from splinterp.data import StoreWriter
from tests.helpers import samples

SCRIPT = """
import sys, time, torch
torch.set_num_threads(1)
from splinterp import PAMSGD, SAE, BiasAdaptation, JumpReLU, fit
from splinterp.data import ActivationStore
method = BiasAdaptation(base=PAMSGD(lr=0.01, solve_gap=5), groups=2, every=7, gamma_down=0.1, gain=1.0)
sae = SAE(8, 16, JumpReLU(0.1), "tied_residual", b_pre=True, generator=0)
folder, checkpoint, out, pause = sys.argv[1:]
fit(sae, ActivationStore(folder), method, epochs=30, batch_size=32, generator=0, checkpoint=checkpoint, resume=True,
    callback=lambda row: time.sleep(float(pause)))
torch.save(sae.state_dict(), out)
"""


@pytest.mark.slow
def test_kill_9_during_training_loses_at_most_an_epoch(tmp_path):
    writer = StoreWriter(tmp_path / "store", 8)
    x = samples(400)
    for part in x.split(150):
        writer.append(part, torch.zeros(len(part), 3, dtype=torch.int64))
    writer.finish()
    root = Path(__file__).resolve().parents[2]

    def start(name, pause=0.0):
        arguments = [str(tmp_path / "store"), str(tmp_path / f"{name}.ckpt"), str(tmp_path / f"{name}.pt"), str(pause)]
        environment = {**os.environ, "PYTHONPATH": str(root)}
        return subprocess.Popen([sys.executable, "-c", SCRIPT, *arguments], cwd=root, env=environment)

    killed = start("killed", pause=0.2)
    path = tmp_path / "killed.ckpt"
    for _ in range(2_400):  # two minutes: starting Python may take long on a busy machine
        time.sleep(0.05)
        if path.exists() and torch.load(path, weights_only=True)["epoch"] >= 3:
            break
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    assert not (tmp_path / "killed.pt").exists()
    assert 3 <= torch.load(path, weights_only=True)["epoch"] < 30
    assert start("killed").wait() == 0
    assert start("whole").wait() == 0
    ours, theirs = (torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in ("killed", "whole"))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
