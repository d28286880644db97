"""Checkpoints, copies and pickles of a frozen optimizer: interrupted equals uninterrupted."""

import copy
import io
import pickle
import warnings

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn, optim

from parameter_ordering.freezing import freeze, unfreeze
from tests.frozen.cases import (
    HALF,
    cases,
    linear,
    same_bits,
    state_of,
    train,
)


def through_checkpoint(pair, case):
    file = io.BytesIO()
    params, optimizer = pair
    torch.save({"params": [p.detach() for p in params], "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    checkpoint = torch.load(file, weights_only=True)
    params, optimizer = case.build(checkpoint["params"])
    freeze(optimizer)
    optimizer.load_state_dict(checkpoint["optimizer"])
    return params, optimizer


def through_copy(pair, case):
    return copy.deepcopy(pair)


def through_pickle(pair, case):
    data = pickle.dumps(pair)
    assert b"parameter_ordering.frozen.hooks" in data  # so a process that loads it imports the freeze
    return pickle.loads(data)


@given(
    cases(),
    st.sampled_from([through_checkpoint, through_copy, through_pickle]),
    st.integers(0, 3),
    st.integers(0, 3),
)
def test_interrupted_and_resumed_is_uninterrupted(case, through, before, after):
    if through is through_checkpoint and case.kind in (optim.ASGD, optim.NAdam):
        # torch casts scalars in the state of these, on loading, to the type of the parameters.
        assume(case.values[0].dtype == torch.float32)
    params, optimizer = case.build()
    train(params, optimizer, case.gradients[:before])
    freeze(optimizer, dict(zip(params, case.masks, strict=True)))
    train(params, optimizer, case.gradients[before : before + after])
    others, other = through((params, optimizer), case)
    train(others, other, case.gradients[before + after :])
    train(params, optimizer, case.gradients[before + after :])
    assert same_bits(params, others)
    assert same_bits(state_of(optimizer), state_of(other))


@pytest.mark.parametrize("through", [through_copy, through_pickle])
@pytest.mark.parametrize("in_backward", [False, True])
def test_a_copy_masks_gradients_where_its_original_does(through, in_backward):
    w = nn.Parameter(torch.ones(4))
    mask = torch.arange(4) < 2
    optimizer = optim.SGD([w], lr=0.1)
    freeze(optimizer, {w: mask}, in_backward=in_backward)
    [v], other = through(([w], optimizer), None)
    v.sum().backward()
    assert torch.equal(v.grad == 0, mask & in_backward)
    other.step()
    assert torch.equal(v == 1, mask)


def test_unfreeze_drops_masks_that_were_loaded_without_freeze():
    _, optimizer = linear(lr=0.1)
    freeze(optimizer, HALF)
    _, other = linear(lr=0.1)
    other.load_state_dict(optimizer.state_dict())
    unfreeze(other)
    assert "frozen_masks" not in other.param_groups[0]


def test_masks_loaded_without_freeze_warn_at_the_step():
    _, optimizer = linear(lr=0.1)
    freeze(optimizer, HALF)
    other_model, other = linear(lr=0.1)
    other.load_state_dict(optimizer.state_dict())
    other_model(torch.ones(1, 3).double()).sum().backward()
    with pytest.warns(UserWarning, match=r"freezes nothing: call freeze\(optimizer\)") as caught:
        other.step()
    assert caught[0].filename == __file__
    before = other_model.weight.detach().clone()
    freeze(other)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        other.step()
    assert torch.equal(other_model.weight != before, ~HALF["weight"])
    other.load_state_dict(optimizer.state_dict())
    unfreeze(other)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        other.step()


def test_a_checkpoint_without_masks_leaves_the_freeze():
    _, old = linear(lr=0.5)
    model, optimizer = linear(lr=0.1)
    freeze(optimizer, HALF)
    checkpoint = old.state_dict()
    optimizer.load_state_dict(checkpoint)
    assert "frozen_masks" not in checkpoint["param_groups"][0]
    before = model.weight.detach().clone()
    train([model.weight], optimizer, [[torch.ones(2, 3).double()]])
    assert torch.equal(model.weight != before, ~HALF["weight"])
    assert optimizer.param_groups[0]["lr"] == 0.5
