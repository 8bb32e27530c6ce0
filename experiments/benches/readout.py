"""What a readout is worth, by the family of decoders that it chooses from and by the number of held-out samples.

A tied-residual SAE is trained by PAM-SGD without readouts, for a thousand steps, centred, at one step size. Then its decoder is chosen
on the first half of the validation samples, or on some of them, and its error told on the other half, which neither training nor
choice has seen: in per cent of that of the decoder as trained. "ridge": the best ridge for the whole prior; "and scale": the best
ridge with the prior's best scale; then one, two and three functions of each kind with one pole (three are the package's); last, one
function of each kind with five poles; then ridges that need no held-out samples, by the evidence, one for all latents and one
for each. With all of the held-out samples first, then three functions with fewer. The second table has the
error without a readout and with one for SAEs that SGD trained too, at the same step size: what is the readout's, and what the training's.
"""

from __future__ import annotations

import math
import sys
from typing import Any, NamedTuple

import torch

from experiments.benches.evidence import by_evidence
from experiments.benches.problems import samples
from experiments.benches.timing import require_cpu
from splinterp import PAMSGD, SAE, SGD, AbsTopK, TopK, fit
from splinterp.decoder import DecoderStats, gcv_ridge, held_out_ridge, readout, solve_decoder, squared_error
from splinterp.decoder.readout import DEGREE, combined, least_squares
from splinterp.decoder.ridge import HeldOutSums
from splinterp.training.reading import ABOVE

STEPS, LR = 1_000, 4e-3
CASES = tuple((data, n, m, k, activation, batch) for data, m, k, batch, sizes in (
    ("mnist", 256, 15, 128, (550, 2_750, 13_750)), ("minilm-3", 1_536, 32, 256, (1_000, 9_000, 36_000)),
) for n in sizes for activation in (TopK, AbsTopK))  # fmt: skip
QUICK = (("digits", 600, 160, 4, TopK, 64),)
METHODS: dict[str, tuple[str, SGD | PAMSGD]] = {
    "SGD tied": ("tied", SGD(lr=LR)),
    "SGD untied": ("free", SGD(lr=LR)),
    "SGD tied-residual": ("tied_residual", SGD(lr=LR)),
    "PAM-SGD": ("tied_residual", PAMSGD(lr=LR, decoder_lr=1.0, readout=False)),
}
"""Decoder and method; the last one's decoders are those of the first table."""
POLES = (0.01, 0.1, 1.0, 10.0, 100.0)
"""Ridges in those of the last solve's."""
FEWER = (50, 200, 1_000)
"""Held-out samples."""


def _sums(sae: SAE, x: torch.Tensor) -> DecoderStats:
    stats = DecoderStats(sae.n_latents, sae.d_in)
    for block in x.split(1_024):
        stats.update(sae.encode(block), block)
    return stats


def _scaled(stats: DecoderStats, sums: HeldOutSums, prior: torch.Tensor, ridges: list[float]) -> torch.Tensor:
    """The best of some ridges, each with its best scale of the prior."""
    best, rows = math.inf, prior
    for ridge in ridges:
        alone = solve_decoder(stats, ridge=ridge).W_dec
        pulled = solve_decoder(stats, ridge=ridge, prior=prior).W_dec - alone
        scale = least_squares([pulled], sums.gram, sums.cross - sums.gram @ alone, 1)
        W = alone + scale * pulled
        if sums.error(W) < best:
            best, rows = sums.error(W), W
    return rows


def _several_poles(stats: DecoderStats, sums: HeldOutSums, prior: torch.Tensor, ridges: list[float]) -> torch.Tensor:
    parts = []
    for ridge in sorted(ridges, key=lambda ridge: abs(math.log(ridge / ridges[len(ridges) // 2]))):  # the middle one first
        alone = solve_decoder(stats, ridge=ridge).W_dec
        parts += [alone, solve_decoder(stats, ridge=ridge, prior=prior).W_dec - alone]
    weights = least_squares(parts, sums.gram, sums.cross, 2)
    return torch.stack(parts).mul_(weights[:, None, None]).sum(0)


class Sums(NamedTuple):
    """Of the training samples, of those that a readout goes by, and of those that tell its error."""

    train: DecoderStats
    held_out: DecoderStats
    fresh: DecoderStats


@torch.no_grad()
def _families(sae: SAE, found: Sums, x_held: torch.Tensor) -> list[float]:
    """The change of the error by each family, in per cent."""
    stats, held_out, fresh = found
    prior = sae.tied_rows().double()
    chosen = gcv_ridge(stats, prior).ridge
    ridge = ABOVE * chosen if math.isfinite(chosen) else chosen
    ridges = [float(stats.gram.diagonal().mean()) * pole if math.isinf(ridge) else chosen * pole for pole in POLES]
    unsolved = squared_error(fresh, sae.W_dec.double(), sae.b_dec.double())

    def change(W: torch.Tensor) -> float:
        return 100 * (squared_error(fresh, W, stats.mean_x - stats.mean_acts @ W) / unsolved - 1)

    def weighed(held_out: DecoderStats, degree: int = DEGREE) -> torch.Tensor:
        best = combined(stats, HeldOutSums.of(stats, held_out), prior, ridge, degree)
        return prior if best is None else best[2]

    sums = HeldOutSums.of(stats, held_out)
    alone = solve_decoder(stats, ridge=held_out_ridge(stats, held_out, prior).ridge, prior=prior).W_dec
    families = [alone, _scaled(stats, sums, prior, ridges), *(weighed(held_out, degree) for degree in (1, 2, 3))]
    families.append(_several_poles(stats, sums, prior, ridges))
    families += [by_evidence(stats, prior, ridges[len(ridges) // 2], each).W_dec for each in (False, True)]
    return [change(W) for W in (*families, *(weighed(_sums(sae, x_held[:n])) for n in FEWER if n < len(x_held)))]


@torch.no_grad()
def _before_and_after(sae: SAE, found: Sums) -> tuple[float, float]:
    """FVU on the fresh samples, without a readout and with one. The prior of a free decoder is the decoder itself."""
    W, b = sae.W_dec.double(), sae.b_dec.double()
    read = readout(found.train, found.held_out, W, b, W if sae.decoder == "free" else sae.tied_rows())
    total = float(found.fresh.total) / found.fresh.n_samples
    return squared_error(found.fresh, W, b) / total, squared_error(found.fresh, read.W_dec, read.b_dec) / total


def run(quick: bool, device: str) -> dict[str, Any]:
    """Every case."""
    require_cpu(device, "the sums are in float64")
    families, methods = [], []
    for data, n, n_latents, k, activation, batch in QUICK if quick else CASES:
        x, x_val = samples(data, n)
        half = len(x_val) // 2
        about, row = [data, activation.__name__, f"{n:,}"], []
        for decoder, method in METHODS.values():
            sae = SAE(x.shape[1], n_latents, activation(k), decoder, generator=0)
            fit(sae, x, method, steps=100 if quick else STEPS, batch_size=batch, generator=0, log_every=10**9)
            with torch.no_grad():
                found = Sums(*(_sums(sae.eval(), part) for part in (x, x_val[:half], x_val[half:])))
            row += [f"{fvu:.4f}" for fvu in _before_and_after(sae, found)]
        methods.append([*about, *row])
        families.append([*about, *(f"{value:+.1f}" for value in _families(sae, found, x_val[:half]))])
        print(families[-1], methods[-1], file=sys.stderr)
    header = ["data", "activation", "N", "ridge", "and scale", "1 function", "2", "3", "five poles",
              "evidence", "for each latent", *(f"3, {n:,} held out" for n in FEWER)]  # fmt: skip
    families = [row + [""] * (len(header) - len(row)) for row in families]
    pairs = [heading for name in METHODS for heading in (name, "read out")]
    return {
        "bench": "readout",
        "tables": [
            {"title": "change of the error on fresh samples by a readout, in %", "header": header, "rows": families},
            {"title": "FVU on fresh samples by how the SAE was trained, as it is and read out", "header": [*header[:3], *pairs],
             "rows": methods},
        ],
    }  # fmt: skip
