"""Statistics of the decoder's least squares with the codes themselves in place of their Gram matrix."""

from __future__ import annotations

import tempfile
import weakref
from collections.abc import Callable, Iterator

import numpy as np
import torch

from splinterp._checks import as_code, whole
from splinterp._typing import ArrayLike, Float, Tensor
from splinterp.activations import TopActs
from splinterp.decoder.statistics import squared_norm
from splinterp.sparse_kernels import decode_rows
from splinterp.sparse_kernels._sums import KSparse

IN_MEMORY = 2**26
"""Codes of up to so many bytes stay in memory."""


class MatrixFreeStats:
    """Statistics of the decoder's least squares without its Gram matrix, from k-sparse codes.

    Holds the number of samples, the means, `cross` = sum (z - z̄)^T (x - x̄), `total` = sum |x - x̄|^2, the diagonal of the
    centred Gram matrix, and the codes (8 bytes for each kept entry in float32): in a temporary file, which goes with the object, or in
    the memory of a device that is not the CPU.

    Args:
        n_latents, d_in: widths of codes and samples.
        dtype: of sums and solve, float32 or float64.
        device: where the sums live; batches must be there.

    Raises:
        ValueError: sizes below 1, another dtype.
    """

    def __init__(
        self, n_latents: int, d_in: int, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
    ) -> None:
        whole("n_latents", n_latents, 1)
        whole("d_in", d_in, 1)
        if dtype not in (torch.float32, torch.float64):
            raise ValueError(f"dtype={dtype} must be torch.float32 or torch.float64")
        self.n_latents, self.d_in, self.dtype = n_latents, d_in, dtype
        self.device = torch.empty(0, device=device).device
        self.n_samples = 0
        self.mean_acts = torch.zeros(n_latents, dtype=torch.float64, device=device)
        self.mean_x = torch.zeros(d_in, dtype=torch.float64, device=device)
        self.cross = torch.zeros(n_latents, d_in, dtype=dtype, device=device)
        self.total = 0.0
        self.squares = torch.zeros(n_latents, dtype=torch.float64, device=device)
        self._held: list[tuple[Tensor, Tensor]] | None = None if self.device.type == "cpu" else []
        self._file = tempfile.SpooledTemporaryFile(max_size=IN_MEMORY)  # noqa: SIM115 (lives as long as the object)
        self.sum_over: Callable[[Tensor], None] | None = None  # sums over processes that hold other samples
        weakref.finalize(self, self._file.close)
        self._blocks: list[tuple[int, int]] = []

    def empty(self) -> MatrixFreeStats:
        """Statistics of no samples, of the same widths, dtype and device."""
        return MatrixFreeStats(self.n_latents, self.d_in, dtype=self.dtype, device=self.device)

    @property
    def diagonal(self) -> Float[Tensor, " n_latents"]:
        """Of the centred Gram matrix, float64; rounding below 1e-12 of the raw sum of squares counts as zero."""
        centred = self.squares - self.n_samples * self.mean_acts.square()
        return torch.where(centred > 1e-12 * self.squares, centred, 0.0)

    @torch.no_grad()
    def update(self, acts: TopActs, x: ArrayLike) -> MatrixFreeStats:
        """Add a batch: a code's sparse form (n, k) and x (n, d_in). Returns self. Raises TypeError, ValueError for bad input."""
        values, x = as_code(*acts, x, self.n_latents, self.d_in, self.dtype, self.device)
        n = len(values)
        if n == 0:
            return self
        self._keep(values, acts.top_indices)

        code = KSparse.of(values, acts.top_indices, self.n_latents)
        mean_acts, mean_x = code.mean().double(), x.mean(0, dtype=torch.float64)
        centred = x - mean_x.to(self.dtype)
        old, new = self.n_samples, self.n_samples + n
        step_acts, step_x = mean_acts - self.mean_acts, mean_x - self.mean_x
        self.cross += code.product(centred)
        self.cross.addr_(step_acts.to(self.dtype), step_x.to(self.dtype), alpha=old * n / new)
        self.total += float(squared_norm(centred) + old * n / new * step_x.square().sum())
        self.mean_acts += step_acts * (n / new)
        self.mean_x += step_x * (n / new)
        self.squares += torch.bincount(
            acts.top_indices.flatten(), weights=values.double().square().flatten(), minlength=self.n_latents
        )
        self.n_samples = new
        return self

    def _keep(self, values: Tensor, indices: Tensor) -> None:
        if self._held is not None:
            self._held.append((values.clone(), indices.to(torch.int32)))
            return
        self._file.seek(0, 2)
        self._file.write(values.contiguous().numpy().tobytes())
        self._file.write(indices.to(torch.int32).contiguous().numpy().tobytes())
        self._blocks.append((values.shape[0], values.shape[1]))

    def codes(self) -> Iterator[KSparse]:
        """The codes, a block at a time, in the order of the updates."""
        for values, indices in self._held or []:
            yield KSparse.of(values, indices.long(), self.n_latents)
        self._file.seek(0)
        item = torch.empty(0, dtype=self.dtype).element_size()
        number = np.float32 if self.dtype == torch.float32 else np.float64
        for n, k in self._blocks:
            found = np.frombuffer(bytearray(self._file.read(n * k * item)), dtype=number).reshape(n, k)
            where = np.frombuffer(bytearray(self._file.read(n * k * 4)), dtype=np.int32).reshape(n, k)
            yield KSparse.of(torch.from_numpy(found), torch.from_numpy(where).long(), self.n_latents)

    @torch.no_grad()
    def gram_product(self, P: Float[Tensor, "n_latents c"]) -> Float[Tensor, "n_latents c"]:
        """(sum (z - z̄)^T (z - z̄)) @ P, in one pass over the codes: 2 N k c multiplications."""
        P = P.to(self.dtype).contiguous()
        mean = self.mean_acts.to(self.dtype)
        at_mean = mean @ P
        total = torch.zeros_like(P)
        for code in self.codes():
            rows = decode_rows(code.values, code.top_indices, P).sub_(at_mean)  # centred, so that nothing cancels in the sum
            code.add_product(rows, total)
        if self.sum_over is not None:
            self.sum_over(total)
        return total  # sum z (z - z̄) P, and sum (z - z̄) P = 0
