"""An SAE that was trained on standardised activations is not written for other tools without its standardizer."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from splinterp import SAE, AbsTopK, ReLU, TopK
from splinterp.data import Standardizer
from splinterp.encoders import Gated
from splinterp.interop import (
    affine_sae,
    load_saelens,
    save_dictionary_learning,
    save_gemma_scope,
    save_saelens,
    save_sparsify,
    to_jumprelu,
    to_nonnegative,
)
from tests.helpers import samples

WRITERS = {
    "saelens": save_saelens, "dictionary_learning": save_dictionary_learning, "sparsify": save_sparsify,
    "gemma_scope": lambda sae, path, **options: save_gemma_scope(sae, path / "params.npz", **options),
}  # fmt: skip


@pytest.mark.parametrize("writer", WRITERS)
def test_a_forgotten_standardizer_is_refused(writer, tmp_path):
    x = 3 + 5 * samples(60)
    standardizer = Standardizer("global").fit(x)
    SAE(8, 64, ReLU() if writer == "gemma_scope" else TopK(4), generator=0).save(tmp_path / "own", standardizer)
    sae = SAE.load(tmp_path / "own")
    (tmp_path / "out").mkdir()
    with pytest.raises(ValueError, match=r"pass standardizer=Standardizer.load\(folder\)"):
        WRITERS[writer](sae, tmp_path / "out")
    WRITERS[writer](sae, tmp_path / "out", standardizer=Standardizer.load(tmp_path / "own"))
    if writer == "saelens":
        expected = standardizer.inverse(sae(standardizer.transform(x)).x_hat)
        torch.testing.assert_close(load_saelens(tmp_path / "out")[0](x).x_hat, expected, rtol=1e-3, atol=1e-3)
    del sae.about["standardizer"]  # the other advice
    WRITERS[writer](sae, tmp_path / "out")


@pytest.mark.parametrize(
    ("sae", "converted"),
    [
        (SAE(8, 64, ReLU(), encoder=Gated(), generator=0), to_jumprelu), (SAE(8, 64, ReLU(), generator=0), to_jumprelu),
        (SAE(8, 64, AbsTopK(4), generator=0), to_nonnegative),
    ],
)  # fmt: skip
def test_a_converted_sae_still_says_that_it_needs_one(sae, converted, tmp_path):
    sae.about = {"standardizer": "of somebody"}
    assert converted(sae).about == sae.about
    with pytest.raises(ValueError, match="standardised activations"):
        save_saelens(converted(sae), tmp_path)


def test_a_module_without_a_forward():
    class Mine(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.encoder, self.decoder = nn.Linear(8, 16), nn.Linear(16, 8)

        def encode(self, x):
            return torch.relu(self.encoder(x))

    mine = Mine()
    sae = affine_sae(mine, activation=ReLU())
    x = samples(5).double()
    torch.testing.assert_close(sae(x).x_hat, mine.double().decoder(mine.encode(x)).detach())
    with pytest.raises(ValueError, match="makes something else"):
        affine_sae(mine, activation=TopK(2))


def test_folders_that_hold_something_else(tmp_path):
    with pytest.raises(FileNotFoundError, match="is not there"):
        SAE.load(tmp_path / "nope")
    sae = SAE(8, 16, TopK(4), generator=0)
    save_saelens(sae, tmp_path / "lens")
    with pytest.raises(FileNotFoundError, match="load_any"):
        SAE.load(tmp_path / "lens")
    sae.save(tmp_path / "own")
    with pytest.raises(FileNotFoundError, match="pass the folder"):
        SAE.load(tmp_path / "own" / "sae.json")
