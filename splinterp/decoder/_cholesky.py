"""Positive definite systems: one factored apart, for several uses, and one solved where it stands and left as it was where it is
not safely definite."""

from __future__ import annotations

from typing import NamedTuple

import scipy.linalg
import torch

from splinterp._typing import Float, Tensor

SAFE = {torch.float64: 1e-9, torch.float32: 1e-5}
"""Smallest reciprocal condition number, estimated, at which a factor without a ridge is used; below it the rank is in doubt."""


SMALL = 2_048
"""Latents up to which a second copy of the matrix is not minded."""


class Factor(NamedTuple):
    """gram + strength I = L L^T."""

    strength: float
    lower: Float[Tensor, "m m"]
    """L; above its diagonal lies what is not to be read."""

    def forward(self, right: Float[Tensor, "m d"]) -> Float[Tensor, "m d"]:
        """L^{-1} right."""
        return torch.linalg.solve_triangular(self.lower, right, upper=False)

    def backward(self, right: Float[Tensor, "m d"]) -> Float[Tensor, "m d"]:
        """L^{-T} right."""
        return torch.linalg.solve_triangular(self.lower.T, right, upper=True)

    def solve(self, right: Float[Tensor, "m d"]) -> Float[Tensor, "m d"]:
        """(gram + strength I)^{-1} right."""
        return self.backward(self.forward(right))


def _takes_lapack(gram: Tensor) -> bool:
    """Whether SciPy's LAPACK factors it, which is up to twice as fast as torch's on one thread. With more its threads and torch's
    wait for each other by spinning."""
    return gram.device.type == "cpu" and torch.get_num_threads() == 1


def factored(gram: Float[Tensor, "m m"], strength: float, room: Float[Tensor, "m m"] | None = None) -> Factor | None:
    """The factor of gram + strength I, in `room` where it is given (and used); None where that is not positive definite."""
    matrix = gram.clone() if room is None else room.copy_(gram)
    matrix.diagonal().add_(strength)
    if not _takes_lapack(gram):
        lower, failed = torch.linalg.cholesky_ex(matrix)
        return None if failed else Factor(strength, lower)
    a = matrix.numpy().T  # in Fortran's order, and symmetric
    (potrf,) = scipy.linalg.get_lapack_funcs(("potrf",), (a,))
    _, info = potrf(a, lower=1, clean=0, overwrite_a=1)
    return Factor(strength, matrix.T) if info == 0 else None


def cholesky_in_place(gram: Float[Tensor, "m m"], strength: float, right: Float[Tensor, "m d"]) -> bool:
    """Overwrite `right` by (gram + strength I)^{-1} right, and `gram` by its factor; both contiguous.

    Returns False, with `right` unchanged and `gram` restored, if the matrix is not positive definite or, at strength 0, near to
    that. Dead latents (rows of zeros) make it so. On a GPU strength 0 always returns False, and there is a second copy.
    """
    if gram.device.type != "cpu" or (strength > 0 and len(gram) <= SMALL and not _takes_lapack(gram)):
        factor = factored(gram, strength) if strength > 0 else None
        if factor is not None:
            right.copy_(factor.solve(right))
        return factor is not None
    diagonal = gram.diagonal().clone()
    if strength == 0 and not bool((diagonal > 0).all()):
        return False
    size = float(gram.abs().sum(0).max()) if strength == 0 else 0.0  # its 1-norm
    gram.diagonal().add_(strength)
    a = gram.numpy().T  # in Fortran's order, and symmetric
    potrf, pocon = scipy.linalg.get_lapack_funcs(("potrf", "pocon"), (a,))
    factor, info = potrf(a, lower=1, clean=0, overwrite_a=1)
    safe = info == 0
    if safe and strength == 0:
        reciprocal, _ = pocon(factor, size, uplo="L")
        safe = bool(reciprocal > SAFE[gram.dtype])
    if not safe:  # the other triangle still has the matrix
        lower = torch.tril(gram, -1)
        gram.copy_(lower + lower.T)
        gram.diagonal().copy_(diagonal)
        return False
    # Fortran's lower factor L is the upper triangle here; nothing else of `gram` is read
    torch.linalg.solve_triangular(gram.T, right, upper=False, out=right)
    torch.linalg.solve_triangular(gram, right, upper=True, out=right)
    return True
