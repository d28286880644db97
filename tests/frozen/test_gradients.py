"""Masked gradients: in place where they have memory of their own, apart where they share it."""

import copy
import math
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn, optim

from parameter_ordering.freezing import freeze
from parameter_ordering.frozen import parts
from parameter_ordering.masked_adam import MaskedAdam
from tests.frozen.cases import (
    HALF,
    KINDS,
    linear,
    same_bits,
    slowly,
)


def test_a_gradient_of_another_type_is_masked():
    w = nn.Parameter(torch.ones(4, 2, dtype=torch.bfloat16))
    w.grad_dtype = torch.float32
    mask = torch.arange(8).view(4, 2) < 3
    optimizer = optim.SGD([w], lr=0.5)
    freeze(optimizer, {w: mask})
    w.float().square().sum().backward()
    assert w.grad.dtype == torch.float32
    assert torch.equal(w.grad == 0, mask)
    optimizer.step()
    assert torch.equal(w == 1, mask)


class PassedOn(torch.autograd.Function):
    @staticmethod
    def forward(ctx, a, b):
        return a + b

    @staticmethod
    def backward(ctx, g):
        return g.detach(), g


# Autograd gives a and b one gradient in memory, or parts of one.
SHARING = {
    "view": lambda a, b: a.view(2, 3) + b.view(2, 3),
    "unsqueeze": lambda a, b: a[None] + b[None],
    "t": lambda a, b: a.t() + b.t(),
    "unflatten": lambda a, b: a.unflatten(0, (2, 3)) + b.unflatten(0, (2, 3)),
    "stack": lambda a, b: torch.stack([a, b]).sum(0),
    "cat": lambda a, b: torch.cat([a, b])[2:8],
    "detach": PassedOn.apply,
    "none": lambda a, b: a + b,
}


@given(
    st.sampled_from(sorted(SHARING)),
    st.sampled_from(sorted(KINDS)),
    st.booleans(),
    st.booleans(),
    st.booleans(),
)
def test_gradients_that_share_memory_are_masked_apart(name, kind, in_backward, swapped, both):
    x, *values = torch.randn(3, 6, dtype=torch.float64)
    expression, build = SHARING[name], KINDS[kind]
    masks = [torch.arange(6) < 4, (torch.arange(6) > 2) & both]
    params, others = ([nn.Parameter(v.clone()) for v in values] for _ in range(2))
    optimizer, other = build(params, lr=0.1), build(others, lr=0.1)
    freeze(optimizer, dict(zip(params, masks, strict=True)), in_backward=in_backward)
    for _ in range(3):
        optimizer.zero_grad()
        losses = [
            (expression(*(pair[::-1] if swapped else pair)).reshape(-1) * x).square().sum()
            for pair in (params, others)
        ]
        losses[0].backward()
        optimizer.step()
        slowly(others, other, [torch.autograd.grad(losses[1], others)], masks)
    torch.testing.assert_close(params, others, rtol=1e-10, atol=1e-12)


def test_memory_is_taken_for_shared_where_torch_cannot_tell(monkeypatch):
    monkeypatch.setattr(parts, "_use_count", None)
    p = nn.Parameter(torch.zeros(3))
    optimizer = optim.SGD([p], lr=0.1)
    freeze(optimizer, {p: torch.tensor([True, False, False])})
    p.grad = given = torch.ones(3)
    p.sum().backward()
    assert p.grad.tolist() == [0, 2, 2]
    assert given.tolist() == [2, 2, 2]


@pytest.mark.parametrize(
    "gradient",
    [torch.ones(1).expand(4, 3), torch.ones(6).unfold(0, 3, 1), torch.ones(4, 1).expand(4, 3)],
)
@pytest.mark.parametrize("kind", KINDS)
def test_an_expanded_gradient_is_masked(gradient, kind):
    w = nn.Parameter(torch.ones(4, 3))
    mask = torch.arange(12).view(4, 3) % 5 < 2
    optimizer = KINDS[kind]([w], lr=0.1)
    freeze(optimizer, {w: mask})
    w.grad = copy.deepcopy(gradient)  # the only owner of its memory
    optimizer.step()
    assert torch.equal(w == 1, mask)


@pytest.mark.parametrize("kind", [optim.SGD, optim.Adam])
def test_a_gradient_of_its_own_is_masked_in_place(kind):
    w = nn.Parameter(torch.ones(4))
    optimizer = kind([w], lr=0.1)
    freeze(optimizer, {w: torch.arange(4) < 2})
    addresses = set()
    w.register_hook(lambda g: addresses.add(g.data_ptr()))
    (2 * w).sum().backward()
    addresses.add(w.grad.data_ptr())
    optimizer.step()
    assert addresses == {w.grad.data_ptr()}


@pytest.mark.parametrize("kind", [optim.Adam, optim.SGD, partial(MaskedAdam, compact=True)])
def test_a_frozen_gradient_does_not_count_in_a_clipped_norm(kind):
    """Against a model whose parameters are a constant and a vector of free coordinates."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1)).double()
    masks = {name: torch.rand(w.shape) < 0.6 for name, w in model.named_parameters()}
    base = {name: w.detach().clone() for name, w in model.named_parameters()}
    free = {name: nn.Parameter(w[~masks[name]]) for name, w in base.items()}
    optimizer = kind(model.named_parameters(), lr=0.1, weight_decay=0.01)
    other = kind(free.items(), lr=0.1, weight_decay=0.01)
    freeze(optimizer, masks)
    for _ in range(10):
        x = torch.randn(2, 16, 4, dtype=torch.float64)
        optimizer.zero_grad()
        other.zero_grad()
        for half in x:  # Gradients of two backward passes add up.
            model(half).square().mean().backward()
            whole = {name: w.masked_scatter(~masks[name], free[name]) for name, w in base.items()}
            torch.func.functional_call(model, whole, half).square().mean().backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        assert norm == pytest.approx(nn.utils.clip_grad_norm_(free.values(), 0.1).item(), rel=1e-10)
        optimizer.step()
        other.step()
    for name, w in model.named_parameters():
        torch.testing.assert_close(w[~masks[name]], free[name], rtol=1e-10, atol=1e-12)
        assert same_bits([w[masks[name]]], [base[name][masks[name]]])


@pytest.mark.parametrize("unscale", [False, True])
@pytest.mark.parametrize("options", [{"fused": True}, {"fused": False}, {"compact": True}])
def test_a_frozen_inf_does_not_stop_a_grad_scaler(options, unscale):
    model, optimizer = linear(MaskedAdam, lr=0.1, **options)
    freeze(optimizer, HALF)
    before = model.weight.detach().clone()
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    infinite = torch.ones(2, 3, dtype=torch.float64).masked_fill(HALF["weight"], math.inf)
    scaler.scale((model.weight * infinite).sum()).backward()
    if unscale:
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0, error_if_nonfinite=True)
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 8.0
    assert torch.equal(model.weight != before, ~HALF["weight"])


def test_gradients_can_be_masked_by_the_step_alone():
    model, optimizer = linear(lr=0.1, momentum=0.9)
    freeze(optimizer, HALF, in_backward=False)
    before = model.weight.detach().clone()
    model(torch.ones(1, 3).double()).sum().backward()
    assert (model.weight.grad == 1).all()
    optimizer.step()
    assert torch.equal(model.weight.grad == 0, HALF["weight"])
    assert torch.equal(model.weight != before, ~HALF["weight"])
    freeze(optimizer)  # as it is
    optimizer.zero_grad()
    model(torch.ones(1, 3).double()).sum().backward()
    assert (model.weight.grad == 1).all()
    freeze(optimizer, in_backward=True)
    optimizer.zero_grad()
    model(torch.ones(1, 3).double()).sum().backward()
    assert torch.equal(model.weight.grad == 0, HALF["weight"])


@pytest.mark.filterwarnings("ignore:Using backward")
def test_autograd_sees_a_masked_gradient():
    w = nn.Parameter(torch.randn(4, dtype=torch.float64))
    mask = torch.arange(4) < 2
    optimizer = optim.SGD([w])
    freeze(optimizer, {w: mask})
    (w**3).sum().backward(create_graph=True)
    [hessian] = torch.autograd.grad(w.grad.sum(), [w])
    w.grad = None  # breaks the cycle that torch warns of
    torch.testing.assert_close(hessian, (6 * w).masked_fill(mask, 0))
