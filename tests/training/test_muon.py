"""Muon: orthogonal updates of matrices, Adam of everything else, an option of every method."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from splinterp import PAMSGD, SAE, SGD, TopK, fit
from splinterp.training import Muon
from splinterp.training.muon import COEFFICIENTS, orthogonalised
from tests.helpers import rng


def plainly(x, steps=5):
    """The iteration as published, step by step on the matrix."""
    a, b, c = COEFFICIENTS
    x = x / (x.norm() + 1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x


@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 10**6), st.integers(1, 6))
def test_the_cheap_form_is_the_published_one(rows, columns, seed, steps):
    x = torch.randn(rows, columns, generator=rng(seed), dtype=torch.float64)
    torch.testing.assert_close(orthogonalised(x, steps), plainly(x, steps), rtol=1e-7, atol=1e-9)


def test_singular_values_are_brought_near_one_and_singular_vectors_kept():
    x = torch.randn(20, 50, generator=rng(0), dtype=torch.float64)
    found = orthogonalised(x)
    values = torch.linalg.svdvals(found)
    assert 0.6 < float(values.min()) <= float(values.max()) < 1.25
    U, _, V = torch.linalg.svd(x, full_matrices=False)
    middle = U.T @ found @ V.T
    torch.testing.assert_close(middle, torch.diag(middle.diagonal()), atol=1e-9, rtol=0)
    lower = orthogonalised(x.float())
    torch.testing.assert_close(lower.double(), found, atol=1e-4, rtol=0)


def test_a_gradient_of_zeros_moves_nothing():
    assert torch.equal(orthogonalised(torch.zeros(3, 5)), torch.zeros(3, 5))
    p = torch.nn.Parameter(torch.randn(8, 16, generator=rng(0)))
    optimizer = Muon([p], lr=1e-3)
    for step in range(1_200):
        p.grad = torch.randn(8, 16, generator=rng(step)) if step < 5 else torch.zeros(8, 16)
        if step == 1_100:
            before = p.detach().clone()
        optimizer.step()
    assert torch.equal(p, before)


def test_vectors_go_by_adam():
    ours, theirs = (torch.nn.Parameter(torch.ones(7)) for _ in range(2))
    one, two = Muon([ours], lr=1e-2), torch.optim.Adam([theirs], lr=1e-2)
    for step in range(5):
        for p, optimizer in ((ours, one), (theirs, two)):
            p.grad = torch.randn(7, generator=rng(step))
            optimizer.step()
    torch.testing.assert_close(ours, theirs)


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch.optim.Muon is of torch 2.9")
def test_matrices_go_as_torchs_own_muon():
    start = torch.randn(6, 9, generator=rng(0))
    ours, theirs = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())
    one = Muon([ours], lr=1e-2, weight_decay=0.1)
    two = torch.optim.Muon([theirs], lr=1e-2, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for step in range(4):
        for p, optimizer in ((ours, one), (theirs, two)):
            p.grad = torch.randn(6, 9, generator=rng(step))
            optimizer.step()
    torch.testing.assert_close(ours, theirs, rtol=0, atol=3e-3)  # torch's is in bfloat16


def test_options_are_checked():
    p = torch.nn.Parameter(torch.ones(2, 2))
    with pytest.raises(ValueError, match="momentum=1"):
        Muon([p], momentum=1.0)
    with pytest.raises(ValueError, match="lr=-1"):
        Muon([p], lr=-1.0)
    assert Muon([p]).step(lambda: 3.0) == 3.0  # nothing has a gradient


@pytest.mark.parametrize("method", [SGD(lr=1e-2, optimizer="muon"), PAMSGD(lr=1e-2, optimizer="muon")])
@pytest.mark.parametrize("decoder", ["free", "tied", "tied_residual"])
def test_every_method_trains_by_it_and_goes_on_from_a_checkpoint(method, decoder, tmp_path):
    x = torch.randn(200, 8, generator=rng(0)) @ torch.randn(8, 8, generator=rng(1))

    def run(**options):
        sae = SAE(8, 24, TopK(3), decoder, init_bias=0.0, generator=0)
        return fit(sae, x, method, batch_size=40, generator=0, **options)

    whole = run(epochs=6)
    assert whole.history[-1]["train_fvu"] < 0.8 * whole.history[0]["train_fvu"]
    path = tmp_path / "run.pt"

    def stop(row):
        if row["epoch"] == 4:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        run(epochs=6, checkpoint=path, callback=stop)
    again = run(epochs=6, checkpoint=path, resume=True)
    for name, value in again.sae.state_dict().items():
        assert torch.equal(value, whole.sae.state_dict()[name]), name


@pytest.mark.parametrize(
    "changed", [{"lr": 2e-3}, {"momentum": 0.5}, {"betas": (0.5, 0.9)}, {"eps": 1e-2}, {"weight_decay": 0.5}]
)
def test_every_option_changes_the_steps(changed):
    ends = []
    for options in ({}, changed):
        parameters = [torch.nn.Parameter(torch.ones(4, 6)), torch.nn.Parameter(torch.ones(5))]
        optimizer = Muon(parameters, **{"lr": 1e-3, **options})
        for step in range(4):
            for p in parameters:
                p.grad = torch.randn(p.shape, generator=rng(step))
            optimizer.step()
        ends.append(torch.cat([p.detach().flatten() for p in parameters]))
    assert not torch.equal(*ends)
