from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from splinterp import PAMSGD, SAE, SGD, AbsTopK, BatchTopK, JumpReLU, ReLU, TopK, Transcoder, fit, paired
from splinterp.activations import BlockTopK, FeatureChoice
from splinterp.data import Standardizer
from splinterp.encoders import Kronecker
from splinterp.training import start_at_mean
from tests.helpers import ACTIVATIONS, DECODERS, make_sae, rng, samples


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_forward_is_the_formula(activation, decoder):
    sae = make_sae(activation, decoder, b_pre=True)
    with torch.no_grad():
        for p in sae.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=rng(5)))
    x = samples(20)
    out = sae(x)
    pre = (x - sae.b_pre) @ sae.W_enc + sae.b_enc
    torch.testing.assert_close(out.pre_acts, pre)
    torch.testing.assert_close(out.acts, sae.activation(pre))
    torch.testing.assert_close(out.x_hat, out.acts @ sae.W_dec + sae.b_dec)
    torch.testing.assert_close(sae.decode(sae.encode(x)), out.x_hat)


def test_kinds_of_decoder():
    free, tied, residual = (make_sae(decoder=d) for d in DECODERS)
    for sae in (free, tied, residual):
        torch.testing.assert_close(sae.W_enc, free.W_enc, rtol=0, atol=0)
        torch.testing.assert_close(sae.W_dec, sae.W_enc.T, rtol=0, atol=0)
    assert set(dict(free.named_parameters())) == {"W_enc", "b_enc", "b_dec", "W_dec"}
    assert set(dict(tied.named_parameters())) == {"W_enc", "b_enc", "b_dec"}
    assert set(dict(residual.named_parameters())) == {"W_enc", "b_enc", "b_dec", "residual"}
    with torch.no_grad():
        residual.residual.add_(1)
    torch.testing.assert_close(residual.W_dec, residual.W_enc.T + 1)
    scaled = make_sae(decoder="tied", tie_scale=True)
    with torch.no_grad():
        scaled.scale.mul_(2)
    torch.testing.assert_close(scaled.W_dec, 2 * scaled.W_enc.T)


def test_initial_scales():
    g = rng(0)
    unit = SAE(400, 300, TopK(3), generator=g)
    assert float(unit.W_enc.detach().std()) == pytest.approx(400**-0.5, rel=0.02)
    paper = SAE(400, 300, TopK(3), init="mnist-paper", init_dec="random", generator=rng(0))
    assert float(paper.W_enc.detach().std()) == pytest.approx(0.1, rel=0.02)
    assert float(paper.W_dec.detach().std()) == pytest.approx(0.01, rel=0.02)
    torch.testing.assert_close(paper.W_enc * 400**-0.5 / 0.1, unit.W_enc)
    for p in (unit.b_enc, unit.b_dec):
        assert float(p.detach().abs().sum()) == 0


def test_same_seed_same_bits_and_a_generator_leaves_the_global_state():
    before = torch.random.get_rng_state()
    a, b, c = make_sae(seed=3), make_sae(seed=3), make_sae(seed=4)
    by_int = SAE(8, 12, ACTIVATIONS["TopK"], generator=3)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(a.W_enc, b.W_enc)
    assert torch.equal(a.W_enc, by_int.W_enc)
    assert not torch.equal(a.W_enc, c.W_enc)


def test_without_a_generator_the_global_seed_decides():
    found = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        found.append([SAE(8, 12, TopK(3)).W_enc for _ in range(2)])
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])
    assert not torch.equal(found[0][0], found[0][1])  # two SAEs are two
    assert not torch.equal(found[0][0], found[2][0])
    for wrong in ("seed", 1.5, True):
        with pytest.raises(TypeError, match="generator="):
            SAE(8, 12, TopK(3), generator=wrong)


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_save_and_load(tmp_path, activation, decoder):
    sae = make_sae(activation, decoder, b_pre=True, tie_scale=decoder != "free", dtype=torch.float64)
    x = samples(60, dtype=torch.float64)
    standardizer = Standardizer("per_feature").fit(x)
    fit(sae, x, PAMSGD(lr=1e-2), epochs=2)
    sae.save(tmp_path / "new" / "sae", standardizer)
    loaded = SAE.load(tmp_path / "new" / "sae")
    sae.eval()
    assert not loaded.training
    for a, b in zip(sae(x), loaded(x), strict=True):
        assert torch.equal(a, b)
    assert set(sae.state_dict()) == set(loaded.state_dict())
    back = Standardizer.load(tmp_path / "new" / "sae")
    assert torch.equal(back.transform(x), standardizer.transform(x))
    assert not list((tmp_path / "new" / "sae").glob(".*"))


def test_load_names_what_is_wrong(tmp_path):
    sae = make_sae()
    sae.save(tmp_path)
    config = json.loads((tmp_path / "sae.json").read_text())
    (tmp_path / "sae.json").write_text(json.dumps({**config, "n_latents": 13}))
    with pytest.raises(ValueError, match=r"do not fit sae\.json"):
        SAE.load(tmp_path)
    (tmp_path / "sae.json").write_text(json.dumps({**config, "format": "other"}))
    with pytest.raises(ValueError, match="not of the format"):
        SAE.load(tmp_path)
    with pytest.raises(FileNotFoundError):
        SAE.load(tmp_path / "nowhere")


def test_conversion_of_input():
    sae = make_sae()
    x = samples(5)
    expected = sae(x).x_hat
    torch.testing.assert_close(sae(x.numpy()).x_hat, expected)
    torch.testing.assert_close(sae(x.double()).x_hat, expected)
    assert sae(x.half()).x_hat.dtype == torch.float32
    torch.testing.assert_close(sae(np.asfortranarray(x.numpy())).x_hat, expected)


def test_input_errors_say_what_to_do():
    sae = make_sae()
    with pytest.raises(ValueError, match=r"9 columns but 8 are expected: check d_in"):
        sae(torch.zeros(4, 9))
    with pytest.raises(ValueError, match=r"shape \(4, 2, 4\).*reshape to \(4, 8\)"):
        sae(torch.zeros(4, 2, 4))
    with pytest.raises(ValueError, match="samples are rows"):
        sae(torch.zeros(8))
    with pytest.raises(TypeError, match=r"torch.uint8.*float\(\) / 255"):
        sae(torch.zeros(4, 8, dtype=torch.uint8))
    with pytest.raises(TypeError, match="int64.*astype"):
        sae(np.zeros((4, 8), dtype=np.int64))
    bad = torch.zeros(4, 8)
    bad[1, 2], bad[3, 0] = float("nan"), float("inf")
    with pytest.raises(ValueError, match=r"2 non-finite entries, the first at index \(1, 2\)"):
        sae(bad)
    with pytest.raises(ValueError, match="on meta but the SAE is on cpu"):
        sae(torch.zeros(4, 8, device="meta"))
    assert torch.isfinite(sae(torch.full((2, 8), 1e38)).pre_acts).any()  # a sum that overflows is not an error


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"decoder": "loose"}, "known: 'free', 'tied', 'tied_residual'"),
        ({"init": "big"}, "init='big' is unknown"),
        ({"init_dec": "zero"}, "init_dec='zero' is unknown"),
        ({"decoder": "tied", "init_dec": "random"}, "needs decoder='free'"),
        ({"tie_scale": True}, "tie_scale=True needs"),
        ({"m": 2}, "k=3 is larger than n_latents=2"),
        ({"d": 0}, "d_in=0 must be at least 1"),
        ({"init_bias": 1.0}, "init_bias=1.0 must be a finite number, at most 0"),
        ({"init_bias": -math.inf}, "init_bias=-inf must be a finite number"),
        ({"init_bias": -1.0, "m": 8}, "after the first d_in=8, and there are 8 in all: leave it out"),
        ({"init_bias": -1.0, "activation": "AbsTopK"}, "makes no latent rare under AbsTopK"),
        ({"init_bias": -1.0, "activation": "FeatureChoice"}, "makes no latent rare under FeatureChoice, which fixes how often"),
        ({"init_bias": -1.0, "m": 12, "encoder": Kronecker(2, 2, 3)}, "Kronecker has no b_enc for each"),
    ],
)
def test_constructor_errors(options, message):
    with pytest.raises(ValueError, match=message):
        make_sae(**options)


def test_blocks_that_choose_apart_start_alike():
    with pytest.raises(ValueError, match="would silence whole blocks"):
        SAE(8, 32, BlockTopK(4, 2), init_bias=-1.0)
    x = samples(400)
    sae = SAE(8, 32, BlockTopK(8, 4), "tied", generator=0)
    fit(sae, x, SGD(lr=1e-2), epochs=3, generator=0)
    assert bool((sae.encode(x).unflatten(1, (4, 8)) != 0).any(2).any(0).all())


def test_the_start_of_dense_codes_goes_by_the_units_of_the_samples():
    x = samples(2_000, d=8)
    found = {}
    for unit in (0.02, 1.0, 50.0):
        sae = SAE(8, 64, TopK(3), "tied", generator=0)
        data = (x - x.mean(0)) / x.std() * unit
        start_at_mean(sae, data)
        found[unit] = (sae.b_enc[8:] / unit).detach(), (sae.encode(data) != 0)
    ours = found[1.0][1].float().mean(0)
    for bias, fires in found.values():
        assert float((bias + 1).abs().max()) < 0.4  # the median's order of deviations, and none where it is near 1
        assert float((fires.float().mean(0) - ours).abs().mean()) < 0.04
    given = SAE(8, 64, TopK(3), "tied", generator=0, init_bias=-1.0)  # what is asked for is done
    start_at_mean(given, 0.02 * x)
    assert bool((given.b_enc[8:] == -1).all())
    moved = SAE(8, 64, TopK(3), "tied", generator=0)
    with torch.no_grad():
        moved.b_enc[20] = 0.3  # has been trained, say
    start_at_mean(moved, 0.02 * x)
    assert float(moved.b_enc.detach()[21]) == -1


def test_the_start_in_units_leaves_what_it_should():
    x = 0.02 * samples(500)
    frozen = SAE(8, 64, TopK(3), "tied", generator=0)
    frozen.b_enc.requires_grad_(False)
    start_at_mean(frozen, x)
    assert bool((frozen.b_enc[8:] == -1).all())
    constant = SAE(8, 64, TopK(3), "tied", generator=0)
    start_at_mean(constant, torch.ones(50, 8))
    assert bool((constant.b_enc.detach()[8:] == -1).all())
    pairs = paired(samples(500), 500 * samples(500, seed=1))  # the target's units are nothing to the encoder
    transcoder = Transcoder(8, 64, TopK(3), d_out=8, generator=0)
    start_at_mean(transcoder, pairs)
    plain = SAE(8, 64, TopK(3), "tied", generator=0)
    start_at_mean(plain, pairs[:, :8])
    assert torch.equal(transcoder.b_enc, plain.b_enc)


@pytest.mark.parametrize("options", [{}, {"init_bias": -1.0}])
def test_a_saved_start_waits_for_units_as_the_one_in_memory_does(options, tmp_path):
    x = 0.02 * samples(500)
    sae = SAE(8, 64, TopK(3), "tied", generator=0, **options)
    sae.save(tmp_path / "sae")
    back = SAE.load(tmp_path / "sae")
    start_at_mean(sae, x)
    start_at_mean(back, x)
    assert torch.equal(sae.b_enc, back.b_enc)
    assert bool((sae.b_enc[8:] > -0.1).all()) == (not options)
    sae.save(tmp_path / "sae")
    again = SAE.load(tmp_path / "sae")
    start_at_mean(again, 100 * x)  # it has been brought into units before
    assert torch.equal(again.b_enc, sae.b_enc)


def test_a_start_is_brought_into_units_once(tmp_path):
    sae = SAE(8, 64, TopK(3), "tied", generator=0)
    sae.b_enc.requires_grad_(False)
    fit(sae, 0.02 * samples(500), SGD(), epochs=1, generator=0)
    sae.save(tmp_path / "sae")
    back = SAE.load(tmp_path / "sae")  # whose bias is not frozen
    start_at_mean(back, 0.02 * samples(500))
    assert torch.equal(back.b_enc, sae.b_enc)


def test_a_top_k_of_ones_own_says_itself_whether_latents_compete():
    class Halves(TopK):
        def forward(self, pre_acts):
            return pre_acts.relu()

    class Competing(Halves):
        competes = True

        def forward(self, pre_acts):
            return pre_acts.relu()

    assert SAE(8, 64, Halves(3)).config()["init_bias"] == 0
    assert SAE(8, 64, Competing(3)).config()["init_bias"] == -1


@pytest.mark.parametrize("activation", [BlockTopK(4, 2), FeatureChoice(4)])
def test_files_of_when_such_starts_were_made_are_read(activation, tmp_path):
    sae = SAE(8, 32, activation, generator=0)
    if isinstance(activation, FeatureChoice):
        sae.calibrate(samples(100))
    sae._config["init_bias"] = -1.0
    sae.save(tmp_path / "sae")
    back = SAE.load(tmp_path / "sae")
    assert back.config()["init_bias"] == -1
    assert torch.equal(back.b_enc, sae.b_enc)


@pytest.mark.parametrize("decoder", DECODERS)
def test_permuting_latents_permutes_nothing_else(decoder):
    sae = make_sae(decoder=decoder)
    order = torch.randperm(12, generator=rng(9))
    other = make_sae(decoder=decoder)
    state = {k: v.clone() for k, v in sae.state_dict().items()}
    for name in ("residual", "W_dec"):
        if name in state:
            state[name] = state[name][order]
    state["W_enc"], state["b_enc"] = state["W_enc"][:, order], state["b_enc"][order]
    other.load_state_dict(state)
    x = samples(30)
    torch.testing.assert_close(other(x).acts, sae(x).acts[:, order])
    torch.testing.assert_close(other(x).x_hat, sae(x).x_hat)


@pytest.mark.parametrize("decoder", DECODERS)
def test_a_start_with_few_latents_makes_the_others_rare(decoder):
    x = torch.randn(2_000, 8, generator=rng(3))
    alike, few = (SAE(8, 64, TopK(4), decoder, init_bias=bias, generator=0) for bias in (0.0, -1.0))
    assert torch.equal(alike.W_enc, few.W_enc)
    assert torch.equal(few.b_enc, torch.tensor([0.0] * 8 + [-1.0] * 56))
    shares = [(sae.encode(x)[:, :8] != 0).sum() / (4 * len(x)) for sae in (alike, few)]
    assert shares[0] < 0.2 < 0.4 < shares[1]  # an eighth of the latents


def test_a_start_with_few_latents_is_saved_and_trained_from(tmp_path):
    x = torch.randn(300, 8, generator=rng(3))
    trained = []
    for bias in (0.0, -1.0):
        sae = SAE(8, 24, TopK(3), "tied", init_bias=bias, generator=0)
        fit(sae, x, SGD(lr=1e-3), epochs=1, generator=0)
        sae.save(tmp_path / "sae")
        assert SAE.load(tmp_path / "sae").config()["init_bias"] == bias
        trained.append(sae.b_enc.detach())
    assert (trained[0][8:].mean() - trained[1][8:].mean()) > 0.9


@pytest.mark.parametrize(
    ("d_in", "n_latents", "activation", "options", "few"),
    [
        (64, 128, TopK(11), {}, True), (64, 128, TopK(10), {}, False), (64, 128, BatchTopK(16), {}, True),
        (64, 64, TopK(11), {}, False), (64, 65, TopK(11), {}, True), (64, 128, AbsTopK(32), {}, False), (64, 128, ReLU(), {}, False),
        (64, 128, JumpReLU(), {}, False), (64, 128, TopK(11), {"init_bias": 0.0}, False),
        (8, 12, TopK(3), {"encoder": Kronecker(2, 2, 3)}, False), (64, 128, BlockTopK(32, 2), {}, False),
        (64, 128, FeatureChoice(16), {}, False),
    ],
)  # fmt: skip
def test_dense_codes_start_with_few_latents(d_in, n_latents, activation, options, few):
    """From a sixth of d_in active latents on, where there are more latents than dimensions."""
    sae = SAE(d_in, n_latents, activation, generator=0, **options)
    assert sae.config()["init_bias"] == (-1.0 if few else 0.0)
    assert not sae.b_enc[:d_in].any()
    assert bool((sae.b_enc[d_in:] == (-1.0 if few else 0.0)).all())


def test_a_folder_of_before_the_option_says_that_it_had_none(tmp_path):
    sae = SAE(8, 24, TopK(3), "tied", init_bias=0.0, generator=0)
    sae.save(tmp_path)
    path = next(tmp_path.rglob("sae.json"))
    config = json.loads(path.read_text())
    del config["init_bias"], config["checksum"]
    path.write_text(json.dumps(config))
    back = SAE.load(tmp_path)
    assert back.config()["init_bias"] == 0.0
    assert torch.equal(back.b_enc, sae.b_enc)
