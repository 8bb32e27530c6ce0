"""Products with k-sparse codes against their dense forms."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from splinterp import SAE, SGD, AbsTopK, ReLU, TopActs, TopK
from splinterp.activations._gradients import sparse_gradients
from splinterp.decoder import DecoderStats
from splinterp.decoder.matrix_free import MatrixFreeStats
from splinterp.sparse_kernels import (
    decode_sparse,
    grouping,
    kept_scores,
    products,
    select_largest,
    sum_by_latent,
    transpose_code,
)

SHAPES = st.tuples(st.integers(1, 12), st.integers(1, 9), st.integers(1, 15), st.integers(1, 15)).map(
    lambda s: (s[0], s[1], s[2], min(s[2], s[3]))
)


def dense(values: torch.Tensor, indices: torch.Tensor, n_latents: int) -> torch.Tensor:
    return torch.zeros(len(values), n_latents, dtype=values.dtype).scatter_add(1, indices, values)


def normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@given(st.integers(1, 6), st.integers(1, 200), st.integers(1, 200), st.integers(0, 99), st.booleans(), st.booleans())
def test_select_largest_keeps_the_largest(n, m, k, seed, ties, magnitude):
    k = min(m, k)
    scores = normal(n, m, seed=seed)
    if ties:
        scores = scores.round()
    before = scores.clone()
    indices = select_largest(scores, k, magnitude)
    assert torch.equal(scores, before)
    assert indices.shape == (n, k)
    assert all(len(set(row)) == k for row in indices.tolist())
    sizes = scores.abs() if magnitude else scores
    torch.testing.assert_close(sizes.gather(1, indices).sort(1).values, sizes.topk(k, dim=1).values.flip(1))


def test_select_largest_in_threads_and_on_any_dtype():
    scores = torch.randn(700, 600, generator=torch.Generator().manual_seed(0))
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(select_largest(scores, 7))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*found)
    expected = scores.topk(7, dim=1).indices.sort(1).values
    assert torch.equal(found[0].sort(1).values, expected)
    half = scores.bfloat16()
    torch.testing.assert_close(half.gather(1, select_largest(half, 7)).sort(1).values, half.topk(7, dim=1).values.flip(1))


def test_nan_is_kept_so_that_a_divergence_shows():
    for m in (6, 60):
        for magnitude in (False, True):
            scores = torch.arange(float(m))[None]
            scores[0, 4] = torch.nan
            assert 4 in select_largest(scores, 2, magnitude)


@given(SHAPES, st.integers(0, 99), st.sampled_from((512, 3)))
def test_values_and_gradients_equal_the_dense_ones(shape, seed, block):
    n, d, m, k = shape
    x, W_enc, b_enc, W_dec, b_dec = (normal(*s, seed=seed + i) for i, s in enumerate([(n, d), (d, m), (m,), (m, d), (d,)]))
    parameters = [t.requires_grad_() for t in (x, W_enc, b_enc, W_dec, b_dec)]
    indices = select_largest((x @ W_enc + b_enc).detach(), k)
    weights = normal(n, d, seed=seed + 9)

    codes = dense((x @ W_enc + b_enc).gather(1, indices).relu(), indices, m)
    expected = codes @ W_dec + b_dec
    gradients = torch.autograd.grad((expected * weights).sum(), parameters)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(products, "SCORE_ROWS", block)
        kept = kept_scores(x, W_enc, b_enc, lambda scores: select_largest(scores, k), k)
    x_hat = decode_sparse(kept.values.relu(), kept.top_indices, W_dec, b_dec, kept.by_latent)
    torch.testing.assert_close(x_hat, expected)
    for ours, theirs in zip(torch.autograd.grad((x_hat * weights).sum(), parameters), gradients, strict=True):
        torch.testing.assert_close(ours, theirs)


@given(SHAPES, st.integers(0, 99), st.booleans())
def test_sums_by_latent_with_and_without_mkl(shape, seed, mkl):
    n, d, m, k = shape
    g = torch.Generator().manual_seed(seed)
    indices = torch.randint(m, (n, k), generator=g)  # repeated ones included
    values, x = normal(n, k, seed=seed), normal(n, d, seed=seed + 1)
    expected = dense(values, indices, m).T @ x
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(products, "_HAS_MKL", mkl and products._HAS_MKL)
        torch.testing.assert_close(sum_by_latent(values, indices, x, m, transpose_code(indices, m)), expected)
    torch.testing.assert_close(sum_by_latent(values, indices, x, m, None), expected)  # what other devices run


@pytest.mark.parametrize("b_pre", [False, True])
@pytest.mark.parametrize("decoder", ["free", "tied", "tied_residual"])
@pytest.mark.parametrize("activation", [TopK(3), AbsTopK(3)])
def test_gradients_in_place_equal_those_of_autograd(decoder, activation, b_pre):
    x = normal(50, 8, seed=0)
    g = torch.Generator().manual_seed(1)
    sae = SAE(8, 40, activation, decoder, dtype=torch.float64, generator=g, b_pre=b_pre)
    for p in sae.parameters():
        p.data.add_(0.1 * torch.randn(p.shape, dtype=p.dtype, generator=g))
    assert sae.trains_sparse
    loss = torch.nn.functional.mse_loss(sae(x).x_hat, x)  # dense
    expected = dict(zip(dict(sae.named_parameters()), torch.autograd.grad(loss, list(sae.parameters())), strict=True))
    for _ in range(2):  # the second time into the same buffers
        found = sparse_gradients(sae, x, {id(p) for p in sae.parameters()})
        torch.testing.assert_close(found, loss.detach())
        for name, p in sae.named_parameters():
            torch.testing.assert_close(p.grad, expected[name], msg=lambda text, name=name: f"{name}: {text}")
    buffer = sae.W_enc.grad.data_ptr()
    sparse_gradients(sae, x, {id(sae.W_enc)})  # the encoder alone: what is not moved keeps its gradient
    torch.testing.assert_close(sae.W_enc.grad, expected["W_enc"])
    assert sae.W_enc.grad.data_ptr() == buffer


def test_what_takes_sparse_gradients():
    def takes(sae):
        return sae.squared_error_gradients(torch.ones(3, 4), {id(p) for p in sae.parameters()}) is not None

    assert takes(SAE(4, 64, TopK(8), "tied"))
    assert not takes(SAE(4, 64, TopK(8), "tied", tie_scale=True))
    foreign = SAE(4, 64, TopK(8))
    foreign.W_enc = torch.nn.Parameter(foreign.W_enc.detach().contiguous())
    assert not takes(foreign)


@pytest.mark.parametrize("decoder", ["free", "tied", "tied_residual"])
@pytest.mark.parametrize("activation", [TopK(3), AbsTopK(3)])
def test_training_takes_the_same_gradients_sparse_and_dense(decoder, activation, monkeypatch):
    x = normal(50, 8, seed=0)
    options = {"b_pre": True, "tie_scale": decoder != "free"}
    g = torch.Generator().manual_seed(1)
    sae = SAE(8, 40, activation, decoder, dtype=torch.float64, generator=g, **options)
    if sae.residual is not None:
        sae.residual.data.normal_(generator=g)
    found = []
    for sparse in (True, False):
        assert sae.trains_sparse == sparse
        loss = SGD().loss(sae, x)
        found.append((loss, torch.autograd.grad(loss, list(sae.parameters()))))
        monkeypatch.setattr(SAE, "trains_sparse", False)
    torch.testing.assert_close(found[0], found[1])


def test_sparse_training_is_for_few_latents():
    assert SAE(4, 64, TopK(8)).trains_sparse
    assert not SAE(4, 64, TopK(9)).trains_sparse
    assert not SAE(4, 64, ReLU()).trains_sparse
    assert not SAE(4, 64, TopK(8), dtype=torch.bfloat16).trains_sparse


@pytest.mark.parametrize("wrong", [40, -1, 2**40])
@pytest.mark.parametrize("gradients", [True, False])
def test_an_index_of_no_latent_is_named_before_a_kernel_sees_it(wrong, gradients):
    sae = SAE(8, 40, TopK(2), generator=torch.Generator().manual_seed(1))
    indices = torch.tensor([[0, 39], [3, wrong]])
    code = TopActs(torch.ones(2, 2), indices)
    calls = (
        lambda: sae.decode_top(code), lambda: sae.decode(code), lambda: transpose_code(indices, 40),
        lambda: decode_sparse(torch.ones(2, 2), indices, sae.W_dec, sae.b_dec),
        lambda: products.kept_products(indices, sae.W_dec, torch.ones(2, 8)),
    )  # fmt: skip
    with torch.set_grad_enabled(gradients):
        for call in calls:
            with pytest.raises(ValueError, match=rf"the index {wrong} but must lie in 0 ... 39"):
                call()
    for stats in (DecoderStats(40, 8), MatrixFreeStats(40, 8)):
        with pytest.raises(ValueError, match="must lie in 0 ... 39"):
            stats.update(code, torch.ones(2, 8))


def test_codes_and_groupings_that_do_not_belong_together_are_named():
    values, indices = torch.ones(2, 2), torch.tensor([[0, 1], [1, 2]])
    W_dec, b_dec = torch.ones(4, 3), torch.zeros(3)
    with pytest.raises(ValueError, match=r"transpose_code\(top_indices, 4\)"):
        decode_sparse(values, indices, W_dec, b_dec, transpose_code(indices, 5))
    with pytest.raises(ValueError, match="groups 2 entries"):
        sum_by_latent(values, indices, torch.ones(2, 3), 4, transpose_code(indices[:1], 4))
    with pytest.raises(ValueError, match="too large to group"):
        grouping.transpose_on_cpu(torch.zeros(1, 1, dtype=torch.int64).expand(2**16, 2**15), 4)  # looks at shapes alone
    assert decode_sparse(values, indices.int(), W_dec, b_dec).shape == (2, 3)
    assert decode_sparse(values[:0], indices[:0], W_dec, b_dec).shape == (0, 3)


def test_sparse_reconstruction_equals_the_dense_one():
    sae = SAE(8, 40, AbsTopK(3), generator=torch.Generator().manual_seed(1))
    x = normal(20, 8, seed=0).float()
    x_hat, top = sae.reconstruct(x)
    assert isinstance(top, TopActs)
    torch.testing.assert_close(x_hat, sae(x).x_hat)
    torch.testing.assert_close(sae.decode_top(sae.encode_top(x)), x_hat)
    with torch.no_grad():
        torch.testing.assert_close(sae.decode_top(sae.encode_top(x)), x_hat)
    with pytest.raises(TypeError, match="no fixed number"):
        SAE(8, 40, ReLU()).reconstruct(x)


def test_a_lower_dtype_chooses_what_is_kept_and_leaves_the_values_exact():
    x, W, b = normal(200, 16, seed=0), normal(16, 96, seed=1), normal(96, seed=2)
    W.requires_grad_()
    full = kept_scores(x, W, b, TopK(4).select, 4)
    kept = kept_scores(x, W, b, TopK(4).select, 4, lower=torch.bfloat16)
    assert (full.top_indices.sort(1).values != kept.top_indices.sort(1).values).any()
    assert kept.values.dtype == torch.float64
    torch.testing.assert_close(kept.values, (x @ W + b).gather(1, kept.top_indices))
    by_kept = torch.autograd.grad(kept.values.square().sum(), W)[0]
    torch.testing.assert_close(by_kept, torch.autograd.grad((x @ W + b).gather(1, kept.top_indices).square().sum(), W)[0])
    with torch.autocast("cpu", torch.bfloat16):
        sae = SAE(16, 96, TopK(4), dtype=torch.float32)
        outer = sae.encode_top(x.float())
    assert outer.top_acts.dtype == torch.float32
    assert (outer.top_indices.sort(1).values != sae.encode_top(x.float()).top_indices.sort(1).values).any()
