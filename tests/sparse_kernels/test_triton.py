"""The GPU's kernels against dense products: compiled where there is a GPU, else on the CPU by Triton's interpreter."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from splinterp import PAMSGD, SAE, SGD, AbsTopK, TopK, fit
from splinterp.activations._gradients import sparse_gradients
from splinterp.sparse_kernels import products, transpose_code
from splinterp.sparse_kernels.grouping import _transpose_by_sorting

kernels = pytest.importorskip("splinterp.sparse_kernels._triton", reason="needs Triton", exc_type=ModuleNotFoundError)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def code(n: int, k: int, n_latents: int, seed: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Generator]:
    g = torch.Generator().manual_seed(seed)
    values, indices = torch.randn(n, k, dtype=dtype, generator=g), torch.randint(0, n_latents, (n, k), generator=g)
    return values.to(DEVICE), indices.to(DEVICE), g


@settings(max_examples=20)
@given(st.integers(0, 20), st.integers(1, 20), st.integers(1, 40), st.integers(1, 150), st.integers(0, 99),
       st.sampled_from([torch.float32, torch.float64]), st.booleans())  # fmt: skip
def test_products_are_the_dense_ones(n, k, n_latents, d, seed, dtype, add):
    values, indices, g = code(n, k, n_latents, seed, dtype)  # indices may repeat in a row, latents may be dead
    rows, x, before = (torch.randn(size, d, dtype=dtype, generator=g).to(DEVICE) for size in (n_latents, n, n_latents))
    z = torch.zeros(n, n_latents, dtype=torch.float64, device=DEVICE).scatter_add(1, indices, values.double())
    tolerance = {"rtol": 1e-4, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 1e-12, "atol": 1e-12}
    torch.testing.assert_close(kernels.decode_rows(values, indices, rows).double(), z @ rows.double(), **tolerance)
    products = (x.double() @ rows.double().T).gather(1, indices)
    torch.testing.assert_close(kernels.kept_products(indices, rows, x).double(), products, **tolerance)
    found = kernels.sum_by_latent(values, *_transpose_by_sorting(indices, n_latents), x, before.clone(), add)
    torch.testing.assert_close(found.double(), z.T @ x.double() + add * before.double(), **tolerance)


@given(st.integers(1, 12), st.integers(1, 9), st.integers(1, 15), st.integers(0, 99))
def test_both_transpositions_agree(n, k, n_latents, seed):
    indices = code(n, k, n_latents, seed, torch.float32)[1].cpu()
    for ours, theirs in zip(transpose_code(indices, n_latents), _transpose_by_sorting(indices, n_latents), strict=True):
        assert ours.dtype == theirs.dtype
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("decoder", ["free", "tied", "tied_residual"])
@pytest.mark.parametrize("activation", [TopK(3), AbsTopK(3)])
def test_gradients_take_the_kernels(monkeypatch, decoder, activation):
    """Both ways of training, with the kernels in place of the CPU's products."""
    g = torch.Generator().manual_seed(0)
    plain = SAE(10, 30, activation, decoder, b_pre=True, dtype=torch.float64, generator=g, device=DEVICE)
    x = torch.randn(25, 10, dtype=torch.float64, generator=g).to(DEVICE)
    (plain(x).x_hat - x).square().mean().backward()
    calls = set()

    def counted(name):
        kernel = getattr(kernels, name)

        def called(*arguments):
            calls.add(name)
            return kernel(*arguments)

        return called

    monkeypatch.setattr(products, "takes_triton", lambda tensor: True)
    for name in ("decode_rows", "kept_products", "sum_by_latent"):
        monkeypatch.setattr(kernels, name, counted(name))
    for way in ("autograd", "in place"):
        sae = copy.deepcopy(plain)
        sae.zero_grad()
        if way == "autograd":
            (sae.reconstruct(x)[0] - x).square().mean().backward()
        else:
            sparse_gradients(sae, x, {id(p) for p in sae.parameters()})
        for (name, p), q in zip(sae.named_parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(p.grad, q.grad, msg=lambda m, name=name, way=way: f"{way}, {name}: {m}")
        assert len(calls) == 3
        calls.clear()


@pytest.mark.gpu
@pytest.mark.parametrize("method", [SGD(lr=1e-2), PAMSGD(lr=1e-2, solve_gap=1)])
@pytest.mark.parametrize("autocast", [None, torch.bfloat16])
def test_training_on_a_gpu_is_that_on_the_cpu(method, autocast):
    x = torch.randn(600, 24, generator=torch.Generator().manual_seed(1)) @ torch.randn(24, 24)
    found = {}
    for device in ("cpu", "cuda"):
        sae = SAE(24, 256, TopK(4), "tied_residual", device=device, generator=0)
        assert sae.trains_sparse
        found[device] = fit(sae, x, method, epochs=3, batch_size=100, autocast=autocast).history[-1]["train_fvu"]
    assert found["cuda"] == pytest.approx(found["cpu"], rel=0.02 if autocast else 1e-3)
