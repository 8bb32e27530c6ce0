"""Features in trees: parents, frequencies, exclusive children, seeds."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from splinterp.data import FeatureTree
from tests.helpers import rng


@given(
    n_roots=st.integers(1, 4), branching=st.lists(st.integers(1, 3), max_size=2), exclusive=st.booleans(),
    magnitudes=st.sampled_from([0.0, 0.5]), seed=st.integers(0, 10**6),
)  # fmt: skip
def test_children_are_active_only_with_their_parents(n_roots, branching, exclusive, magnitudes, seed):
    tree = FeatureTree(n_roots, tuple(branching), 6, p_root=0.5, exclusive=exclusive, magnitudes=magnitudes)
    x, codes = tree.sample(40, rng(seed))
    active = codes != 0
    for feature, parent in enumerate(tree.parents.tolist()):
        if parent >= 0:
            assert not (active[:, feature] & ~active[:, parent]).any()
            if exclusive:
                siblings = active[:, tree.parents == parent]
                assert int(siblings.sum(1).max()) <= 1
    torch.testing.assert_close(x, codes @ tree.features)
    assert float((codes[active] - 1).abs().amax() if active.any() else 0.0) <= magnitudes + 1e-6
    assert torch.equal(tree.sample(40, rng(seed)).x, x)


@pytest.mark.parametrize("exclusive", [False, True])
def test_frequencies_are_as_said(exclusive):
    tree = FeatureTree(3, (2, 3), 6, p_root=0.4, p_child=0.6, exclusive=exclusive)
    assert len(tree.features) == 3 + 6 + 18
    found = (tree.sample(40_000, rng(1)).codes != 0).double().mean(0)
    assert float((found - tree.frequencies).abs().max()) < 0.012
    torch.testing.assert_close(tree.features.norm(dim=1), torch.ones(27))


def test_noise_and_batches():
    tree = FeatureTree(2, (2,), 6, noise=0.1)
    x, codes = tree.sample(4_000, rng(0))
    assert float((x - codes @ tree.features).std()) == pytest.approx(0.1, rel=0.03)
    assert [len(part.x) for part in tree.batches(3, 5, rng(0))] == [5, 5, 5]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"p_root": 0.0}, "p_root=0.0"),
        ({"p_child": 1.5}, "p_child=1.5"),
        ({"magnitudes": 1.0}, "magnitudes=1.0"),
        ({"noise": -1.0}, "noise=-1"),
        ({"n_roots": 0}, "n_roots=0"),
        ({"branching": (0,)}, "branching=0"),
    ],
)
def test_what_cannot_be_is_refused(options, words):
    with pytest.raises(ValueError, match=words):
        FeatureTree(**{"n_roots": 2, "branching": (2,), "d_in": 4, **options})
