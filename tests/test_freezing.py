"""Freezing: what is frozen keeps every bit, and the rest moves as if it were alone.

One slow reference masks each gradient, steps and puts the frozen values back by hand. The other is
the same optimizer on vectors of the free coordinates, where the rest does not exist at all.
"""

import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn, optim

from parameter_ordering.freezing import freeze
from parameter_ordering.masked_adam import MaskedAdam
from tests.frozen.cases import (
    ELEMENTWISE,
    HALF,
    cases,
    linear,
    same_bits,
    slowly,
    state_of,
    train,
)


@given(cases())
def test_with_nothing_frozen_nothing_changes(case):
    params, optimizer = case.build()
    others, other = case.build()
    freeze(optimizer, {p: torch.zeros_like(m) for p, m in zip(params, case.masks, strict=True)})
    train(params, optimizer, case.gradients)
    train(others, other, case.gradients)
    assert same_bits(params, others)
    assert same_bits(state_of(optimizer), state_of(other))


@given(cases(), st.integers(0, 3))
@settings(max_examples=300)
def test_frozen_values_keep_every_bit(case, t0):
    params, optimizer = case.build()
    others, other = case.build()
    train(params, optimizer, case.gradients[:t0])
    train(others, other, case.gradients[:t0])
    before = [p.detach().clone() for p in params]
    freeze(optimizer, dict(zip(params, case.masks, strict=True)))
    poisoned = [
        [g.masked_fill(m, bad) for g, m in zip(now, case.masks, strict=True)]
        for now, bad in zip(case.gradients[t0:], [math.nan, math.inf, -math.inf] * 2, strict=False)
    ]
    train(params, optimizer, poisoned)
    slowly(others, other, case.gradients[t0:], case.masks)
    for p, b, m in zip(params, before, case.masks, strict=True):
        assert same_bits([p[m]], [b[m]])
    free = [~m for m in case.masks]
    if case.options.get("compact"):  # In another place a vector instruction may round differently.
        for p, o, f in zip(params, others, free, strict=True):
            torch.testing.assert_close(p[f], o[f], equal_nan=True)
    else:
        assert same_bits(params, others)


@given(cases(ELEMENTWISE, [torch.float64]), st.integers(0, 3))
def test_free_values_move_as_if_the_rest_did_not_exist(case, t0):
    params, optimizer = case.build()
    alone, other = case.build([v[~m] for v, m in zip(case.values, case.masks, strict=True)])
    train(params, optimizer, case.gradients[:t0])
    freeze(optimizer, dict(zip(params, case.masks, strict=True)))
    train(params, optimizer, case.gradients[t0:])
    free = [[g[~m] for g, m in zip(now, case.masks, strict=True)] for now in case.gradients]
    train(alone, other, free)
    for p, q, m in zip(params, alone, case.masks, strict=True):
        torch.testing.assert_close(p[~m], q, rtol=1e-10, atol=1e-12, equal_nan=True)


@pytest.mark.parametrize("kind", [optim.SGD, optim.Adam, optim.AdamW, optim.RMSprop])
@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_complex_values_freeze(kind, dtype):
    w = nn.Parameter(torch.randn(7, dtype=dtype))
    mask = torch.arange(7) < 4
    optimizer = kind([w], lr=0.1, weight_decay=0.1)
    train([w], optimizer, [[torch.randn(7, dtype=dtype)] for _ in range(2)])
    before = w.detach().clone()
    freeze(optimizer, {w: mask})
    train([w], optimizer, [[torch.randn(7, dtype=dtype)] for _ in range(3)])
    assert same_bits([w[mask]], [before[mask]])
    assert (w != before)[~mask].all()


@pytest.mark.parametrize("kind", [optim.SGD, optim.Adam, partial(MaskedAdam, compact=True)])
def test_any_memory_layout_freezes(kind):
    values = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    w = nn.Parameter(values.clone())
    mask = torch.rand(2, 3, 4, 5) < 0.5
    optimizer = kind([w], lr=0.1)
    freeze(optimizer, {w: mask})
    train([w], optimizer, [[torch.randn(5, 4, 3, 2).permute(3, 2, 1, 0)] for _ in range(3)])
    assert same_bits([w[mask]], [values[mask]])
    assert (w != values)[~mask].all()


@pytest.mark.parametrize(
    "scheduler",
    [
        partial(optim.lr_scheduler.StepLR, step_size=2),
        partial(optim.lr_scheduler.OneCycleLR, max_lr=0.5, total_steps=6),
    ],
)
def test_schedulers_go_on(scheduler):
    def steps(by_hand):
        torch.manual_seed(1)
        w = nn.Parameter(torch.randn(5))
        mask = torch.arange(5) < 3
        optimizer = optim.SGD([w], lr=0.1, momentum=0.9, weight_decay=0.1)
        schedule = scheduler(optimizer)
        if not by_hand:
            freeze(optimizer, {w: mask})
        for _ in range(5):
            gradient = [[torch.randn(5)]]
            if by_hand:
                slowly([w], optimizer, gradient, [mask])
            else:
                train([w], optimizer, gradient)
            schedule.step()
        return w

    assert same_bits([steps(by_hand=True)], [steps(by_hand=False)])


def test_a_group_that_comes_later_trains_until_it_is_frozen():
    model, optimizer = linear(lr=0.1, weight_decay=0.1)
    freeze(optimizer, HALF)
    late = nn.Parameter(torch.ones(2))
    optimizer.add_param_group({"params": [("late", late)]})
    before = model.weight.detach().clone()
    train([model.weight, late], optimizer, [[torch.ones(2, 3).double(), torch.ones(2)]])
    assert torch.equal(model.weight != before, ~HALF["weight"])
    assert (late != 1).all()
    now = late.detach().clone()
    freeze(optimizer, {"late": torch.tensor([True, False])})
    train([model.weight, late], optimizer, [[torch.ones(2, 3).double(), torch.ones(2)]])
    assert torch.equal(late != now, torch.tensor([False, True]))
    assert (model.weight != before).all()


def test_a_parameter_that_needs_no_gradient_may_be_frozen():
    model, optimizer = linear(lr=0.1, weight_decay=0.1)
    model.weight.requires_grad_(False)
    before = model.weight.clone()
    freeze(optimizer, HALF)
    model(torch.ones(1, 3).double()).sum().backward()
    optimizer.step()
    assert torch.equal(model.weight, before)
    assert not model.weight.requires_grad
    model.weight.requires_grad_(True)
    model(torch.ones(1, 3).double()).sum().backward()
    assert torch.equal(model.weight.grad == 0, HALF["weight"])


def test_sparse_gradients_and_optimizers_that_cannot_freeze_are_refused():
    table = nn.Embedding(4, 2, sparse=True)
    mask = {"weight": torch.tensor([[True, False]] * 4)}
    with pytest.raises(TypeError, match="SparseAdam cannot be frozen: it takes sparse gradients"):
        freeze(optim.SparseAdam(table.named_parameters()), mask)
    with pytest.raises(TypeError, match="LBFGS cannot be frozen: its line search"):
        freeze(optim.LBFGS(table.parameters()))
    with pytest.raises(TypeError, match=r"an optimizer of torch, not a <class '.*Embedding'>"):
        freeze(table, mask)
    optimizer = optim.SGD(table.named_parameters(), lr=0.1)
    freeze(optimizer, mask)
    with pytest.raises(RuntimeError, match=r"'weight' is sparse, .* sparse=False"):
        table(torch.tensor([1])).sum().backward()
