"""Files of dictionary_learning, sparsify and Gemma Scope: what their own formulas make of them, and what is read back.

With those libraries installed (`make interop`) their own classes read what is written here, and the other way round.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from splinterp import SAE, SGD, AbsTopK, BatchTopK, JumpReLU, ReLU, TopK, fit
from splinterp.data import Standardizer
from splinterp.encoders import Gated
from splinterp.interop import (
    load_dictionary_learning,
    load_gemma_scope,
    load_sparsify,
    save_dictionary_learning,
    save_gemma_scope,
    save_sparsify,
)
from tests.helpers import DECODERS, rng, samples

MAKERS = {
    "ReLU": ReLU,
    "TopK": lambda: TopK(3),
    "AbsTopK": lambda: AbsTopK(3),
    "BatchTopK": lambda: BatchTopK(3),
    "JumpReLU": JumpReLU,
}


def moved(activation, decoder="free", **options):
    """An SAE whose every parameter is away from its start."""
    sae = SAE(8, 12, MAKERS[activation](), decoder, generator=rng(0), **options)
    fit(sae, samples(300), SGD(lr=0.05), epochs=3, generator=rng(3))
    return sae.eval()


def scaled():
    x = samples(300) * torch.arange(1.0, 9.0) + 3
    return x, Standardizer("per_feature").fit(x)


def kept(pre, k):
    top = pre.relu().topk(k, dim=1)
    return torch.zeros_like(pre).scatter(1, top.indices, top.values)


def by_its_formula(folder, x):
    """What dictionary_learning computes from the files."""
    trainer, t = json.loads((folder / "config.json").read_text())["trainer"], torch.load(folder / "ae.pt", weights_only=True)
    kind = trainer["dict_class"]
    if kind == "JumpReluAutoEncoder":
        pre = x @ t["W_enc"] + t["b_enc"]
        acts = (pre * (pre > t["threshold"])).relu()
        return acts, acts @ t["W_dec"] + t["b_dec"]
    bias = t["bias"] if kind == "AutoEncoder" else t["b_dec"]
    pre = ((x - bias) @ t["encoder.weight"].T + t["encoder.bias"]).relu()
    if kind == "AutoEncoderTopK":
        acts = kept(pre, int(t["k"]))
    else:
        acts = pre * (pre > t["threshold"]) if kind == "BatchTopKSAE" else pre
    return acts, acts @ t["decoder.weight"].T + bias


@pytest.mark.parametrize("activation", MAKERS)
@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("b_pre", [False, "fixed"])
def test_a_dictionary_learning_folder_is_the_same_map(activation, decoder, b_pre, tmp_path):
    sae, x = moved(activation, decoder, b_pre=b_pre), samples(seed=5)
    folder = save_dictionary_learning(sae, tmp_path, model_name="m", layer=3, submodule_name="resid")
    acts, x_hat = by_its_formula(folder, x)
    back, config = load_dictionary_learning(folder)
    with torch.no_grad():
        torch.testing.assert_close(x_hat, sae(x).x_hat, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(back(x).x_hat, sae(x).x_hat, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(back.encode(x), acts, rtol=1e-4, atol=1e-4)
        if activation != "AbsTopK":
            torch.testing.assert_close(acts, sae.encode(x), rtol=1e-4, atol=1e-4)
    assert (config["trainer"]["lm_name"], config["trainer"]["layer"]) == ("m", 3)
    assert not back.training
    assert type(back.activation).__name__ == ("TopK" if activation == "AbsTopK" else activation)


@pytest.mark.parametrize("save", [save_dictionary_learning, save_sparsify])
def test_the_standardizer_is_folded_in(save, tmp_path):
    x, standardizer = scaled()
    sae = SAE(8, 12, TopK(3), generator=rng(0))
    fit(sae, standardizer.transform(x), SGD(lr=0.05), epochs=2, generator=0)
    save(sae, tmp_path, standardizer=standardizer)
    back = (load_dictionary_learning if save is save_dictionary_learning else load_sparsify)(tmp_path)[0]
    with torch.no_grad():
        expected = standardizer.inverse(sae(standardizer.transform(x)).x_hat)
        torch.testing.assert_close(back(x).x_hat, expected, rtol=1e-4, atol=1e-3)
    with pytest.raises(ValueError, match="unit_norm"):
        save(sae, tmp_path / "n", standardizer=Standardizer("unit_norm").fit(x))


def gated():
    sae = SAE(8, 12, ReLU(), encoder=Gated(), generator=rng(0))
    with torch.no_grad():
        for p in (*sae.parameters(), sae.b_pre):
            p.add_(0.2 * torch.randn(p.shape, generator=rng(2)))
    return sae.eval()


def test_a_gated_sae_is_written_as_a_jumprelu_and_read_as_it_is(tmp_path):
    sae, x = gated(), samples(seed=5)
    save_dictionary_learning(sae, tmp_path)
    back, config = load_dictionary_learning(tmp_path)
    assert config["trainer"]["dict_class"] == "JumpReluAutoEncoder"
    torch.testing.assert_close(back(x).x_hat, sae(x).x_hat, rtol=1e-4, atol=1e-4)
    g = rng(4)
    t = {
        "encoder.weight": torch.randn(12, 8, generator=g), "decoder.weight": torch.randn(8, 12, generator=g),
        "decoder_bias": torch.randn(8, generator=g), "r_mag": torch.randn(12, generator=g), "gate_bias": torch.randn(12, generator=g),
        "mag_bias": torch.randn(12, generator=g),
    }  # fmt: skip
    torch.save(t, tmp_path / "ae.pt")
    (tmp_path / "config.json").write_text(json.dumps({"trainer": {"dict_class": "GatedAutoEncoder"}}))
    read, _ = load_dictionary_learning(tmp_path)
    scores = (x - t["decoder_bias"]) @ t["encoder.weight"].T
    acts = (scores + t["gate_bias"] > 0) * (t["r_mag"].exp() * scores + t["mag_bias"]).relu()
    torch.testing.assert_close(read.encode(x), acts, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(read(x).x_hat, acts @ t["decoder.weight"].T + t["decoder_bias"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["AutoEncoderNew", "MatryoshkaBatchTopKSAE"])
def test_its_other_classes_are_read(kind, tmp_path):
    g, x = rng(4), samples(seed=5)
    W, b, D, c = (torch.randn(*shape, generator=g) for shape in ((8, 12), (12,), (12, 8), (8,)))
    if kind == "AutoEncoderNew":
        t = {"encoder.weight": W.T.contiguous(), "encoder.bias": b, "decoder.weight": D.T.contiguous(), "decoder.bias": c}
        acts = (x @ W + b).relu()
    else:
        t = {"W_enc": W, "b_enc": b, "W_dec": D, "b_dec": c, "k": torch.tensor(3), "threshold": torch.tensor(0.7)}
        t["group_sizes"] = torch.tensor([4, 8])
        acts = ((x - c) @ W + b).relu()
        acts = acts * (acts > 0.7)
    torch.save(t, tmp_path / "ae.pt")
    (tmp_path / "config.json").write_text(json.dumps({"trainer": {"dict_class": kind, "k": 3}}))
    read, _ = load_dictionary_learning(tmp_path)
    torch.testing.assert_close(read.encode(x), acts, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(read(x).x_hat, acts @ D + c, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("activation", ["TopK", "AbsTopK"])
@pytest.mark.parametrize("b_pre", [False, "fixed"])
def test_a_sparsify_folder_is_the_same_map(activation, b_pre, tmp_path):
    sae, x = moved(activation, b_pre=b_pre), samples(seed=5)
    save_sparsify(sae, tmp_path)
    t, config = load_file(tmp_path / "sae.safetensors"), json.loads((tmp_path / "cfg.json").read_text())
    acts = kept((x - t["b_dec"]) @ t["encoder.weight"].T + t["encoder.bias"], config["k"])
    back, _ = load_sparsify(tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(acts @ t["W_dec"] + t["b_dec"], sae(x).x_hat, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(back.encode(x), acts, rtol=1e-4, atol=1e-4)
    with pytest.raises(TypeError, match="has no ReLU"):
        save_sparsify(moved("ReLU"), tmp_path)


@pytest.mark.parametrize("activation", ["ReLU", "JumpReLU", "BatchTopK", "gated"])
def test_a_gemma_scope_file_is_the_same_map(activation, tmp_path):
    sae, x = gated() if activation == "gated" else moved(activation), samples(seed=5)
    path = save_gemma_scope(sae, tmp_path / "params.npz")
    t = {name: torch.from_numpy(value) for name, value in np.load(path).items()}
    pre = x @ t["W_enc"] + t["b_enc"]
    acts = pre.relu() * (pre > t["threshold"])
    for read in (load_gemma_scope(path), load_gemma_scope(tmp_path)):
        torch.testing.assert_close(read.encode(x), acts, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(read(x).x_hat, sae(x).x_hat, rtol=1e-4, atol=1e-4)
    (tmp_path / "two").mkdir()
    save_file({name[:1].lower() + name[1:]: v for name, v in t.items()}, tmp_path / "two" / "params.safetensors")
    torch.testing.assert_close(load_gemma_scope(tmp_path / "two")(x).x_hat, sae(x).x_hat, rtol=1e-4, atol=1e-4)
    with pytest.raises(TypeError, match="no JumpReLU"):
        save_gemma_scope(moved("TopK"), tmp_path / "x.npz")


def broken(t, name, value):
    return {**{k: v for k, v in t.items() if k != name}, **({} if value is None else {name: value})}


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("encoder.bias", None, "has no encoder.bias"), ("encoder.bias", torch.zeros(3), "b_enc in .* has shape"),
        ("decoder.weight", torch.zeros(8, 5), "W_dec in .* has shape"), ("b_dec", torch.full((8,), torch.nan), "b_dec"),
        ("k", torch.tensor(0), "k=0"),
    ],
)  # fmt: skip
def test_a_damaged_dictionary_learning_folder_is_named(name, value, message, tmp_path):
    folder = save_dictionary_learning(moved("TopK"), tmp_path)
    t = torch.load(folder / "ae.pt", weights_only=True)
    torch.save(broken(t, name, value), folder / "ae.pt")
    with pytest.raises(ValueError, match=message):
        load_dictionary_learning(folder)


def test_what_cannot_be_read_is_refused_by_name(tmp_path):
    save_dictionary_learning(moved("TopK"), tmp_path / "a")
    (tmp_path / "a" / "config.json").write_text(json.dumps({"trainer": {"dict_class": "CrossCoder"}}))
    with pytest.raises(ValueError, match="dict_class='CrossCoder' is unknown"):
        load_dictionary_learning(tmp_path / "a")
    (tmp_path / "a" / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="trainer"):
        load_dictionary_learning(tmp_path / "a")
    with pytest.raises(FileNotFoundError):
        load_dictionary_learning(tmp_path / "nothing")
    save_sparsify(moved("TopK"), tmp_path / "s")
    config = json.loads((tmp_path / "s" / "cfg.json").read_text())
    for change, message in (
        ({"transcode": True}, "transcode=True"), ({"skip_connection": True}, "skip_connection=True"),
        ({"activation": "groupmax"}, "groupmax"),
        ({"d_in": 7}, "cfg.json says"), ({"k": 0}, "k"), ({"k": 99}, "k"),
    ):  # fmt: skip
        (tmp_path / "s" / "cfg.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(ValueError, match=message):
            load_sparsify(tmp_path / "s")
    path = save_gemma_scope(moved("JumpReLU"), tmp_path / "params.npz")
    t = dict(np.load(path))
    for name, value, message in (
        ("threshold", None, "there is no threshold"), ("affine_skip_connection", t["W_dec"], "affine_skip_connection"),
        ("W_dec", t["W_dec"][:, None], "several layers"), ("b_enc", t["b_enc"][:3], "b_enc"), ("W_enc", t["W_enc"] * np.nan, "W_enc"),
        ("threshold", t["threshold"][:2], "threshold"), ("b_enc", np.array([object()]), "params.npz"),
    ):  # fmt: skip
        np.savez(path, **broken(t, name, value))
        with pytest.raises(ValueError, match=message):
            load_gemma_scope(path)
    with pytest.raises(RuntimeError, match="no threshold yet"):
        save_dictionary_learning(SAE(8, 12, BatchTopK(3)), tmp_path / "b")


@pytest.mark.parametrize("activation", MAKERS)
def test_dictionary_learning_itself_reads_it(activation, tmp_path):
    utils = pytest.importorskip("dictionary_learning.utils", reason="needs dictionary_learning: make interop")
    sae, x = moved(activation), samples(seed=5)
    found, _ = utils.load_dictionary(str(save_dictionary_learning(sae, tmp_path)), "cpu")
    with torch.no_grad():
        torch.testing.assert_close(found(x), sae(x).x_hat, rtol=1e-4, atol=1e-4)
        torch.save(found.state_dict(), tmp_path / "ae.pt")  # as it writes itself
        torch.testing.assert_close(load_dictionary_learning(tmp_path)[0](x).x_hat, found(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("activation", ["TopK", "AbsTopK"])
def test_sparsify_itself_reads_it(activation, tmp_path):
    sparsify = pytest.importorskip("sparsify", reason="needs eai-sparsify: make interop")
    sae, x = moved(activation), samples(seed=5)
    found = sparsify.SparseCoder.load_from_disk(save_sparsify(sae, tmp_path / "a"))
    with torch.no_grad():
        torch.testing.assert_close(found(x).sae_out, sae(x).x_hat, rtol=1e-4, atol=1e-4)
        found.save_to_disk(tmp_path / "b")
        torch.testing.assert_close(load_sparsify(tmp_path / "b")[0](x).x_hat, sae(x).x_hat, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("activation", ["ReLU", "TopK", "BatchTopK", "JumpReLU"])
def test_saelens_itself_reads_it(activation, tmp_path):
    lens = pytest.importorskip("sae_lens", reason="needs sae-lens: make interop")
    from splinterp.interop import load_saelens, save_saelens

    sae, x = moved(activation), samples(seed=5)
    found = lens.SAE.load_from_disk(
        save_saelens(sae, tmp_path / "a", model_name="gpt2", hook_name="blocks.1.hook_resid_post"), device="cpu"
    )
    with torch.no_grad():
        torch.testing.assert_close(found(x), sae(x).x_hat, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(found.encode(x), sae.encode(x), rtol=1e-4, atol=1e-4)
        found.save_model(tmp_path / "b")
        torch.testing.assert_close(load_saelens(tmp_path / "b")[0](x).x_hat, sae(x).x_hat, rtol=1e-4, atol=1e-4)


def test_saelens_gated_saes_are_read(tmp_path):
    lens = pytest.importorskip("sae_lens", reason="needs sae-lens: make interop")
    from splinterp.interop import load_saelens

    config = lens.GatedSAEConfig(d_in=8, d_sae=12)
    config.metadata.model_name, config.metadata.hook_name = "gpt2", "blocks.1.hook_resid_post"
    found, x = lens.GatedSAE(config), samples(seed=5)
    with torch.no_grad():
        for p in found.parameters():
            p.copy_(0.5 * torch.randn(p.shape, generator=rng(3)))
        found.save_model(tmp_path)
        read, _ = load_saelens(tmp_path)
        torch.testing.assert_close(read.encode(x), found.encode(x), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(read(x).x_hat, found(x), rtol=1e-4, atol=1e-4)


def test_saelens_scales_by_norms_as_a_unit_norm_standardizer_does(tmp_path):
    from splinterp.interop import save_saelens

    sae, x = moved("TopK"), samples(seed=5) * 7 + 1
    standardizer = Standardizer("unit_norm").fit(x)
    folder = save_saelens(sae, tmp_path, standardizer=standardizer)
    config, t = json.loads((folder / "cfg.json").read_text()), load_file(folder / "sae_weights.safetensors")
    assert config["normalize_activations"] == "constant_norm_rescale"
    norms = x.norm(dim=1, keepdim=True)
    acts = kept(8**0.5 * x / norms @ t["W_enc"] + t["b_enc"], 3)
    with torch.no_grad():
        expected = sae(standardizer.transform(x)).x_hat * norms
        torch.testing.assert_close((acts @ t["W_dec"] + t["b_dec"]) * norms / 8**0.5, expected, rtol=1e-4, atol=1e-3)
        lens = pytest.importorskip("sae_lens", reason="needs sae-lens: make interop")
        torch.testing.assert_close(lens.SAE.load_from_disk(folder, device="cpu")(x), expected, rtol=1e-4, atol=1e-3)
