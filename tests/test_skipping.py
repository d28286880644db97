"""Skipped gradients: what is not computed, what stays put, and that nothing else changes."""

import copy
from contextlib import suppress

import pytest
import torch
from torch import nn

from parameter_ordering.freezing import freeze, unfreeze
from parameter_ordering.skipping import skip_gradients

OPTIMIZERS = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1, nesterov=True),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.1, weight_decay=0.1, amsgrad=True),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.1),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=0.1, momentum=0.9, weight_decay=0.1),
    "Adagrad": lambda p: torch.optim.Adagrad(p, lr=0.1, weight_decay=0.1),
    "NAdam": lambda p: torch.optim.NAdam(p, lr=0.1, weight_decay=0.1),
    "Rprop": lambda p: torch.optim.Rprop(p, lr=0.1),
    "Adafactor": lambda p: torch.optim.Adafactor(p, lr=0.1, weight_decay=0.1),
}


def perceptron():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 2))


def mask_of(model, whole=(), half=()):
    mask = {n: torch.zeros_like(p, dtype=torch.bool) for n, p in model.named_parameters()}
    for name in whole:
        mask[name].fill_(True)
    for name in half:
        mask[name].flatten()[::2] = True
    return mask


def batches(number):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(number, 8, 4, generator=generator)


def train(model, optimizer, data):
    for x in data:
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("optimizer_name", OPTIMIZERS)
def test_training_is_that_of_freezing_alone(optimizer_name):
    plain, skipping = perceptron(), perceptron()
    mask = mask_of(plain, whole=["0.weight", "2.bias"], half=["0.bias", "4.weight"])
    for model in (plain, skipping):
        optimizer = OPTIMIZERS[optimizer_name](model.named_parameters())
        train(model, optimizer, batches(3))
        freeze(optimizer, mask)
        start = copy.deepcopy(model.state_dict())
        with skip_gradients(model.named_parameters(), mask if model is skipping else {}):
            train(model, optimizer, batches(4))
        for name, p in model.named_parameters():
            assert torch.equal(p[mask[name]], start[name][mask[name]])
            assert mask[name].all() == torch.equal(p, start[name])
    assert all(map(torch.equal, plain.state_dict().values(), skipping.state_dict().values()))


@pytest.mark.parametrize("optimizer_name", OPTIMIZERS)
def test_without_a_freeze_too_the_optimizers_pass_over_what_is_skipped(optimizer_name):
    model = perceptron()
    optimizer = OPTIMIZERS[optimizer_name](model.parameters())
    train(model, optimizer, batches(3))
    start = model[0].weight.detach().clone()
    state = copy.deepcopy(optimizer.state[model[0].weight])
    with skip_gradients(model.named_parameters(), mask_of(model, whole=["0.weight"])):
        train(model, optimizer, batches(4))
    assert torch.equal(model[0].weight, start)
    for key, value in optimizer.state[model[0].weight].items():
        assert torch.equal(torch.as_tensor(value), torch.as_tensor(state[key])), key
    train(model, optimizer, batches(1))
    assert not torch.equal(model[0].weight, start)


def test_backward_stops_at_the_first_layer_that_trains():
    model = perceptron()
    needed = []
    for layer in model:
        layer.register_forward_hook(lambda _, __, output: needed.append(output.requires_grad))
    first_two = [name for name, _ in model.named_parameters() if name[0] in "02"]
    with skip_gradients(model.named_parameters(), mask_of(model, whole=first_two)):
        model(batches(1)[0]).sum().backward()
    assert needed == [False, False, False, False, True]
    assert [p.grad is None for p in model.parameters()] == [True] * 4 + [False] * 2


def test_a_gradient_from_before_is_gone():
    model = perceptron()
    optimizer = torch.optim.SGD(model.named_parameters(), lr=0.1, weight_decay=0.1)
    model(batches(1)[0]).sum().backward()
    start = model[0].weight.detach().clone()
    with skip_gradients(model.named_parameters(), mask_of(model, whole=["0.weight"])):
        optimizer.step()
    assert torch.equal(model[0].weight, start)


def test_requires_grad_is_as_before_also_after_an_exception():
    model = perceptron()
    model[2].requires_grad_(False)
    before = [p.requires_grad for p in model.parameters()]
    mask = mask_of(model, whole=["0.weight", "2.weight"])
    with suppress(KeyError), skip_gradients(model.named_parameters(), mask):
        raise KeyError
    assert [p.requires_grad for p in model.parameters()] == before
    skipped = skip_gradients(model.named_parameters(), mask)
    assert not model[0].weight.requires_grad
    skipped.close()
    assert [p.requires_grad for p in model.parameters()] == before


def test_with_all_frozen_backward_is_legal_and_nothing_moves():
    model = perceptron()
    mask = mask_of(model, whole=[name for name, _ in model.named_parameters()])
    optimizer = torch.optim.AdamW(model.named_parameters())
    freeze(optimizer, mask)
    start = copy.deepcopy(model.state_dict())
    with skip_gradients(model.named_parameters(), mask):
        assert [p.requires_grad for p in model.parameters()] == [False] * 5 + [True]
        train(model, optimizer, batches(3))
    assert all(map(torch.equal, model.state_dict().values(), start.values()))
    unfreeze(optimizer)
    train(model, optimizer, batches(1))
    assert not any(map(torch.equal, model.state_dict().values(), start.values()))


def test_what_has_no_elements_is_not_the_one_that_keeps_its_gradient():
    model = nn.Module()
    model.w, model.empty = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(0))
    mask = {name: torch.ones_like(p, dtype=torch.bool) for name, p in model.named_parameters()}
    with skip_gradients(model.named_parameters(), mask):
        model.w.sum().backward()
    assert model.w.grad.tolist() == [1, 1]


def test_unknown_names_change_nothing():
    model = perceptron()
    mask = mask_of(model, whole=["0.weight"]) | {"1.weight": torch.ones(2, dtype=torch.bool)}
    with pytest.raises(ValueError, match=r"\['1.weight'\]"):
        skip_gradients(model.named_parameters(), mask)
    assert all(p.requires_grad for p in model.parameters())
