"""What freezing again and unfreezing leave behind: state, hooks, moments."""

import math
import weakref
from functools import partial

import pytest
import torch
from hypothesis import given
from torch import nn, optim

from parameter_ordering.freezing import freeze, unfreeze
from parameter_ordering.masked_adam import MaskedAdam
from tests.frozen.cases import (
    ELEMENTWISE,
    HALF,
    cases,
    linear,
    same_bits,
    state_of,
    train,
)


@given(cases(ELEMENTWISE))
def test_freezing_again_is_unfreezing_and_freezing(case):
    params, optimizer = case.build()
    others, other = case.build()
    first = [~m for m in case.masks]
    for p, o in ((params, optimizer), (others, other)):
        freeze(o, dict(zip(p, first, strict=True)))
        train(p, o, case.gradients[:3])
    unfreeze(other)
    before = [p.detach().clone() for p in params]
    for p, o in ((params, optimizer), (others, other)):
        freeze(o, dict(zip(p, case.masks, strict=True)))
        train(p, o, case.gradients[3:])
    assert same_bits(params, others)
    assert same_bits(state_of(optimizer), state_of(other))
    for p, b, m in zip(params, before, case.masks, strict=True):
        assert same_bits([p[m]], [b[m]])


def test_freezing_again_masks_gradients_by_the_new_mask_alone():
    model, optimizer = linear(lr=0.1)
    freeze(optimizer, HALF)
    freeze(optimizer, {"weight": ~HALF["weight"]})
    model(torch.ones(1, 3).double()).sum().backward()
    assert torch.equal(model.weight.grad == 0, ~HALF["weight"])


def test_a_mask_is_copied():
    model, optimizer = linear(lr=0.1)
    mask = {"weight": HALF["weight"].clone()}
    freeze(optimizer, mask)
    mask["weight"].fill_(True)
    freeze(optimizer)
    before = model.weight.detach().clone()
    train([model.weight], optimizer, [[torch.ones(2, 3).double()]])
    assert torch.equal(model.weight != before, ~HALF["weight"])


@pytest.mark.parametrize("kind", [optim.SGD, optim.Adam])
def test_unfreeze_leaves_no_trace(kind):
    model, optimizer = linear(kind, lr=0.1)
    _, fresh = linear(kind, lr=0.1)
    freeze(optimizer, HALF)
    unfreeze(optimizer)
    assert not any(each.peek()[0] is optimizer for each in list(weakref.finalize._registry))
    assert optimizer.__dict__.keys() == fresh.__dict__.keys()
    assert optimizer.param_groups[0].keys() == fresh.param_groups[0].keys()
    assert not [hooks for name, hooks in vars(optimizer).items() if "hooks" in name and hooks]
    assert not model.weight._post_accumulate_grad_hooks
    before = model.weight.detach().clone()
    model(torch.ones(1, 3).double()).sum().backward()
    optimizer.step()
    assert (model.weight != before).all()
    unfreeze(optimizer)


def test_hooks_on_parameters_go_with_the_optimizer():
    model, optimizer = linear(lr=0.1)
    freeze(optimizer, HALF)
    del optimizer
    model(torch.ones(1, 3).double()).sum().backward()
    assert (model.weight.grad == 1).all()


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("kind", [optim.Adam, MaskedAdam, partial(MaskedAdam, compact=True)])
def test_adam_forgets_moments_but_not_the_iteration(kind, decay):
    """The first update of what trains again has the length that the documentation states."""
    w = nn.Parameter(torch.ones(4, dtype=torch.float64))
    mask = torch.tensor([True, True, False, False])
    optimizer = kind([w], lr=0.1, eps=1e-30, weight_decay=decay)
    constant = [torch.full((4,), 3.0, dtype=torch.float64)]
    train([w], optimizer, [constant] * 5)
    freeze(optimizer, {w: mask})
    train([w], optimizer, [constant] * 4)
    unfreeze(optimizer)
    for moment in ("exp_avg", "exp_avg_sq"):
        assert torch.equal(optimizer.state[w][moment] == 0, mask)
    before = w.detach().clone()
    train([w], optimizer, [constant])
    moved = before - w.detach()
    t = 10
    length = (1 - 0.9) / math.sqrt(1 - 0.999) * math.sqrt(1 - 0.999**t) / (1 - 0.9**t)
    assert moved[mask] == pytest.approx([0.1 * length] * 2, rel=1e-9)
    if not decay:
        assert moved[~mask] == pytest.approx([0.1] * 2, rel=1e-9)


def test_other_state_follows_its_own_rule_with_zero_gradient():
    w = nn.Parameter(torch.ones(2, dtype=torch.float64))
    gradient = [torch.tensor([2.0, 2.0], dtype=torch.float64)]
    for optimizer, key, expected in (
        (optim.SGD([w], lr=0.1, momentum=0.5), "momentum_buffer", 2 * 0.5**3),
        (optim.Adagrad([w], lr=0.1), "sum", 4.0),
        (optim.RMSprop([w], lr=0.1, alpha=0.5), "square_avg", 2 * 0.5**3),
    ):
        train([w], optimizer, [gradient])
        freeze(optimizer, {w: torch.tensor([True, False])})
        train([w], optimizer, [gradient] * 3)
        unfreeze(optimizer)
        assert optimizer.state[w][key][0] == expected
