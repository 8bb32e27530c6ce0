"""Array annotations, with or without jaxtyping.

The test run installs jaxtyping's import hook and enforces every shape. A user's installation need not have
jaxtyping: there the names below are plain tensors and cost nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
else:
    try:
        from jaxtyping import Bool, Float, Int
    except ImportError:

        class _Plain:
            def __class_getitem__(cls, item: Any) -> Any:
                return item[0]

        Bool = Float = Int = _Plain

Array: TypeAlias = np.ndarray
"""What geometry computes with and returns."""

ArrayLike: TypeAlias = Tensor | np.ndarray
"""What a public function takes: a tensor or a NumPy array, samples in rows."""

__all__ = ["Array", "ArrayLike", "Bool", "Float", "Int", "Tensor"]
