"""A training step of a TopK SAE: steps a second, against a plain PyTorch loop and against the floor.

The plain loop is what a PyTorch user writes: dense scores, `topk`, `scatter` into a dense code, two matrix products, autograd and
the fused Adam. The floor is one encoder product into a buffer and `torch.topk` on it, as if all the rest were free.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F

from experiments.benches.timing import interleaved
from splinterp import PAMSGD, SAE, SGD, TopK
from splinterp.losses import AuxK, Forward, HierarchicalTopK, Matryoshka, SquaredError, Term
from splinterp.sparse_kernels import decode_rows, kept_products, kept_scores, select_largest, sum_by_latent, transpose_code

D_IN, K, BATCH = 384, 32, 2_048
WIDTHS = (3_072, 24_576)
REPEATS = 7


def plain_step(d_in: int, n_latents: int, k: int, x: torch.Tensor, tied: bool = False) -> Callable[[], None]:
    """One step of the plain loop, on weights of its own."""
    W_enc = torch.nn.Parameter(torch.randn(d_in, n_latents, device=x.device) / d_in**0.5)
    parameters = [W_enc, *(torch.nn.Parameter(torch.zeros(m, device=x.device)) for m in (n_latents, d_in))]
    if not tied:
        parameters.append(torch.nn.Parameter(W_enc.detach().T.contiguous()))
    optimizer = torch.optim.Adam(parameters, lr=1e-3, fused=True)

    def step() -> None:
        optimizer.zero_grad()
        scores = x @ W_enc + parameters[1]
        top = scores.topk(k, dim=1)
        acts = torch.zeros_like(scores).scatter(1, top.indices, top.values.relu())
        loss = F.mse_loss(acts @ (W_enc.T if tied else parameters[3]) + parameters[2], x)
        loss.backward()
        optimizer.step()

    return step


class DenseSAE(SAE):
    """Takes dense codes and autograd, as activations without a fixed k do."""

    trains_sparse = False


@dataclass(frozen=True, kw_only=True)
class KeptSum(Term):
    """The mean over samples of the sum of the code: hardly any work, and no kernel of its own."""

    def __call__(self, out: Forward, state: Any) -> torch.Tensor:
        return out.values().sum(1).mean()


def our_step(
    d_in: int, n_latents: int, k: int, x: torch.Tensor, method: Any, decoder: str, dense: bool = False, lowered: bool = False
) -> Callable[[], None]:
    """One gradient step of a method; `dense` takes dense codes and autograd, as activations without a fixed k do, `lowered` takes
    products in bfloat16."""
    sae = (DenseSAE if dense else SAE)(d_in, n_latents, TopK(k), decoder, device=x.device, generator=0)
    state = method.init(sae, x, total_steps=1_000_000)

    def step() -> None:
        with torch.autocast(x.device.type, torch.bfloat16, enabled=lowered):
            method.step(sae, state, x)

    return step


def terms(d_in: int, n_latents: int, k: int, batch: int, device: str, repeats: int = REPEATS) -> list[list[Any]]:
    """Rows of what loss terms cost: what, milliseconds, it over the step on the squared error alone."""
    x = torch.randn(batch, d_in, generator=torch.Generator().manual_seed(0)).to(device)
    losses: dict[str, tuple[Term, ...]] = {
        "squared error": (SquaredError(),),
        "and a term on the kept codes": (SquaredError(), KeptSum(weight=1e-3)),
        "and AuxK, no latent dead": (SquaredError(), AuxK(dead_after=10**12)),
        "Matryoshka, 3 widths": (Matryoshka(widths=(n_latents // 16, n_latents // 4)),),
        "HierarchicalTopK, 3 levels": (HierarchicalTopK(levels=(k // 4, k // 2, k)),),
    }
    works = {
        f"{decoder}: {name}": our_step(d_in, n_latents, k, x, SGD(terms=chosen), decoder)
        for decoder in ("free", "tied_residual") for name, chosen in losses.items()
    }  # fmt: skip
    works |= {f"{decoder}: squared error, dense codes": our_step(d_in, n_latents, k, x, SGD(), decoder, dense=True)
              for decoder in ("free", "tied_residual")}  # fmt: skip
    seconds = interleaved(works, repeats)
    return [
        [f"{n_latents:,}", name, f"{1e3 * t:.1f}", f"{t / seconds[name.split(':')[0] + ': squared error']:.2f}"]
        for name, t in seconds.items()
    ]


def parts(d_in: int, n_latents: int, k: int, batch: int, device: str, repeats: int = REPEATS) -> list[list[Any]]:
    """Rows of the profile of one sparse step: what, milliseconds, multiplications, bytes of weights that it touches."""
    x = torch.randn(batch, d_in, generator=torch.Generator().manual_seed(0)).to(device)
    sae = SAE(d_in, n_latents, TopK(k), device=device, generator=0)
    W_enc, b_enc, W_dec = sae.W_enc.detach(), sae.b_enc.detach(), sae.W_dec.detach()
    scores = torch.addmm(b_enc, x, W_enc)
    top = select_largest(scores, k)
    values, by_latent = scores.gather(1, top), transpose_code(top, n_latents)
    out, optimizer = torch.empty(n_latents, d_in, device=device), torch.optim.Adam(list(sae.parameters()), lr=1e-3, fused=True)
    for p in sae.parameters():
        p.grad = torch.zeros_like(p)
    with torch.no_grad():
        seconds = interleaved({
            "encoder product": lambda: torch.addmm(b_enc, x, W_enc, out=scores),
            "selection": lambda: select_largest(scores, k),
            "product and selection, in blocks": lambda: kept_scores(x, W_enc, b_enc, sae.activation.select, k),  # type: ignore[arg-type]
            "decoding": lambda: decode_rows(values, top, W_dec),
            "gradient of the kept values": lambda: kept_products(top, W_dec, x),
            "transposing the code": lambda: transpose_code(top, n_latents),
            "gradient of W_dec (and again of W_enc)": lambda: sum_by_latent(values, top, x, n_latents, by_latent, out=out),
            "Adam, all parameters": optimizer.step,
        }, repeats)  # fmt: skip
    work = {"encoder product": batch * d_in * n_latents, "product and selection, in blocks": batch * d_in * n_latents}
    sparse = dict.fromkeys(
        ("decoding", "gradient of the kept values", "gradient of W_dec (and again of W_enc)"), batch * k * d_in
    )
    work |= sparse
    return [
        [f"{n_latents:,}", name, f"{1e3 * t:.1f}", f"{work[name] / 1e9:.2f}" if name in work else "",
         f"{work[name] / t / 1e9:.0f}" if name in work else ""]
        for name, t in seconds.items()
    ]  # fmt: skip


def measure(d_in: int, n_latents: int, k: int, batch: int, device: str, repeats: int = REPEATS) -> list[list[Any]]:
    """Rows of one size: what, milliseconds, plain over it, it over the floor."""
    x = torch.randn(batch, d_in, generator=torch.Generator().manual_seed(0)).to(device)
    W, b = torch.randn(d_in, n_latents, device=device) / d_in**0.5, torch.zeros(n_latents, device=device)
    scores = torch.empty(batch, n_latents, device=device)

    def product() -> None:
        torch.addmm(b, x, W, out=scores)

    def floor() -> None:
        product()
        scores.topk(k, dim=1, sorted=False)

    def selection() -> None:
        product()
        select_largest(scores, k)

    works: dict[str, Callable[[], Any]] = {
        "encoder product": product,
        "floor: product and torch.topk": floor,
        "product and our selection": selection,
        "plain loop, untied": plain_step(d_in, n_latents, k, x),
        "plain loop, tied": plain_step(d_in, n_latents, k, x, tied=True),
        "SGD, tied-residual, dense codes": our_step(d_in, n_latents, k, x, SGD(), "tied_residual", dense=True),
        "SGD, untied": our_step(d_in, n_latents, k, x, SGD(), "free"),
        "SGD, tied": our_step(d_in, n_latents, k, x, SGD(), "tied"),
        "SGD, tied-residual": our_step(d_in, n_latents, k, x, SGD(), "tied_residual"),
        "PAM-SGD, tied-residual": our_step(d_in, n_latents, k, x, PAMSGD(), "tied_residual"),
    }
    if device != "cpu":
        works["SGD, tied-residual, bfloat16"] = our_step(d_in, n_latents, k, x, SGD(), "tied_residual", lowered=True)
        works["SGD, tied-residual, dense codes, bfloat16"] = our_step(
            d_in, n_latents, k, x, SGD(), "tied_residual", dense=True, lowered=True
        )
    seconds = interleaved(works, repeats)
    plain = {False: seconds["plain loop, untied"], True: seconds["plain loop, tied"]}
    least = seconds["floor: product and torch.topk"]
    return [
        [f"{n_latents:,}", name, f"{1e3 * t:.1f}", f"{plain[name.endswith(', tied')] / t:.2f}", f"{t / least:.2f}"]
        for name, t in seconds.items()
    ]


def run(quick: bool, device: str) -> dict[str, Any]:
    """Every width."""
    sizes = ((64, 256, 8, 128),) if quick else tuple((D_IN, width, K, BATCH) for width in WIDTHS)
    rows = [row for d_in, width, k, batch in sizes for row in measure(d_in, width, k, batch, device)]
    title = f"a training step: d_in {sizes[0][0]}, k {sizes[0][2]}, batch {sizes[0][3]:,}, float32"
    header = ["n_latents", "what", "ms", "plain loop / it", "it / floor"]
    tables = [{"title": title, "header": header, "rows": rows}]
    profile = [row for d_in, width, k, batch in sizes for row in parts(d_in, width, k, batch, device)]
    header = ["n_latents", "part of an untied step", "ms", "10^9 multiplications", "10^9 a second"]
    tables.append({"title": "profile of a sparse step", "header": header, "rows": profile})
    found = terms(*sizes[0], device) if quick else terms(D_IN, 6_144, K, BATCH, device)
    header = ["n_latents", "decoder: loss", "ms", "it / squared error"]
    tables.append({"title": "loss terms, by SGD", "header": header, "rows": found})
    return {"bench": "train", "tables": tables}
