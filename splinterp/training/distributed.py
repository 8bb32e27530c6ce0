"""Several processes, one training run: gradients and statistics summed over a `torch.distributed` group.

Every process holds the whole SAE and sees the same batches in the same order; of each batch it takes its share of the rows, and of
each decoder solve its share of the batches. The result is that of one process up to the order of summation.
Start it with `torchrun`, call `torch.distributed.init_process_group` and pass `processes=ProcessGroup()` to `fit`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import distributed as dist

from splinterp._content import content_hash
from splinterp._typing import Tensor
from splinterp.decoder._matrix_free_stats import MatrixFreeStats
from splinterp.decoder.statistics import DecoderStats

if dist.is_available():
    # The first optimizer step imports this module, and its functions then keep the default group of that moment as an argument's
    # default: gloo's threads outlive destroy_process_group, and one that lets go of a tensor while Python ends aborts the process.
    # Imported before there is a group, it keeps none.
    import torch.distributed.nn.functional


class WorkerLostError(RuntimeError):
    """A process of the group died or stopped answering."""


class ProcessGroup:
    """This process's place in a group, and the sums over it.

    Args:
        group: a `torch.distributed` group (gloo on CPUs, NCCL on GPUs); None means the default one.

    Raises:
        RuntimeError: `torch.distributed` is not initialised.
    """

    def __init__(self, group: Any = None) -> None:
        if not (dist.is_available() and dist.is_initialized()):
            raise RuntimeError("call torch.distributed.init_process_group() first; torchrun sets what it needs")
        self.group = group
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes."""
        return self.rank == 0

    def share(self, x: Tensor) -> Tensor:
        """This process's rows of a batch; they may be none."""
        return x[self.rank :: self.size]

    def deal(self, batches: Iterable[Tensor]) -> Iterator[Tensor]:
        """This process's batches of a pass."""
        for index, x in enumerate(batches):
            if index % self.size == self.rank:
                yield x

    def first_difference(self, values: list[str], device: torch.device) -> tuple[int, int] | None:
        """(process, place) of the first value that is not what process 0 has there; None where all are. Raises WorkerLostError."""
        numbers = [int(content_hash([value.encode()])[:15], 16) for value in values]  # of 60 bits
        table = torch.zeros(self.size, len(values), dtype=torch.int64, device=device)
        table[self.rank] = torch.tensor(numbers, device=device)
        self.sum_([table])
        places = (table != table[0]).nonzero().tolist()
        return (places[0][0], places[0][1]) if places else None

    def sum_(self, tensors: Iterable[Tensor]) -> None:
        """Sum each tensor over the processes, in place. Raises WorkerLostError."""
        for tensor in tensors:
            self._call(lambda t: dist.all_reduce(t, group=self.group), tensor)

    def broadcast_(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite each tensor with the first process's. Raises WorkerLostError."""
        source = 0 if self.group is None else dist.get_global_rank(self.group, 0)
        for tensor in tensors:
            self._call(lambda t: dist.broadcast(t, source, group=self.group), tensor)

    def _call(self, collective: Callable[[Tensor], Any], tensor: Tensor) -> None:
        # collectives take contiguous memory; a parameter kept by latents is contiguous the other way round
        for layout in (tensor, tensor.T if tensor.ndim == 2 else tensor):
            if layout.is_contiguous():
                break
        else:
            layout = tensor.contiguous()
        try:
            collective(layout)
        except RuntimeError as error:
            raise WorkerLostError(
                f"process {self.rank} of {self.size} lost another one: look for the first error in the others' output, then run "
                f"again with resume=True to go on from the checkpoint ({error})"
            ) from error
        if layout.data_ptr() != tensor.data_ptr():
            tensor.copy_(layout)

    def merge_gradients(self, parameters: Iterable[Tensor], loss: Tensor, n: int) -> Tensor:
        """Turn gradients and loss of `n` own rows, means over them, into those of the whole batch. Returns the loss."""
        total = torch.tensor([float(n)], dtype=torch.float64, device=loss.device)
        self.sum_([total])
        weight = n / float(total)
        gradients = [p.grad for p in parameters if p.grad is not None]
        for gradient in gradients:
            gradient.mul_(weight)
        loss = loss * weight if n else torch.zeros_like(loss)
        self.sum_([*gradients, loss])
        return loss

    def merge_stats(self, stats: DecoderStats | MatrixFreeStats) -> None:
        """Turn the statistics of this process's samples into those of all; products with a Gram matrix then sum over the group."""
        plain = isinstance(stats, DecoderStats)
        counts = [float(stats.n_samples), float(stats.n_distinct if isinstance(stats, DecoderStats) else stats.n_samples)]
        n = torch.tensor(counts, dtype=torch.float64, device=stats.cross.device)
        self.sum_([n])
        new, old = float(n[0]), stats.n_samples
        mean_acts, mean_x = stats.mean_acts * (old / new), stats.mean_x * (old / new)
        self.sum_([mean_acts, mean_x])
        step_acts, step_x = (stats.mean_acts - mean_acts).to(stats.cross), (stats.mean_x - mean_x).to(stats.cross)
        stats.cross.addr_(step_acts, step_x, alpha=old)
        total = torch.as_tensor(stats.total, dtype=torch.float64, device=stats.cross.device).reshape(1).clone()
        total += old * step_x.double().square().sum()
        if isinstance(stats, DecoderStats):
            stats.gram.addr_(step_acts, step_acts, alpha=old)
            self.sum_([stats.gram, stats.cross, total])
            stats.total = total[0].to(stats.dtype)
            stats.n_distinct = float(n[1])
            stats.altered()
        else:
            self.sum_([stats.squares, stats.cross, total])
            stats.total, stats.sum_over = float(total), lambda tensor: self.sum_([tensor])
        stats.n_samples = new if plain else int(new)
        stats.mean_acts, stats.mean_x = mean_acts, mean_x
