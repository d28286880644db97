"""Models and losses of (2.2) and (2.3).

What is tested: each model against its formula written out, each loss and its gradient against the
formula of the paper in plain Python or torch's own loss, with any leading axes; values that would
overflow; and the errors for targets of a wrong shape or type.
"""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from parameter_ordering.paper.experiments.models import (
    binary_cross_entropy,
    cross_entropy,
    linear,
    perceptron,
    squared_error,
)

LEADING = [(), (3,), (2, 3)]


def count(model):
    return sum(parameter.numel() for parameter in model.parameters())


def test_numbers_of_parameters_are_those_of_table_1():
    models = [perceptron(13, 20, 1), perceptron(784, 10, 10), linear(200), perceptron(200, 20, 1)]
    assert [count(model) for model in models] == [301, 7960, 200, 4041]


def test_perceptron_is_its_formula():
    model = perceptron(3, 4, 2).double()
    w2, b2, w1, b1 = model.parameters()
    x = torch.randn(5, 3, dtype=torch.float64)
    for row, output in zip(x, model(x), strict=True):
        torch.testing.assert_close(output, w1 @ torch.clamp(w2 @ row + b2, min=0) + b1)


def test_linear_is_a_scalar_product():
    model = linear(3).double()
    x = torch.randn(5, 3, dtype=torch.float64)
    torch.testing.assert_close(model(x), (x * model[0].weight).sum(1, keepdim=True))


def softmax_loss(h, y):
    """The second loss of (2.3) for one sample, in plain Python."""
    return -math.log(math.exp(h[y]) / sum(math.exp(value) for value in h))


@pytest.mark.parametrize("leading", LEADING)
def test_cross_entropy_is_2_3(leading):
    output = torch.randn(*leading, 5, 4, dtype=torch.float64)
    target = torch.randint(4, (*leading, 5))
    flat = zip(output.reshape(-1, 4).tolist(), target.flatten().tolist(), strict=True)
    slow = torch.tensor([softmax_loss(h, y) for h, y in flat], dtype=torch.float64)
    torch.testing.assert_close(cross_entropy(output, target), slow.view(*leading, 5))


@pytest.mark.parametrize("leading", LEADING)
def test_squared_error_is_2_3(leading):
    output = torch.randn(*leading, 5, 1, dtype=torch.float64)
    target = torch.randn(*leading, 5, dtype=torch.float64)
    flat = zip(output.flatten().tolist(), target.flatten().tolist(), strict=True)
    slow = torch.tensor([(y - f) ** 2 for f, y in flat], dtype=torch.float64)
    torch.testing.assert_close(squared_error(output, target), slow.view(*leading, 5))


@pytest.mark.parametrize("leading", LEADING)
def test_binary_cross_entropy_is_cross_entropy_of_logits_0_and_h(leading):
    output = torch.randn(*leading, 5, 1, dtype=torch.float64)
    target = torch.randint(2, (*leading, 5))
    two = torch.cat([torch.zeros_like(output), output], -1)
    loss = binary_cross_entropy(output, target.double())
    torch.testing.assert_close(loss, cross_entropy(two, target))


def torch_squared_error(output, target):
    return F.mse_loss(output.squeeze(-1), target, reduction="none")


def torch_cross_entropy(output, target):
    return F.cross_entropy(output.movedim(-1, 1), target, reduction="none")


def torch_binary_cross_entropy(output, target):
    return F.binary_cross_entropy_with_logits(output.squeeze(-1), target, reduction="none")


PAIRS = {
    "squared_error": (squared_error, torch_squared_error, 1, torch.float64),
    "cross_entropy": (cross_entropy, torch_cross_entropy, 6, torch.int64),
    "binary_cross_entropy": (binary_cross_entropy, torch_binary_cross_entropy, 1, torch.float64),
}
pairs = pytest.mark.parametrize(("ours", "torchs", "K", "dtype"), PAIRS.values(), ids=PAIRS)


@pairs
@pytest.mark.parametrize("scale", [0.0, 1.0, 300.0])
def test_loss_and_both_derivatives_are_those_of_torch(ours, torchs, K, dtype, scale):
    results = []
    output = scale * torch.randn(7, K, dtype=torch.float64)
    target = torch.randint(2, (7,)).to(dtype)
    for loss in (ours, torchs):
        h = output.clone().requires_grad_()
        value = loss(h, target)
        (gradient,) = torch.autograd.grad(value.sum(), h, create_graph=True)
        (second,) = torch.autograd.grad(gradient.square().sum(), h)
        results.append((value, gradient, second if scale else None))
    torch.testing.assert_close(*results, rtol=1e-10, atol=1e-10)


@pairs
def test_targets_broadcast_over_models(ours, torchs, K, dtype):
    output = torch.randn(2, 3, 5, K, dtype=torch.float64)
    target = torch.randint(2, (2, 1, 5)).to(dtype)
    loss = ours(output, target)
    assert loss.shape == (2, 3, 5)
    for run in range(2):
        for variant in range(3):
            torch.testing.assert_close(
                loss[run, variant], torchs(output[run, variant], target[run, 0])
            )


@given(logit=st.floats(-1e6, 1e6, width=32), y=st.sampled_from([0.0, 1.0]))
def test_binary_cross_entropy_never_overflows(logit, y):
    h = torch.tensor([[logit]], requires_grad=True)
    (gradient,) = torch.autograd.grad(binary_cross_entropy(h, torch.tensor([y])), h)
    exact = torch.sigmoid(torch.tensor(logit, dtype=torch.float64)) - y
    torch.testing.assert_close(gradient.double(), exact.view(1, 1), rtol=1e-5, atol=1e-6)


def test_gradient_of_a_logit_of_zero():
    # Zero initial weights give it, and its two kinks, in |h|, must cancel.
    h = torch.zeros(2, 1, requires_grad=True)
    binary_cross_entropy(h, torch.tensor([0.0, 1.0])).sum().backward()
    assert h.grad.flatten().tolist() == [0.5, -0.5]


@pairs
@pytest.mark.parametrize("shape", [(5, 1), (4,), (2, 3, 5), (3, 5, 1), ()])
def test_target_of_a_wrong_shape(ours, torchs, K, dtype, shape):
    output = torch.randn(3, 5, K, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"target has shape .* it must be \(3, 5\)"):
        ours(output, torch.zeros(shape, dtype=dtype))


@pairs
def test_target_of_a_wrong_type(ours, torchs, K, dtype):
    wrong = torch.float32 if dtype == torch.int64 else torch.int64
    with pytest.raises(TypeError, match=f"target has type {wrong}"):
        ours(torch.randn(5, K), torch.zeros(5, dtype=wrong))


@pytest.mark.parametrize("loss", [squared_error, binary_cross_entropy])
def test_more_outputs_than_one(loss):
    with pytest.raises(ValueError, match=r"output has shape \(5, 2\): its last axis"):
        loss(torch.randn(5, 2), torch.zeros(5))
