"""Decoders of groups: each the best on its own samples, none worse than the shared one."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from splinterp.decoder import group_decoders
from tests.helpers import ACTIVATIONS, DECODERS, make_sae, rng, samples

LAYERS = {
    f"layer {j}": samples(150, seed=j, dtype=torch.float64) @ torch.randn(8, 8, generator=rng(j), dtype=torch.float64)
    for j in range(3)
}


@given(
    activation=st.sampled_from(list(ACTIVATIONS)), decoder=st.sampled_from(DECODERS), ridge=st.sampled_from([0.0, 1.0, "gcv"])
)
def test_no_group_is_worse_off_than_with_the_shared_decoder(activation, decoder, ridge):
    sae = make_sae(activation, decoder, dtype=torch.float64)
    sae.calibrate(torch.cat(list(LAYERS.values())))
    before = {name: value.clone() for name, value in sae.state_dict().items()}
    found = group_decoders(sae, LAYERS, ridge=ridge)
    sae.eval()
    for name, x in LAYERS.items():
        codes = sae.encode(x).detach()
        error = (x - codes @ found[name].W_dec - found[name].b_dec).square().sum()
        assert float(error) <= float((x - sae(x).x_hat.detach()).square().sum()) * (1 + 1e-9)
        if ridge == 0.0:
            ones = torch.cat([codes, torch.ones(len(x), 1, dtype=torch.float64)], 1)
            best = torch.linalg.lstsq(ones, x, driver="gelsd").solution
            assert float(error) == pytest.approx(float((x - ones @ best).square().sum()), rel=1e-7, abs=1e-9)
    assert all(torch.equal(value, before[name]) for name, value in sae.state_dict().items() if name != "activation.threshold")


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="groups is empty"):
        group_decoders(make_sae(), {})
    with pytest.raises(ValueError, match=r"groups\['a'\]"):
        group_decoders(make_sae(), {"a": torch.zeros(5, 3)})
