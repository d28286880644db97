"""The decay of AdamW ahead of its step: the bits of the decay in it, whatever comes between."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import optim

from parameter_ordering.freezing import freeze
from parameter_ordering.frozen.parts import FrozenPart
from tests.frozen.cases import HALF, cases, linear, same_bits


@given(
    cases([optim.AdamW], [torch.float32, torch.float64]),
    st.lists(st.sampled_from(["lr", "decay", "none", "part", "train"]), max_size=5),
)
def test_decay_ahead_of_the_step_gives_the_bits_of_decay_in_it(case, events):
    """While learning rate and decay change, and where gradients are missing."""
    pair = [case.build(), case.build()]
    for _, optimizer in pair:
        for group in optimizer.param_groups:
            group["weight_decay"] = 0.3
    freeze(pair[0][1], dict(zip(pair[0][0], case.masks, strict=True)))
    for event, now in zip(["train", *events], case.gradients, strict=False):
        for _, optimizer in pair:
            group = optimizer.param_groups[-1]
            group["lr"] *= 0.7 if event == "lr" else 1
            group["weight_decay"] = {"decay": 0.2, "none": 0.0}.get(event, group["weight_decay"])
        before = [p.detach().clone() for p in pair[0][0]]
        gradients = [None if event == "part" and i else g for i, g in enumerate(now)]
        for params, optimizer in pair:
            for p, g, mask in zip(params, gradients, case.masks, strict=True):
                p.grad = None if g is None else g.masked_fill(mask, 0)
            optimizer.step()
        for p, q, old, mask in zip(
            *(params for params, _ in pair), before, case.masks, strict=True
        ):
            assert same_bits([p[mask]], [old[mask]])
            with torch.no_grad():
                q[mask] = old[mask]
            assert same_bits([p], [q])
        assert (
            pair[0][1].param_groups[-1]["weight_decay"]
            == pair[1][1].param_groups[-1]["weight_decay"]
        )


def fails(*_, **__):
    raise FloatingPointError


@pytest.mark.parametrize("set_since", [False, True])
def test_decay_is_on_again_after_a_step_that_failed(set_since, monkeypatch):
    model, optimizer = linear(optim.AdamW, lr=0.1, weight_decay=0.5)
    freeze(optimizer, HALF)
    model.weight.grad = torch.ones(2, 3).double()
    with monkeypatch.context() as failing:
        failing.setattr(optimizer, "_init_group", fails)
        with pytest.raises(FloatingPointError):
            optimizer.step()
    if set_since:
        optimizer.param_groups[0]["weight_decay"] = 0.25
    decay = 0.25 if set_since else 0.5
    assert optimizer.state_dict()["param_groups"][0]["weight_decay"] == decay
    before = model.weight.detach().clone()
    optimizer.step()
    assert optimizer.param_groups[0]["weight_decay"] == decay
    expected = before * (1 - 0.1 * decay) - 0.1 * torch.ones_like(before)
    torch.testing.assert_close(model.weight[~HALF["weight"]], expected[~HALF["weight"]])


def test_decay_ahead_saves_no_copy_and_gives_way_to_a_scaler_that_skips(monkeypatch):
    model, optimizer = linear(optim.AdamW, lr=0.1, weight_decay=0.5, fused=True)
    freeze(optimizer, HALF)
    with monkeypatch.context() as uncopied:
        uncopied.setattr(FrozenPart, "_save", None)
        model.weight.grad = torch.ones(2, 3).double()
        optimizer.step()
    before = model.weight.detach().clone()
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    scaler.scale((model.weight * torch.inf).sum()).backward()
    model.weight.grad.fill_(torch.inf)
    scaler.step(optimizer)  # the fused step skips itself
    scaler.update()
    assert scaler.get_scale() == 4.0
    assert torch.equal(model.weight, before)


def test_a_closure_sees_parameters_before_their_decay():
    model, optimizer = linear(optim.AdamW, lr=0.1, weight_decay=0.5)
    freeze(optimizer, HALF)
    start = model.weight.detach().clone()

    def closure():
        assert torch.equal(model.weight, start)
        optimizer.zero_grad()
        loss = model(torch.ones(1, 3).double()).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert torch.equal(model.weight != start, ~HALF["weight"])
