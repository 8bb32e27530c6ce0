from __future__ import annotations

import pytest
import torch
from sklearn.preprocessing import Normalizer, StandardScaler

from splinterp.data import Standardizer, StoreWriter
from tests.helpers import samples


def test_against_scikit_learn():
    x, other = samples(80, dtype=torch.float64), samples(20, seed=1, dtype=torch.float64)
    scaler = StandardScaler().fit(x.numpy())
    torch.testing.assert_close(
        Standardizer("per_feature").fit(x).transform(other), torch.from_numpy(scaler.transform(other.numpy()))
    )
    unit = torch.from_numpy(Normalizer().transform(other.numpy()))
    torch.testing.assert_close(Standardizer("unit_norm").fit(x).transform(other), unit)
    one = Standardizer("global").fit(x)
    torch.testing.assert_close(one.transform(other), (other - x.mean()) / x.std(correction=0))
    assert torch.equal(Standardizer("none").fit_transform(x), x)


@pytest.mark.parametrize("mode", ["none", "global", "per_feature"])
def test_inverse(mode):
    x = samples(30)
    standardizer = Standardizer(mode).fit(x)
    torch.testing.assert_close(standardizer.inverse(standardizer.transform(x)), x, rtol=1e-5, atol=1e-5)
    assert standardizer.transform(x).dtype == torch.float32


def test_constant_columns_are_centred_and_named():
    x = samples(30)
    x[:, 3] = 0.1
    x[:, 5] = 7.0
    with pytest.warns(UserWarning, match="2 of 8 columns are constant"):
        standardizer = Standardizer("per_feature").fit(x)
    test = samples(5, seed=2)
    out = standardizer.transform(test)
    assert float(out.abs().max()) < 100
    torch.testing.assert_close(out[:, 5], test[:, 5] - 7)


def test_save_and_load(tmp_path):
    x = samples(30)
    for mode in ("none", "global", "per_feature", "unit_norm"):
        standardizer = Standardizer(mode).fit(x)
        standardizer.save(tmp_path / mode)
        assert torch.equal(Standardizer.load(tmp_path / mode).transform(x), standardizer.transform(x))


def test_errors():
    x = samples(10)
    with pytest.raises(ValueError, match="known: 'none', 'global', 'per_feature', 'unit_norm'"):
        Standardizer("whiten")
    with pytest.raises(RuntimeError, match=r"call fit\(x_train\)"):
        Standardizer("global").transform(x)
    with pytest.raises(ValueError, match="constant"):
        Standardizer("global").fit(torch.full((7, 3), 0.1, dtype=torch.float64))
    with pytest.raises(ValueError, match="at least 2 samples"):
        Standardizer("global").fit(x[:1])
    with pytest.raises(ValueError, match="cannot be undone"):
        Standardizer("unit_norm").fit(x).inverse(x)
    with pytest.raises(ValueError, match="7 columns but 8"):
        Standardizer("global").fit(x).transform(x[:, :7])
    with pytest.raises(RuntimeError, match="no statistics"):
        Standardizer("global").save("/nowhere")
    assert torch.equal(Standardizer("unit_norm").fit(x).transform(torch.zeros(2, 8)), torch.zeros(2, 8))


@pytest.mark.parametrize("mode", ["none", "global", "per_feature", "unit_norm"])
def test_statistics_are_no_part_of_a_graph(tmp_path, mode):
    x = torch.nn.Linear(8, 8)(samples(30))
    standardizer = Standardizer(mode).fit(x)
    assert not standardizer.mean.requires_grad
    assert not standardizer.scale.requires_grad
    standardizer.save(tmp_path)
    assert standardizer.transform(x).requires_grad  # a step of a model, where it is one
    with torch.no_grad():
        assert not standardizer.transform(x).requires_grad


@pytest.mark.parametrize("mode", ["global", "per_feature"])
@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_a_store_that_is_not_finite_is_refused(tmp_path, mode, value, dtype):
    x = samples(30)
    x[17, 5] = value
    writer = StoreWriter(tmp_path, 8, dtype)
    writer.append(x, torch.zeros(30, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match="non-finite entries in 1 of 8 columns, the first of them column 5"):
        Standardizer(mode).fit(writer.finish())


def test_codes_of_whole_numbers_are_not_cut_to_them():
    standardizer = Standardizer("global").fit(samples(30))
    for whole in (torch.ones(2, 8, dtype=torch.int64), torch.ones(2, 8, dtype=torch.int64).numpy()):
        with pytest.raises(TypeError, match="int64"):
            standardizer.inverse(whole)
