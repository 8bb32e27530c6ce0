"""The checker that the other tests rely on refuses wrong shapes and types, also inside functions."""

from __future__ import annotations

import pytest
import torch

from splinterp import TopK
from splinterp.sparse_kernels import _select, decode_sparse, select_largest
from splinterp.training.bias_block import rms_norm
from tests.helpers import make_sae


def test_shapes_that_disagree_are_refused():
    values, indices = torch.ones(3, 2), torch.zeros(3, 2, dtype=torch.int64)
    decode_sparse(values, indices, torch.ones(5, 4), torch.ones(4), None)
    with pytest.raises(TypeError, match="Type-check error whilst checking the parameters"):
        decode_sparse(values, indices, torch.ones(5, 4), torch.ones(6), None)
    with pytest.raises(TypeError, match="Type-check error"):
        select_largest(torch.ones(3), 1)


def test_types_are_checked_where_no_shape_is_named(monkeypatch):
    with pytest.raises(TypeError, match="not instance of int"):
        TopK("3")
    with pytest.raises(TypeError):
        rms_norm(make_sae(), [1.0, 2.0])
    monkeypatch.setattr(_select, "in_threads", lambda work, starts, threads: work("0"))
    with pytest.raises(TypeError, match="search: start='0' is not"):
        select_largest(torch.ones(3, 4), 1)
