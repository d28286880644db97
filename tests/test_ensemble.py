"""An ensemble: every model in it is trained, measured and frozen as if it were alone.

The reference is the plain way, one ``nn.Module`` at a time with ``torch.optim.Adam``: its own
shuffled epochs, the gradient masked and the frozen values put back by hand.
"""

import pytest
import torch
from torch import nn

from parameter_ordering.covariance import GradientCovariance
from parameter_ordering.ensemble import (
    ENSEMBLE_DIMS,
    Linear,
    branch,
    evaluate,
    stack,
    summed,
)
from parameter_ordering.freezing import freeze
from parameter_ordering.masked_adam import MaskedAdam
from parameter_ordering.order import rank
from parameter_ordering.paper.experiments.models import (
    binary_cross_entropy,
    cross_entropy,
    linear,
    perceptron,
    squared_error,
)
from parameter_ordering.paper.experiments.protocol import Minibatches

R, V, N, S, M = 3, 5, 6, 8, 50
T0, STEPS, LR = 20, 100, 0.01
KINDS = {
    "perceptron, squared error": (lambda: perceptron(N, 4, 1), squared_error),
    "perceptron, binary cross-entropy": (lambda: perceptron(N, 4, 1), binary_cross_entropy),
    "perceptron, cross-entropy": (lambda: perceptron(N, 4, 3), cross_entropy),
    "linear, squared error": (lambda: linear(N), squared_error),
    "linear, binary cross-entropy": (lambda: linear(N), binary_cross_entropy),
}
each_kind = pytest.mark.parametrize(("build", "loss"), KINDS.values(), ids=KINDS)


def models(build, dtype=torch.float64):
    torch.manual_seed(0)
    return [build().to(dtype) for _ in range(R)]


def objects(loss, dtype=torch.float64):
    """x (1, M, N) and y (1, M), shared by all runs."""
    g = torch.Generator().manual_seed(1)
    x = torch.randn(1, M, N, generator=g, dtype=dtype)
    if loss is cross_entropy:
        return x, torch.randint(3, (1, M), generator=g)
    if loss is binary_cross_entropy:
        return x, torch.randint(2, (1, M), generator=g).to(dtype)
    return x, 5 * torch.randn(1, M, generator=g, dtype=dtype)


def random_masks(build):
    """A mask (R, V, ...) for each parameter, about half of it frozen."""
    g = torch.Generator().manual_seed(2)
    return {
        name: torch.rand(R, V, *w.shape, generator=g) < 0.5
        for name, w in build().named_parameters()
    }


def shuffled_epochs(run):
    g = torch.Generator().manual_seed(run)
    while True:
        yield from torch.randperm(M, generator=g).split(S)[: M // S]


def train_alone(model, mask, loss, x, y, run):
    optimizer = torch.optim.Adam(model.parameters(), lr=LR)
    for t, rows in zip(range(STEPS), shuffled_epochs(run), strict=False):
        optimizer.zero_grad()
        loss(model(x[0, rows]), y[0, rows]).mean().backward()
        before = {name: w.detach().clone() for name, w in model.named_parameters()}
        for name, w in model.named_parameters():
            if t >= T0:
                w.grad[mask[name]] = 0
        optimizer.step()
        for name, w in model.named_parameters():
            if t >= T0:
                w.data[mask[name]] = before[name][mask[name]]


def train_together(model, mask, loss, x, y, steps=STEPS):
    """The same for all; gives the ensemble after every step from T0 on."""
    optimizer = MaskedAdam(model.named_parameters(), lr=LR, fused=True)
    minibatches = Minibatches(x, y, S, range(R))
    for t in range(steps):
        if t == T0:
            branch(model, optimizer, V)
            freeze(optimizer, mask)
            yield
        optimizer.zero_grad()
        rows, answers = next(minibatches)
        summed(loss)(model(rows), answers).backward()
        optimizer.step()
        if t >= T0:
            yield


@each_kind
def test_an_ensemble_trains_as_its_models_alone(build, loss):
    mask, (x, y) = random_masks(build), objects(loss)
    together = stack(models(build))
    for _ in train_together(together, mask, loss, x, y):
        pass
    for v in range(V):
        for run, alone in enumerate(models(build)):
            own = {name: each[run, v] for name, each in mask.items()}
            train_alone(alone, own, loss, x, y, run)
            for name, w in alone.named_parameters():
                ours = together.get_parameter(name)[run, v]
                torch.testing.assert_close(ours, w, rtol=0, atol=1e-10)


@each_kind
def test_what_is_frozen_keeps_every_bit_and_the_rest_moves(build, loss):
    mask, (x, y) = random_masks(build), objects(loss, torch.float32)
    model = stack(models(build, torch.float32))
    states = train_together(model, mask, loss, x, y, steps=T0 + 10)
    next(states)
    at_t0 = {name: w.detach().clone() for name, w in model.named_parameters()}
    for _ in states:
        for name, w in model.named_parameters():
            still = w.view(torch.int32) == at_t0[name].view(torch.int32)
            assert still[mask[name]].all()
    moved = [(w != at_t0[name])[~mask[name]] for name, w in model.named_parameters()]
    assert torch.cat(moved).float().mean() > 0.9


@each_kind
@pytest.mark.parametrize("samples", ["first", "all"])
def test_covariance_and_ranks_are_those_of_the_models_alone(build, loss, samples):
    x, y = objects(loss)
    model = stack(models(build))
    together = GradientCovariance(model, samples, ensemble_dims=ENSEMBLE_DIMS)
    minibatches = Minibatches(x, y, S, range(R))
    for _ in range(5):
        together.update(summed(loss), *next(minibatches))
    seeds = [7, 1, 4]
    ranks = rank(together.diagonal(), seeds, ENSEMBLE_DIMS)
    for run, alone in enumerate(models(build)):
        C = GradientCovariance(alone, samples)
        for _, rows in zip(range(5), shuffled_epochs(run), strict=False):
            C.update(lambda output, target: loss(output, target).mean(), x[0, rows], y[0, rows])
        own = rank(C.diagonal(), seeds[run])
        for name, diagonal in C.diagonal().items():
            ours = together.diagonal()[name][run, 0]
            torch.testing.assert_close(ours, diagonal, rtol=0, atol=1e-10)
            assert torch.equal(ranks[name][run, 0], own[name])


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("own_inputs", [True, False], ids=["own inputs", "shared inputs"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_layer_is_many_layers(bias, own_inputs, dtype):
    torch.manual_seed(0)
    layers = [[nn.Linear(7, 4, bias, dtype=dtype) for _ in range(V)] for _ in range(R)]
    weight = torch.stack([torch.stack([each.weight for each in run]) for run in layers]).detach()
    b = torch.stack([torch.stack([each.bias for each in run]) for run in layers]) if bias else None
    layer = Linear(weight, b.detach() if bias else None)
    x = torch.randn(R, V if own_inputs else 1, S, 7, dtype=dtype, requires_grad=True)
    pull = torch.randn(R, V, S, 4, dtype=dtype)
    layer(x).backward(pull)
    x_grad = torch.zeros_like(x)
    for r in range(R):
        for v in range(V):
            alone, place = layers[r][v], (r, v if own_inputs else 0)
            rows = x[place].detach().requires_grad_()
            output = alone(rows)
            torch.testing.assert_close(layer(x)[r, v], output)
            output.backward(pull[r, v])
            torch.testing.assert_close(layer.weight.grad[r, v], alone.weight.grad)
            if bias:
                torch.testing.assert_close(layer.bias.grad[r, v], alone.bias.grad)
            x_grad[place] += rows.grad
    torch.testing.assert_close(x.grad, x_grad)


@each_kind
def test_a_branch_starts_where_its_run_stands(build, loss):
    x, y = objects(loss)
    model = stack(models(build))
    optimizer = MaskedAdam(model.named_parameters(), lr=LR)
    summed(loss)(model(x[:, None]), y[:, None]).backward()
    optimizer.step()
    before = {name: w.detach().clone() for name, w in model.named_parameters()}
    states = {name: dict(optimizer.state[w]) for name, w in model.named_parameters()}
    branch(model, optimizer, V)
    for name, w in model.named_parameters():
        assert w.shape == (R, V, *before[name].shape[2:])
        assert w.grad is None
        for v in range(V):
            assert torch.equal(w[:, v : v + 1], before[name])
            for key in ("exp_avg", "exp_avg_sq"):
                assert torch.equal(optimizer.state[w][key][:, v : v + 1], states[name][key])
        assert optimizer.state[w]["step"] == 1


def test_a_branch_has_gradients_of_its_own_shape_whoever_holds_an_old_graph():
    model = stack(models(lambda: perceptron(N, 4, 1))[:1])
    optimizer = MaskedAdam(model.named_parameters(), lr=LR)
    x = torch.randn(1, 1, S, N, dtype=torch.float64)
    model(x).sum().backward()
    optimizer.step()
    held = model(x)
    branch(model, optimizer, V)
    model(x).sum().backward()
    assert held.requires_grad
    for w in model.parameters():
        assert w.grad.shape == w.shape


@each_kind
@pytest.mark.parametrize("chunk", [1, 7, M, 1000])
def test_the_loss_is_that_of_each_model(build, loss, chunk):
    x, y = objects(loss)
    model = stack(models(build))
    branch(model, torch.optim.Adam(model.parameters()), 2)
    losses = evaluate(model, loss, x, y, chunk)
    assert losses.shape == (R, 2)
    for run, alone in enumerate(models(build)):
        expected = loss(alone(x[0]), y[0]).mean()
        torch.testing.assert_close(losses[run], expected.detach().expand(2))


def test_losses_are_added_in_double_precision():
    model = stack(models(lambda: linear(N), torch.float32))
    losses = evaluate(model, squared_error, *objects(squared_error, torch.float32))
    assert losses.dtype == torch.float64


def test_objects_can_be_each_runs_own():
    x, y = (torch.cat([each, each + 1, each + 2]) for each in objects(squared_error))
    losses = evaluate(stack(models(lambda: linear(N))), squared_error, x, y)
    for run, alone in enumerate(models(lambda: linear(N))):
        expected = squared_error(alone(x[run]), y[run]).mean()
        torch.testing.assert_close(losses[run, 0], expected.detach())


def test_a_stack_keeps_names_and_leaves_its_models_alone():
    alone = models(lambda: perceptron(N, 4, 1))
    model = stack(alone)
    shapes = {name: tuple(w.shape) for name, w in model.named_parameters()}
    assert shapes == {
        "0.weight": (R, 1, 4, N),
        "0.bias": (R, 1, 4),
        "2.weight": (R, 1, 1, 4),
        "2.bias": (R, 1, 1),
    }
    with torch.no_grad():
        model.get_parameter("0.weight").zero_()
    assert alone[0][0].weight.any()


def test_a_layer_by_itself_is_stacked():
    layers = [nn.Linear(3, 2) for _ in range(4)]
    x = torch.randn(5, 3)
    expected = torch.stack([layer(x) for layer in layers])
    torch.testing.assert_close(stack(layers)(x[None, None])[:, 0], expected)


def test_what_cannot_be_stacked_is_named():
    with pytest.raises(TypeError, match=r"'1\.weight' is not of an nn\.Linear"):
        stack([nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))])
