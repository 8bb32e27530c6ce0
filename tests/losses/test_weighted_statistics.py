"""Statistics of weighted samples, and of samples with several codes."""

from __future__ import annotations

import pytest
import torch

from splinterp.activations import TopActs
from splinterp.decoder import DecoderStats, gcv_ridge, solve_decoder
from tests.helpers import rng, sparse_codes

N, D = 80, 5


def build(form):
    """(code, its dense form, x); the three forms take the three ways through `update`."""
    g, m = rng(5), 12 if form != "sparse" else 64
    z = sparse_codes(N, m, 3, seed=2)
    if form == "scattered":  # the first latent fires always, and hardly varies about a mean far from 0
        m, z = 64, sparse_codes(N, 64, 3, seed=2)
        z[:, 0] = 1e6 + 1e-3 * torch.rand(N, generator=g, dtype=torch.float64)
    x = torch.randn(N, D, generator=g, dtype=torch.float64) + 2
    if form == "dense":
        return z, z, x
    indices = (z != 0).float().topk(4, dim=1).indices
    return TopActs(z.gather(1, indices), indices), z, x


def rows_of(code, keep):
    return TopActs(*(part[keep] for part in code)) if isinstance(code, TopActs) else code[keep]


def same(ours, theirs, rtol=1e-10):
    assert ours.n_samples == pytest.approx(theirs.n_samples)
    for name in ("mean_acts", "mean_x", "gram", "cross", "total"):
        a, b = getattr(ours, name), getattr(theirs, name)
        torch.testing.assert_close(
            a, b, rtol=rtol, atol=rtol * float(b.abs().max()), msg=lambda text, name=name: f"{name}: {text}"
        )


FORMS = ["dense", "sparse", "scattered"]


@pytest.mark.parametrize("form", FORMS)
def test_the_forms_take_their_own_ways(form, monkeypatch):
    taken = []
    for name in ("_update_top", "_add_scattered"):
        original = getattr(DecoderStats, name)
        monkeypatch.setattr(
            DecoderStats, name, lambda *args, name=name, original=original: taken.append(name) or original(*args)
        )
    code, z, x = build(form)
    DecoderStats(z.shape[1], D).update(code, x, torch.rand(N, generator=rng(1)))
    assert taken == {"dense": [], "sparse": ["_update_top"], "scattered": ["_update_top", "_add_scattered"]}[form]


@pytest.mark.parametrize("form", FORMS)
def test_whole_weights_are_repeated_rows(form):
    code, z, x = build(form)
    counts = torch.randint(0, 4, (N,), generator=rng(6))
    assert (counts == 0).any()
    ours = DecoderStats(z.shape[1], D).update(code, x, counts.double())
    repeated = torch.arange(N).repeat_interleave(counts)
    same(ours, DecoderStats(z.shape[1], D).update(z[repeated], x[repeated]), rtol=1e-9)
    assert ours.n_distinct == N


@pytest.mark.parametrize("form", FORMS)
def test_any_weights_are_scaled_rows(form):
    """The solution is least squares of rows times the roots of their weights."""
    code, z, x = build(form)
    weights = torch.rand(N, generator=rng(7), dtype=torch.float64) * 3
    stats = DecoderStats(z.shape[1], D).update(code, x, weights)
    W, b = solve_decoder(stats, ridge=0.5)
    root = weights.sqrt()[:, None]
    center = (weights[:, None] * z).sum(0) / weights.sum()
    rows = torch.cat(
        [torch.cat([root * (z - center), root], 1), 0.5**0.5 * torch.eye(z.shape[1] + 1, dtype=torch.float64)[:-1]]
    )
    right = torch.cat([root * x, torch.zeros(z.shape[1], D, dtype=torch.float64)])
    expected = torch.linalg.lstsq(rows, right, driver="gelsd").solution
    torch.testing.assert_close(W, expected[:-1], rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(b, expected[-1] - center @ W, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("form", FORMS)
def test_one_weight_for_all(form):
    code, z, x = build(form)
    plain, half = (DecoderStats(z.shape[1], D).update(code, x, w) for w in (None, 0.25))
    torch.testing.assert_close(half.gram, 0.25 * plain.gram, rtol=1e-9, atol=1e-9 * float(plain.gram.abs().max()))
    torch.testing.assert_close(half.mean_acts, plain.mean_acts)
    assert half.n_samples == pytest.approx(N / 4)
    same(DecoderStats(z.shape[1], D).update(code, x, torch.full((N,), 0.25)), half)
    same(DecoderStats(z.shape[1], D).update(code, x, 1.0), plain)


@pytest.mark.parametrize("form", FORMS)
def test_weight_0_is_no_sample(form):
    code, z, x = build(form)
    weights = torch.ones(N, dtype=torch.float64)
    weights[::2] = 0
    kept = weights > 0
    ours = DecoderStats(z.shape[1], D).update(code, x, weights)
    same(ours, DecoderStats(z.shape[1], D).update(rows_of(code, kept), x[kept]), rtol=1e-9)
    before = DecoderStats(z.shape[1], D).update(code, x)
    after = DecoderStats(z.shape[1], D).update(code, x).update(code, x, 0.0, again=True)
    same(after, before, rtol=0)
    assert after.n_distinct == N


@pytest.mark.parametrize("form", FORMS)
def test_weighted_batches_add_up(form):
    code, z, x = build(form)
    weights = torch.rand(N, generator=rng(9), dtype=torch.float64)
    whole = DecoderStats(z.shape[1], D).update(code, x, weights)
    parts, merged = DecoderStats(z.shape[1], D), DecoderStats(z.shape[1], D)
    for keep in torch.arange(N).split(30):
        parts.update(rows_of(code, keep), x[keep], weights[keep])
        merged.merge(DecoderStats(z.shape[1], D).update(rows_of(code, keep), x[keep], weights[keep]))
    for found in (parts, merged):
        same(found, whole, rtol=1e-9)
        assert found.n_distinct == N


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (-1.0, "at least 0"), (torch.full((N,), float("nan")), "finite"), (torch.ones(N - 1), "one for each"),
        (torch.ones(N, 1), "one for each"), (float("inf"), "finite"),
    ],
)  # fmt: skip
def test_bad_weights_are_refused(form, weights, message):
    code, z, x = build(form)
    stats = DecoderStats(z.shape[1], D)
    with pytest.raises(ValueError, match=message):
        stats.update(code, x, weights)
    assert stats.n_samples == stats.n_distinct == 0


@pytest.mark.parametrize("form", FORMS)
def test_a_batch_that_is_refused_is_not_counted(form):
    code, z, x = build(form)
    stats = DecoderStats(z.shape[1], D).update(code, x)
    for bad in (x[:, :-1], x[:-1], torch.full_like(x, float("nan"))):
        with pytest.raises(ValueError, match="x"):
            stats.update(code, bad)
    assert stats.n_distinct == stats.n_samples == N


@pytest.mark.parametrize("n", [80, 10])
@pytest.mark.parametrize("form", ["dense", "sparse"])
def test_a_code_given_twice_by_halves_has_the_ridge_of_one(form, n):
    code, z, x = build(form)
    code, x, m = rows_of(code, slice(n)), x[:n], z.shape[1]
    prior = torch.randn(m, D, generator=rng(8), dtype=torch.float64)
    plain = DecoderStats(m, D).update(code, x)
    twice = DecoderStats(m, D).update(code, x, 0.5).update(code, x, 0.5, again=True)
    wrong = DecoderStats(m, D).update(code, x, 0.5).update(code, x, 0.5)
    assert twice.n_distinct == plain.n_distinct == n
    for q in (None, prior):
        ours, theirs = gcv_ridge(twice, q), gcv_ridge(plain, q)
        assert ours.ridge == pytest.approx(theirs.ridge, rel=1e-6)
        assert ours.score == pytest.approx(theirs.score, rel=1e-8)
        assert ours.df == pytest.approx(theirs.df, rel=1e-8)
    assert gcv_ridge(wrong, prior).score != pytest.approx(gcv_ridge(plain, prior).score, rel=1e-3)
