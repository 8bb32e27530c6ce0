"""SAELens folders: round trips, and the written tensors run by SAELens' own formula."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from splinterp import SAE, SGD, AbsTopK, BatchTopK, ReLU, fit
from splinterp.data import Standardizer
from splinterp.interop import load_saelens, save_saelens, to_nonnegative
from tests.helpers import ACTIVATIONS, DECODERS, make_sae, rng, samples


def moved(activation, decoder, **options):
    """An SAE whose every parameter is away from its start."""
    sae = make_sae(activation, decoder, **options)
    fit(sae, samples(), SGD(lr=0.05), epochs=3, generator=rng(3))
    return sae.eval()


def by_the_formula(folder, x):
    """What SAELens computes from the files."""
    config, t = json.loads((folder / "cfg.json").read_text()), load_file(folder / "sae_weights.safetensors")
    assert config["metadata"]["sae_lens_version"] >= "6.0.0"
    assert config["dtype"] == "float32"
    pre = (x - t["b_dec"] * config["apply_b_dec_to_input"]) @ t["W_enc"] + t["b_enc"]
    kind = config["architecture"]
    if kind == "jumprelu":
        acts = pre.relu() * (pre > t["threshold"])
    elif kind == "standard":
        acts = pre.relu()
    else:
        chosen = (pre if kind == "topk" else pre.abs()).topk(config["k"], dim=1).indices
        values = pre.gather(1, chosen)
        acts = torch.zeros_like(pre).scatter(1, chosen, values.relu() if kind == "topk" else values)
    return acts, acts @ t["W_dec"] + t["b_dec"]


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("center", [False, True])
def test_the_written_map_is_the_same_map(tmp_path, activation, decoder, center):
    sae, x = moved(activation, decoder, b_pre=center), samples(seed=5)
    folder = save_saelens(sae, tmp_path)
    acts, x_hat = by_the_formula(folder, x)
    with torch.no_grad():
        torch.testing.assert_close(acts, sae.encode(x), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(x_hat, sae(x).x_hat, rtol=1e-4, atol=1e-4)
        back, config = load_saelens(folder)
        torch.testing.assert_close(back(x).x_hat, sae(x).x_hat, rtol=1e-4, atol=1e-4)
    assert not back.training
    assert config["d_sae"] == 12


@pytest.mark.parametrize("mode", ["none", "global", "per_feature"])
def test_the_standardizer_is_folded_in(tmp_path, mode):
    x = samples() * torch.arange(1.0, 9.0) + 3
    standardizer = Standardizer(mode).fit(x)
    sae = moved("AbsTopK", "tied_residual", b_pre=True)
    save_saelens(sae, tmp_path, standardizer=standardizer)
    with torch.no_grad():
        expected = standardizer.inverse(sae(standardizer.transform(x)).x_hat)
    torch.testing.assert_close(by_the_formula(tmp_path, x)[1], expected, rtol=1e-3, atol=1e-3)


def test_abstopk_has_an_exact_nonnegative_form(tmp_path):
    sae, x = moved("AbsTopK", "free", b_pre=True), samples(seed=6)
    twin = to_nonnegative(sae)
    with torch.no_grad():
        acts, doubled = sae.encode(x), twin.encode(x)
        assert (doubled >= 0).all()
        torch.testing.assert_close(doubled[:, :12] - doubled[:, 12:], acts)
        torch.testing.assert_close(twin(x).x_hat, sae(x).x_hat, rtol=1e-4, atol=1e-5)
    save_saelens(sae, tmp_path, nonnegative=True)
    assert json.loads((tmp_path / "cfg.json").read_text())["architecture"] == "topk"
    torch.testing.assert_close(by_the_formula(tmp_path, x)[1], sae(x).x_hat.detach(), rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="not ReLU"):
        to_nonnegative(make_sae("ReLU"))


def test_centred_and_rescaled_folders_of_others_load_exactly(tmp_path):
    g = rng(4)
    t = {"W_enc": torch.randn(6, 10, generator=g), "b_enc": torch.randn(10, generator=g), "W_dec": 3 * torch.randn(10, 6, generator=g),
         "b_dec": torch.randn(6, generator=g)}  # fmt: skip
    config = {
        "architecture": "topk", "d_in": 6, "d_sae": 10, "k": 3, "dtype": "float32", "apply_b_dec_to_input": True,
        "rescale_acts_by_decoder_norm": True, "normalize_activations": "none", "metadata": {"sae_lens_version": "6.54.0"},
    }  # fmt: skip
    save_file(t, tmp_path / "sae_weights.safetensors")
    (tmp_path / "cfg.json").write_text(json.dumps(config))
    x = torch.randn(40, 6, generator=g)
    norms = t["W_dec"].norm(dim=1)
    pre = ((x - t["b_dec"]) @ t["W_enc"] + t["b_enc"]) * norms
    top = pre.topk(3, dim=1)
    acts = torch.zeros_like(pre).scatter(1, top.indices, top.values.relu())
    sae, _ = load_saelens(tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(sae.encode(x), acts, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(sae(x).x_hat, (acts / norms) @ t["W_dec"] + t["b_dec"], rtol=1e-4, atol=1e-4)


def test_metadata_is_kept(tmp_path):
    save_saelens(
        make_sae("TopK"), tmp_path, model_name="m", hook_name="blocks.3.hook_resid_post", context_size=128, prepend_bos=True
    )
    metadata = json.loads((tmp_path / "cfg.json").read_text())["metadata"]
    assert (metadata["model_name"], metadata["hook_name"]) == ("m", "blocks.3.hook_resid_post")
    assert (metadata["context_size"], metadata["prepend_bos"]) == (128, True)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_rows_of_norm_one_are_the_same_map(tmp_path, activation):
    sae, x = moved(activation, "free", b_pre=True), 2 + 3 * samples(seed=5)
    standardizer = Standardizer("global").fit(x)
    by_score = activation in ("TopK", "AbsTopK")
    with torch.no_grad():
        if by_score:
            sae.W_dec.mul_(3 / sae.W_dec.norm(dim=1, keepdim=True))
        else:
            sae.W_dec[2] = 0.0  # a dead row stays one
    norms = load_file(save_saelens(sae, tmp_path / "plain", standardizer=standardizer) / "sae_weights.safetensors")[
        "W_dec"
    ].norm(dim=1)
    folder = save_saelens(sae, tmp_path / "unit", standardizer=standardizer, unit_rows=True)
    acts, x_hat = by_the_formula(folder, x)
    unit = load_file(folder / "sae_weights.safetensors")["W_dec"].norm(dim=1)
    assert (norms - unit).abs().max() > 0.1
    torch.testing.assert_close(unit, (norms > 0).float())
    with torch.no_grad():
        seen = standardizer.transform(x)
        torch.testing.assert_close(acts, sae.encode(seen) * torch.where(norms > 0, norms, 1.0), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(x_hat, standardizer.inverse(sae(seen).x_hat), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(load_saelens(folder)[0](x).x_hat, x_hat, rtol=1e-4, atol=1e-4)
    assert json.loads((folder / "cfg.json").read_text()).get("rescale_acts_by_decoder_norm", False) == by_score


@pytest.mark.parametrize("spoil", [lambda rows: rows[3].mul_(1.01), lambda rows: rows[3].zero_()])
@pytest.mark.parametrize("activation", ["TopK", "AbsTopK"])
def test_rows_that_a_topk_cannot_scale_are_named(tmp_path, activation, spoil):
    sae = moved(activation, "free")
    with torch.no_grad():
        sae.W_dec.div_(sae.W_dec.norm(dim=1, keepdim=True))
        spoil(sae.W_dec)
    with pytest.raises(ValueError, match=f"unit_rows=True: {activation} selects by scores"):
        save_saelens(sae, tmp_path, unit_rows=True)
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_written_or_read_is_named(tmp_path):
    with pytest.raises(RuntimeError, match="no threshold"):
        save_saelens(SAE(8, 12, BatchTopK(2)), tmp_path)
    with pytest.raises(ValueError, match="not ReLU"):
        save_saelens(SAE(8, 12, ReLU()), tmp_path, nonnegative=True)
    save_saelens(SAE(8, 12, AbsTopK(2)), tmp_path)
    path = tmp_path / "cfg.json"
    config = json.loads(path.read_text())
    for change, message in (({"architecture": "transcoder"}, "architecture='transcoder'"),
                            ({"normalize_activations": "layer_norm"}, "layer_norm"),
                            ({"d_sae": 13}, "cfg.json says"), ({"architecture": "jumprelu"}, "threshold")):  # fmt: skip
        path.write_text(json.dumps({**config, **change}))
        with pytest.raises((ValueError, RuntimeError), match=message):
            load_saelens(tmp_path)


def folder_of_others(folder, change, tensors=None, drop=()):
    """A folder as other programs write it; returns its four tensors."""
    g = rng(4)
    t = {"W_enc": torch.randn(6, 10, generator=g), "b_enc": torch.randn(10, generator=g), "W_dec": 3 * torch.randn(10, 6, generator=g),
         "b_dec": torch.randn(6, generator=g)}  # fmt: skip
    config = {
        "architecture": "standard", "d_in": 6, "d_sae": 10, "dtype": "float32", "apply_b_dec_to_input": False,
        "normalize_activations": "none", **change,
    }  # fmt: skip
    t.update(tensors or {})
    save_file(t, folder / "sae_weights.safetensors")
    (folder / "cfg.json").write_text(json.dumps({name: value for name, value in config.items() if name not in drop}))
    return t


def expected_x_hat(t, x, k=None, centred=False):
    pre = (x - t["b_dec"] * centred) @ t["W_enc"] + t["b_enc"]
    if k is not None:
        top = pre.topk(k, dim=1)
        pre = torch.zeros_like(pre).scatter(1, top.indices, top.values)
    return pre.relu() @ t["W_dec"] + t["b_dec"]


@pytest.mark.parametrize(
    ("change", "drop", "k", "centred"),
    [
        ({"activation_fn_str": "topk", "activation_fn_kwargs": {"k": 3}}, (), 3, False),
        ({"activation_fn_str": "topk", "activation_fn_kwargs": {"k": 3}}, ("architecture",), 3, False),
        ({"architecture": "topk", "activation_fn_str": "topk", "activation_fn_kwargs": {"k": 2}}, (), 2, False),
        ({"architecture": "topk", "activation_fn_kwargs": {"k": 2}, "k": 2}, (), 2, False),
        ({"architecture": "topk", "k": 4.0}, (), 4, False),
        ({"activation_fn_str": "relu", "activation_fn_kwargs": {}}, (), None, False),
        ({"normalize_activations": False}, ("architecture",), None, False),
        ({}, ("apply_b_dec_to_input",), None, True),
        ({"apply_b_dec_to_input": True}, (), None, True),
        ({"rescale_acts_by_decoder_norm": True}, (), None, False),  # an option of topk alone
    ],
)
def test_older_folders_are_the_map_that_they_were(tmp_path, change, drop, k, centred):
    t, x = folder_of_others(tmp_path, change, drop=drop), torch.randn(40, 6, generator=rng(5))
    sae, _ = load_saelens(tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(sae(x).x_hat, expected_x_hat(t, x, k, centred), rtol=1e-4, atol=1e-4)


def test_a_scaling_factor_of_ones_is_read_and_another_one_named(tmp_path):
    t, x = folder_of_others(tmp_path, {}, {"scaling_factor": torch.ones(10)}), torch.randn(40, 6, generator=rng(5))
    with torch.no_grad():
        torch.testing.assert_close(load_saelens(tmp_path)[0](x).x_hat, expected_x_hat(t, x), rtol=1e-4, atol=1e-4)
    folder_of_others(tmp_path, {}, {"scaling_factor": torch.full((10,), 2.0)})
    with pytest.raises(ValueError, match="scaling_factor other than 1"):
        load_saelens(tmp_path)


@pytest.mark.parametrize("architecture", ["topk", "abstopk"])
def test_a_decoder_row_of_zeros_stays_dead(tmp_path, architecture):
    zero = 3 * torch.randn(10, 6, generator=rng(6))
    zero[3] = 0
    change = {"architecture": architecture, "k": 3, "rescale_acts_by_decoder_norm": True}
    folder_of_others(tmp_path, change, {"W_dec": zero})
    sae, _ = load_saelens(tmp_path)
    out = sae(torch.randn(40, 6, generator=rng(5)))
    assert torch.isfinite(out.x_hat).all()
    assert not out.acts[:, 3].any()
    assert out.acts.any(0).sum() == 9


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"activation_fn_str": "tanh-relu"}, "activation_fn_str='tanh-relu'"),
        ({"activation_fn": "tanh-relu"}, "activation_fn_str='tanh-relu'"),
        ({"activation_fn_str": "topk"}, "neither k nor activation_fn_kwargs.k"),
        ({"activation_fn_str": ["topk"]}, "activation_fn_str="),
        ({"architecture": "topk", "k": 2.9}, "k=2.9 must be a whole number"),
        ({"architecture": "topk", "k": True}, "k=True must be a whole number"),
        ({"architecture": "topk", "k": 0}, "k=0 must be"),
        ({"architecture": "topk", "k": 11}, "k=11 is larger"),
        ({"architecture": "topk", "activation_fn_kwargs": {"k": 2.9}}, "activation_fn_kwargs.k=2.9 must be"),
        ({"architecture": "topk", "activation_fn_kwargs": [3]}, r"activation_fn_kwargs=\[3\] must be an object"),
        ({"architecture": "topk", "k": 2, "activation_fn_kwargs": {"k": 3}}, "k=2 and activation_fn_kwargs.k=3 differ"),
        ({"apply_b_dec_to_input": "false"}, "apply_b_dec_to_input='false' must be true or false"),
        ({"apply_b_dec_to_input": None}, "apply_b_dec_to_input=None"),
        ({"architecture": "topk", "k": 2, "rescale_acts_by_decoder_norm": "false"}, "rescale_acts_by_decoder_norm='false'"),
        ({"d_in": "6"}, "d_in='6' must be"),
        ({"d_sae": 10**12}, "cfg.json says"),
        ({"architecture": ["standard"]}, "architecture="),
        ({"normalize_activations": True}, "normalize_activations=True"),
    ],
)
def test_an_option_that_cannot_be_right_is_named(tmp_path, change, message):
    folder_of_others(tmp_path, change)
    with pytest.raises(ValueError, match=message) as found:
        load_saelens(tmp_path)
    assert str(tmp_path) in str(found.value)


@pytest.mark.parametrize("bad", [torch.full((10,), torch.nan), torch.ones(10, dtype=torch.int8), torch.ones(10, dtype=torch.bool),
                                 torch.ones(10, dtype=torch.complex64), torch.ones(10).to(torch.float8_e4m3fn)])  # fmt: skip
def test_tensors_that_are_no_weights_are_named(tmp_path, bad):
    folder_of_others(tmp_path, {}, {"b_enc": bad})
    with pytest.raises(ValueError, match="b_enc in .*sae_weights.safetensors has"):
        load_saelens(tmp_path)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_sae_lens_itself_reads_and_writes_the_folder(tmp_path, activation):
    sae_lens = pytest.importorskip("sae_lens", reason="sae-lens is not installed")
    x = samples(seed=5)
    standardizer = Standardizer("global").fit(x)
    sae = moved(activation, "tied_residual", b_pre=True)
    theirs = sae_lens.SAE.load_from_disk(save_saelens(sae, tmp_path / "ours", standardizer=standardizer))
    with torch.no_grad():
        seen = standardizer.transform(x)
        torch.testing.assert_close(theirs.encode(x), sae.encode(seen), rtol=1e-4, atol=1e-4)
        expected = standardizer.inverse(sae(seen).x_hat)
        torch.testing.assert_close(theirs.decode(theirs.encode(x)), expected, rtol=1e-4, atol=1e-4)
        theirs.save_model(tmp_path / "theirs")
        torch.testing.assert_close(load_saelens(tmp_path / "theirs")[0](x).x_hat, expected, rtol=1e-4, atol=1e-4)
