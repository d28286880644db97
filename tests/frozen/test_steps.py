"""A freeze in steps of all kinds: with closures, compiled, captured, differentiated, with decay."""

import copy
import warnings
from functools import partial

import pytest
import torch
from torch import nn, optim

from parameter_ordering.freezing import freeze
from parameter_ordering.frozen.parts import FrozenPart
from parameter_ordering.masked_adam import MaskedAdam
from tests.frozen.cases import (
    HALF,
    compiled,
    linear,
    needs_cuda,
    same_bits,
    slowly,
    train,
)


@pytest.mark.parametrize("frozen_first", [False, True])
def test_a_step_in_the_backward_pass_freezes(frozen_first):
    model, optimizer = linear(lr=0.1, momentum=0.9)
    before = model.weight.detach().clone()

    def step(p):
        optimizer.step()
        optimizer.zero_grad()

    if frozen_first:
        freeze(optimizer, HALF)
    for p in model.parameters():
        p.register_post_accumulate_grad_hook(step)
    if not frozen_first:
        freeze(optimizer, HALF)
    for _ in range(3):
        model(torch.ones(1, 3).double()).sum().backward()
    assert torch.equal(model.weight != before, ~HALF["weight"])


@pytest.mark.parametrize("kind", [optim.SGD, optim.Adam, MaskedAdam])
@pytest.mark.parametrize("by_hand", [False, True])
def test_a_closure_may_make_the_gradient(kind, by_hand):
    model, optimizer = linear(kind, lr=0.1)
    other_model, other = linear(kind, lr=0.1)
    for each in (optimizer, other):
        freeze(each, HALF)
    x = torch.randn(4, 3).double()

    def closure():
        optimizer.zero_grad()
        loss = model(x).square().mean()
        if by_hand:
            model.weight.grad, model.bias.grad = torch.autograd.grad(loss, model.parameters())
        else:
            loss.backward()
        return loss

    for _ in range(3):
        loss = optimizer.step(closure)
        other.zero_grad()
        other_loss = other_model(x).square().mean()
        other_loss.backward()
        other.step()
        assert loss == other_loss
    assert same_bits(model.parameters(), other_model.parameters())


@pytest.mark.parametrize("kind", [optim.SGD, optim.Adam, partial(MaskedAdam, compact=True)])
@pytest.mark.parametrize("by_name", [False, True])
def test_a_step_may_take_arguments_of_its_own(kind, by_name):
    class Scaled(getattr(kind, "func", kind)):
        def step(self, closure=None, *, scale=1.0):
            self.scale = scale
            return super().step(closure)

    w = nn.Parameter(torch.ones(4))
    mask = torch.arange(4) < 2
    optimizer = Scaled([w], lr=0.1, **getattr(kind, "keywords", {}))
    freeze(optimizer, {w: mask})

    def closure():
        w.grad = torch.ones(4)
        return 3.0

    assert optimizer.step(scale=2.0) is None
    assert optimizer.scale == 2.0
    loss = optimizer.step(closure=closure) if by_name else optimizer.step(closure, scale=4.0)
    assert loss == 3.0
    assert optimizer.scale == (1.0 if by_name else 4.0)
    assert torch.equal(w.grad == 0, mask)
    assert torch.equal(w == 1, mask)


@pytest.mark.parametrize("kind", [optim.SGD, optim.Adam])
def test_a_step_may_do_more_than_that_of_its_class(kind):
    """Its own step and the one that it calls are both hooked, once a plain one has been built."""

    class Decaying(kind):
        fail = False

        @torch.no_grad()
        def step(self, closure=None):
            for decay in (0.9, 0.8):
                [p] = self.param_groups[0]["params"]
                p.mul_(decay)
                super().step(closure)
                if self.fail:
                    raise FloatingPointError
                p.mul_(decay)

    kind([nn.Parameter(torch.ones(1))])
    w = nn.Parameter(torch.ones(4))
    mask = torch.arange(4) < 2
    optimizer = Decaying([w], lr=0.1)
    freeze(optimizer, {w: mask})
    w.grad = torch.ones(4)
    for value, failures in ((1.0, 0), (1.0, 6), (2.0, 6)):
        optimizer.fail = True
        for _ in range(failures):
            with pytest.raises(FloatingPointError):
                optimizer.step()
        optimizer.fail = False
        with torch.no_grad():
            w.fill_(value)  # What is frozen may be set by hand, also after steps that failed.
        for _ in range(3):
            optimizer.step()
            assert torch.equal(w == value, mask)


@pytest.mark.parametrize("kind", [optim.Adam, optim.SGD])
def test_a_later_hook_may_change_the_gradient(kind):
    model, optimizer = linear(kind, lr=0.1)
    freeze(optimizer, HALF)
    before = model.weight.detach().clone()

    def decay(optimizer, args, kwargs):
        model.weight.grad += model.weight.detach()

    hook = optimizer.register_step_pre_hook(decay)
    for _ in range(3):
        model.weight.grad = torch.ones_like(model.weight)
        optimizer.step()
    hook.remove()
    for _ in range(3):
        model.weight.grad = torch.ones_like(model.weight)
        optimizer.step()
    assert torch.equal(model.weight != before, ~HALF["weight"])


@pytest.mark.parametrize("kind", [optim.Adam, optim.SGD])
def test_decay_may_come_and_go(kind):
    model, optimizer = linear(kind, lr=0.1)
    freeze(optimizer, HALF)
    before = model.weight.detach().clone()
    for decay in (0.0, 0.5, 0.0):
        optimizer.param_groups[0]["weight_decay"] = decay
        for _ in range(3):
            model.weight.grad = torch.randn(2, 3).double()
            optimizer.step()
    assert torch.equal(model.weight != before, ~HALF["weight"])


@pytest.mark.parametrize(
    "kind", [optim.Adam, optim.AdamW, MaskedAdam, partial(MaskedAdam, finite_gradients=True)]
)
def test_decay_that_has_gone_costs_no_copy(kind, monkeypatch):
    model, optimizer = linear(kind, lr=0.1, weight_decay=0.1)
    freeze(optimizer, HALF, in_backward=False)
    gradients = [[torch.ones(2, 3).double()]]
    train([model.weight], optimizer, gradients)
    optimizer.param_groups[0]["weight_decay"] = 0.0
    monkeypatch.setattr(FrozenPart, "_save", None)
    train([model.weight], optimizer, gradients)


def test_decay_that_has_gone_leaves_no_moment_behind():
    """Not even where autograd needs the moments, so that they are not forgotten."""
    w = torch.ones(3).requires_grad_().clone()
    mask = torch.tensor([True, False, True])
    optimizer = MaskedAdam([w], lr=0.1, weight_decay=0.1, differentiable=True)
    freeze(optimizer, {w: mask})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns that w.grad is read though w is no leaf.
        for decay in (0.1, 0.0, 0.0):
            optimizer.param_groups[0]["weight_decay"] = decay
            train([w], optimizer, [[torch.ones(3)]])
    assert torch.equal(w == 1, mask)


@pytest.mark.parametrize(
    ("kind", "steps"),
    [
        (optim.SGD, 2),
        (optim.Adam, 2),
        (partial(optim.Adam, amsgrad=True), 1),  # a second is more than torch can differentiate
        (optim.RMSprop, 2),
    ],
)
def test_autograd_sees_the_freeze(kind, steps):
    mask = torch.tensor([True, False, True])

    def step(w, *gradients):
        w = w.clone()
        optimizer = kind([w], lr=0.1, weight_decay=0.1, differentiable=True)
        freeze(optimizer, {w: mask})
        for g in gradients:
            w.grad = g
            optimizer.step()
        return w

    torch.manual_seed(0)
    inputs = [torch.randn(3, dtype=torch.float64, requires_grad=True) for _ in range(1 + steps)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns that w.grad is read though w is no leaf.
        assert torch.autograd.gradcheck(step, inputs)
        assert same_bits([step(*inputs)[mask]], [inputs[0][mask]])


@pytest.mark.parametrize(
    ("kind", "in_backward"),
    [
        (optim.Adam, True),
        (optim.SGD, True),
        (partial(MaskedAdam, finite_gradients=True), False),
    ],
)
def test_a_compiled_step_freezes(kind, in_backward):
    w = nn.Parameter(torch.randn(5))
    mask = torch.arange(5) < 3
    optimizer = kind([w], lr=0.1, weight_decay=0.1)
    before = w.detach().clone()
    other = nn.Parameter(before.clone())
    freeze(optimizer, {w: mask}, in_backward=in_backward)
    gradients = [[torch.randn(5)] for _ in range(3)]
    step = compiled(optimizer)
    for now in gradients:
        w.grad = now[0].clone()
        step()
    slowly([other], kind([other], lr=0.1, weight_decay=0.1), gradients, [mask])
    assert same_bits([w[mask]], [before[mask]])
    torch.testing.assert_close(w, other)


@pytest.mark.parametrize(
    ("options", "in_graph"),
    [
        ({}, False),
        ({"differentiable": True}, False),
        ({"foreach": False}, True),
        ({"lr": torch.tensor(0.1), "foreach": False}, True),
        pytest.param({"capturable": True, "foreach": False}, False, marks=needs_cuda),
        pytest.param({"capturable": True, "foreach": True}, False, marks=needs_cuda),
    ],
)
@pytest.mark.parametrize(
    "kind", [optim.Adam, optim.AdamW, MaskedAdam, partial(MaskedAdam, finite_gradients=True)]
)
def test_a_learning_rate_may_start_at_zero(kind, options, in_graph):
    """Some ways of torch's Adam divide by it: 0 / 0 for moments of zero."""
    w = torch.ones(5, device="cuda" if options.get("capturable") else "cpu")
    mask = torch.arange(5, device=w.device) < 3
    options = {"lr": 0.1, "weight_decay": 0.0} | copy.deepcopy(options)
    optimizer = kind([w], **options)
    warm_up = optim.lr_scheduler.LambdaLR(optimizer, lambda t: t / 3)
    freeze(optimizer, {w: mask}, in_backward=False)
    step = compiled(optimizer) if in_graph else optimizer.step
    for t in range(3):
        w.grad = torch.ones_like(w)
        step()
        warm_up.step()
        assert torch.equal(w == 1, mask | (t == 0))


@needs_cuda
@pytest.mark.parametrize("kind", [optim.Adam, optim.AdamW, optim.NAdam, optim.RMSprop])
def test_a_captured_step_freezes(kind):
    w = nn.Parameter(torch.randn(5, device="cuda"))
    mask = torch.arange(5, device="cuda") < 3
    optimizer = kind([w], lr=0.1, weight_decay=0.1, capturable=True)
    freeze(optimizer, {w: mask})
    w.grad = torch.randn_like(w)
    optimizer.step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        optimizer.step()
    before = w.detach().clone()
    for _ in range(3):
        w.grad.normal_()
        graph.replay()
    assert torch.equal(w != before, ~mask)
