"""What an update leaves behind, and what hooks of others may do."""

import pytest
import torch

from parameter_ordering.gradients.per_sample import PerSampleGradients
from tests.gradients.per_sample import (
    Kept,
    Own,
    S,
    Tied,
    Twice,
    brute_force,
    clear,
    squared_error,
    take,
    traces,
)

pytestmark = pytest.mark.usefixtures("double")


@pytest.mark.parametrize("first_only", [False, True])
@pytest.mark.parametrize("kind", [Own, Twice, Tied])
@pytest.mark.parametrize("change", [clear, take])
def test_gradients_that_a_hook_changes_are_seen_as_they_were(change, kind, first_only):
    model, x, y = kind(), torch.randn(S, 4), torch.randn(S)
    want = brute_force(model, squared_error, x, y)
    used = [name for name, rows in want.items() if rows.any()]
    gradients = PerSampleGradients(model, want, first_only, 0, True)
    for w in model.parameters():
        w.register_post_accumulate_grad_hook(change)
    for _ in range(2):
        _, g_S, g = gradients(squared_error, x, y)
        for name in used:
            torch.testing.assert_close(g_S[name], want[name].mean(0), rtol=1e-10, atol=1e-10)
            torch.testing.assert_close(g[name].first(), want[name][0], rtol=1e-10, atol=1e-10)
            left = model.get_parameter(name).grad
            assert left is None if change is take else not left.any()


@pytest.mark.parametrize("first_only", [False, True])
@pytest.mark.parametrize("leaf", [False, True])
def test_an_input_that_requires_a_gradient_has_it(leaf, first_only):
    model, y = Twice(), torch.randn(S)
    below = torch.randn(S, 4, requires_grad=True)
    x = below if leaf else below.sin()
    (want,) = torch.autograd.grad(squared_error(model(x), y), below, retain_graph=True)
    gradients = PerSampleGradients(model, dict(model.named_parameters()), first_only, 0, True)
    for _ in range(3):
        below.grad = None
        gradients(squared_error, below if leaf else below.sin(), y)
        torch.testing.assert_close(below.grad, want)


@pytest.mark.parametrize("fail", ["model", "loss", "backward", None])
def test_hooks_leave_no_trace(fail):
    model, x, y = Kept(), torch.randn(S, 4), torch.randn(S)
    before, training = traces(model), model.training
    gradients = PerSampleGradients(model, ["a.weight", "c.weight"], False, 0, True)

    def loss_fn(output, y):
        if fail == "loss":
            raise KeyError("asked for")
        if fail == "backward":
            output.register_hook(lambda d: {}["asked for"])
        return squared_error(output, y)

    model.fail = fail == "model"
    if fail:
        with pytest.raises(KeyError, match="asked for"):
            gradients(loss_fn, x, y)
    else:
        gradients(loss_fn, x, y)
    assert traces(model) == before
    assert model.training == training
    assert not model.kept._backward_hooks
    assert not any(w._backward_hooks for w in model.parameters())
    assert not x.requires_grad
