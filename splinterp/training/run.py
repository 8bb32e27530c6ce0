"""What a call of `fit` moves, with its checkpoint."""

from __future__ import annotations

import copy
import math
import re
import time
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from splinterp._atomic import replace_file
from splinterp._content import hash_of
from splinterp._files import check_numbers, reading, sha256_of
from splinterp._random import position_of
from splinterp._typing import Tensor
from splinterp._warned import outside
from splinterp.data.store import ActivationStore
from splinterp.metrics import evaluate
from splinterp.protocol import SAELike, as_model
from splinterp.training.batches import Batches
from splinterp.training.checkpoints import check_like, read_checkpoint, save_summed
from splinterp.training.distributed import ProcessGroup
from splinterp.training.health import check_row
from splinterp.training.method import Method
from splinterp.training.reading import read_out_decoder
from splinterp.training.stream_batches import StreamBatches
from splinterp.training.train_state import DivergenceError

FIRST_ROWS = 500
"""Rows by which the text of a stream is told from another."""
JOINING = {
    "x": "pass every process all of the data; each takes its own rows of every batch",
    "x_val": "pass every process the same held-out samples",
    "step to begin at": "let all of them see the same checkpoint, on a folder that they share or copied to every host",
    "checkpoint": "let all of them see the same checkpoint, on a folder that they share or copied to every host",
    "order of the data": "pass the same seed to all, or none",
}
"""What to do about processes of one run that were started with different things."""


class Run:
    """What one call of `fit` moves, with its checkpoint."""

    def __init__(
        self, sae: SAELike, method: Method, generator: torch.Generator, keep_best: bool, autocast: torch.dtype | None, total: int,
        batches: Batches | StreamBatches,
    ) -> None:  # fmt: skip
        self.sae, self.method, self.generator, self.keep_best, self.autocast = sae, method, generator, keep_best, autocast
        self.total, self.batches = total, batches
        self.state: Any = None
        self.plan: dict[str, Any] = {}
        self.processes: ProcessGroup | None = None
        self.epoch, self.step, self.seconds = 0, 0, 0.0
        self.history: list[dict[str, float]] = []
        self.best: dict[str, Tensor] | None = None
        self.resumed = ""
        self.within: dict[str, Any] | None = None
        """Of an epoch that was cut: its batches that are done, and where the order of the data and the stream were at its beginning."""
        self.start_fvu = math.inf

    def describe(
        self,
        data: Tensor | ActivationStore,
        held_out: Tensor | ActivationStore | None,
        drawn: bool,
        kept: bool,
        compared: bool,
    ) -> None:
        """Set `plan`: what must be equal for a checkpoint to belong to this run, and in all processes of one. What the data hold is
        looked at where it is `compared`, with a checkpoint or with processes."""
        for part in (self.method, self.sae):
            if kept and re.search(r"object at 0x[0-9a-f]+", str(part)):
                raise TypeError(
                    f"str() of the {type(part).__name__} is {str(part)!r}, which no later run would have: give it a __repr__ of its "
                    "options (a dataclass has one), so that a checkpoint can be told to be its own"
                )
        self.plan = {
            "method": re.sub(r" at 0x[0-9a-f]+", "", str(self.method)),  # where a function lies in memory
            "sae": str(self.sae),
            "start": as_model(self.sae).drawn_from,
            "parameters": [f"{name} {tuple(v.shape)} {v.dtype}" for name, v in self.sae.state_dict().items()],
            "x": _content(data[:FIRST_ROWS] if isinstance(self.batches, StreamBatches) else data) if compared else "",
            "x_val": _content(held_out) if compared and held_out is not None else "",
            "batch_size": self.batches.batch_size,
            **({"stream": str(self.batches.stream)} if isinstance(self.batches, StreamBatches) else {}),
            "autocast": str(self.autocast),
            "keep_best": self.keep_best,
            "order of the data": "drawn" if drawn else position_of(self.generator),
        }

    def join(self, processes: ProcessGroup) -> None:
        """Start from the first process's parameters, and share every batch from now on."""
        if self.method.couples_batches:
            raise ValueError(f"{type(self.method).__name__} looks at whole batches: train with it in one process")
        ours = {
            **self.plan,
            "start": None,
            "number of steps": self.total,
            "step to begin at": self.step,
            "checkpoint": self.resumed,
        }
        device = next(iter(self.sae.parameters())).device
        if different := processes.first_difference(list(map(repr, ours.values())), device):
            rank, name = different[0], list(ours)[different[1]]
            advice = JOINING.get(name, "start all of them with the same arguments")
            raise ValueError(f"process {rank} has another {name} than process 0: {advice}")
        if self.plan["order of the data"] == "drawn":
            state = self.generator.get_state().to(device)
            processes.broadcast_([state])
            self.generator.set_state(state.cpu())
        start = torch.tensor([self.start_fvu], dtype=torch.float64, device=device)
        buffers = [b for b in _buffers(self.sae).values() if b.is_floating_point()]
        processes.broadcast_([*(p.detach() for p in self.sae.parameters()), *buffers, start])
        self.start_fvu, self.processes = float(start), processes
        self.state.join(processes)

    @property
    def logged(self) -> bool:
        """Whether the history has a row of this step."""
        return bool(self.history) and self.history[-1]["step"] == self.step

    def train_epoch(
        self, bar: Any, log_every_steps: int | None, log: Callable[[], None], save_every_steps: int | None = None,
        save: Callable[[], None] = lambda: None,
    ) -> bool:  # fmt: skip
        """One pass, or what is left of it or of the budget of steps. Returns whether there was a batch."""
        batches = self.batches
        self._set_training(True)
        processes, start = self.processes, time.perf_counter()
        done = 0
        if self.within is None:
            self.epoch += 1
            begin: dict[str, Any] = {"generator": self.generator.get_state()}
            if isinstance(batches, StreamBatches):
                begin["stream"] = batches.state_dict()
        else:
            begin = {name: value for name, value in self.within.items() if name != "done"}
            done, self.within = self.within["done"], None
            self.generator.set_state(begin["generator"])
            if isinstance(batches, StreamBatches):
                batches.load_state_dict(begin["stream"])
        due = found = False
        for index, x in enumerate(batches.shuffled(self.generator)):
            found = True
            if index < done:  # before the checkpoint
                continue
            if self.step >= self.total:
                break
            with nullcontext() if self.autocast is None else torch.autocast(x.device.type, self.autocast):
                taken = self.method.step(self.sae, self.state, x if processes is None else processes.share(x))
            before, self.step = self.step, self.step + (taken if type(taken) is int and taken > 0 else 1)
            bar.update(self.step - before)
            due = _passes(before, self.step, log_every_steps)
            inside = index < len(batches) - 1 and self.step < self.total
            if due and inside:
                self._stop_clock(start)
                self._set_training(False)
                log()
                self._set_training(True)
                start = time.perf_counter()
            if inside and _passes(before, self.step, save_every_steps):
                self._stop_clock(start)
                self.within = {**begin, "done": index + 1}
                save()
                self.within = None
                start = time.perf_counter()
        if not found:
            self.epoch -= 1
            self.state.set_training(False)
            return False
        self.state.check_finite()
        self.state.set_training(False)
        self.method.end_epoch(self.sae, self.state, batches)
        self._stop_clock(start)
        if due and not self.logged:
            log()
        return True

    def _set_training(self, training: bool) -> None:
        if training:
            self.sae.train()
        self.state.set_training(training)

    def _stop_clock(self, start: float) -> None:
        if self.batches.device.type == "cuda":
            torch.cuda.synchronize(self.batches.device)
        self.seconds += time.perf_counter() - start

    def log(self, x: Tensor, x_val: Tensor | ActivationStore | None, tell: Callable[[dict[str, float]], object]) -> None:
        """Evaluate, add a row to the history, and tell it while the SAE is what was evaluated."""
        with read_out_decoder(self.method, self.sae, self.state):
            tell(self._log(x, x_val))

    def _log(self, x: Tensor, x_val: Tensor | ActivationStore | None) -> dict[str, float]:
        as_model(self.sae).calibrate(x)
        train = evaluate(self.sae, x)
        if not math.isfinite(train.fvu):  # the last update diverged, after its loss was checked
            raise DivergenceError(self.step, self.state)
        held_out = train if x_val is None else evaluate(self.sae, x_val)
        own = self.state.log()
        row: dict[str, float] = {
            "epoch": self.epoch, "step": self.step, "loss": own.pop("loss", math.nan), "train_fvu": train.fvu,
            "val_fvu": math.nan if x_val is None else held_out.fvu, "l0": held_out.l0, "frac_dead": held_out.frac_dead,
            "seconds": self.seconds, **own,
        }  # fmt: skip
        check_row(self.sae, as_model(self.sae), row, self.start_fvu, self.state)
        if self.keep_best and not any(r["val_fvu"] <= row["val_fvu"] for r in self.history):
            self.best = copy.deepcopy(self.sae.state_dict())
        self.history.append(row)
        return row

    def save(self, path: Path) -> None:
        content = {
            "plan": self.plan, "total": self.total, "sae": self.sae.state_dict(), "state": self.state.state_dict(), "epoch": self.epoch,
            "step": self.step, "seconds": self.seconds, "history": self.history, "best": self.best,
            "generator": self.generator.get_state(), "threads": torch.get_num_threads(), "start_fvu": self.start_fvu,
            **({"stream": self.batches.state_dict()} if isinstance(self.batches, StreamBatches) else {}),
            **({} if self.within is None else {"within": self.within}),
        }  # fmt: skip
        replace_file(path, lambda temporary: save_summed(content, temporary))

    def _check_plan(self, path: Path, saved: dict[str, Any]) -> None:
        name = next((name for name in self.plan if name != "start" and saved.get(name) != self.plan[name]), None)
        starts = saved.get("start"), self.plan["start"]
        if name is None and None not in starts and starts[0] != starts[1]:
            raise ValueError(
                f"{path} belongs to another run, of an SAE drawn from another seed: pass the seed it began with, or another path for "
                "a new run"
            )
        if name is None:
            return
        other = f"{path} belongs to another run, with another {name}"
        if name == "order of the data":
            raise ValueError(
                f"{other}: pass the seed it began with, or a generator that is where that run's was when it began (a generator that was "
                "drawn from since is not)"
            )
        advice = "pass what it began with, or another path for a new run"
        raise ValueError(f"{other}: it has {saved.get(name)!r}, this one {self.plan[name]!r}; {advice}")

    def load(self, path: Path, per_epoch: int) -> None:
        saved = read_checkpoint(path)
        self.resumed = sha256_of(path)
        self._check_plan(path, saved["plan"])
        extended = saved["total"] != self.total
        if extended and saved["step"] != saved["total"]:
            stream = isinstance(self.batches, StreamBatches)
            budget = f"steps={saved['total']}" if stream else f"epochs={saved['total'] / per_epoch:g}"
            raise ValueError(
                f"{path} is of an unfinished run of {saved['total']} steps (at {saved['step']}), this one has {self.total}: finish it "
                f"first, with {budget}, then extend it"
            )
        if self.total < saved["step"]:
            raise ValueError(f"{path} has trained {saved['step']} steps already, more than the {self.total} asked for")
        with reading(path):
            if saved["best"] is not None:
                check_like(self.sae.state_dict(), saved["best"], "best parameters")
            check_like(self.sae.state_dict(), saved["sae"], "parameters")
            for name, value in saved["sae"].items():
                if isinstance(value, torch.Tensor) and name not in _buffers(self.sae):  # those may be NaN until they are set
                    check_numbers(path, name, value, infinite=True)
            self.sae.load_state_dict(saved["sae"])
            self.state.load_state_dict(_extended(saved, self.total) if extended else saved["state"])
            self.generator.set_state(saved["generator"])
            if isinstance(self.batches, StreamBatches):
                self.batches.load_state_dict(saved["stream"])
            self.within = saved.get("within")
        if saved.get("threads") not in (None, torch.get_num_threads()):
            warnings.warn(
                f"{path} was written with {saved['threads']} threads, this process has {torch.get_num_threads()}: sums are rounded in "
                "another order, so the result will not be that of an undisturbed run bit for bit (torch.set_num_threads sets them)",
                stacklevel=outside(),
            )
        self.start_fvu = saved.get("start_fvu", math.inf)
        self.epoch, self.step, self.seconds, self.history, self.best = (
            saved[k] for k in ("epoch", "step", "seconds", "history", "best")
        )


def _passes(before: int, after: int, every: int | None) -> bool:
    """Whether a multiple of `every` was reached between two counts of steps."""
    return every is not None and after // every > before // every


def _content(data: Tensor | ActivationStore) -> str:
    if isinstance(data, ActivationStore):
        return f"the store of content {data.fingerprint()}"
    return f"{str(data.dtype).removeprefix('torch.')} {tuple(data.shape)} of content {hash_of(data)}"


def _buffers(sae: Any) -> dict[str, Tensor]:
    return dict(sae.named_buffers()) if isinstance(sae, torch.nn.Module) else {}


def _extended(saved: dict[str, Any], total: int) -> dict[str, Any]:
    """The saved state of a method with a new number of steps, less those that a race has lost."""
    state = saved["state"]
    if "base" in state:  # of a method around another
        return {**state, "base": _extended({**saved, "state": state["base"]}, total)}
    lost = saved["step"] - state["step"] if "step" in state else 0
    return {**state, "total_steps": total - lost}
