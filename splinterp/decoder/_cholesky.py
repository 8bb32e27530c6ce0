"""A positive definite system solved where it stands, and left as it was where it is not safely definite."""

from __future__ import annotations

import scipy.linalg
import torch

from splinterp._typing import Float, Tensor

SAFE = {torch.float64: 1e-9, torch.float32: 1e-5}
"""Smallest reciprocal condition number, estimated, at which a factor without a ridge is used; below it the rank is in doubt."""


def cholesky_in_place(gram: Float[Tensor, "m m"], strength: float, right: Float[Tensor, "m d"]) -> bool:
    """Overwrite `right` by (gram + strength I)^{-1} right, and `gram` by its factor; both contiguous.

    Returns False, with `right` unchanged and `gram` restored, if the matrix is not positive definite or, at strength 0, near to
    that. Dead latents (rows of zeros) make it so. On a GPU strength 0 always returns False, and there is a second copy.
    """
    if gram.device.type != "cpu":
        return strength > 0 and _on_device(gram, strength, right)
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


def _on_device(gram: Tensor, strength: float, right: Tensor) -> bool:
    shifted = gram.clone()
    shifted.diagonal().add_(strength)
    factor, failed = torch.linalg.cholesky_ex(shifted)
    if failed:
        return False
    right.copy_(torch.cholesky_solve(right, factor))
    return True
