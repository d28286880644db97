"""Checkpoints, copies and pickles of a frozen optimizer: interrupted equals uninterrupted."""

import copy
import io
import pickle

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn, optim
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

from parameter_ordering.freezing import freeze, unfreeze
from parameter_ordering.masked_adam import MaskedAdam
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
    assert (
        b"parameter_ordering.frozen.hooks" in data
    )  # so a process that loads it imports the freeze
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


def test_masks_loaded_without_freeze_are_an_error_at_the_step():
    _, optimizer = linear(lr=0.1)
    freeze(optimizer, HALF)
    other_model, other = linear(lr=0.1)
    other.load_state_dict(optimizer.state_dict())
    other_model(torch.ones(1, 3).double()).sum().backward()
    before = other_model.weight.detach().clone()
    with pytest.raises(RuntimeError, match=r"freezes nothing: call freeze\(optimizer\) before"):
        other.step()
    assert torch.equal(other_model.weight, before)
    freeze(other)
    other.step()
    assert torch.equal(other_model.weight != before, ~HALF["weight"])
    other.load_state_dict(optimizer.state_dict())
    unfreeze(other)
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


NAMES = ["weight", "bias"]


def shuffled(order, kind=optim.Adam, **options):
    """The linear model with an optimizer that has its parameters in another order, or in groups."""
    torch.manual_seed(1)
    model = nn.Linear(3, 2).double()
    named = dict(model.named_parameters())
    groups = [{"params": [(name, named[name]) for name in group]} for group in order]
    return model, kind(groups, lr=0.1, **options)


ORDERS = [[["weight", "bias"]], [["bias", "weight"]], [["bias"], ["weight"]]]
WAYS = {
    "nested": {},
    "flattened": {"flatten_optimizer_state_dict": True},
    "full": {"full_state_dict": True, "cpu_offload": True},
}
MASKS = HALF | {"bias": torch.tensor([False, True])}


def trained(order, steps=2, **options):
    model, optimizer = shuffled(order, **options)
    freeze(optimizer, MASKS)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.ones(4, 3).double()).square().sum().backward()
        optimizer.step()
    return model, optimizer


def step_moves(model, optimizer):
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer.zero_grad()
    model(torch.ones(4, 3).double()).square().sum().backward()
    optimizer.step()
    return {name: p != before[name] for name, p in model.named_parameters()}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("saved", ORDERS)
@pytest.mark.parametrize("loaded", ORDERS)
def test_the_distributed_state_dict_carries_masks_by_name(way, saved, loaded):
    if way != "flattened" and len(loaded) > len(saved):
        pytest.skip("torch makes no two groups of one")
    options = StateDictOptions(**WAYS[way])
    model, optimizer = trained(saved)
    state = copy.deepcopy(get_optimizer_state_dict(model, optimizer, options=options))
    other_model, other = shuffled(loaded)
    other_model.load_state_dict(model.state_dict())
    freeze(other)
    set_optimizer_state_dict(other_model, other, state, options=options)
    for p, name in zip(other_model.parameters(), NAMES, strict=True):
        there = optimizer.state[dict(model.named_parameters())[name]]
        torch.testing.assert_close(other.state[p]["exp_avg"], there["exp_avg"], rtol=0, atol=0)
    moved, expected = step_moves(other_model, other), step_moves(model, optimizer)
    for name, mask in MASKS.items():
        assert torch.equal(moved[name], ~mask)
        assert torch.equal(moved[name], expected[name])
    assert same_bits(model.parameters(), other_model.parameters())


@pytest.mark.parametrize("frozen_before", [True, False])
@pytest.mark.parametrize("way", ["nested", "flattened"])
def test_masks_survive_a_distributed_checkpoint_on_disk(way, frozen_before, tmp_path):
    """Where nobody has called freeze before, torch drops them, and the step is an error."""
    options = StateDictOptions(**WAYS[way])
    model, optimizer = trained(ORDERS[0])
    saved = {"optimizer": get_optimizer_state_dict(model, optimizer, options=options)}
    dcp.save(saved, checkpoint_id=tmp_path, no_dist=True)
    other_model, other = shuffled(ORDERS[0])
    if frozen_before:
        freeze(other)
    state = {"optimizer": get_optimizer_state_dict(other_model, other, options=options)}
    dcp.load(state, checkpoint_id=tmp_path, no_dist=True)
    set_optimizer_state_dict(other_model, other, state["optimizer"], options=options)
    if frozen_before:
        moved = step_moves(other_model, other)
        assert all(torch.equal(moved[name], ~mask) for name, mask in MASKS.items())
    else:
        with pytest.raises(RuntimeError, match="freezes nothing"):
            step_moves(other_model, other)


@pytest.mark.parametrize("loaded", ORDERS[:2])
def test_a_plain_checkpoint_goes_by_name_too(loaded):
    model, optimizer = trained(ORDERS[0])
    other_model, other = shuffled(loaded)
    other_model.load_state_dict(model.state_dict())
    freeze(other)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    step_moves(model, optimizer), step_moves(other_model, other)
    assert same_bits(model.parameters(), other_model.parameters())
    assert other.param_groups[0]["param_names"] == loaded[0]


@pytest.mark.parametrize("wrap", ["module.", "_orig_mod.", "_orig_mod.module."])
def test_names_of_wrapped_models_are_those_of_the_model_in_checkpoints(wrap):
    _, optimizer = trained(ORDERS[0])
    other_model, other = linear(optim.Adam, lr=0.1)
    other.param_groups[0]["param_names"] = [wrap + name for name in NAMES]
    freeze(other)
    other.load_state_dict(optimizer.state_dict())
    moved = step_moves(other_model, other)
    assert all(torch.equal(moved[name], ~mask) for name, mask in MASKS.items())


def test_what_would_lose_masks_on_the_way_is_refused():
    model, optimizer = linear(optim.Adam, lr=0.1)
    nameless = optim.Adam(model.parameters(), lr=0.1)
    freeze(nameless, {model.weight: HALF["weight"]})
    by_position = get_optimizer_state_dict(model, nameless)
    freeze(optimizer)
    with pytest.raises(ValueError, match=r"by position.* build the optimizer that saves from"):
        set_optimizer_state_dict(model, optimizer, by_position)
    _, renamed = trained(ORDERS[0])
    checkpoint = renamed.state_dict()
    for key in ("frozen_masks", "param_names"):
        masks = checkpoint["param_groups"][0][key]
        new = {"a": masks["weight"], "b": masks["bias"]} if key == "frozen_masks" else ["a", "b"]
        checkpoint["param_groups"][0][key] = new
    with pytest.raises(ValueError, match="none for 'weight': it was saved with other names"):
        optimizer.load_state_dict(checkpoint)


@pytest.mark.parametrize("way", WAYS)
def test_a_state_dict_for_an_optimizer_that_nobody_froze_is_an_error_at_the_step(way):
    options = StateDictOptions(**WAYS[way])
    state = copy.deepcopy(get_optimizer_state_dict(*trained(ORDERS[0]), options=options))
    model, optimizer = shuffled(ORDERS[1])
    before = copy.deepcopy(model.state_dict())
    set_optimizer_state_dict(model, optimizer, copy.deepcopy(state), options=options)
    with pytest.raises(RuntimeError, match="freezes nothing"):
        step_moves(model, optimizer)
    assert all(map(torch.equal, model.state_dict().values(), before.values()))
    if way == "flattened":
        with pytest.raises(
            ValueError, match=r"lost on the way .*: call freeze\(optimizer\) before"
        ):
            freeze(optimizer)
    unfreeze(optimizer)
    freeze(optimizer)
    set_optimizer_state_dict(model, optimizer, state, options=options)
    moved = step_moves(model, optimizer)
    assert all(torch.equal(moved[name], ~mask) for name, mask in MASKS.items())


def test_a_flattened_state_dict_for_a_masked_adam_that_nobody_froze_is_refused():
    options = StateDictOptions(flatten_optimizer_state_dict=True)
    state = get_optimizer_state_dict(*trained(ORDERS[0], kind=MaskedAdam), options=options)
    model, optimizer = shuffled(ORDERS[0], kind=MaskedAdam)
    with pytest.raises(ValueError, match="lost on the way"):
        set_optimizer_state_dict(model, optimizer, state, options=options)


@pytest.mark.parametrize("named", [False, True])
def test_a_checkpoint_whose_masks_stand_in_a_list_still_loads(named):
    _, optimizer = trained(ORDERS[0])
    checkpoint = optimizer.state_dict()
    [group] = checkpoint["param_groups"]
    group["frozen_masks"] = [HALF["weight"], None]
    other_model, other = shuffled(ORDERS[0])
    if not named:
        other = optim.Adam(other_model.parameters(), lr=0.1)
        del group["param_names"]
    freeze(other)
    other.load_state_dict(checkpoint)
    moved = step_moves(other_model, other)
    assert torch.equal(moved["weight"], ~HALF["weight"])
    assert moved["bias"].all()


def test_groups_with_the_same_names_keep_their_masks():
    models = [linear()[0] for _ in range(2)]
    groups = [{"params": list(model.named_parameters())} for model in models]
    optimizer = optim.SGD(groups, lr=0.1)
    freeze(optimizer, {models[1].weight: HALF["weight"]})
    freeze(optimizer)
    optimizer.load_state_dict(optimizer.state_dict())
    moved = [step_moves(model, optimizer)["weight"] for model in models]
    assert moved[0].all()
    assert torch.equal(moved[1], ~HALF["weight"])
