"""Maps with one threshold a latent, as JumpReLU SAEs."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from splinterp import SAE, AbsTopK, ReLU, TopK
from splinterp.encoders import Gated
from splinterp.geometry import region_of
from splinterp.interop import save_saelens, to_jumprelu
from tests.encoders.cases import make
from tests.helpers import DECODERS, make_sae, samples

X = samples(200, dtype=torch.float64)


@given(seed=st.integers(0, 1000), decoder=st.sampled_from(DECODERS))
def test_a_gated_sae_is_a_jumprelu(seed, decoder):
    sae = make("Gated", decoder, seed=seed)
    found = to_jumprelu(sae)
    torch.testing.assert_close(found.encode(X), sae.encode(X), atol=1e-10, rtol=1e-10)
    torch.testing.assert_close(found(X).x_hat, sae(X).x_hat, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("name", ["ReLU", "JumpReLU", "BatchTopK", "FeatureChoice"])
@pytest.mark.parametrize("decoder", DECODERS)
def test_what_has_thresholds_is_a_jumprelu(name, decoder):
    sae = make_sae(name, decoder, dtype=torch.float64).calibrate(X).eval()
    found = to_jumprelu(sae)
    torch.testing.assert_close(found(X).x_hat, sae(X).x_hat)
    assert torch.equal(found.encode(X) > 0, sae.encode(X) > 0)


def test_a_gated_sae_has_regions_and_a_saelens_folder_by_it(tmp_path):
    found = to_jumprelu(make("Gated"))
    support = region_of(found, X[0]).support
    assert sorted(support.tolist()) == make("Gated").encode(X[:1])[0].nonzero().flatten().tolist()
    save_saelens(found, tmp_path)


@pytest.mark.parametrize("activation", [TopK(3), AbsTopK(3)])
def test_what_ranks_scores_is_refused(activation):
    with pytest.raises(TypeError, match="no threshold for each latent"):
        to_jumprelu(SAE(8, 12, activation))


def test_other_refusals():
    with pytest.raises(TypeError, match="no threshold for each latent"):
        to_jumprelu(SAE(8, 12, TopK(3), encoder=Gated()))
    with pytest.raises(TypeError, match="its encoder is a Kronecker"):
        to_jumprelu(make("Kronecker"))
    for name in ("BatchTopK", "FeatureChoice"):
        with pytest.raises(RuntimeError, match="no threshold yet"):
            to_jumprelu(make_sae(name))
    assert to_jumprelu(SAE(8, 12, ReLU())).activation.threshold.max() < 1e-30


def test_what_makes_codes_in_its_own_way_is_refused():
    class Twice(SAE):
        def encode(self, x):
            return 2 * super().encode(x)

    with pytest.raises(TypeError, match="Twice overrides encode"):
        to_jumprelu(Twice(8, 12, ReLU(), encoder=Gated()))


def test_a_gated_sae_is_saved_for_saelens_by_its_jumprelu(tmp_path):
    with pytest.raises(TypeError, match="to_jumprelu"):
        save_saelens(make("Gated"), tmp_path)
