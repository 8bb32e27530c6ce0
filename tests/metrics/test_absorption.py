"""Absorption on codes whose absorption is known."""

from __future__ import annotations

import pytest
import torch

from splinterp.data import FeatureTree
from splinterp.metrics import absorption, detectors
from tests.helpers import rng


def world(n=2_000):
    """Two parents with a child each, orthonormal directions: features 0 and 1, then 2 (of 0) and 3 (of 1)."""
    tree = FeatureTree(2, (1,), 4, p_root=0.5, p_child=0.4)
    tree.features = torch.eye(4)
    x, codes = tree.sample(n, rng(0))
    return x, codes, tree.features


def absorbed(codes, rows):
    """The first child's latent carries its parent too, and the parent's is silent there."""
    acts, W_dec = codes.clone(), rows.clone()
    W_dec[2] += W_dec[0]
    acts[:, 0] *= codes[:, 2] == 0
    return acts, W_dec


def test_the_true_code_absorbs_nothing():
    x, codes, features = world()
    assert absorption(x, codes, features, features, codes != 0).tolist() == [0.0] * 4


def test_a_latent_that_carries_its_parent_absorbs_it():
    x, codes, features = world()
    acts, W_dec = absorbed(codes, features)
    torch.testing.assert_close(acts @ W_dec, x)  # the same reconstruction
    found = absorption(x, acts, W_dec, features, codes != 0)
    # F1 of the parent's latent alone is too low for the child's to be no detector beside it: then nothing is silent
    mains = detectors(acts, codes[:, 0] != 0)
    assert mains == [0, 2]
    assert found.tolist() == [0.0] * 4


def test_rare_children_absorb_by_their_share():
    tree = FeatureTree(2, (30,), 62, p_root=0.5, p_child=0.02)
    tree.features = torch.eye(62)
    x, codes = tree.sample(6_000, rng(0))
    acts, W_dec = codes.clone(), tree.features.clone()
    for child in range(2, 17):  # 15 of the first parent's 30 children
        W_dec[child] += W_dec[0]
        acts[:, 0] *= codes[:, child] == 0
    found = absorption(x, acts, W_dec, tree.features, codes != 0)
    parent = codes[:, 0] != 0
    expected = float(((codes[:, 2:17] != 0).any(1) & parent).double().sum() / parent.double().sum())
    assert expected > 0.2
    assert detectors(acts, parent) == [0]
    assert float(found[0]) == pytest.approx(expected)
    assert float(found[1]) == 0.0
    high = absorption(x, acts, W_dec, tree.features, codes != 0, cosine=0.9)  # the child's row is at 45 degrees
    assert float(high[0]) == 0.0
    scaled = absorption(x, acts * 0.3, W_dec, tree.features, codes != 0)  # carries 30 % of the projection
    assert float(scaled[0]) < 0.2 * expected  # two or more of them together still do
    signs = torch.where(torch.arange(62) % 2 == 0, -1.0, 1.0)  # the same map with negative codes
    flipped = absorption(x, acts * signs, W_dec * signs[:, None], tree.features, codes != 0)
    torch.testing.assert_close(flipped, found)
    moved = absorption(x + 2.0, acts, W_dec, tree.features, codes != 0, b_dec=torch.full((62,), 2.0))
    torch.testing.assert_close(moved, found)


def test_silence_without_a_carrier_is_no_absorption():
    x, codes, features = world()
    acts = torch.cat([codes, (codes[:, :1] != 0) & (codes[:, 2:3] == 0)], 1)  # fires where the parent is alone, along nothing
    acts[:, 0] = 0.0
    rows = torch.cat([features, torch.tensor([[0.0, 0.0, 0.0, 1e-3]])])
    found = absorption(x, acts, rows, features, codes != 0)
    assert float(found[0]) == 0.0


def test_a_feature_that_is_never_there_has_none():
    x, codes, features = world()
    active = codes != 0
    active[:, 1] = False
    assert torch.isnan(absorption(x, codes, features, features, active)).tolist() == [False, True, False, False]


def test_shapes_that_do_not_fit_are_refused():
    x, codes, features = world(10)
    with pytest.raises(ValueError, match=r"must be \(10, 4\) and \(10, 4\)"):
        absorption(x, codes[:, :3], features, features, codes != 0)
    with pytest.raises(ValueError, match="most"):
        absorption(x, codes, features, features, codes != 0, most=0)


def test_how_much_and_how_many_have_to_carry():
    """A parent of size 1 beside two latents that carry 0.3 of it each."""
    x = torch.zeros(40, 4)
    x[:20, 0] = 1.0
    acts = torch.zeros(40, 4)
    acts[:12, 0] = 1.0
    acts[12:20, 1:3] = 0.3
    acts[20:, 1:3] = 0.3  # they fire elsewhere too: no detectors
    rows = torch.tensor([[1.0, 0.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]])
    found = {}
    for name, options in {"plain": {}, "one": {"most": 1}, "more": {"share": 0.7}}.items():
        found[name] = float(absorption(x, acts, rows, torch.eye(4)[:1], x[:, :1] > 0, **options)[0])
    assert found == {"plain": pytest.approx(0.4), "one": 0.0, "more": 0.0}
