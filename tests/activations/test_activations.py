from __future__ import annotations

import pytest
import torch

from splinterp import AbsTopK, BatchTopK, JumpReLU, ReLU, TopK
from splinterp.activations import ACTIVATIONS, activation_from_config
from tests.helpers import make_sae, rng, samples


def test_topk_takes_signed_scores_and_relus_what_it_keeps():
    u = torch.tensor([[3.0, -5.0, -1.0, -2.0]])
    torch.testing.assert_close(TopK(2)(u), torch.tensor([[3.0, 0.0, 0.0, 0.0]]))
    torch.testing.assert_close(AbsTopK(2)(u), torch.tensor([[3.0, -5.0, 0.0, 0.0]]))
    torch.testing.assert_close(TopK(2).top(u).top_acts.sort().values, torch.tensor([[0.0, 3.0]]))


@pytest.mark.parametrize("activation", [TopK(3), AbsTopK(3), BatchTopK(3), ReLU()])
def test_gradient_is_that_of_the_kept_scores(activation):
    u = torch.randn(5, 7, generator=rng(2), dtype=torch.float64, requires_grad=True)
    weights = torch.randn(5, 7, generator=rng(3), dtype=torch.float64)
    acts = activation(u)
    (acts * weights).sum().backward()
    torch.testing.assert_close(u.grad, weights * (acts != 0))


def test_jumprelu_straight_through_gradients_match_the_formula():
    theta, width = 0.5, 0.4
    u = torch.tensor([[0.45, 0.6, 0.9, -0.2], [0.55, 0.4, 0.69, 0.31]], dtype=torch.float64, requires_grad=True)
    activation = JumpReLU(threshold=theta, bandwidth=width).bind(4, torch.float64, torch.device("cpu"))
    grad = torch.randn(2, 4, generator=rng(), dtype=torch.float64)
    activation(u).backward(grad)
    window = ((u.detach() - theta).abs() < width / 2).double() / width
    torch.testing.assert_close(u.grad, grad * (u.detach() > theta))
    # d theta = -theta * kernel * grad, then the chain rule through theta = exp(log_threshold)
    torch.testing.assert_close(activation.log_threshold.grad, (-theta * window * grad).sum(0) * theta)
    activation.log_threshold.grad = None
    activation.count(u).sum().backward()
    torch.testing.assert_close(activation.log_threshold.grad, (-window).sum(0) * theta)


def test_jumprelu_options_change_the_result():
    u = torch.rand(1, 40, generator=rng())
    assert (JumpReLU(threshold=0.3)(u) != JumpReLU(threshold=0.6)(u)).any()
    grads = []
    for bandwidth in (0.1, 0.5):
        activation = JumpReLU(threshold=0.3, bandwidth=bandwidth)
        activation(u).square().sum().backward()
        grads.append(float(activation.log_threshold.grad))
    assert grads[0] != grads[1]


def test_batch_topk_counts_by_batch_and_evaluates_by_threshold():
    activation = BatchTopK(2)
    first, second = torch.rand(6, 5, generator=rng(1)), torch.rand(4, 5, generator=rng(2))
    with pytest.raises(RuntimeError, match="no threshold yet"):
        activation.eval()(first)
    activation.train()
    assert int((activation(first) != 0).sum()) == 12
    assert int((activation(second) != 0).sum()) == 8
    assert torch.isnan(activation.threshold)  # using it changes nothing
    for blocks in ([first, second], [torch.cat([second, first])], list(torch.cat([first, second]).split(1))):
        activation.calibrate(iter(blocks), sum(map(len, blocks)))
        smallest = torch.cat([first, second]).flatten().sort(descending=True).values[19]
        assert float(activation.threshold) == float(torch.nextafter(smallest, torch.zeros(())))  # `>` keeps it too
    activation.eval()
    torch.testing.assert_close(activation(second), second * (second > activation.threshold))
    assert int((activation(torch.cat([first, second])) != 0).sum()) == 20  # k a sample on average


def test_a_threshold_counts_all_blocks_where_the_first_has_the_largest_scores():
    u = torch.rand(60, 8, generator=rng(3), dtype=torch.float64)
    u[:10] += 10.0
    for rows in (1, 10, 60):
        activation = BatchTopK(1)
        activation.calibrate(u.split(rows), 60)
        assert int((activation.eval()(u) != 0).sum()) == 60


def test_batch_topk_of_negative_scores_keeps_nothing():
    activation = BatchTopK(2)
    assert float(activation(-torch.rand(3, 4)).abs().sum()) == 0
    activation.calibrate([-torch.rand(3, 4)], 3)
    few = torch.tensor([[0.5, -1.0, -1.0]])
    assert activation.eval()(few).tolist() == [[0.5, 0.0, 0.0]]  # fewer positive scores than k a sample: all of them
    activation.calibrate([], 0)
    assert activation(few).tolist() == [[0.5, 0.0, 0.0]]


def test_gradients_through_silent_jumprelu_latents_are_zero_whatever_comes_back():
    activation = JumpReLU(0.5, bandwidth=0.2)
    u = torch.tensor([[-1.0, 0.2, 0.45, 0.9, 3.0]], requires_grad=True)
    activation(u).abs().pow(0.5).sum().backward()  # infinite slope at 0
    assert torch.isfinite(u.grad).all()
    torch.testing.assert_close(u.grad, torch.tensor([[0.0, 0.0, 0.0, 0.5 * 0.9**-0.5, 0.5 * 3.0**-0.5]]))
    far = JumpReLU(0.5, bandwidth=0.2)
    v = torch.tensor([[-1.0, 0.2, 0.9]], requires_grad=True)
    far(v).abs().pow(0.5).sum().backward()
    assert float(far.log_threshold.grad) == 0  # no score near the threshold


def test_configs_round_trip():
    for cls in (ReLU, JumpReLU, TopK, AbsTopK, BatchTopK):
        original = cls(k=4) if "TopK" in cls.__name__ else cls()
        assert ACTIVATIONS[cls.__name__] is cls
        assert activation_from_config(original.config()).config() == original.config()
    assert activation_from_config({"name": "BatchTopK", "k": 2, "momentum": 0.99}).config() == BatchTopK(2).config()
    assert "k=4" in repr(TopK(4))
    with pytest.raises(ValueError, match="'Softmax' is unknown; known: .*ReLU, JumpReLU"):
        activation_from_config({"name": "Softmax"})


def test_errors():
    with pytest.raises(ValueError, match="k=0 must be at least 1"):
        TopK(0)
    with pytest.raises(ValueError, match="threshold=0.0 must be greater than 0"):
        JumpReLU(threshold=0.0)
    with pytest.raises(ValueError, match="k=9 is larger than n_latents=4"):
        make_sae(m=4).activation.__class__(9).bind(4, torch.float32, torch.device("cpu"))
    with pytest.raises(TypeError, match="no fixed number of active latents"):
        make_sae("ReLU").encode_top(samples())


def test_an_activation_can_serve_two_saes():
    shared = JumpReLU()
    a, b = (shared.bind(3, torch.float32, torch.device("cpu")) for _ in range(2))
    with torch.no_grad():
        a.log_threshold.fill_(1.0)
    assert float(b.log_threshold.detach()[0]) != 1.0
