"""Several SAEs as one: bagging, boosting, and the joint decoder that neither can be better than.

An ensemble is one SAE with the members' dictionaries side by side, so its decoder is linear in all of their codes, and one exact solve
makes it the best of them ("stacking"; of boosting, its fully corrective form). Its l0 is the sum of the members': compare at equal l0
and as many latents.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from splinterp._checks import as_samples, one_of, whole
from splinterp._typing import ArrayLike, Tensor
from splinterp.decoder.groups import best_decoder
from splinterp.protocol import Code, SparseModel, as_model, dense, inference_mode_of

KINDS = ("bagging", "boosting")
ROWS = 4096


class Ensemble(SparseModel):
    """Trained SAEs side by side: codes (n, sum of their n_latents), and a decoder of its own that starts as theirs.

    kind "bagging": every member codes x, and x_hat is the mean of their reconstructions. "boosting": a member codes what those before
    it leave of x, and x_hat is the sum. Members are kept in evaluation mode and not trained further; `solve` changes the decoder of
    the ensemble, not what the members code. Source: Ensembling sparse autoencoders, arXiv 2505.16077.

    Args:
        members: SAEs of one d_in, in the order of boosting.

    Raises:
        ValueError: no members, an unknown kind, different d_in.
        TypeError: a member that lacks what an SAE has, a transcoder.
    """

    def __init__(self, members: Sequence[Any], kind: str = "bagging") -> None:
        super().__init__()
        one_of("kind", kind, KINDS)
        if not members:
            raise ValueError("an ensemble needs at least one member")
        if any(as_model(member).pairs for member in members):
            raise TypeError(
                "an ensemble is of SAEs, whose errors others can take for samples: a transcoder's are of another kind"
            )
        widths = [as_model(member).shape[0] for member in members]
        if len(set(widths)) > 1:
            raise ValueError(f"the members take samples of width {', '.join(map(str, widths))}: an ensemble has one d_in")
        self.kind, self.members = kind, nn.ModuleList(members)
        share = 1 / len(members) if kind == "bagging" else 1.0
        for member in self.members:
            member.requires_grad_(False).eval()
        models = [as_model(member) for member in self.members]
        self.W_dec = nn.Parameter(torch.cat([share * model.W_dec.detach() for model in models]), requires_grad=False)
        self.b_dec = nn.Parameter(share * torch.stack([model.b_dec.detach() for model in models]).sum(0), requires_grad=False)

    def train(self, mode: bool = True) -> Ensemble:
        """Nothing changes: the members stay as they are at inference."""
        return super().train(False)

    @property
    def couples_samples(self) -> bool:
        models = [as_model(member) for member in self.members]  # activations of this package do not at inference
        return any(m.couples_samples and (m.nonlinearity is None or not m.nonlinearity.known) for m in models)

    @property
    def kept(self) -> int | None:
        each = [as_model(member).kept for member in self.members]
        return None if None in each else sum(k for k in each if k is not None)

    def code(self, x: Tensor) -> Code:
        parts, left = [], x
        for member in self.members:
            model = as_model(member)
            code = model.code(left)
            parts.append(dense(code, model.shape[1]))
            if self.kind == "boosting":
                left = left - model.decode(code)
        return torch.cat(parts, 1)

    def encode(self, x: ArrayLike) -> Tensor:
        """The codes of all members (n, n_latents) of x (n, d_in)."""
        x = as_samples(x, self.shape[0], dtype=self.b_dec.dtype, device=self.b_dec.device)
        return torch.as_tensor(self.code(x))

    def decode(self, code: Any) -> Tensor:
        return torch.addmm(self.b_dec, dense(code, self.shape[1]), self.W_dec)

    @torch.no_grad()
    def solve(self, x: ArrayLike, ridge: float | str = "gcv") -> Ensemble:
        """Make the decoder the exact minimiser over all members' codes of samples x (n, d_in). Returns self.

        ridge: pull to the decoder that bagging or boosting gives, on sums over samples, or "gcv" to choose it. With ridge 0 no decoder has
        a lower training error. Raises TypeError, ValueError as `solve_decoder` does.
        """
        W_dec, b_dec = best_decoder(self, x, ridge=ridge)
        self.W_dec.copy_(W_dec)
        self.b_dec.copy_(b_dec)
        return self


def bag(train: Callable[[int], Any], n_members: int) -> Ensemble:
    """The mean of `n_members` SAEs that `train(member)` makes and trains on the same samples; member is 0, 1, ...: seed by it.

    Raises ValueError for n_members below 1.
    """
    whole("n_members", n_members, 1)
    return Ensemble([train(member) for member in range(n_members)], "bagging")


@torch.no_grad()
def boost(
    train: Callable[[int, Tensor, Tensor | None], Any], x: ArrayLike, n_members: int, x_val: ArrayLike | None = None
) -> Ensemble:
    """The sum of SAEs each of which `train(member, left, left_val)` makes and trains on what those before it leave of x (n, d_in).

    left_val is what they leave of held-out samples x_val (None without). Raises ValueError for n_members below 1.
    """
    whole("n_members", n_members, 1)
    left, members = [as_samples(part) for part in ((x,) if x_val is None else (x, x_val))], []
    for member in range(n_members):
        with torch.enable_grad():
            members.append(train(member, left[0], left[1] if len(left) > 1 else None))
        model = as_model(members[-1])
        with inference_mode_of(model):
            left = [_left(model, part) for part in left]
    return Ensemble(members, "boosting")


def _left(model: SparseModel, x: Tensor) -> Tensor:
    return torch.cat([part - model.decode(model.code(part.to(model.b_dec))).to(part) for part in x.split(ROWS)])
