"""Other people's modules in geometry."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from splinterp import SAE, AbsTopK, BatchTopK, JumpReLU, ReLU, TopK
from splinterp.geometry import PowerDiagram, region_of, region_statistics, segment_regions
from splinterp.interop import affine_sae
from tests.helpers import rng

KINDS = {
    "ReLU": (ReLU(), lambda s: s.relu()), "TopK": (TopK(3), lambda s: kept(s.relu(), 3)),
    "AbsTopK": (AbsTopK(3), lambda s: kept_signed(s, 3)),
    "JumpReLU": (JumpReLU(), lambda s: s * (s > 0.4)), "BatchTopK": (BatchTopK(3), lambda s: s * (s > 0.4)),
}  # fmt: skip


def kept(scores, k):
    top = scores.topk(k, dim=1)
    return torch.zeros_like(scores).scatter(1, top.indices, top.values)


def kept_signed(scores, k):
    chosen = scores.abs().topk(k, dim=1).indices
    return torch.zeros_like(scores).scatter(1, chosen, scores.gather(1, chosen))


class Own(nn.Module):
    """W_enc and friends, or linear layers; centred or not; the reconstruction alone or in a tuple."""

    def __init__(self, kind, linear, centred, wrapped):
        super().__init__()
        self.act, self.linear, self.centred, self.wrapped = KINDS[kind][1], linear, centred, wrapped
        g = rng(0)
        W, b, D, c = (torch.randn(*shape, generator=g) for shape in ((6, 10), (10,), (10, 6), (6,)))
        if linear:
            self.encoder, self.decoder = nn.Linear(6, 10), nn.Linear(10, 6)
            with torch.no_grad():
                for p, value in zip((*self.encoder.parameters(), *self.decoder.parameters()), (W.T, b, D.T, c), strict=True):
                    p.copy_(value)
        else:
            self.W_enc, self.b_enc, self.W_dec, self.b_dec = map(nn.Parameter, (W, b, D, c))

    def forward(self, x):
        if self.linear:
            out = self.decoder(self.act(self.encoder(x - self.decoder.bias * self.centred)))
        else:
            out = self.act((x - self.b_dec * self.centred) @ self.W_enc + self.b_enc) @ self.W_dec + self.b_dec
        return (out, None) if self.wrapped else out


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("linear", [False, True])
@pytest.mark.parametrize("centred", [False, True])
def test_a_module_of_ones_own_has_regions(kind, linear, centred):
    module = Own(kind, linear, centred, wrapped=linear)
    threshold = {"JumpReLU": torch.full((10,), 0.4), "BatchTopK": 0.4}.get(kind)
    sae = affine_sae(module, KINDS[kind][0], centre="b_dec" if centred else None, threshold=threshold)
    x = torch.randn(20, 6, generator=rng(1))
    made = module(x)
    made = made[0] if isinstance(made, tuple) else made
    torch.testing.assert_close(sae(x.double()).x_hat, made.double(), rtol=1e-4, atol=1e-4)
    region = region_of(sae, x[0])
    torch.testing.assert_close(
        torch.from_numpy(x[0].double().numpy() @ region.matrix + region.offset), made[0].double(), rtol=1e-4, atol=1e-4
    )
    assert region_statistics(sae, x).n_regions >= 1
    assert len(segment_regions(sae, x[0], x[1])) >= 1
    if kind == "TopK":
        assert PowerDiagram.from_sae(sae).order == 3


def test_another_map_and_missing_words_are_refused():
    module = Own("TopK", False, True, False)
    for options, error, message in (
        ({}, TypeError, "does not say how it chooses its codes"),
        ({"activation": TopK(3)}, ValueError, "makes something else of"),
        ({"activation": ReLU(), "centre": "b_dec"}, ValueError, "makes something else of"),
        ({"activation": JumpReLU(), "centre": "b_dec"}, TypeError, "needs its threshold"),
        ({"activation": TopK(3), "centre": torch.zeros(5)}, ValueError, "centre has shape"),
        ({"activation": TopK(3), "centre": "mean"}, ValueError, "centre='mean'"),
    ):
        with pytest.raises(error, match=message):
            affine_sae(module, **options)
    assert isinstance(affine_sae(module, TopK(3), check=False), SAE)
    with pytest.raises(TypeError, match="W_dec"):
        affine_sae(nn.ModuleDict({"encoder": nn.Linear(6, 10)}), TopK(3))
    with pytest.raises(TypeError, match="interop.affine_sae"):
        segment_regions(module, torch.zeros(6), torch.ones(6))
    silent = Own("TopK", False, False, False)
    silent.forward = lambda x: None
    with pytest.raises(ValueError, match="pass check=False"):
        affine_sae(silent, TopK(3))


@pytest.mark.parametrize("kind", ["standard", "topk", "jumprelu", "gated"])
def test_saelens_modules_say_it_themselves(kind):
    lens = pytest.importorskip("sae_lens", reason="needs sae-lens: make interop")
    made = {
        "standard": lambda: lens.StandardSAE(lens.StandardSAEConfig(d_in=6, d_sae=10)),
        "topk": lambda: lens.TopKSAE(lens.TopKSAEConfig(d_in=6, d_sae=10, k=3, rescale_acts_by_decoder_norm=False)),
        "jumprelu": lambda: lens.JumpReLUSAE(lens.JumpReLUSAEConfig(d_in=6, d_sae=10)),
        "gated": lambda: lens.GatedSAE(lens.GatedSAEConfig(d_in=6, d_sae=10)),
    }[kind]()
    with torch.no_grad():
        for p in made.parameters():
            p.copy_(0.5 * torch.randn(p.shape, generator=rng(3)))
    if kind == "gated":
        with pytest.raises(TypeError, match="'gated' has no affine encoder"):
            affine_sae(made)
        return
    sae, x = affine_sae(made), torch.randn(20, 6, generator=rng(1))
    torch.testing.assert_close(sae(x.double()).x_hat, made(x).double(), rtol=1e-4, atol=1e-4)
    assert region_of(sae, x[0]).margin > 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_modules_of_other_dtypes_and_with_buffers_are_read(dtype):
    module = Own("ReLU", False, True, False).to(dtype)
    assert affine_sae(module, ReLU(), centre="b_dec").W_enc.dtype == torch.float64
    assert module.W_enc.dtype == dtype
    for name in ("W_enc", "b_enc", "W_dec", "b_dec"):
        value = getattr(module, name).detach()
        delattr(module, name)
        module.register_buffer(name, value)
    assert affine_sae(module, ReLU(), centre="b_dec").n_latents == 10
