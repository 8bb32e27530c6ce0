"""Which tokens' activations are taken."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch

from splinterp._checks import at_least, one_of, whole
from splinterp._documented import documented
from splinterp._typing import Bool, Float, Tensor

OUTLIERS = ("keep", "leave_out", "cap")


class Taken(NamedTuple):
    """Rows that rules have kept."""

    x: Float[Tensor, "m d_in"]
    kept: Bool[Tensor, " n"]
    """Of all rows, those that were."""
    counts: dict[str, int]
    """By rule, how many rows it left out or capped."""


@documented
@dataclass(frozen=True, kw_only=True)
class TokenRules:
    """Tokens that are left out of extracted activations, beside padding. What is left out is counted, by rule (of the last sequences that
    are run for a limit of rows, with those beyond it).

    The first tokens of a sequence, and a few others, draw attention from everywhere and have activations whose norm is tens to thousands
    of times the usual (attention sinks, massive activations: Sun et al., arXiv 2402.17762). An SAE's squared error would be of them
    alone.

    Raises:
        ValueError: an option out of range.
    """

    keep_special: bool = False
    """Take the tokenizer's special tokens too."""
    skip_first: int = 0
    """Places at the beginning of each sequence that are left out, a special token there counted."""
    without: tuple[int, ...] = ()
    """Token ids that are left out."""
    outliers: str = "keep"
    """Tokens whose activation is longer than `outlier_norm` times the median: "keep", "leave_out", or "cap" (shortened to that)."""
    outlier_norm: float = 10.0
    """In medians of the norms of the tokens that are extracted together (a shard, some thousand)."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "skip_first", whole("skip_first", self.skip_first, 0))
        if isinstance(self.without, str) or not isinstance(self.without, Iterable):
            raise ValueError(f"without={self.without!r} must be a list of token ids: tokenizer.convert_tokens_to_ids([...])")
        object.__setattr__(self, "without", tuple(whole("without", token, 0) for token in self.without))
        one_of("outliers", self.outliers, OUTLIERS)
        at_least("outlier_norm", self.outlier_norm, 1.0)

    def places(self, ids: list[int], special: list[int]) -> tuple[list[int], dict[str, int]]:
        """Places of a sequence that are taken whatever their activations, and by rule how many are not."""
        kept, counts, without = [], dict.fromkeys(("special", "first", "without"), 0), set(self.without)
        for place, (token, flag) in enumerate(zip(ids, special, strict=True)):
            if flag and not self.keep_special:
                counts["special"] += 1
            elif place < self.skip_first:
                counts["first"] += 1
            elif token in without:
                counts["without"] += 1
            else:
                kept.append(place)
        return kept, counts

    def taken(self, x: Float[Tensor, "n d_in"]) -> Taken:
        """The rows of one shard less those of outlying norm, or with those shortened."""
        kept = torch.ones(len(x), dtype=torch.bool, device=x.device)
        if self.outliers == "keep" or not len(x):
            return Taken(x, kept, {})
        norms = torch.linalg.vector_norm(x, dim=1, dtype=torch.float32)
        most = self.outlier_norm * norms.median()
        long = norms > most
        if self.outliers == "cap":
            return Taken(
                torch.where(long[:, None], x * (most / norms)[:, None].to(x), x), kept, {"outliers capped": int(long.sum())}
            )
        return Taken(x[~long], ~long, {"outliers": int(long.sum())})

    def describe(self) -> dict[str, Any]:
        """As JSON has it; what is not set is left out, so that stores written before a rule was there are still known."""
        neutral = asdict(TokenRules())
        found = {name: value for name, value in asdict(self).items() if value != neutral[name]}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in found.items()}


def added(total: dict[str, int], counts: dict[str, int]) -> None:
    """Add counts by rule to a total."""
    for name, n in counts.items():
        if n:
            total[name] = total.get(name, 0) + n
