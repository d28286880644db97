"""Losses of every kind, and those and the models that are refused."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from parameter_ordering.gradients.per_sample import PerSampleGradients
from tests.gradients.per_sample import (
    Across,
    Own,
    Reused,
    S,
    Structured,
    Twice,
    ZeroHead,
    brute_force,
    check,
    check_factor,
    squared_error,
)

pytestmark = pytest.mark.usefixtures("double")


@pytest.mark.parametrize("first_only", [False, True])
def test_structured_output(first_only):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(4, 2)

        def forward(self, x):
            return {"mean": self.a(x), "positions": x.flatten()}

    def loss_fn(output, y):
        return squared_error(output["mean"], y)

    model, x, y = Two(), torch.randn(S, 4), torch.randn(S)
    want = brute_force(model, loss_fn, x, y)
    gradients = PerSampleGradients(model, want, first_only, 0, True)
    for _ in range(2):
        _, _, g = gradients(loss_fn, x, y)
        for name in want:
            check_factor(g[name], want[name])
    assert gradients.by_layer == {"a.weight", "a.bias"}


@pytest.mark.parametrize("kind", [Own, Twice])
def test_penalty_on_the_parameters(kind):
    model, x, y = kind(), torch.randn(S, 4), torch.randn(S)

    def loss_fn(output, y):
        return squared_error(output, y) + model.c.weight.square().sum()

    check(model, x, loss_fn, y)


@pytest.mark.parametrize("first_only", [False, True])
@pytest.mark.parametrize("kind", [Own, Twice])
def test_sum_over_samples(kind, first_only):
    model, x, y = kind(), torch.randn(S, 4), torch.randn(S)

    def loss_fn(output, y):
        return len(output) * squared_error(output, y)

    want = brute_force(model, squared_error, x, y)
    gradients = PerSampleGradients(model, want, first_only, 0, mean=False)
    for _ in range(2):
        _, g_S, g = gradients(loss_fn, x, y)
        for name in g:
            torch.testing.assert_close(g_S[name], want[name].mean(0), rtol=1e-10, atol=1e-10)
            torch.testing.assert_close(model.get_parameter(name).grad, S * g_S[name])
            torch.testing.assert_close(g[name].first(), want[name][0], rtol=1e-10, atol=1e-10)
            if not first_only:
                check_factor(g[name], want[name])


@pytest.mark.parametrize("first_only", [False, True])
def test_a_sum_that_is_said_to_be_a_mean_is_refused(first_only):
    model, x, y = nn.Linear(3, 4), torch.randn(S, 3), torch.arange(S) % 4
    gradients = PerSampleGradients(model, ["weight"], first_only, 0, True)
    before = model.weight.clone()
    with pytest.raises(ValueError, match="loss_fn is not the mean over samples but their sum"):
        gradients(lambda o, y: F.cross_entropy(o, y, reduction="sum"), x, y)
    assert torch.equal(model.weight, before)
    assert model.weight.grad is None


@pytest.mark.parametrize("first_only", [False, True])
@pytest.mark.parametrize("loss_fn", ["weights", "ignore", "pairs"])
def test_of_other_losses_the_shares_are_taken(loss_fn, first_only):
    """S times what flows through the row of a sample."""
    model, x, y = nn.Linear(3, 4), torch.randn(S, 3), torch.arange(S) % 4
    loss_fn = {
        "weights": lambda o, y: F.cross_entropy(o, y, weight=torch.arange(1.0, 5.0)),
        "ignore": lambda o, y: F.cross_entropy(o, y, ignore_index=0),
        "pairs": lambda o, y: (o[:, 1] - y - o[:, 1].mean()).square().mean(),
    }[loss_fn]
    output = model(x)
    (d,) = torch.autograd.grad(loss_fn(output, y), output)
    gradients = PerSampleGradients(model, ["weight"], first_only, 0, True)
    for _ in range(3):
        _, g_S, g = gradients(loss_fn, x, y)
        want = S * d.unsqueeze(2) * x.unsqueeze(1)
        torch.testing.assert_close(g["weight"].first(), want[0], rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(g_S["weight"], want.mean(0), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("first_only", [False, True])
def test_models_that_couple_the_samples_are_refused(first_only):
    model = Across(nn.Linear(3, 3))
    gradients = PerSampleGradients(model, ["c.weight"], first_only, 0, True)
    with pytest.raises(ValueError, match="couples the samples"):
        gradients(squared_error, torch.randn(S, 3), torch.randn(S))
    assert model.c.weight.grad is None


@pytest.mark.parametrize("first_only", [False, True])
@pytest.mark.parametrize("S", [2, 6])
@pytest.mark.parametrize("weight", [0.0, 1e-12])
def test_a_gradient_that_is_zero_at_first_is_put_to_the_test_later(weight, S, first_only):
    model, x, y = ZeroHead(weight), torch.randn(S, 4), torch.randn(S)
    gradients = PerSampleGradients(model, dict(model.named_parameters()), first_only, 0, True)
    for lr in (0.0, 0.1, 0.1, 0.1):
        want = brute_force(model, squared_error, x, y)
        _, _, g = gradients(squared_error, x, y)
        reached = want["a.weight"].norm() > 1e-6
        tested = {"c.weight", "c.bias"} | ({"a.bias"} if reached else set())
        assert gradients.by_layer == tested
        for name in want:
            torch.testing.assert_close(g[name].first(), want[name][0], rtol=1e-10, atol=1e-10)
            if not first_only:
                check_factor(g[name], want[name])
        with torch.no_grad():
            for w in model.parameters():
                w -= lr * w.grad


@pytest.mark.parametrize("first_only", [False, True])
def test_a_gradient_that_vanishes_in_the_mean_only(first_only):
    """Two samples with opposite gradients are no ground to take a way untested."""
    model = Reused()
    model.a.bias.requires_grad_(False)
    x = torch.randn(1, 4) * torch.tensor([[1.0], [-1.0]])
    nn.init.zeros_(model.a.bias)

    def loss_fn(output, y):
        return output.sum(1).mean()

    want = brute_force(model, loss_fn, x, x)["a.weight"]
    gradients = PerSampleGradients(model, ["a.weight"], first_only, 0, True)
    _, _, g = gradients(loss_fn, x, x)
    torch.testing.assert_close(g["a.weight"].first(), want[0], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("structured", [False, True])
def test_what_rounding_leaves_of_a_gradient_that_vanishes_is_no_ground_to_refuse(structured):
    x = torch.randn(S, 3, 4)
    x[-1] = -x[:-1].sum(0)

    def loss_fn(output, y):
        return (output["mean"] if structured else output).flatten(1).sum(1).mean()

    if structured:
        model, by_layer = Structured(), {"c.weight"}
        model.c.bias = None
    else:
        model, by_layer = nn.Linear(4, 2), {"weight", "bias"}
    check(model, x, loss_fn, by_layer=by_layer)


@pytest.mark.parametrize("first_only", [False, True])
def test_a_loss_that_no_gradient_shows_at_first_is_refused_later(first_only):
    model, x, y = nn.Embedding(4, 3), torch.randint(0, 4, (S,)), torch.randn(S)
    nn.init.zeros_(model.weight)
    gradients = PerSampleGradients(model, ["weight"], first_only, 0, True)

    def loss_fn(output, y):
        return output.square().sum()

    gradients(loss_fn, x, y)
    nn.init.normal_(model.weight)
    with pytest.raises(ValueError, match="not the mean over samples"):
        gradients(loss_fn, x, y)


@pytest.mark.parametrize("first_only", [False, True])
def test_a_coupling_that_no_gradient_shows_at_first_is_refused_later(first_only):
    model, x, y = Across(nn.Linear(3, 3)), torch.randn(S, 3), torch.randn(S)
    nn.init.zeros_(model.c.weight)
    gradients = PerSampleGradients(model, ["c.weight"], first_only, 0, True)
    gradients(squared_error, x, y)
    gradients(squared_error, x, y)
    nn.init.normal_(model.c.weight)
    with pytest.raises(ValueError, match="couples the samples"):
        gradients(squared_error, x, y)


@pytest.mark.parametrize("first_only", [False, True])
def test_behind_a_structured_output_shares_are_those_of_the_rows_of_the_layer(first_only):
    model, x, y = Structured(), torch.randn(S, 4), torch.randn(S)
    gradients = PerSampleGradients(model, ["c.weight"], first_only, 0, True)
    for model.told in (False, True):
        rows = x - x.mean(0) if model.told else x
        want = brute_force(model.c, squared_error, rows, y)["weight"]
        _, _, g = gradients(lambda output, y: squared_error(output["mean"], y), x, y)
        torch.testing.assert_close(g["c.weight"].first(), want[0], rtol=1e-10, atol=1e-10)
