"""The schedule: what it freezes and when, and that a resumed run is the uninterrupted one."""

import copy
import io
import pickle
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from parameter_ordering.covariance import GradientCovariance
from parameter_ordering.freezing import freeze
from parameter_ordering.granularity import by_tensors, by_units
from parameter_ordering.order import frozen_mask, rank
from parameter_ordering.schedule import FreezeSchedule, ramp

SIZES = [4 * 3, 3, 3 * 2, 2]
P = sum(SIZES)


def perceptron():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))


def scores_of(model):
    return {name: p.detach().abs() for name, p in model.named_parameters()}


def flat(tensors):
    return torch.cat([t.detach().flatten() for t in tensors])


def iterate(model, optimizer, schedule, batches):
    """Train, and yield after each iteration which parameters it moved."""
    for x in batches:
        before = flat(model.parameters())
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
        schedule.step()
        yield flat(model.parameters()) != before


def batches(number):
    return torch.randn(number, 8, 4, generator=torch.Generator().manual_seed(1))


def adamw(model):
    return torch.optim.AdamW(model.named_parameters(), lr=0.01, weight_decay=0.1)


def test_it_freezes_the_k_first_at_t0():
    model = perceptron()
    expected = flat(frozen_mask(scores_of(model), 9, seed=4).values())
    optimizer, scores = adamw(model), scores_of(model)
    schedule = FreezeSchedule(optimizer, lambda: rank(scores, seed=4), ramp(9, t0=3))
    moved = list(iterate(model, optimizer, schedule, batches(5)))
    assert all(m.all() for m in moved[:3])
    assert all(torch.equal(m, ~expected) for m in moved[3:])


def test_the_order_is_that_of_the_iteration_that_needs_it():
    model = perceptron()
    optimizer = adamw(model)
    schedule = FreezeSchedule(optimizer, lambda: rank(scores_of(model)), ramp(6, t0=2, t1=4))
    for t, _ in enumerate(iterate(model, optimizer, schedule, batches(4)), start=1):
        assert (schedule.ranks is None) == (t < 2)
        if t == 2:
            expected = rank(scores_of(model))
    assert all(torch.equal(schedule.ranks[name], expected[name]) for name in expected)


@given(st.lists(st.integers(0, P), min_size=1, max_size=6))
def test_it_follows_any_k(ks):
    model = perceptron()
    optimizer, scores = adamw(model), scores_of(model)
    schedule = FreezeSchedule(optimizer, lambda: rank(scores), lambda t: ks[t - 1])
    frozen = torch.zeros(P, dtype=torch.bool)
    for t, moved in enumerate(iterate(model, optimizer, schedule, batches(len(ks)))):
        assert torch.equal(moved, ~frozen)
        assert schedule.k == ks[t]
        frozen = flat(frozen_mask(scores, ks[t]).values())
        trains = [not m.all() for m in frozen_mask(scores, ks[t]).values()]
        if ks[t] < P:
            assert [p.requires_grad for p in model.parameters()] == trains
    schedule.unfreeze()
    assert all(p.requires_grad for p in model.parameters())
    nothing = FreezeSchedule(optimizer, dict, lambda t: 0)
    assert all(moved.all() for moved in iterate(model, optimizer, nothing, batches(1)))


def test_unfrozen_it_freezes_again_at_its_next_step():
    model = perceptron()
    optimizer, scores = adamw(model), scores_of(model)
    schedule = FreezeSchedule(optimizer, lambda: rank(scores), ramp(9, t0=1))
    schedule.step()
    schedule.unfreeze()
    assert schedule.k == 0
    (moved,) = iterate(model, optimizer, schedule, batches(1))
    assert moved.all()
    assert schedule.k == 9
    (moved,) = iterate(model, optimizer, schedule, batches(1))
    assert torch.equal(moved, ~flat(frozen_mask(scores, 9).values()))


def test_what_the_schedule_did_not_switch_off_it_does_not_switch_on():
    model = perceptron()
    model[0].weight.requires_grad_(False)
    scores = scores_of(model)
    schedule = FreezeSchedule(adamw(model), lambda: rank(scores), lambda t: P)
    schedule.step()
    model[2].bias.requires_grad_(False)
    schedule.unfreeze()
    assert [p.requires_grad for p in model.parameters()] == [False, True, True, False]


def test_parameters_without_elements():
    model = perceptron()
    model.empty = nn.Parameter(torch.ones(0, 3))
    optimizer, scores = adamw(model), scores_of(model)
    schedule = FreezeSchedule(optimizer, lambda: rank(scores), ramp(9, t0=1))
    schedule.step()
    (moved,) = iterate(model, optimizer, schedule, batches(1))
    assert torch.equal(moved, ~flat(frozen_mask(scores, 9).values()))


@pytest.mark.parametrize(("by", "whole"), [(by_units, 10), (by_tensors, 4)])
def test_units_and_tensors(by, whole):
    model = perceptron()
    optimizer, scores = adamw(model), scores_of(model)
    schedule = FreezeSchedule(optimizer, lambda: rank(by(scores)), lambda t: min(t, whole))
    for t, moved in enumerate(iterate(model, optimizer, schedule, batches(whole + 1))):
        parts = [m.view(p.shape) for m, p in zip(moved.split(SIZES), scores.values(), strict=True)]
        if by is by_units:
            parts = [unit for part in parts for unit in part]
        assert sum(bool(part.all()) for part in parts) == whole - t
        assert sum(not part.any() for part in parts) == t


@pytest.mark.parametrize("interrupted_after", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("optimizer_first", [True, False])
@pytest.mark.parametrize("by", [lambda scores: scores, by_tensors])
def test_resumed_equals_uninterrupted(interrupted_after, optimizer_first, by):
    def build():
        model = perceptron()
        optimizer = adamw(model)
        k = ramp(2 if by is by_tensors else 17, t0=2, t1=4)
        return model, optimizer, FreezeSchedule(optimizer, lambda: rank(by(scores_of(model))), k)

    straight = build()
    list(iterate(*straight, batches(7)))

    stopped = build()
    list(iterate(*stopped, batches(7)[:interrupted_after]))
    file = io.BytesIO()
    torch.save([part.state_dict() for part in stopped], file)
    file.seek(0)
    states = torch.load(file)

    resumed = build()
    model, optimizer, schedule = resumed
    model.load_state_dict(states[0])
    freeze(optimizer)
    if optimizer_first:
        optimizer.load_state_dict(states[1])
    schedule.load_state_dict(states[2])
    if not optimizer_first:
        optimizer.load_state_dict(states[1])
    list(iterate(*resumed, batches(7)[interrupted_after:]))
    assert torch.equal(flat(model.parameters()), flat(straight[0].parameters()))
    assert [p.requires_grad for p in model.parameters()] == [
        p.requires_grad for p in straight[0].parameters()
    ]
    for p, q in zip(model.parameters(), straight[0].parameters(), strict=True):
        for key, value in straight[1].state[q].items():
            assert torch.equal(optimizer.state[p][key], value), key


def test_a_state_from_before_the_order_was_needed():
    model = perceptron()
    optimizer = adamw(model)
    schedule = FreezeSchedule(optimizer, lambda: rank(scores_of(model)), ramp(9, t0=1))
    before = schedule.state_dict()
    schedule.step()
    schedule.load_state_dict(before)
    assert (schedule.t, schedule.k, schedule.ranks) == (0, 0, None)
    (moved,) = iterate(model, optimizer, schedule, batches(1))
    assert moved.all()
    assert all(map(torch.equal, schedule.ranks.values(), rank(scores_of(model)).values()))


def by_size(model):
    return rank(by_tensors(scores_of(model)))


def through_pickle(parts):
    return pickle.loads(pickle.dumps(parts))


@pytest.mark.parametrize("through", [copy.deepcopy, through_pickle])
@pytest.mark.parametrize("after", [0, 2, 3])
def test_a_copy_acts_on_the_model_that_was_copied_with_it(through, after):
    model = perceptron()
    optimizer = adamw(model)
    ranks = partial(by_size, model)
    original = model, optimizer, FreezeSchedule(optimizer, ranks, ramp(3, t0=2, t1=4))
    list(iterate(*original, batches(6)[:after]))
    copied = through(original)
    before = [p.requires_grad for p in model.parameters()]
    copied[2].unfreeze()
    assert all(p.requires_grad for p in copied[0].parameters())
    assert [p.requires_grad for p in model.parameters()] == before
    copied = through(original)
    list(iterate(*copied, batches(6)[after:]))
    assert [p.requires_grad for p in model.parameters()] == before
    list(iterate(*original, batches(6)[after:]))
    assert torch.equal(flat(model.parameters()), flat(copied[0].parameters()))
    assert sum(not p.requires_grad for p in copied[0].parameters()) == 3


@pytest.mark.parametrize("before", [False, True])
def test_gradients_are_masked_where_the_freeze_before_or_the_argument_says(before):
    model = perceptron()
    optimizer, scores = adamw(model), scores_of(model)
    if before:
        freeze(optimizer, in_backward=False)
    arguments = {} if before else {"in_backward": False}
    schedule = FreezeSchedule(optimizer, lambda: rank(scores), ramp(9, t0=1), **arguments)
    schedule.step()
    model(batches(1)[0]).square().mean().backward()
    assert all((p.grad != 0).all() for p in model.parameters())
    schedule.load_state_dict(schedule.state_dict())
    optimizer.zero_grad()
    model(batches(1)[0]).square().mean().backward()
    assert all((p.grad != 0).all() for p in model.parameters())


@pytest.mark.parametrize("samples", ["first", "all"])
@pytest.mark.parametrize("by", [lambda scores: scores, by_tensors])
def test_the_covariance_goes_on_while_parameters_freeze(samples, by):
    model = perceptron()
    optimizer, C = adamw(model), GradientCovariance(model, samples)
    k = ramp(4 if by is by_tensors else P, t0=2, t1=5)
    schedule = FreezeSchedule(optimizer, lambda: rank(by(C.diagonal())), k)
    for x in batches(7):
        C.update(nn.functional.mse_loss, x, torch.zeros(8, 2))
        optimizer.step()
        schedule.step()
    assert schedule.k == k(7)
    assert C.t == 7


@given(st.integers(0, 50), st.integers(1, 10), st.integers(0, 10))
def test_the_ramp_rises_in_equal_steps(k, t0, length):
    values = [ramp(k, t0, t0 + length)(t) for t in range(t0 + length + 3)]
    assert values[:t0] == [0] * t0
    assert values[t0 + length :] == [k] * 3
    steps = [after - before for before, after in zip(values[t0 - 1 :], values[t0:], strict=False)]
    assert max(steps[: length + 1]) - min(steps[: length + 1]) <= 1
    assert values == sorted(values)


def test_errors_change_nothing():
    model = perceptron()
    with pytest.raises(ValueError, match=r"build it from model.named_parameters\(\)"):
        FreezeSchedule(torch.optim.SGD(model.parameters()), dict, ramp(1, t0=1))
    optimizer, scores = adamw(model), scores_of(model)
    schedule = FreezeSchedule(optimizer, lambda: rank(scores), lambda t: [3, P + 1, -1, 3][t - 1])
    list(iterate(model, optimizer, schedule, batches(1)))
    for wrong in (rf"k\(2\) is {P + 1}", r"k\(3\) is -1"):
        with pytest.raises(ValueError, match=rf"{wrong}; it must be in \[0, {P}\]"):
            list(iterate(model, optimizer, schedule, batches(1)))
    assert schedule.k == 3
    (moved,) = iterate(model, optimizer, schedule, batches(1))
    assert torch.equal(moved, ~flat(frozen_mask(scores, 3).values()))
    for t0, t1 in ((5, 4), (0, None)):
        with pytest.raises(ValueError, match="1 <= t0 <= t1"):
            ramp(3, t0, t1)
    with pytest.raises(ValueError, match="'other' is not among"):
        FreezeSchedule(optimizer, lambda: {"other": torch.ones(1)}, lambda t: 1).step()
