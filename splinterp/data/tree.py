"""Features in trees: a child is active only where its parent is. Data on which absorption can be counted."""

from __future__ import annotations

import torch

from splinterp._checks import at_least, whole
from splinterp._typing import Float, Int, Tensor
from splinterp.data.synthetic import SyntheticData, SyntheticSamples


class FeatureTree(SyntheticData):
    """x = H V + noise with the features of H in trees (as in the toy models of arXiv 2409.14507 and 2503.17547).

    Roots are active independently; where a feature is active each of its children is, independently, with its own probability, or with
    `exclusive` one child at most. V has rows N(0, 1 / d_in) scaled to unit norm. An SAE of few latents a sample gains by letting the
    child's latent carry the parent's direction too, and the parent's be silent where the child fires: absorption
    (`metrics.absorption`).

    Args:
        n_roots: trees.
        branching: children of each feature, level by level below the roots: (3, 2) has 3 children of each root and 2 of each of those.
        d_in: columns of V.
        p_root: probability that a root is active.
        p_child: probability that a feature with an active parent has a given child active (`exclusive`: any).
        exclusive: at most one child of a feature at a time.
        magnitudes: active entries of H are uniform in [1 - magnitudes, 1 + magnitudes]; 0 makes them 1.
        noise: standard deviation of Gaussian noise on every entry of x.
        generator: CPU generator of V; None is one seeded with 0.

    Attributes: `features` (n_features, d_in), level by level; `parents` (n_features,), -1 for roots; `frequencies` (n_features,).

    Raises:
        TypeError, ValueError: sizes below 1, probabilities outside (0, 1], magnitudes outside [0, 1), noise below 0.
    """

    features: Float[Tensor, "n_features d_in"]
    parents: Int[Tensor, " n_features"]
    frequencies: Float[Tensor, " n_features"]

    def __init__(
        self, n_roots: int, branching: tuple[int, ...], d_in: int, *, p_root: float = 0.1, p_child: float = 0.5, exclusive: bool = False,
        magnitudes: float = 0.0, noise: float = 0.0, generator: torch.Generator | None = None,
    ) -> None:  # fmt: skip
        whole("n_roots", n_roots, 1)
        whole("d_in", d_in, 1)
        for size in branching:
            whole("each of branching", size, 1)
        for name, p in {"p_root": p_root, "p_child": p_child}.items():
            if not 0 < p <= 1:
                raise ValueError(f"{name}={p} must lie in (0, 1]")
        at_least("magnitudes", magnitudes, 0.0)
        if magnitudes >= 1:
            raise ValueError(f"magnitudes={magnitudes} must be below 1: an active feature would be 0")
        at_least("noise", noise, 0.0)
        self.branching, self.p_root, self.p_child = tuple(branching), p_root, p_child
        self.exclusive, self.magnitudes, self.noise = exclusive, magnitudes, noise
        parents, above = [-1] * n_roots, list(range(n_roots))
        frequencies = [p_root] * n_roots
        for size in branching:
            share = p_child / size if exclusive else p_child
            first = len(parents)
            parents += [parent for parent in above for _ in range(size)]
            frequencies += [share * frequencies[parent] for parent in parents[first:]]
            above = list(range(first, len(parents)))
        self.parents, self.frequencies = torch.tensor(parents), torch.tensor(frequencies, dtype=torch.float64)
        generator = generator if generator is not None else torch.Generator().manual_seed(0)
        self.features = torch.nn.functional.normalize(torch.randn(len(parents), d_in, device="cpu", generator=generator), dim=1)

    def sample(self, n: int, generator: torch.Generator) -> SyntheticSamples:
        """Draw n samples, float32, on the CPU. Raises ValueError for n below 1."""
        whole("n", n, 1)
        n_roots = int((self.parents < 0).sum())
        levels = [torch.rand(n, n_roots, device="cpu", generator=generator) < self.p_root]
        for size in self.branching:
            above = levels[-1]
            if self.exclusive:
                which = torch.randint(size, (n, above.shape[1]), device="cpu", generator=generator)
                any_ = torch.rand(n, above.shape[1], device="cpu", generator=generator) < self.p_child
                chosen = torch.nn.functional.one_hot(which, size).bool() & any_[:, :, None]
            else:
                chosen = torch.rand(n, above.shape[1], size, device="cpu", generator=generator) < self.p_child
            levels.append((chosen & above[:, :, None]).flatten(1))
        codes = torch.cat(levels, 1).to(torch.float32)
        if self.magnitudes:
            codes *= 1 + self.magnitudes * (2 * torch.rand(codes.shape, device="cpu", generator=generator) - 1)
        return self._samples(codes, generator)
